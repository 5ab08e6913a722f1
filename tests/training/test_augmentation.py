"""Plans: where every pixel and every label of a training picture comes from, computed without pixels."""

import colorsys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from retinastream.errors import UsageError
from retinastream.evaluation.labelled_set import LabelledPicture
from retinastream.training.augmentation import AugmentationSettings, plain_plan, plan
from retinastream.training.colour import colour_matrix
from retinastream.training.output_plan import Labels, Tile, carry_labels

PLAIN = {"flip": 0.0, "colour_probability": 0.0, "min_face": 0.0}
ALL = {
    "mosaic": 0.4,
    "shrink_probability": 0.3,
    "target_probability": 0.3,
    "target_heights": (10, 200),
    "rotation": 20,
    "gray": 0.2,
    "blur": 0.3,
}
NEUTRAL = np.eye(3, 4, dtype=np.float32)


def picture(boxes, landmarks=None, ignore=None, scores=None, name="a"):
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    n = len(boxes)
    return LabelledPicture(
        name=name,
        path=None,
        width=None,
        height=None,
        boxes=boxes,
        landmarks=np.full((n, 5, 2), np.nan, np.float32) if landmarks is None else np.asarray(landmarks, np.float32),
        ignore=np.zeros(n, bool) if ignore is None else np.asarray(ignore),
        scores=np.ones(n, np.float32) if scores is None else np.asarray(scores, np.float32),
    )


def random_labels(seed, count=6):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(60, 700, (count, 2))
    pictures = []
    for i, (width, height) in enumerate(sizes):
        n = int(rng.integers(0, 6))
        side = np.exp(rng.uniform(np.log(4), np.log(0.7 * min(width, height)), (n, 1))) * rng.uniform(0.7, 1, (n, 2))
        corner = rng.random((n, 2)) * (np.array([width, height]) - side)
        points = corner[:, None] + side[:, None] * rng.random((n, 5, 2))
        points[rng.random(n) < 0.3] = np.nan
        boxes = np.concatenate([corner, corner + side], axis=1)
        pictures.append(picture(boxes, points, rng.random(n) < 0.2, rng.random(n), str(i)))
    return Labels.of(pictures, sizes)


def carried(one, affine, rectangle=(0, 0, 100, 100), *, min_face=0.0, visible=0.2):
    """The labels of a picture seen through an affine map from output to picture."""
    labels = Labels.of([one], [(1000, 1000)])
    tile = Tile(0, np.asarray(affine, float), rectangle)
    return carry_labels(labels, 0, (tile,), size=100, colour=NEUTRAL, blur=0, min_face=min_face, visible=visible)


IDENTITY = [[1, 0, 0], [0, 1, 0]]


def test_labels_move_and_scale_with_the_picture():
    points = [[[20, 30], [24, 30], [22, 32], [21, 35], [23, 35]]]
    out = carried(picture([[18, 28, 26, 38]], points), [[0.5, 0, 10], [0, 0.5, 20]])
    np.testing.assert_allclose(out.boxes, [[16, 16, 32, 36]])
    np.testing.assert_allclose(out.landmarks, [[[20, 20], [28, 20], [24, 24], [22, 30], [26, 30]]])


def test_mirrored_faces_swap_left_and_right():
    points = [[[20, 30], [24, 31], [22, 32], [21, 35], [23, 36]]]
    out = carried(picture([[18, 28, 26, 38]], points), [[-1, 0, 100], [0, 1, 0]])
    np.testing.assert_allclose(out.boxes, [[74, 28, 82, 38]])
    np.testing.assert_allclose(out.landmarks, [[[76, 31], [80, 30], [78, 32], [77, 36], [79, 35]]])


def test_a_face_stays_one_when_its_centre_is_inside_and_its_box_is_cut():
    out = carried(picture([[-30, 40, 40, 60]]), IDENTITY)
    np.testing.assert_allclose(out.boxes, [[0, 40, 40, 60]])
    assert not out.ignore.any()


