"""Decoded pictures become frames whose planes, colour tags and rotation are those of the file."""

from __future__ import annotations

import gc
import resource
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from av.video.frame import VideoFrame

from media.builders import random_frame, rgb_frame, test_picture, write_video
from retinastream.pipeline.pixels import NATIVE_FORMATS, FrameBuilder, nearest_format, orientation, plane_views
from retinastream.pipeline.video import open_video
from retinastream.types import PIXEL_FORMATS, Frame

SIZES = [(64, 48), (37, 23), (1, 1), (1366, 4)]
LOSSLESS = ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuv444p10le", "gray"]


def samples(picture: VideoFrame) -> list[npt.NDArray[Any]]:
    """Read the planes another way: cut the rows out of the padded buffer by the sizes that the format prescribes."""
    layout = NATIVE_FORMATS[picture.format.name]
    planes = []
    for plane, shape in zip(picture.planes, layout.plane_shapes(picture.width, picture.height), strict=True):
        rows = np.frombuffer(bytes(plane), np.uint8).reshape(-1, plane.line_size)
        row = int(np.prod(shape[1:])) * layout.dtype.itemsize
        planes.append(np.ascontiguousarray(rows[: shape[0], :row]).view(layout.dtype).reshape(shape))
    return planes


def wrap(picture: VideoFrame, builder: FrameBuilder | None = None) -> Frame:
    return (builder or FrameBuilder("x")).to_frame(picture, index=0, pts=0, time_base=Fraction(1, 25))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", [name for name in NATIVE_FORMATS if name != "rgb24"])
def test_native_formats_are_viewed_sample_by_sample(name: str, size: tuple[int, int]) -> None:
    picture = random_frame(*size, name)
    frame = wrap(picture)
    assert frame.format is NATIVE_FORMATS[name]
    assert tuple(p.shape for p in frame.planes) == frame.format.plane_shapes(*size)
    assert all(p.dtype == frame.format.dtype and not p.flags.writeable for p in frame.planes)
    for ours, expected in zip(frame.planes, samples(picture), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_views_share_the_decoders_memory_and_keep_its_row_padding() -> None:
    picture = random_frame(641, 16, "yuv420p")
    frame = wrap(picture)
    assert frame.planes[0].strides[0] == picture.planes[0].line_size > 641
    assert frame.planes[0].__array_interface__["data"][0] == picture.planes[0].buffer_ptr


def test_every_format_of_the_types_room_is_native_to_some_decoder_format() -> None:
    assert {layout.name for layout in NATIVE_FORMATS.values()} == set(PIXEL_FORMATS)


def test_rgb24_is_seen_as_bgr_without_a_copy() -> None:
    rgb = test_picture(20, 10)
    frame = wrap(rgb_frame(rgb))
    assert frame.format.name == "bgr24" and frame.full_range
    np.testing.assert_array_equal(frame.planes[0], rgb[..., ::-1])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("pal8", "bgr24"), ("rgba", "bgr24"), ("bgra", "bgr24"), ("gbrp", "bgr24"), ("gbrp10le", "bgr24"),
        ("rgb48le", "bgr24"), ("xyz12le", "bgr24"), ("gray10le", "gray"), ("gray16le", "gray"), ("ya8", "gray"),
        ("monob", "gray"), ("yuv420p12le", "yuv420p10le"), ("yuv420p10be", "yuv420p10le"), ("p016le", "yuv420p10le"),
        ("yuv444p16le", "yuv444p10le"), ("yuv411p", "yuv422p"), ("yuyv422", "yuv422p"), ("yuv410p", "yuv420p"),
        ("yuv440p", "yuv444p"), ("yuva420p", "yuv420p"), ("nv21", "yuv420p"), ("nv24", "yuv444p"),
    ],
)  # fmt: skip
def test_other_formats_are_converted_to_the_nearest_one_and_said_once(given: str, expected: str) -> None:
    builder = FrameBuilder("x")
    picture = VideoFrame(32, 16, given)
    assert nearest_format(picture.format) == expected
    for _ in range(2):
        assert wrap(picture, builder).format is NATIVE_FORMATS[expected]
    assert builder.warnings == [f"pixel format {given} is converted on the CPU to {expected}"]


