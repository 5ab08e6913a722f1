"""Picture files become frames: every format, EXIF turned upright, a bad file costing itself only."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from media.builders import test_picture, with_orientation
from retinastream.errors import InputError, UsageError
from retinastream.pipeline.images import ImageSet, read_picture


def bgr(width=40, height=30, index=0):
    return np.ascontiguousarray(test_picture(width, height, index)[..., ::-1])


def write(path: Path, picture) -> Path:
    """Encode by extension; through bytes because cv2.imwrite cannot be trusted with every name."""
    path.write_bytes(cv2.imencode(path.suffix, picture)[1].tobytes())
    return path


def png(width: int, height: int) -> bytes:
    """Return a PNG that claims this size and holds no pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("extension", [".png", ".bmp", ".tif", ".tiff", ".ppm"])
def test_lossless_files_give_back_their_pixels(extension, tmp_path):
    picture = bgr()
    np.testing.assert_array_equal(read_picture(write(tmp_path / f"x{extension}", picture)), picture)


@pytest.mark.parametrize("extension", [".jpg", ".jpeg", ".webp", ".JPG"])
def test_lossy_files_come_close(extension, tmp_path):
    picture = cv2.GaussianBlur(bgr(), (0, 0), 4)
    read = read_picture(write(tmp_path / f"x{extension}", picture))
    assert read.shape == picture.shape and np.abs(read.astype(int) - picture).mean() < 3


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda p: p.astype(np.uint16) * 257, lambda p: p),
        (lambda p: p[..., 1], lambda p: np.repeat(p[..., 1:2], 3, -1)),
        (lambda p: p[..., 1].astype(np.uint16) * 257, lambda p: np.repeat(p[..., 1:2], 3, -1)),
        (lambda p: np.dstack([p, p[..., 0]]), lambda p: p),
    ],
    ids=["16 bits lose the lower 8", "grey is repeated", "16-bit grey", "alpha is dropped"],
)
def test_every_kind_of_sample_becomes_8_bit_bgr(make, expected, tmp_path):
    picture = bgr()
    read = read_picture(write(tmp_path / "x.png", make(picture)))
    np.testing.assert_array_equal(read, expected(picture))


# EXIF 2.32, 4.6.4 A: where row 0 and column 0 of the stored picture lie in the upright one. The letters are the corners
# A B / C D of the stored picture as they appear upright: top left, top right, bottom left, bottom right.
@pytest.mark.parametrize(
    ("orientation", "corners"),
    [(1, "ABCD"), (2, "BADC"), (3, "DCBA"), (4, "CDAB"), (5, "ACBD"), (6, "CADB"), (7, "DBCA"), (8, "BDAC")],
)
def test_exif_orientation_is_applied(orientation, corners, tmp_path):
    levels = {"A": 20, "B": 90, "C": 160, "D": 230}
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:16, :32], picture[:16, 32:], picture[16:, :32], picture[16:, 32:] = levels.values()
    file = tmp_path / "x.jpg"
    file.write_bytes(with_orientation(cv2.imencode(".jpg", picture)[1].tobytes(), orientation))
    read = read_picture(file)
    assert read.shape[:2] == ((32, 64) if orientation <= 4 else (64, 32))
    seen = (read[3, 3, 0], read[3, -4, 0], read[-4, 3, 0], read[-4, -4, 0])
    assert "".join(min(levels, key=lambda k: abs(levels[k] - int(v))) for v in seen) == corners


@pytest.mark.parametrize("size", [(1, 1), (16384, 2), (2, 16384)])
def test_extreme_sizes(size, tmp_path):
    picture = bgr(*size)
    np.testing.assert_array_equal(read_picture(write(tmp_path / "x.png", picture)), picture)


