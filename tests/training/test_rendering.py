"""Pixels of a plan: by definition, on both renderers, and in agreement with the labels."""

import colorsys

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from ramp_pictures import FIRST, LAST, faces, labelled, noise, ramp, ramp_set  # noqa: E402

from retinastream.training import rendering_device  # noqa: E402
from retinastream.training.augmentation import AugmentationSettings, plain_plan, plan  # noqa: E402
from retinastream.training.cache import PictureCache  # noqa: E402
from retinastream.training.colour import colour_matrix  # noqa: E402
from retinastream.training.output_plan import Labels, OutputPlan, Tile, carry_labels  # noqa: E402
from retinastream.training.rendering import network_input, render, tile_source  # noqa: E402
from retinastream.training.rendering_device import network_input_on_device, render_on_device  # noqa: E402

FILL = (104.0, 117.0, 123.0)
GEOMETRY = {"colour_probability": 0.0, "flip": 0.0, "min_face": 0.0}
AUGMENTATIONS = {
    "crop": {},
    "flip": {"flip": 1.0},
    "zoom out": {"shrink_probability": 1.0, "shrink": (1.0, 2.5)},
    "target": {"target_probability": 1.0, "target_heights": (10, 200)},
    "rotation": {"rotation": 30.0},
    "mosaic": {"mosaic": 1.0},
    "blur": {"blur": 1.0},
    "all": {
        "flip": 0.5,
        "shrink_probability": 0.3,
        "target_probability": 0.3,
        "target_heights": (10, 200),
        "rotation": 20.0,
        "mosaic": 0.5,
        "blur": 0.2,
    },
}


def on_cpu(plans, cache):
    return render(plans, cache, fill=FILL)


def on_torch(plans, cache):
    return render_on_device(plans, cache, cache.to("cpu"), fill=FILL).numpy()


def on_cuda(plans, cache):
    return render_on_device(plans, cache, cache.to("cuda"), fill=FILL).cpu().numpy()


RENDERERS = [
    pytest.param(on_cpu, id="opencv"),
    pytest.param(on_torch, id="torch on the CPU"),
    pytest.param(on_cuda, id="torch on CUDA", marks=pytest.mark.gpu),
]


@pytest.fixture(scope="module")
def ramps(tmp_path_factory):
    pictures = ramp_set(tmp_path_factory.mktemp("ramps"))
    cache = PictureCache(pictures, long_side=512)
    return cache, Labels.of(pictures, cache.sizes)