@pytest.mark.parametrize("full", [False, True])
def test_conversion_keeps_matrix_and_range_so_grey_levels_do_not_move(full: bool) -> None:
    picture = random_frame(32, 16, "nv21")
    picture.color_range = 2 if full else 1
    frame = wrap(picture)
    assert frame.full_range is full
    luma = np.frombuffer(bytes(picture.planes[0]), np.uint8).reshape(-1, picture.planes[0].line_size)[:16, :32]
    np.testing.assert_array_equal(frame.planes[0], luma)


def test_deep_formats_lose_their_lowest_bits_only() -> None:
    picture = random_frame(32, 16, "yuv420p12le")
    deep = np.frombuffer(bytes(picture.planes[0]), np.uint16).reshape(-1, picture.planes[0].line_size // 2)[:16, :32]
    assert np.abs(wrap(picture).planes[0].astype(int) - deep / 4.0).max() <= 1


@pytest.mark.parametrize(
    ("tag", "height", "expected"),
    [
        (1, 480, "bt709"), (5, 1080, "bt601"), (6, 1080, "bt601"), (9, 480, "bt2020"), (10, 480, "bt2020"),
        (2, 719, "bt601"), (2, 720, "bt709"), (0, 1080, "bt709"), (4, 1080, "bt601"), (7, 480, "bt709"),
    ],
)  # fmt: skip
def test_matrix_follows_the_tag_and_without_one_the_height(tag: int, height: int, expected: str) -> None:
    picture = VideoFrame(16, height, "yuv420p")
    picture.colorspace = tag
    assert wrap(picture).matrix == expected


def test_an_unsupported_matrix_is_said() -> None:
    builder = FrameBuilder("x")
    picture = VideoFrame(16, 16, "yuv444p")
    picture.colorspace = 8  # YCgCo
    assert wrap(picture, builder).matrix == "bt601"
    assert builder.warnings == ["colour matrix 8 of ITU-T H.273 is not supported; colours are read as bt601"]


@pytest.mark.parametrize(
    ("name", "tag", "expected"),
    [
        ("yuv420p", 0, False), ("yuv420p", 1, False), ("yuv420p", 2, True), ("yuvj420p", 0, True),
        ("gray", 0, True), ("gray", 1, False), ("bgr24", 0, True),
    ],
)  # fmt: skip
def test_range_follows_the_tag_and_the_old_yuvj_names(name: str, tag: int, expected: bool) -> None:
    picture = VideoFrame(16, 16, name)
    picture.color_range = tag
    assert wrap(picture).full_range is expected


@pytest.mark.parametrize("size", [(64, 48), (37, 23)])
@pytest.mark.parametrize("name", LOSSLESS)
def test_a_lossless_file_gives_back_the_planes_that_were_written(
    name: str, size: tuple[int, int], tmp_path: Path
) -> None:
    written = [random_frame(*size, name, seed) for seed in range(3)]
    file = write_video(tmp_path / "x.mkv", codec="ffv1", pix_fmt=name, pictures=written)
    with open_video(file) as source:
        frames = list(source)
    assert len(frames) == 3
    for frame, picture in zip(frames, written, strict=True):
        for ours, expected in zip(frame.planes, samples(picture), strict=True):
            np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("size", [(64, 48), (37, 23)])
@pytest.mark.parametrize("name", ["nv12", "bgr24", "rgb24"])
def test_raw_video_gives_back_packed_and_interleaved_planes(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    written = random_frame(*size, name)
    file = write_video(tmp_path / "x.nut", codec="rawvideo", pix_fmt=name, pictures=[written])
    with open_video(file) as source:
        (frame,) = source
    assert frame.format is NATIVE_FORMATS[name]
    for ours, expected in zip(frame.planes, plane_views(written), strict=True):
        np.testing.assert_array_equal(ours, expected)


# Derived by writing each of these files and comparing with what FFmpeg's own autorotation shows
# (ffmpeg -i x.mp4 -f rawvideo -pix_fmt gray -, FFmpeg 5.1): the letters are where the corners of the stored picture
# A B / C D appear: top left, top right, bottom left, bottom right. set_display_rotation(90) means counter-clockwise.
ROTATIONS = [
    (0, False, False, "ABCD", 0),
    (90, False, False, "BDAC", 90),
    (180, False, False, "DCBA", 180),
    (270, False, False, "CADB", 270),
    (-90, False, False, "CADB", 270),
    (0, True, False, "BADC", 0),
    (0, False, True, "CDAB", 180),
]


@pytest.mark.parametrize(("degrees", "hflip", "vflip", "corners", "turn"), ROTATIONS)
def test_rotation_makes_the_picture_stand_as_a_player_shows_it(
    degrees: int, hflip: bool, vflip: bool, corners: str, turn: int, tmp_path: Path
) -> None:
    levels = {"A": 40, "B": 90, "C": 140, "D": 220}
    luma = np.block([[np.full((24, 32), levels["A"]), np.full((24, 32), levels["B"])],
                     [np.full((24, 32), levels["C"]), np.full((24, 32), levels["D"])]]).astype(np.uint8)  # fmt: skip
    picture = VideoFrame.from_ndarray(luma, format="gray").reformat(
        format="yuv420p", dst_color_range=2, src_color_range=2
    )
    file = write_video(tmp_path / "r.mp4", pictures=[picture], rotation=degrees, hflip=hflip, vflip=vflip,
                       options={"preset": "ultrafast", "crf": "1"})  # fmt: skip
    with open_video(file) as source:
        (frame,) = source
        assert frame.rotation == turn
        assert (source.info.width, source.info.height) == frame.upright_size
    upright = np.rot90(frame.planes[0], frame.rotation // 90)
    assert upright.shape == frame.upright_size[::-1]
    seen = [upright[3, 3], upright[3, -4], upright[-4, 3], upright[-4, -4]]
    assert "".join(min(levels, key=lambda k: abs(levels[k] - int(v))) for v in seen) == corners


def test_a_slanted_display_matrix_takes_the_nearest_quarter_turn_and_says_so(tmp_path: Path) -> None:
    file = write_video(tmp_path / "r.mp4", frames=2, rotation=80)
    with open_video(file) as source:
        assert {frame.rotation for frame in source} == {90}
        assert source.warnings == ["the video asks for a rotation of 80 degrees; the nearest quarter turn is used"]


def test_a_singular_display_matrix_means_no_rotation() -> None:
    assert orientation((0,) * 9) == (0.0, False)


def test_interlaced_pictures_are_flagged_and_said_once(tmp_path: Path) -> None:
    with open_video(write_video(tmp_path / "i.mp4", interlaced=True)) as source:
        assert all(frame.interlaced for frame in source)
        assert [w for w in source.warnings if "interlaced" in w] == source.warnings[:1]


def test_frames_outlive_their_file(tmp_path: Path) -> None:
    file = write_video(tmp_path / "x.mkv", codec="ffv1", frames=3)
    with open_video(file) as source:
        kept = list(source)
    file.unlink()
    gc.collect()
    with open_video(write_video(tmp_path / "y.mkv", codec="ffv1", frames=3)) as source:
        again = list(source)
    for one, other in zip(kept, again, strict=True):
        np.testing.assert_array_equal(one.planes[0], other.planes[0])


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="reads the process's memory from /proc")
def test_frames_are_released_at_once_without_the_garbage_collector(tmp_path: Path) -> None:
    file = write_video(tmp_path / "x.mp4", size=(960, 540), frames=120, gop=30, rotation=90)

    def megabytes_after_reading_all() -> float:
        with open_video(file, threads=1) as source:
            for frame in source:
                assert frame.nbytes == 960 * 540 * 3 // 2
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

    gc.collect()
    gc.disable()
    try:
        before = megabytes_after_reading_all()
        after = max(megabytes_after_reading_all() for _ in range(2))
    finally:
        gc.enable()
    # 240 pictures are 187 MB; what is in flight is known after the first pass.
    assert after - before < 60