@pytest.mark.parametrize(
    ("left", "kept"),
    [(-79.0, True), (-81.0, False)],
    ids=["21 % are seen and become a region to ignore", "19 % are seen and are background"],
)
def test_a_face_whose_centre_is_cut_off_is_ignored_if_enough_of_it_is_seen(left, kept):
    out = carried(picture([[left, 40, left + 100, 60]]), IDENTITY, visible=0.2)
    assert len(out.boxes) == kept
    assert out.ignore.all()
    if kept:
        np.testing.assert_allclose(out.boxes, [[0, 40, 21, 60]])


def test_what_is_ignored_stays_ignored_however_little_is_seen():
    out = carried(picture([[-99, 40, 1, 60]], ignore=[True]), IDENTITY, visible=0.2)
    np.testing.assert_allclose(out.boxes, [[0, 40, 1, 60]])
    assert out.ignore.all()


def test_small_faces_become_ignored_by_what_is_left_of_them():
    boxes = [[10, 10, 18, 18], [30, 10, 37, 17], [50, 10, 54, 26], [-5, 50, 7, 61]]
    out = carried(picture(boxes), IDENTITY, min_face=8)
    # 8x8 is enough, 7x7 is not, 4x16 is 8x8 in area, and the last keeps 7x11 = 8.8 squared.
    np.testing.assert_array_equal(out.ignore, [False, True, False, False])


def test_missing_landmarks_stay_missing_and_scores_travel_along():
    points = np.full((2, 5, 2), np.nan)
    points[1] = 50
    out = carried(picture([[10, 10, 30, 30], [40, 40, 60, 60]], points, scores=[0.4, 0.9]), [[-1, 0, 100], [0, 1, 0]])
    assert np.isnan(out.landmarks[0]).all()
    np.testing.assert_allclose(out.landmarks[1], 50)
    np.testing.assert_allclose(out.scores, [0.4, 0.9])


def test_faces_are_cut_at_the_edge_of_their_tile_not_of_the_picture():
    labels = Labels.of([picture([[30, 10, 60, 40]]), picture([])], [(100, 100)] * 2)
    tiles = (
        Tile(0, np.array([[1.0, 0, 0], [0, 1, 0]]), (0, 0, 50, 100)),
        Tile(1, np.array([[1.0, 0, 0], [0, 1, 0]]), (50, 0, 100, 100)),
    )
    out = carry_labels(labels, 0, tiles, size=100, colour=NEUTRAL, blur=0, min_face=0, visible=0.2)
    np.testing.assert_allclose(out.boxes, [[30, 10, 50, 40]])


@pytest.mark.parametrize("degrees", [0, 10, 45, 90])
def test_turned_boxes_are_those_of_the_ellipse_inside(degrees):
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    offset = np.array([50, 50]) - turn @ np.array([50, 50])
    out = carried(picture([[40, 30, 60, 66]]), np.concatenate([turn, offset[:, None]], axis=1))
    phi = np.linspace(0, 2 * np.pi, 20000)
    ring = np.array([50 + 10 * np.cos(phi), 48 + 18 * np.sin(phi)])
    seen = turn.T @ (ring - offset[:, None])
    np.testing.assert_allclose(out.boxes[0], [*seen.min(axis=1), *seen.max(axis=1)], atol=1e-3)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), step=st.integers(0, 10**6), size=st.sampled_from([64, 320, 641]))
def test_every_plan_is_whole_and_its_labels_lie_inside_it(seed, step, size):
    labels = random_labels(seed)
    for one in plan(AugmentationSettings(**ALL), labels, [0, 3, 5], size=size, seed=seed, step=step):
        covered = np.zeros((size, size), int)
        for tile in one.tiles:
            x0, y0, x1, y1 = tile.rectangle
            covered[y0:y1, x0:x1] += 1
        assert (covered == 1).all()
        assert len(one.boxes) == len(one.landmarks) == len(one.ignore) == len(one.scores)
        assert (one.boxes >= 0).all() and (one.boxes <= size).all()
        assert (one.boxes[:, 2:] > one.boxes[:, :2]).all()
        sides = np.sqrt(np.prod(one.boxes[:, 2:] - one.boxes[:, :2], axis=1))
        assert (sides[~one.ignore] >= 8 - 1e-3).all()
        assert np.isfinite(one.colour).all()
        assert one.tiles[0].picture == one.picture


