"""Pictures for calibration: taken evenly, as the network is given them, and what cannot be read is counted."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from media.builders import write_video
from retinastream.errors import InputError, UsageError
from retinastream.models.onnx_file import OnnxModel
from retinastream.models.spec import DetectorSpec
from retinastream.pipeline.calibration_frames import CalibrationFrames, shares


def network(height=None, width=None):
    shape = (None, 3, height, width)
    return OnnxModel("model.onnx", "", DetectorSpec(), "images", shape, ("a", "b", "c"), "model")


def paint(path, grey, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((size[1], size[0], 3), grey, np.uint8))


def greys(frames):
    """The grey value that each delivered picture was painted with."""
    return [round(float(p[0, 0, 0, 0]) + 104) for p in frames]


@settings(max_examples=200, derandomize=True)
@given(st.lists(st.integers(1, 500), min_size=1, max_size=12), st.integers(1, 600))
def test_shares_are_even_and_use_all_there_is(lengths, count):
    given = shares(lengths, count)
    assert sum(given) == min(count, sum(lengths))
    assert all(share <= length for share, length in zip(given, lengths, strict=True))
    for share, length in zip(given, lengths, strict=True):
        # Who got fewer than another by more than one had no more to give.
        assert share == length or share >= max(given) - 1


def test_pictures_come_as_the_network_is_given_them(tmp_path):
    paint(tmp_path / "a.png", 200)
    (picture,) = CalibrationFrames([tmp_path / "a.png"], network())
    assert (picture.shape, picture.dtype) == ((1, 3, 32, 64), np.float32)
    assert picture[0, :, 0, 0].tolist() == [200 - 104, 200 - 117, 200 - 123]
    assert not picture[:, :, 30:].any()
    assert not picture[:, :, :, 40:].any()


@pytest.mark.parametrize(
    ("size", "shape"), [("native", (320, 640)), ("fit:320", (160, 320)), ("short:64,max:100", (64, 128))]
)
def test_the_size_policy_is_that_of_detection(tmp_path, size, shape):
    paint(tmp_path / "a.png", 100, size=(640, 320))
    (picture,) = CalibrationFrames([tmp_path / "a.png"], network(), size=size)
    assert picture.shape[2:] == shape


def test_a_pyramid_gives_both_of_its_passes_and_counts_one_picture(tmp_path):
    paint(tmp_path / "a.png", 100, size=(1280, 640))
    frames = CalibrationFrames([tmp_path / "a.png"], network(), size="pyramid")
    assert [p.shape[2:] for p in frames] == [(640, 1280), (320, 640)]
    assert frames.delivered == 1


def test_a_network_of_one_size_is_given_that_size(tmp_path):
    paint(tmp_path / "a.png", 100)
    (picture,) = CalibrationFrames([tmp_path / "a.png"], network(96, 128), size="fit:128")
    assert picture.shape == (1, 3, 96, 128)


def test_a_folder_is_sampled_evenly_with_what_is_below_it(tmp_path):
    for i in range(40):
        paint(tmp_path / "a" / f"{i}.png", 10 + i)
    for i in range(4):
        paint(tmp_path / "b" / f"{i}.png", 200 + i)
    frames = CalibrationFrames([tmp_path], network(), count=12)
    found = greys(frames)
    assert frames.delivered == len(found) == 12
    assert found[-4:] == [200, 201, 202, 203]
    assert found[:8] == [10 + 5 * i for i in range(8)]
    assert greys(frames) == found, "every pass gives the same"


def test_progress_is_told_per_picture_and_pass(tmp_path):
    for number in range(3):
        paint(tmp_path / f"{number}.png", 50)
    told = []
    frames = CalibrationFrames([tmp_path], network(), size="pyramid", count=2, progress=lambda *seen: told.append(seen))
    for _ in range(2):
        list(frames)
    assert told == [(1, 2), (2, 2)] * 2


def test_a_video_is_sampled_over_its_length(tmp_path):
    write_video(tmp_path / "v.mp4", frames=60, size=(64, 48))
    whole = [p.copy() for p in CalibrationFrames([tmp_path / "v.mp4"], network(), count=60, size="native")]
    some = list(CalibrationFrames([tmp_path / "v.mp4"], network(), count=6, size="native"))
    assert len(some) == 6
    assert len(whole) == 60
    for picture, wanted in zip(some, whole[::10], strict=True):
        assert np.array_equal(picture, wanted)


def test_what_cannot_be_read_is_counted_and_left_out(tmp_path, caplog):
    paint(tmp_path / "a.png", 50)
    (tmp_path / "b.png").write_bytes(b"no picture")
    paint(tmp_path / "c.png", 70)
    frames = CalibrationFrames([tmp_path], network())
    assert greys(frames) == [50, 70]
    assert (frames.delivered, [name.rsplit("/", 1)[-1] for name in frames.unreadable]) == (2, ["b.png"])
    assert "left out of the calibration" in caplog.text


def test_nothing_that_can_be_read_is_an_error(tmp_path):
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"none of the 1 calibration pictures could be read, such as .*b\.png"):
        list(CalibrationFrames([tmp_path], network()))


@pytest.mark.parametrize(
    ("sources", "options", "error", "words"),
    [
        ([], {}, UsageError, "nothing to calibrate with"),
        (["."], {"count": 0}, UsageError, "count was given as 0"),
        (["."], {"size": "huge"}, UsageError, "size 'huge' is not known"),
        (["missing.png"], {}, InputError, "no such file or directory"),
    ],
)
def test_values_that_are_not_allowed_are_refused(tmp_path, monkeypatch, sources, options, error, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words):
        CalibrationFrames(sources, network(), **options)
