"""Decoded pictures: their levels, and the file that a second run reuses."""

import re
import struct
import threading

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from ramp_pictures import labelled, noise, ramp  # noqa: E402

from retinastream.errors import InputError, OutputError, SetupError, UsageError  # noqa: E402
from retinastream.training import cache as cache_module  # noqa: E402
from retinastream.training.cache import PictureCache  # noqa: E402

SIZES = [(64, 48), (37, 51), (200, 30), (17, 16), (9, 5), (1, 1)]


@pytest.fixture
def pictures(tmp_path):
    return [
        labelled(tmp_path / "pictures" / f"{i}.png", noise(w, h, i), sized=i % 2 == 0) for i, (w, h) in enumerate(SIZES)
    ]


def halved(level):
    """Mean of 2x2 in plain loops, halves up, the last row and column twice where there is no other."""
    height, width = level.shape[:2]
    out = np.zeros((-(-height // 2), -(-width // 2), 3), np.uint8)
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            rows, columns = (2 * y, min(2 * y + 1, height - 1)), (2 * x, min(2 * x + 1, width - 1))
            total = sum(level[r, c].astype(int) for r in rows for c in columns)
            out[y, x] = (total + 2) // 4
    return out


def test_the_first_level_is_the_picture_and_each_further_one_the_mean_of_four_pixels(pictures):
    cache = PictureCache(pictures, long_side=256)
    for i, (width, height) in enumerate(SIZES):
        expected = cv2.imread(str(pictures[i].path))
        assert cache.size(i) == (width, height)
        np.testing.assert_array_equal(cache.level(i, 0), expected)
        for level in range(1, cache.level_count(i)):
            expected = halved(expected)
            np.testing.assert_array_equal(cache.level(i, level), expected)
        assert max(expected.shape[:2]) <= 16


def test_the_long_side_is_limited_and_sizes_stay_those_of_the_file(tmp_path):
    one = labelled(tmp_path / "a.png", ramp(300, 101))
    cache = PictureCache([one], long_side=100)
    assert cache.size(0) == (300, 101)
    assert cache.level(0, 0).shape == (34, 100, 3)
    assert cache.scale(0, 0) == pytest.approx((100 / 300, 34 / 101))
    assert cache.scale(0, 2) == pytest.approx((25 / 300, 8.5 / 101))
    # A ramp keeps its colours at every place, whatever the size.
    for level in range(cache.level_count(0)):
        pixels = cache.level(0, level)
        across, down = cache.scale(0, level)
        x = np.arange(int(300 * across)) + 0.5
        y = np.arange(int(101 * down)) + 0.5
        np.testing.assert_allclose(pixels[0, : len(x), 0], 20 + 215 * x / (300 * across), atol=1.6)
        np.testing.assert_allclose(pixels[: len(y), 0, 1], 20 + 215 * y / (101 * down), atol=2.6)


def test_the_flat_buffer_holds_the_levels_where_the_offsets_say(pictures):
    cache = PictureCache(pictures, long_side=40)
    flat = cache.to("cpu")
    assert flat.dtype == torch.uint8
    assert flat.shape == (cache.nbytes,)
    assert flat.data_ptr() == cache.flat.ctypes.data
    used = np.zeros(cache.nbytes, int)
    for i in range(len(cache)):
        for level in range(cache.level_count(i)):
            pixels = cache.level(i, level)
            start = cache.offset(i, level)
            np.testing.assert_array_equal(flat[start : start + pixels.size].numpy(), pixels.ravel())
            used[start : start + pixels.size] += 1
    assert (used == 1).all()
    assert cache.fits("cpu")


def test_a_file_holds_the_same_levels_and_is_reused_without_decoding(pictures, tmp_path, monkeypatch):
    file = tmp_path / "new" / "pictures.cache"
    memory = PictureCache(pictures, long_side=48)
    np.testing.assert_array_equal(PictureCache(pictures, long_side=48, file=file).flat, memory.flat)
    assert [p.name for p in file.parent.iterdir()] == [file.name]

    monkeypatch.setattr(cache_module, "read_picture", lambda path: pytest.fail(f"{path} was decoded again"))
    again = PictureCache(pictures, long_side=48, file=file)
    np.testing.assert_array_equal(again.flat, memory.flat)
    assert [again.size(i) for i in range(len(again))] == SIZES


@pytest.mark.parametrize("change", ["picture", "name", "order", "long side", "fewer"])
def test_a_file_made_from_something_else_is_made_again(pictures, tmp_path, change):
    file = tmp_path / "pictures.cache"
    PictureCache(pictures, long_side=48, file=file)
    long_side = 48
    if change == "picture":
        cv2.imwrite(str(pictures[0].path), noise(64, 48, 99))
    elif change == "name":
        pictures[0] = labelled(tmp_path / "pictures" / "other.png", noise(64, 48, 0))
    elif change == "order":
        pictures.reverse()
    elif change == "long side":
        long_side = 32
    else:
        pictures.pop()
    before = file.stat().st_ino
    again = PictureCache(pictures, long_side=long_side, file=file)
    np.testing.assert_array_equal(again.flat, PictureCache(pictures, long_side=long_side).flat)
    assert file.stat().st_ino != before


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "header"])
def test_a_damaged_file_is_made_again(pictures, tmp_path, damage):
    file = tmp_path / "pictures.cache"
    expected = np.array(PictureCache(pictures, long_side=48, file=file).flat)
    content = file.read_bytes()
    file.write_bytes(
        {
            "cut": content[:-1],
            "empty": b"",
            "garbage": b"\xff" * len(content),
            "header": content.replace(b'"key"', b'"kex"'),
        }[damage]
    )
    np.testing.assert_array_equal(PictureCache(pictures, long_side=48, file=file).flat, expected)


def test_an_interrupted_run_leaves_no_file_that_looks_complete(pictures, tmp_path, monkeypatch):
    file = tmp_path / "folder" / "pictures.cache"
    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "fill_levels", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            PictureCache(pictures, long_side=48, file=file)
    assert list(file.parent.iterdir()) == []
    expected = PictureCache(pictures, long_side=48).flat
    np.testing.assert_array_equal(PictureCache(pictures, long_side=48, file=file).flat, expected)


def test_what_a_killed_run_left_is_cleared_once_it_is_old(pictures, tmp_path):
    import os

    file = tmp_path / "pictures.cache"
    old, young = tmp_path / "pictures.cache.1.partial", tmp_path / "pictures.cache.2.partial"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    PictureCache(pictures, long_side=48, file=file)
    assert not old.exists()
    assert young.exists()


def test_threads_make_no_difference_and_end(pictures):
    before = threading.active_count()
    one, four = (PictureCache(pictures, long_side=48, threads=n) for n in (1, 4))
    np.testing.assert_array_equal(one.flat, four.flat)
    assert threading.active_count() == before


def test_a_picture_turned_by_exif_is_upright(tmp_path):
    path = tmp_path / "turned.jpg"
    ok, jpeg = cv2.imencode(".jpg", ramp(120, 80), [cv2.IMWRITE_JPEG_QUALITY, 100])
    assert ok
    # One directory with one entry: tag 0x0112 (orientation), a short of value 6: turn right to stand upright.
    tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    segment = b"Exif\0\0" + tiff
    path.write_bytes(b"\xff\xd8\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg.tobytes()[2:])
    one = labelled(tmp_path / "plain.png", ramp(120, 80), sized=False)
    object.__setattr__(one, "path", path)
    cache = PictureCache([one])
    assert cache.size(0) == (80, 120)
    upright = np.rot90(ramp(120, 80), -1).astype(int)
    assert np.abs(cache.level(0, 0).astype(int) - upright)[..., :2].mean() < 2


@pytest.mark.parametrize("content", [None, b"", b"no picture"])
@pytest.mark.parametrize("in_file", [False, True])
def test_a_picture_that_cannot_be_read_is_named(pictures, tmp_path, content, in_file):
    bad = pictures[2].path
    bad.unlink() if content is None else bad.write_bytes(content)
    file = tmp_path / "folder" / "pictures.cache" if in_file else None
    with pytest.raises(InputError, match=re.escape(str(bad))):
        PictureCache(pictures, file=file)
    assert file is None or not file.exists()


def test_labels_for_another_size_are_refused(tmp_path):
    one = labelled(tmp_path / "a.png", ramp(30, 20))
    object.__setattr__(one, "width", 31)
    with pytest.raises(InputError, match=r"a\.png is 30x20, but its labels are for 31x20"):
        PictureCache([one])


def test_a_full_disk_is_refused_before_anything_is_written(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100})())
    with pytest.raises(OutputError, match="GB are free"):
        PictureCache(pictures, file=tmp_path / "pictures.cache")
    assert not (tmp_path / "pictures.cache").exists()


def test_too_little_memory_says_how_much_is_needed(pictures, monkeypatch):
    monkeypatch.setattr(cache_module.np, "empty", lambda *_: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(SetupError, match=r"GB of decoded pictures do not fit in memory; keep them in a file"):
        PictureCache(pictures)


def test_a_place_that_cannot_be_written_is_named(pictures, tmp_path):
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(OutputError, match="folder"):
        PictureCache(pictures, file=tmp_path / "folder" / "pictures.cache")


def test_arguments_without_sense_are_refused(pictures):
    with pytest.raises(UsageError, match="no pictures"):
        PictureCache([])
    with pytest.raises(UsageError, match="long_side 8"):
        PictureCache(pictures, long_side=8)
    with pytest.raises(UsageError, match="threads 0"):
        PictureCache(pictures, threads=0)


def test_pictures_fit_on_a_device_that_keeps_room_for_the_network(pictures, monkeypatch):
    cache = PictureCache(pictures, long_side=48)
    for free, fits in ((cache.nbytes, False), (2 * cache.nbytes, True)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 10 * free))
        assert cache.fits("cuda:0") is fits