def test_a_plan_depends_on_seed_step_and_item_and_on_nothing_else():
    labels = random_labels(3)
    chosen = AugmentationSettings(**ALL)

    def numbers(one):
        return [one.colour.tolist(), one.blur, [(t.picture, t.affine.tolist(), t.rectangle) for t in one.tiles]]

    first = [numbers(p) for p in plan(chosen, labels, [0, 1, 2, 3], size=320, seed=5, step=9)]
    np.random.seed(0)
    assert first == [numbers(p) for p in plan(chosen, labels, [0, 1, 2, 3], size=320, seed=5, step=9)]
    assert first[2:] == [numbers(p) for p in plan(chosen, labels, [2, 3], size=320, seed=5, step=9, first_item=2)]
    for change in ({"seed": 6}, {"step": 10}, {"first_item": 1}):
        others = plan(chosen, labels, [0, 1, 2, 3], **({"size": 320, "seed": 5, "step": 9} | change))
        assert all(a != numbers(b) for a, b in zip(first, others, strict=True))


def test_crops_are_a_part_of_the_short_side_inside_the_picture():
    labels = Labels.of([picture([[100, 50, 160, 120]])], [(500, 300)])
    chosen = AugmentationSettings(**PLAIN)
    sides = []
    for one in plan(chosen, labels, [0] * 300, size=100, seed=1, step=1):
        (tile,) = one.tiles
        low, high = tile.affine @ (0, 0, 1), tile.affine @ (100, 100, 1)
        assert (low >= -1e-6).all() and (high <= np.array([500, 300]) + 1e-6).all()
        sides.append(high[0] - low[0])
        assert high[1] - low[1] == pytest.approx(sides[-1])
        assert len(one.boxes) == 1 and not one.ignore.any()
    assert min(sides) == pytest.approx(90, abs=5) and max(sides) == pytest.approx(300, abs=5)


def test_a_crop_shows_a_face_where_the_picture_has_one():
    boxes = [[20, 20, 36, 40]]
    labels = Labels.of([picture(boxes), picture([])], [(640, 480)] * 2)
    plans = plan(AugmentationSettings(), labels, [0] * 300, size=320, seed=2, step=0)
    shown = np.mean([bool((~one.ignore).any()) for one in plans])
    assert shown == 1
    # Blind crops of the same sizes show this face, in a corner, far less often.
    blind = plan(AugmentationSettings(), labels, [1] * 300, size=320, seed=2, step=0)
    held = [
        min(t.affine[0] @ (0, 0, 1), t.affine[0] @ (320, 320, 1)) < 28 and t.affine[1, 2] < 30
        for (t,) in (one.tiles for one in blind)
    ]
    assert np.mean(held) < 0.3


def test_crops_with_a_face_still_lie_anywhere_around_it():
    labels = Labels.of([picture([[310, 230, 330, 250]])], [(640, 480)])
    chosen = AugmentationSettings(**PLAIN, crop=(0.4, 0.5))
    boxes = np.array([p.boxes[0] for p in plan(chosen, labels, [0] * 600, size=100, seed=9, step=0)])
    spread = np.histogram2d(*(boxes[:, :2] + boxes[:, 2:]).T / 2, bins=3, range=[(0, 100)] * 2)[0]
    assert (np.abs(spread - 600 / 9) < 32).all()


def test_faces_too_small_for_any_crop_are_shown_as_large_as_possible():
    labels = Labels.of([picture([[10, 10, 12, 12]])], [(640, 480)])
    chosen = AugmentationSettings(crop=(0.5, 1.0))
    scales = [abs(p.tiles[0].affine[1, 1]) for p in plan(chosen, labels, [0] * 200, size=320, seed=10, step=0)]
    assert np.median(scales) < 0.6 * 480 / 320


def test_a_crop_lies_inside_no_face():
    labels = Labels.of([picture([[50, 50, 350, 350]])], [(400, 400)])
    for one in plan(AugmentationSettings(**PLAIN), labels, [0] * 200, size=100, seed=3, step=0):
        assert (one.boxes != [0, 0, 100, 100]).any()


def test_a_face_larger_than_every_crop_is_shown_in_the_largest():
    labels = Labels.of([picture([[0, 0, 400, 400]])], [(400, 400)])
    scales = [
        p.tiles[0].affine[1, 1] for p in plan(AugmentationSettings(), labels, [0] * 100, size=100, seed=3, step=0)
    ]
    # The largest of eight: 0.3 + 0.7 * 8 / 9 of the short side on average.
    assert np.mean(scales) == pytest.approx(4 * (0.3 + 0.7 * 8 / 9), abs=0.1)


