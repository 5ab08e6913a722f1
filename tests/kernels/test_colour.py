"""Colour conversion: known values of the recommendations, the definition for any frame, and FFmpeg's own conversion."""

import numpy as np
import pytest
from hypothesis import given, settings
from random_frames import frames, make_frame
from resampling_by_definition import LUMA_WEIGHTS, picture_by_definition

from retinastream.kernels.colour import to_bgr, yuv_to_bgr_matrix
from retinastream.types import PIXEL_FORMATS, Frame

COLOURS = {
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "grey": (128, 128, 128),
    "red": (0, 0, 255),
    "green": (0, 255, 0),
    "blue": (255, 0, 0),
    "yellow": (0, 255, 255),
    "a skin tone": (130, 160, 210),
}


def encoded(bgr, matrix, full_range):
    """Y, U, V in 8-bit code values, not rounded: the encoding equations of the recommendations."""
    blue, green, red = (v / 255 for v in bgr)
    kr, kb = LUMA_WEIGHTS[matrix]
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    cb, cr = (blue - luma) / (2 * (1 - kb)), (red - luma) / (2 * (1 - kr))
    if full_range:
        return 255 * luma, 255 * cb + 128, 255 * cr + 128
    return 219 * luma + 16, 224 * cb + 128, 224 * cr + 128


@pytest.mark.parametrize("full_range", [False, True], ids=["limited range", "full range"])
@pytest.mark.parametrize("matrix", sorted(LUMA_WEIGHTS))
@pytest.mark.parametrize("colour", COLOURS)
def test_the_matrix_returns_known_colours(colour, matrix, full_range):
    yuv = encoded(COLOURS[colour], matrix, full_range)
    np.testing.assert_allclose(yuv_to_bgr_matrix(matrix, full_range) @ [*yuv, 1], COLOURS[colour], atol=1e-9)


@pytest.mark.parametrize(
    ("matrix", "code", "bgr"),
    [
        # 8-bit code values of 100 % colour bars, as the recommendations and test charts print them
        pytest.param("bt601", (235, 128, 128), (255, 255, 255), id="BT.601 white"),
        pytest.param("bt601", (81, 90, 240), (0, 0, 255), id="BT.601 red"),
        pytest.param("bt601", (145, 54, 34), (0, 255, 0), id="BT.601 green"),
        pytest.param("bt601", (41, 240, 110), (255, 0, 0), id="BT.601 blue"),
        pytest.param("bt709", (63, 102, 240), (0, 0, 255), id="BT.709 red"),
        pytest.param("bt709", (173, 42, 26), (0, 255, 0), id="BT.709 green"),
        pytest.param("bt709", (32, 240, 118), (255, 0, 0), id="BT.709 blue"),
        pytest.param("bt2020", (74, 97, 240), (0, 0, 255), id="BT.2020 red"),
        pytest.param("bt709", (16, 128, 128), (0, 0, 0), id="BT.709 black"),
    ],
)
def test_code_values_of_colour_bars_become_their_colours(matrix, code, bgr):
    planes = tuple(np.full((4, 4), v, np.uint8) for v in code)
    frame = Frame(planes, PIXEL_FORMATS["yuv444p"], 4, 4, matrix=matrix)
    assert np.abs(to_bgr(frame).astype(int) - bgr).max() <= 2


def test_the_matrix_cannot_be_changed_by_a_caller():
    with pytest.raises(ValueError, match="read-only"):
        yuv_to_bgr_matrix("bt709", False)[0, 0] = 0


@settings(max_examples=200, deadline=None)
@given(frames())
def test_any_frame_becomes_the_picture_of_the_definition(frame):
    picture = to_bgr(frame)
    assert picture.dtype == np.uint8
    width, height = frame.upright_size
    assert picture.shape == (height, width, 3)
    assert np.abs(picture - picture_by_definition(frame, width, height)).max() <= 1.0


@pytest.mark.parametrize("name", sorted(PIXEL_FORMATS))
def test_ten_bits_and_eight_bits_of_one_picture_agree(name):
    eight = {"p010": "nv12"}.get(name, name.removesuffix("p10") + "p" if name.endswith("p10") else name)
    frame = make_frame(eight, 20, 14)
    fmt = PIXEL_FORMATS[name]
    deeper = fmt.bits - 8 + fmt.shift
    planes = tuple(p.astype(fmt.dtype) << deeper for p in frame.planes)
    other = Frame(planes, fmt, 20, 14)
    assert np.abs(to_bgr(other).astype(int) - to_bgr(frame)).max() <= 1


@pytest.mark.parametrize("full_range", [False, True], ids=["limited range", "full range"])
@pytest.mark.parametrize("matrix", sorted(LUMA_WEIGHTS))
@pytest.mark.parametrize("name", ["yuv444p", "nv12", "yuv422p10", "p010"])
def test_a_colour_is_rounded_once_and_exactly(name, matrix, full_range):
    frame = make_frame(name, 512, 202, seed=3, matrix=matrix, full_range=full_range)
    expected = np.rint(picture_by_definition(frame, 512, 202))
    # What lies in the middle between two levels may go either way: at full range in BT.601, one sample in 10,000.
    assert np.mean(to_bgr(frame) != expected) < 2e-4


def test_a_bgr_frame_is_not_copied_and_turns_counter_clockwise():
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    assert np.shares_memory(to_bgr(Frame.from_bgr(image)), image)
    for rotation in (90, 180, 270):
        frame = Frame.from_bgr(image)
        frame.rotation = rotation
        np.testing.assert_array_equal(to_bgr(frame), np.rot90(image, rotation // 90))


@pytest.mark.parametrize("name", ["yuv420p", "nv12", "yuv422p", "yuv444p", "yuv420p10", "p010"])
def test_ffmpeg_converts_a_smooth_picture_to_the_same_colours(name):
    """Chroma is replicated here and may be interpolated there, so the picture is smooth."""
    av = pytest.importorskip("av", reason="PyAV is not installed")
    width, height = 256, 144
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    bgr = np.stack([60 + 120 * x, 70 + 100 * y, 60 + 60 * (x + y)], -1)
    luma, u, v = (np.asarray(p) for p in encoded(bgr.transpose(2, 0, 1), "bt709", False))
    fmt = PIXEL_FORMATS[name]
    unit = 1 << (fmt.bits - 8)
    chroma = [p[:: fmt.sub_y, :: fmt.sub_x] for p in (u, v)]
    chroma = [np.stack(chroma, -1)] if fmt.interleaved_chroma else chroma
    planes = tuple((np.rint(p * unit).astype(fmt.dtype) << fmt.shift) for p in (luma, *chroma))

    there = av.VideoFrame(width, height, {"p010": "p010le", "yuv420p10": "yuv420p10le"}.get(name, name))
    for plane, values in zip(there.planes, planes, strict=True):
        rows = values.reshape(values.shape[0], -1)
        buffer = np.zeros((plane.height, plane.line_size), np.uint8)
        buffer[:, : rows.shape[1] * rows.itemsize] = np.ascontiguousarray(rows).view(np.uint8)
        plane.update(buffer.tobytes())
    there.colorspace, there.color_range = 1, 1  # BT.709, limited
    theirs = there.reformat(format="bgr24", src_colorspace="ITU709", dst_colorspace="ITU709").to_ndarray()
    ours = to_bgr(Frame(planes, fmt, width, height, matrix="bt709", full_range=False))
    difference = np.abs(ours.astype(int) - theirs)
    assert difference.max() <= 4
    assert difference.mean() < 1.2
