"""Preprocessing equals its definition for every format, size, rotation, matrix and range."""

import math

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from random_frames import frames, make_frame
from resampling_by_definition import picture_by_definition

from retinastream.kernels.preprocess import preprocess
from retinastream.kernels.sizing import Placement, SizePolicy
from retinastream.models.spec import DetectorSpec
from retinastream.types import PIXEL_FORMATS

SPEC = DetectorSpec()
RGB_SPEC = DetectorSpec(channel_order="rgb", mean=(127.5, 120.0, 110.25), scale=1 / 128)


def place(source_width, source_height, width, height, stride=8):
    up = (-(-n // stride) * stride for n in (width, height))
    return Placement(source_width, source_height, width, height, *up)


def as_uint8(frame_list, placements, spec=SPEC):
    out = np.full((len(frame_list), placements[0].padded_height, placements[0].padded_width, 3), 77, np.uint8)
    preprocess(frame_list, placements, spec, out)
    return out


def as_float(frame_list, placements, spec=SPEC):
    out = np.full((len(frame_list), 3, placements[0].padded_height, placements[0].padded_width), np.nan, np.float32)
    preprocess(frame_list, placements, spec, out)
    return out


TARGETS = {
    "as it is": lambda n, draw: n,
    "enlarged": lambda n, draw: n + draw(st.integers(0, 30)),
    "twice": lambda n, draw: 2 * n,
    "reduced by at most 2": lambda n, draw: draw(st.integers(math.ceil(n / 2), n)),
    "halved": lambda n, draw: math.ceil(n / 2),
    "reduced by more than 2": lambda n, draw: draw(st.integers(1, max(1, (n - 1) // 2))),
    "reduced to a third": lambda n, draw: max(1, n // 3),
}


@st.composite
def targets(draw, width, height):
    """A target size: both axes by the same kind, or each by its own."""
    kind = draw(st.sampled_from(sorted(TARGETS)))
    other = draw(st.sampled_from(sorted(TARGETS)))
    if draw(st.booleans()):
        other = kind
    event(f"{kind}, {other}")
    return TARGETS[kind](width, draw), TARGETS[other](height, draw)


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_any_frame_at_any_size_equals_the_definition(data):
    frame = data.draw(frames())
    width, height = data.draw(targets(*frame.upright_size))
    placement = place(*frame.upright_size, width, height)
    expected = picture_by_definition(frame, width, height)

    picture = as_uint8([frame], [placement])[0]
    difference = np.abs(picture[:height, :width] - expected).max()
    assert difference <= 1.0
    assert (picture[height:] == SPEC.mean).all()
    assert (picture[:, width:] == SPEC.mean).all()

    planar = as_float([frame], [placement])[0]
    back = planar.transpose(1, 2, 0) + np.asarray(SPEC.mean, np.float32)
    np.testing.assert_array_equal(back, picture)
    assert (planar[:, height:] == 0).all()
    assert (planar[:, :, width:] == 0).all()


@pytest.mark.parametrize("name", sorted(PIXEL_FORMATS))
@pytest.mark.parametrize(
    ("source", "target"),
    [
        pytest.param((64, 36), (64, 36), id="as it is"),
        pytest.param((63, 35), (63, 35), id="as it is with odd sides"),
        pytest.param((64, 36), (32, 18), id="exactly halved"),
        pytest.param((63, 35), (32, 18), id="halved with odd sides"),
        pytest.param((96, 54), (32, 18), id="exactly a third: what 4K to 1280 is"),
        pytest.param((95, 55), (31, 18), id="about a third with odd sides"),
        pytest.param((67, 41), (29, 17), id="a fraction above two"),
        pytest.param((60, 40), (90, 60), id="enlarged"),
        pytest.param((64, 8), (20, 8), id="only the width reduced by more than two"),
        pytest.param((64, 64), (20, 40), id="the width reduced by more than two, the height by less"),
        pytest.param((63, 63), (20, 60), id="the width reduced by more than two, the height hardly"),
        pytest.param((64, 10), (16, 15), id="the width reduced by four, the height enlarged"),
        pytest.param((1, 1), (1, 1), id="a single pixel"),
        pytest.param((1, 1), (5, 9), id="a single pixel enlarged"),
        pytest.param((70, 1), (3, 1), id="a single row"),
        pytest.param((1, 70), (1, 33), id="a single column"),
    ],
)
def test_named_sizes_equal_the_definition(name, source, target):
    for seed, content in enumerate(("noise", "extremes")):
        frame = make_frame(name, *source, seed=seed, content=content, row_padding=5)
        picture = as_uint8([frame], [place(*source, *target)])[0][: target[1], : target[0]]
        assert np.abs(picture - picture_by_definition(frame, *target)).max() <= 1.0


@pytest.mark.parametrize("target", [(150, 117), (201, 161), (90, 70)])
def test_a_bgr_picture_is_resampled_with_one_rounding(target):
    frame = make_frame("bgr24", 200, 160, seed=5)
    placement = place(200, 160, *target)
    found = as_uint8([frame], [placement])[0, : target[1], : target[0]]
    assert np.mean(found != np.rint(picture_by_definition(frame, *target))) < 2e-3


@settings(max_examples=30, deadline=None)
@given(frames(st.integers(1, 40)))
def test_a_network_that_takes_rgb_gets_its_own_mean_and_scale(frame):
    width, height = frame.upright_size
    planar = as_float([frame], [place(width, height, width, height)], RGB_SPEC)[0]
    rgb = planar[:, :height, :width].transpose(1, 2, 0) * 128 + RGB_SPEC.mean
    assert np.abs(rgb[..., ::-1] - picture_by_definition(frame, width, height)).max() <= 1.0001
    assert (planar[:, height:] == 0).all()
    assert (planar[:, :, width:] == 0).all()


def test_uint8_padding_is_the_rounded_mean_in_bgr_order_whatever_the_network_takes():
    spec = DetectorSpec(channel_order="rgb", mean=(123.0, 117.4, 103.6))
    picture = as_uint8([make_frame("nv12", 3, 3)], [place(3, 3, 3, 3)], spec)[0]
    assert picture[3:].reshape(-1, 3).tolist() == [[104, 117, 123]] * (5 * 8)


def test_a_batch_is_its_frames_one_by_one_also_with_mixed_formats():
    names = ["nv12", "p010", "yuv422p10", "bgr24"]
    batch = [make_frame(n, 30, 22, seed=k, rotation=0 if k % 2 else 180) for k, n in enumerate(names)]
    placement = place(30, 22, 17, 12)
    together = as_float(batch, [placement] * 4)
    for frame, one in zip(batch, together, strict=True):
        np.testing.assert_array_equal(one, as_float([frame], [placement])[0])


def test_frames_are_not_changed():
    for name in PIXEL_FORMATS:
        frame = make_frame(name, 31, 17)
        before = [p.copy() for p in frame.planes]
        for target in ((31, 17), (10, 6), (40, 20)):
            as_float([frame], [place(31, 17, *target)])
            as_uint8([frame], [place(31, 17, *target)])
        for plane, copy in zip(frame.planes, before, strict=True):
            np.testing.assert_array_equal(plane, copy)


def test_read_only_planes_are_accepted():
    for name in PIXEL_FORMATS:
        frame = make_frame(name, 31, 17, rotation=90)
        sizes = [place(17, 31, 17, 31), place(17, 31, 5, 9)]
        writable = [as_uint8([frame], [size]).copy() for size in sizes]
        for plane in frame.planes:
            plane.flags.writeable = False
        for size, expected in zip(sizes, writable, strict=True):
            np.testing.assert_array_equal(as_uint8([frame], [size]), expected)


def test_a_batch_that_does_not_match_its_frames_is_refused():
    frame = make_frame("nv12", 8, 8)
    with pytest.raises(ValueError, match="zip"):
        preprocess([frame, frame], [place(8, 8, 8, 8)] * 2, SPEC, np.zeros((1, 8, 8, 3), np.uint8))


def test_a_4k_frame_reduced_by_policy_equals_the_definition_in_its_corners():
    """Far from the origin, positions and footprints must still be exact."""
    frame = make_frame("nv12", 3840, 24, content="noise")
    (placement,) = SizePolicy.parse("fit:1100").placements(3840, 24, 32)
    picture = as_uint8([frame], [placement])[0][: placement.height, : placement.width]
    assert np.abs(picture - picture_by_definition(frame, placement.width, placement.height)).max() <= 1.0