def test_pictures_are_turned_by_up_to_the_angle_and_keep_their_shape():
    labels = random_labels(11)
    degrees = []
    for one in plan(AugmentationSettings(rotation=20, mosaic=0.5), labels, [0] * 300, size=64, seed=11, step=0):
        for tile in one.tiles:
            linear = tile.affine[:, :2]
            scale = np.sqrt(abs(np.linalg.det(linear)))
            np.testing.assert_allclose(linear.T @ linear, scale**2 * np.eye(2), atol=1e-9)
            # The second axis is not mirrored, so its direction is the angle.
            degrees.append(np.rad2deg(np.arctan2(-linear[0, 1], linear[1, 1])))
    assert -20 <= min(degrees) < -19 and 19 < max(degrees) <= 20


def test_targets_show_a_face_at_heights_spread_evenly_in_the_logarithm():
    labels = Labels.of([picture([[300, 200, 380, 300]])], [(640, 480)])
    chosen = AugmentationSettings(**PLAIN, target_probability=1, target_heights=(20, 200), shrink=(1, 4))
    heights = []
    for one in plan(chosen, labels, [0] * 600, size=320, seed=4, step=0):
        assert not one.ignore.any()
        heights.append(one.boxes[0, 3] - one.boxes[0, 1])
    assert min(heights) >= 20 - 1e-3 and max(heights) <= 200 + 1e-3
    quarters = np.histogram(np.log(heights), np.linspace(np.log(20), np.log(200), 5))[0]
    assert (np.abs(quarters - 150) < 45).all()


def test_targets_keep_the_face_whole_and_the_picture_in_view_and_enlarge_no_further_than_allowed():
    labels = Labels.of([picture([[300, 200, 340, 250]]), picture([[0, 0, 40, 50]])], [(640, 480)] * 2)
    chosen = AugmentationSettings(**PLAIN, target_probability=1, target_heights=(5, 500), max_enlarge=2, shrink=(1, 1))
    for one in plan(chosen, labels, [0, 1] * 200, size=320, seed=5, step=0):
        width, height = one.boxes[0, 2:] - one.boxes[0, :2]
        assert height / width == pytest.approx(50 / 40, rel=1e-3)
        assert 320 / 640 * 50 - 1e-3 <= height <= 100 + 1e-3
        (tile,) = one.tiles
        low, high = tile.affine @ (0, 0, 1), tile.affine @ (320, 320, 1)
        for axis, length in enumerate((640, 480)):
            inside = low[axis] >= -1e-6 and high[axis] <= length + 1e-6
            around = low[axis] <= 1e-6 and high[axis] >= length - 1e-6
            assert inside or around


def test_shrinking_shows_the_whole_picture_and_makes_faces_small():
    labels = Labels.of([picture([[300, 200, 380, 300]])], [(640, 480)])
    chosen = AugmentationSettings(**PLAIN, shrink_probability=1, shrink=(1, 3))
    heights = []
    for one in plan(chosen, labels, [0] * 200, size=320, seed=6, step=0):
        low, high = (one.tiles[0].affine @ (v, v, 1) for v in (0, 320))
        assert (low <= 1e-6).all() and (high >= np.array([640, 480]) - 1e-6).all()
        heights.append(one.boxes[0, 3] - one.boxes[0, 1])
    assert min(heights) == pytest.approx(50 / 3, rel=0.05) and max(heights) == pytest.approx(50, rel=0.05)


def test_probabilities_are_met():
    labels = random_labels(7)
    chosen = AugmentationSettings(mosaic=0.3, blur=0.2, gray=0.1, flip=0.25)
    plans = plan(chosen, labels, [0] * 1000, size=64, seed=7, step=0)
    single = [p for p in plans if len(p.tiles) == 1]
    gray = [np.allclose(p.colour[0, :3], p.colour[1, :3]) and np.allclose(p.colour[0], p.colour[2]) for p in plans]
    assert np.mean([len(p.tiles) == 4 for p in plans]) == pytest.approx(0.3, abs=0.045)
    assert np.mean([p.blur > 0 for p in plans]) == pytest.approx(0.2, abs=0.045)
    assert np.mean(gray) == pytest.approx(0.1, abs=0.045)
    assert np.mean([p.tiles[0].affine[0, 0] < 0 for p in single]) == pytest.approx(0.25, abs=0.045)
    assert np.mean([p.colour[0, 3] != 0 for p in plans]) == pytest.approx(0.5, abs=0.045)


