"""Frames and faces: shapes, times, and what they refuse."""

from fractions import Fraction

import numpy as np
import pytest

from retinastream.errors import MissingPackageError, UsageError
from retinastream.types import PIXEL_FORMATS, Faces, Frame


def some_faces(count=4, **settings):
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 90, (count, 2))
    boxes = np.concatenate([corner, corner + 9], 1).astype(np.float32)
    scores = np.linspace(0.9, 0.3, count, dtype=np.float32)
    return Faces(boxes, scores, rng.uniform(0, 99, (count, 5, 2)).astype(np.float32), **settings)


@pytest.mark.parametrize(
    ("name", "width", "height", "shapes", "dtype"),
    [
        ("nv12", 6, 4, ((4, 6), (2, 3, 2)), np.uint8),
        ("nv12", 5, 3, ((3, 5), (2, 3, 2)), np.uint8),
        ("p010", 6, 4, ((4, 6), (2, 3, 2)), np.uint16),
        ("yuv420p", 5, 3, ((3, 5), (2, 3), (2, 3)), np.uint8),
        ("yuv422p10", 5, 3, ((3, 5), (3, 3), (3, 3)), np.uint16),
        ("yuv444p", 5, 3, ((3, 5), (3, 5), (3, 5)), np.uint8),
        ("gray", 5, 3, ((3, 5),), np.uint8),
        ("bgr24", 5, 3, ((3, 5, 3),), np.uint8),
    ],
)
def test_a_format_says_how_its_planes_lie(name, width, height, shapes, dtype):
    fmt = PIXEL_FORMATS[name]
    assert fmt.plane_shapes(width, height) == shapes
    assert len(shapes) == fmt.planes
    assert fmt.dtype == dtype
    assert fmt.is_yuv == (name != "bgr24")


def test_a_picture_becomes_a_frame_without_a_copy():
    image = np.zeros((3, 5, 3), np.uint8)
    frame = Frame.from_bgr(image, index=7, source="a.jpg")
    assert np.shares_memory(frame.planes[0], image)
    assert (frame.width, frame.height, frame.index, frame.source, frame.nbytes) == (5, 3, 7, "a.jpg", 45)
    assert frame.seconds is None


@pytest.mark.parametrize(
    ("picture", "given"),
    [
        pytest.param(np.zeros((3, 5), np.uint8), r"uint8 \(3, 5\)", id="grey"),
        pytest.param(np.zeros((3, 5, 4), np.uint8), r"uint8 \(3, 5, 4\)", id="with alpha"),
        pytest.param(np.zeros((3, 5, 3), np.float32), r"float32 \(3, 5, 3\)", id="floats"),
        pytest.param([[1, 2, 3]], "list", id="a list"),
        pytest.param("photo.jpg", "str", id="a path"),
        pytest.param(None, "NoneType", id="what cv2.imread returns for a missing file"),
    ],
)
def test_what_is_no_picture_is_refused_with_what_was_given(picture, given):
    with pytest.raises(UsageError, match=rf"given as {given}; expected a uint8 array \(height, width, 3\)"):
        Frame.from_bgr(picture)


@pytest.mark.parametrize(("rotation", "size"), [(0, (5, 3)), (90, (3, 5)), (180, (5, 3)), (270, (3, 5))])
def test_a_rotated_frame_has_the_size_of_the_upright_picture(rotation, size):
    frame = Frame((np.zeros((3, 5, 3), np.uint8),), PIXEL_FORMATS["bgr24"], 5, 3, rotation=rotation)
    assert frame.upright_size == size


def test_time_is_pts_times_time_base():
    frame = Frame((), PIXEL_FORMATS["nv12"], 5, 3, pts=3003, time_base=Fraction(1, 30000))
    assert frame.seconds == pytest.approx(0.1001)
    frame.time_base = None
    assert frame.seconds is None


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        pytest.param((np.zeros((2, 4)), np.zeros(3), np.zeros((2, 5, 2))), "boxes, scores", id="one score too many"),
        pytest.param((np.zeros((2, 5)), np.zeros(2), np.zeros((2, 5, 2))), r"\(2, 5\)", id="boxes of five numbers"),
        pytest.param((np.zeros((2, 4)), np.zeros(2), np.zeros((2, 10))), r"\(2, 10\)", id="flat landmarks"),
        pytest.param(
            (np.zeros((2, 4)), np.zeros(2), np.zeros((2, 5, 2)), np.zeros(1)), "track_ids", id="a missing track"
        ),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(arrays, says):
    with pytest.raises(ValueError, match=says):
        Faces(*arrays)


def test_no_faces_have_empty_arrays_of_their_own():
    one, other = Faces(), Faces()
    assert len(one) == 0
    assert (one.boxes.shape, one.landmarks.shape) == ((0, 4), (0, 5, 2))
    assert one.boxes is not other.boxes


def test_above_keeps_faces_of_at_least_the_score_and_everything_else():
    faces = some_faces(track_ids=np.arange(4), source="v", index=3, pts=1.5, width=100, height=90, overflow=True)
    kept = faces.above(float(faces.scores[1]))
    assert len(kept) == 2
    np.testing.assert_array_equal(kept.boxes, faces.boxes[:2])
    np.testing.assert_array_equal(kept.landmarks, faces.landmarks[:2])
    assert kept.track_ids.tolist() == [0, 1]
    assert (kept.source, kept.index, kept.pts, kept.width, kept.overflow) == ("v", 3, 1.5, 100, True)
    assert len(faces.above(0.99)) == 0
    assert some_faces().above(0.5).track_ids is None


def test_faces_become_supervision_detections_that_own_their_arrays():
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    faces = some_faces(track_ids=np.array([5, 6, 7, 8]))
    detections = faces.to_supervision()
    assert isinstance(detections, supervision.Detections)
    np.testing.assert_array_equal(detections.xyxy, faces.boxes)
    np.testing.assert_array_equal(detections.confidence, faces.scores)
    np.testing.assert_array_equal(detections.data["landmarks"], faces.landmarks)
    assert detections.class_id.tolist() == [0] * 4
    assert detections.tracker_id.tolist() == [5, 6, 7, 8]
    assert not np.shares_memory(detections.xyxy, faces.boxes)
    assert len(detections[detections.confidence > 0.4].data["landmarks"]) == 3
    assert len(Faces().to_supervision()) == 0
    assert some_faces().to_supervision().tracker_id is None


def test_without_supervision_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "supervision", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'retinastream\[supervision\]'"):
        some_faces().to_supervision()