@pytest.fixture(scope="module")
def noises(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(1)
    pictures = []
    for i, (width, height) in enumerate([(90, 61), (33, 120), (200, 150)]):
        boxes, points = faces(3, width, height, rng)
        pictures.append(labelled(folder / f"{i}.png", noise(width, height, i), boxes, points))
    cache = PictureCache(pictures, long_side=128)
    return cache, Labels.of(pictures, cache.sizes)


def by_definition(one, cache):
    """The rendered picture in plain loops and double precision; NaN within 1e-3 px of the picture's edge."""
    out = np.empty((one.size, one.size, 3))
    for tile in one.tiles:
        width, height = cache.size(tile.picture)
        reduction = np.sqrt(abs(np.linalg.det(tile.affine[:, :2])) * np.prod(cache.scale(tile.picture, 0)))
        level = 0
        while reduction >= 2:
            level, reduction = level + 1, reduction / 2
        level = min(level + one.blur, cache.level_count(tile.picture) - 1)
        pixels = cache.level(tile.picture, level).astype(float)
        across, down = cache.scale(tile.picture, level)
        x0, y0, x1, y1 = tile.rectangle
        for row in range(y0, y1):
            for column in range(x0, x1):
                x, y = tile.affine @ (column + 0.5, row + 0.5, 1)
                margin = min(x, width - x, y, height - y)
                if abs(margin) < 1e-3:
                    out[row, column] = np.nan
                elif margin < 0:
                    out[row, column] = FILL
                else:
                    sample = np.rint(bilinear(pixels, x * across - 0.5, y * down - 0.5))
                    out[row, column] = np.clip(one.colour[:, :3] @ sample + one.colour[:, 3], 0, 255)
    return out


def bilinear(pixels, x, y):
    left, top = int(np.floor(x)), int(np.floor(y))
    total = np.zeros(3)
    for row, vertical in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, horizontal in ((left, 1 - (x - left)), (left + 1, x - left)):
            r = min(max(row, 0), pixels.shape[0] - 1)
            c = min(max(column, 0), pixels.shape[1] - 1)
            total += vertical * horizontal * pixels[r, c]
    return total


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_pixels_are_those_of_the_definition(noises, renderer, name):
    cache, labels = noises
    chosen = AugmentationSettings(**(GEOMETRY | AUGMENTATIONS[name] | {"colour_probability": 0.5}))
    plans = plan(chosen, labels, [0, 1, 2], size=40, seed=3, step=1)
    for one, image in zip(plans, renderer(plans, cache), strict=True):
        expected = by_definition(one, cache)
        difference = np.abs(image - expected)[np.isfinite(expected)]
        # OpenCV before 5 samples at multiples of 1/32 px; contrast makes two levels of one.
        assert np.mean(difference) < 0.6
        assert np.max(difference) < 12
        if renderer is not on_cpu:
            assert np.mean(difference > 0.51) < 0.005


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_both_renderers_draw_the_same(noises, name):
    cache, labels = noises
    chosen = AugmentationSettings(**(GEOMETRY | AUGMENTATIONS[name] | {"colour_probability": 0.5}))
    plans = plan(chosen, labels, [0, 1, 2] * 3, size=96, seed=4, step=1)
    difference = np.abs(on_cpu(plans, cache).astype(int) - on_torch(plans, cache))
    assert difference.mean() < 0.6
    assert (difference > 12).mean() < 1e-4


def look_at(image, x, y):
    """Blue and green at a fractional place of an output picture, between the centres of its pixels."""
    place = np.array([[[x - 0.5, y - 0.5]]], np.float32)
    return cv2.remap(image, place, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[0, 0, :2].astype(float)


def sources_of(image, points, tile):
    """Where the pixels at some places of the output were taken from, by their colours (as parts of the source)."""
    x0, y0, x1, y1 = tile.rectangle
    parts = []
    for x, y in points:
        inside = x0 + 1.5 < x < x1 - 1.5 and y0 + 1.5 < y < y1 - 1.5
        parts.append((look_at(image, x, y) - FIRST) / (LAST - FIRST) if inside else (np.nan, np.nan))
    return np.array(parts)


def check_labels_point_at_their_source(cache, labels, chosen, renderer, seed, size=160):
    """Follow every landmark and uncut box back through the colours; count what could be followed."""
    plans = plan(chosen, labels, range(len(labels.pictures)), size=size, seed=seed, step=0)
    followed = 0
    for one, image in zip(plans, renderer(plans, cache), strict=True):
        at = 0
        for tile in one.tiles:
            source = labels.pictures[tile.picture]
            width, height = labels.sizes[tile.picture]
            alone = carry_labels(
                labels, 0, (tile,), size=size, colour=one.colour, blur=0, min_face=0, visible=chosen.visible
            )
            count = len(alone.boxes)
            boxes, points = one.boxes[at : at + count], one.landmarks[at : at + count]
            scores = one.scores[at : at + count]
            at += count
            mirrored = np.linalg.det(tile.affine[:, :2]) < 0
            # A pixel of output is this many of the source; a level of colour this many of the source's long side.
            tolerance = np.abs(tile.affine[:, :2]).sum(axis=1) * 0.6 * 2**one.blur / (width, height) + 1.8 / 215
            for box, five, score in zip(boxes, points, scores, strict=True):
                number = int(np.argmin(np.abs(source.scores - score)))
                expected = source.landmarks[number]
                if mirrored:
                    expected = expected[[1, 0, 2, 4, 3]]
                found = sources_of(image, five, tile)
                # A pixel of output nearer than this to the border of the source is beside one that shows the void.
                border = np.abs(tile.affine[:, :2]).sum(axis=1)
                held = ((expected > border) & (expected < (width, height) - border)).all(axis=1)
                seen = np.isfinite(found).all(axis=1) & held
                assert np.isfinite(five).all() == np.isfinite(expected).all()
                assert (np.abs(found - expected / (width, height))[seen] < tolerance).all()
                middle = (source.boxes[number, :2] + source.boxes[number, 2:]) / 2
                x0, y0, x1, y1 = tile.rectangle
                uncut = box[0] > x0 and box[1] > y0 and box[2] < x1 and box[3] < y1
                uncut &= bool(((middle > border) & (middle < (width, height) - border)).all())
                if uncut:
                    centre = sources_of(image, [(box[:2] + box[2:]) / 2], tile)[0]
                    assert np.isnan(centre).any() or (np.abs(centre - middle / (width, height)) < tolerance).all()
                followed += int(seen.sum()) + bool(uncut)
        assert at == len(one.boxes)
    return followed


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_labels_lie_where_the_pixels_of_the_faces_went(ramps, renderer, name):
    cache, labels = ramps
    chosen = AugmentationSettings(**(GEOMETRY | AUGMENTATIONS[name]))
    assert sum(check_labels_point_at_their_source(cache, labels, chosen, renderer, seed) for seed in range(4)) > 40


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), size=st.sampled_from([64, 97, 320]))
def test_labels_lie_where_the_pixels_went_whatever_is_drawn(ramps, seed, size):
    cache, labels = ramps
    chosen = AugmentationSettings(**(GEOMETRY | AUGMENTATIONS["all"]))
    check_labels_point_at_their_source(cache, labels, chosen, on_cpu, seed, size)


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("name", ["crop", "flip", "zoom out", "target", "rotation"])
def test_a_box_holds_the_ellipse_that_was_drawn_in_it(tmp_path, renderer, name):
    """A white ellipse on black, found again by its pixels: its extent is the box, on every side."""
    picture = np.zeros((400, 500, 3), np.uint8)
    box = np.array([200.0, 120.0, 300.0, 260.0])
    y, x = np.mgrid[0:400, 0:500] + 0.5
    picture[((x - 250) / 50) ** 2 + ((y - 190) / 70) ** 2 <= 1] = 255
    pictures = [labelled(tmp_path / "a.png", picture, box)]
    cache = PictureCache(pictures, long_side=512)
    labels = Labels.of(pictures, cache.sizes)
    chosen = AugmentationSettings(**(GEOMETRY | {"crop": (0.8, 1.0)} | AUGMENTATIONS[name]))
    plans = plan(chosen, labels, [0] * 12, size=200, seed=5, step=0)
    checked = 0
    for one, image in zip(plans, renderer(plans, cache), strict=True):
        # Half covered pixels are the edge; the void is neither black nor white.
        rows, columns = np.nonzero((image > 127.5).all(axis=2))
        found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        whole = (one.boxes[0] > 0.5).all() and (one.boxes[0] < 199.5).all()
        if whole:
            np.testing.assert_allclose(one.boxes[0], found, atol=1.6)
            checked += 1
    assert checked >= 4