def test_a_mosaic_takes_its_other_pictures_by_weight():
    labels = Labels.of([picture([], name=str(i)) for i in range(4)], [(50, 50)] * 4, [1, 0, 2, 5])
    plans = plan(AugmentationSettings(mosaic=1), labels, [1] * 400, size=64, seed=8, step=0)
    assert all(p.tiles[0].picture == 1 for p in plans)
    counts = np.bincount([t.picture for p in plans for t in p.tiles[1:]], minlength=4) / 1200
    np.testing.assert_allclose(counts, [1 / 8, 0, 2 / 8, 5 / 8], atol=0.05)


def test_the_plain_plan_shows_the_whole_picture():
    labels = Labels.of([picture([[0, 0, 200, 100], [10, 10, 12, 12]])], [(200, 100)])
    one = plain_plan(labels, 0, size=100)
    np.testing.assert_allclose(one.boxes, [[0, 25, 100, 75], [5, 30, 6, 31]])
    assert not one.ignore.any()
    np.testing.assert_array_equal(one.colour, NEUTRAL)


def apply(matrix, bgr):
    return matrix[:, :3] @ np.asarray(bgr, float) + matrix[:, 3]


def test_colours_do_what_their_names_say():
    bgr = (40.0, 90.0, 200.0)
    luma = 0.114 * 40 + 0.587 * 90 + 0.299 * 200
    np.testing.assert_allclose(apply(colour_matrix(), bgr), bgr, atol=1e-4)
    np.testing.assert_allclose(apply(colour_matrix(brightness=-20), bgr), (20, 70, 180), atol=1e-4)
    np.testing.assert_allclose(apply(colour_matrix(contrast=0.5), bgr), (20, 45, 100), atol=1e-4)
    np.testing.assert_allclose(apply(colour_matrix(saturation=0), bgr), [luma] * 3, atol=0.2)
    half = luma + 0.5 * (np.array(bgr) - luma)
    np.testing.assert_allclose(apply(colour_matrix(saturation=0.5), bgr), half, atol=0.2)
    np.testing.assert_allclose(apply(colour_matrix(hue=360), bgr), bgr, atol=1e-3)


def test_hue_turns_the_chroma_and_leaves_the_luma():
    before = colorsys.rgb_to_yiq(0.8, 0.4, 0.2)
    blue, green, red = apply(colour_matrix(hue=30), (0.2, 0.4, 0.8))
    after = colorsys.rgb_to_yiq(red, green, blue)
    assert after[0] == pytest.approx(before[0], abs=0.01)
    turned = (before[1] + 1j * before[2]) * np.exp(1j * np.deg2rad(30))
    assert after[1] + 1j * after[2] == pytest.approx(turned, abs=0.02)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"crop": (1.0, 0.3)}, "the lower first"),
        ({"shrink": (0, 1)}, "two positive numbers"),
        ({"flip": 1.5}, "less than or equal to 1"),
        ({"target_probability": 0.5}, "needs target_heights"),
        ({"mozaic": 0.5}, "Extra inputs are not permitted"),
        ({"rotation": 90}, "less than or equal to 45"),
    ],
)
def test_settings_without_sense_are_refused(given, message):
    with pytest.raises(ValidationError, match=message):
        AugmentationSettings(**given)


def test_settings_survive_being_written_and_read():
    chosen = AugmentationSettings(**ALL)
    assert AugmentationSettings.model_validate_json(chosen.model_dump_json()) == chosen


def test_labels_whose_parts_do_not_belong_together_are_refused():
    with pytest.raises(UsageError, match="2 pictures have 1 sizes"):
        Labels.of([picture([]), picture([])], [(10, 10)])
    with pytest.raises(UsageError, match="weights"):
        Labels.of([picture([])], [(10, 10)], [0.0])