@pytest.mark.skipif(not hasattr(cv2, "Animation"), reason="this OpenCV cannot write an animation")
def test_of_an_animation_the_first_picture_is_taken(tmp_path):
    animation = cv2.Animation()
    animation.frames = [np.full((16, 16, 3), 30, np.uint8), np.full((16, 16, 3), 200, np.uint8)]
    animation.durations = np.array([100, 100])
    (tmp_path / "x.webp").write_bytes(cv2.imencodeanimation(".webp", animation)[1].tobytes())
    assert abs(int(read_picture(tmp_path / "x.webp").mean()) - 30) < 5


@pytest.mark.parametrize("name", ["with space.png", "Gesichter_顔.png", "100%d.png", "-dash.png"])
def test_names_are_taken_literally(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / name, bgr())
    (frame,) = ImageSet([Path(name)])
    assert frame.source == name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", r"is empty \(0 bytes\); expected a picture file"),
        (b"this is text", "is not a picture that OpenCV can decode, or it is cut short"),
        (png(60000, 60000), r"has more pixels than OpenCV decodes .*OPENCV_IO_MAX_IMAGE_PIXELS"),
    ],
)
def test_a_bad_file_says_what_is_wrong_with_it(content, message, tmp_path):
    file = tmp_path / "x.png"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        read_picture(file)
    assert str(raised.value).startswith(str(file))


def test_a_file_cut_short_is_refused(tmp_path):
    whole = write(tmp_path / "x.png", np.random.default_rng(0).integers(0, 256, (99, 99, 3), np.uint8)).read_bytes()
    (tmp_path / "x.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cut short"):
        read_picture(tmp_path / "x.png")


def test_frames_carry_position_and_file(tmp_path):
    files = [write(tmp_path / f"{i}.png", bgr(index=i)) for i in range(3)]
    with ImageSet(files, name="set") as source:
        frames = list(source)
    assert [(f.index, f.source, f.pts, f.seconds) for f in frames] == [
        (i, str(p), None, None) for i, p in enumerate(files)
    ]
    assert {(f.format.name, f.full_range, f.rotation) for f in frames} == {("bgr24", True, 0)}
    assert (source.info.name, source.info.kind, source.info.promised_frames) == ("set", "images", 3)
    assert source.path == tmp_path


def test_a_bad_file_costs_itself_only_and_is_named(tmp_path):
    files = [write(tmp_path / f"{i}.png", bgr(index=i)) for i in range(4)]
    files[1].write_bytes(b"no picture")
    files[2].unlink()
    source = ImageSet(files)
    for _ in range(2):  # the second pass starts afresh
        assert [f.index for f in source] == [0, 3]
        assert [name for name, _ in source.failures] == [str(files[1]), str(files[2])]
        assert all(isinstance(error, InputError) for _, error in source.failures)
        counts = source.counts
        assert (counts.packets, counts.decoded, counts.corrupt, counts.skipped, counts.read) == (4, 2, 2, 0, 4)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"stride": 2}, [0, 2, 4]),
        ({"stride": 9}, [0]),
        ({"max_frames": 2}, [0, 1]),
        ({"stride": 2, "max_frames": 2}, [0, 2]),
    ],
)
def test_stride_and_max_frames_choose_by_position_and_leave_the_others_unread(options, expected, tmp_path):
    files = [write(tmp_path / f"{i}.png", bgr()) for i in range(5)]
    source = ImageSet(files, **options)
    assert [f.index for f in source] == expected
    assert source.counts.packets == len(expected)


@pytest.mark.parametrize("options", [{"stride": 0}, {"max_frames": -1}, {"stride": "2"}])
def test_values_that_are_not_allowed_are_refused(options, tmp_path):
    with pytest.raises(UsageError, match="expected a whole number"):
        ImageSet([tmp_path / "x.png"], **options)


def test_an_empty_set_is_refused():
    with pytest.raises(UsageError, match="at least one path"):
        ImageSet([])


def test_a_closed_set_ends_and_cannot_be_read_again(tmp_path):
    source = ImageSet([write(tmp_path / f"{i}.png", bgr()) for i in range(3)])
    frames = iter(source)
    next(frames)
    source.close()
    assert list(frames) == []
    with pytest.raises(UsageError, match="is closed"):
        iter(source)