@pytest.mark.parametrize("renderer", RENDERERS)
def test_what_lies_outside_is_the_fill_whatever_the_colours(tmp_path, renderer):
    pictures = [labelled(tmp_path / "a.png", np.full((50, 100, 3), 200, np.uint8))]
    cache = PictureCache(pictures)
    labels = Labels.of(pictures, cache.sizes)
    one = plain_plan(labels, 0, size=80)
    dark = OutputPlan(
        0, 80, one.tiles, colour_matrix(brightness=-50), 0, one.boxes, one.landmarks, one.ignore, one.scores
    )
    image = renderer([dark], cache)[0]
    assert (image[20:60] == 150).all()
    assert (image[:20] == FILL).all() and (image[60:] == FILL).all()


@pytest.mark.parametrize("renderer", RENDERERS)
def test_the_plain_plan_at_the_size_of_the_picture_is_the_picture(tmp_path, renderer):
    picture = noise(64, 64, 5)
    pictures = [labelled(tmp_path / "a.png", picture)]
    cache = PictureCache(pictures)
    plans = [plain_plan(Labels.of(pictures, cache.sizes), 0, size=64)]
    np.testing.assert_array_equal(renderer(plans, cache)[0], picture)


@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_large_reduction_shows_every_pixel_of_the_source(tmp_path, renderer):
    """A checkerboard of single pixels becomes its mean: without levels it would become anything."""
    board = np.zeros((512, 512, 3), np.uint8)
    board[::2, ::2] = board[1::2, 1::2] = 200
    pictures = [labelled(tmp_path / "a.png", board)]
    cache = PictureCache(pictures)
    plans = [plain_plan(Labels.of(pictures, cache.sizes), 0, size=size) for size in (100,)]
    assert (np.abs(renderer(plans, cache).astype(int) - 100) <= 1).all()


def test_the_level_is_the_finest_that_is_reduced_by_less_than_two(tmp_path):
    pictures = [labelled(tmp_path / "a.png", ramp(800, 600))]
    cache = PictureCache(pictures, long_side=400)
    for scale, level in ((0.3, 0), (3.9, 0), (4.1, 1), (7.9, 1), (8.1, 2), (1e4, cache.level_count(0) - 1)):
        tile = Tile(0, np.array([[scale, 0, 0], [0, -scale, 5.0]]), (0, 0, 10, 10))
        assert tile_source(cache, tile, 0).level == level
        assert tile_source(cache, tile, 1).level == min(level + 1, cache.level_count(0) - 1)


@pytest.mark.parametrize("renderer", RENDERERS)
def test_colours_of_a_plan_are_applied_to_every_pixel(tmp_path, renderer):
    pictures = [labelled(tmp_path / "a.png", np.full((40, 40, 3), (40, 90, 200), np.uint8))]
    cache = PictureCache(pictures)
    labels = Labels.of(pictures, cache.sizes)
    chosen = AugmentationSettings(colour_probability=1.0, brightness=60, contrast=(0.3, 2.0))
    plans = plan(chosen, labels, [0] * 10, size=32, seed=6, step=0)
    for one, image in zip(plans, renderer(plans, cache), strict=True):
        expected = np.clip(one.colour[:, :3] @ (40, 90, 200) + one.colour[:, 3], 0, 255)
        assert np.abs(image - expected).max() <= 1
    assert len({tuple(image[0, 0]) for image in renderer(plans, cache)}) > 5
    gray = plan(AugmentationSettings(gray=1.0, colour_probability=0), labels, [0], size=32, seed=6, step=0)
    luma = 255 * colorsys.rgb_to_yiq(200 / 255, 90 / 255, 40 / 255)[0]
    assert np.abs(renderer(gray, cache) - luma).max() <= 1.5


def test_a_large_batch_is_rendered_in_parts_that_make_no_difference(noises, monkeypatch):
    cache, labels = noises
    plans = plan(AugmentationSettings(mosaic=0.5), labels, [0, 1, 2] * 3, size=48, seed=7, step=0)
    whole = on_torch(plans, cache)
    monkeypatch.setattr(rendering_device, "PIXELS_AT_ONCE", 48 * 48 * 2 + 1)
    np.testing.assert_array_equal(on_torch(plans, cache), whole)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("order", ["bgr", "rgb"])
def test_network_input_is_in_the_order_and_units_of_the_network(order, channels_last):
    images = np.random.default_rng(8).integers(0, 256, (3, 6, 6, 3), dtype=np.uint8)
    given = {"mean": (1.5, 20.0, 100.0), "channel_order": order, "scale": 0.5, "channels_last": channels_last}
    out = torch.from_numpy(network_input(images, **given))
    expected = images.astype(np.float64)[..., :: 1 if order == "bgr" else -1]
    expected = ((expected - np.array(given["mean"])) * 0.5).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-5)
    again = network_input_on_device(torch.from_numpy(images), **given)
    np.testing.assert_allclose(again.numpy(), expected, atol=1e-5)
    for tensor in (out, again):
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
