"""Test-time augmentation: a detector that sees painted faces exactly proves where every pass puts them."""

import logging
from dataclasses import replace

import cv2
import numpy as np
import pytest

from retinastream.errors import UsageError
from retinastream.evaluation.test_time import SCALES, AugmentedDetector, Look, mirror
from retinastream.kernels.preprocess import preprocess
from retinastream.kernels.sizing import Placement
from retinastream.models.spec import DetectorSpec
from retinastream.types import PIXEL_FORMATS, Faces, Frame

# White squares carry two blue eyes, a green nose and two red corners of the mouth.
BLUE, GREEN, RED, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def paint(width, height, faces):
    """Faces as (x, y, side) on black; nothing in them is symmetric. Returns the picture and what is to be found."""
    picture = np.zeros((height, width, 3), np.uint8)
    boxes, landmarks = [], []
    for x, y, side in faces:
        picture[y : y + side, x : x + side] = WHITE
        dot = side // 8
        points = []
        for colour, u, v in ((BLUE, 1, 2), (BLUE, 5, 1), (GREEN, 3, 3), (RED, 1, 6), (RED, 6, 5)):
            left, top = x + u * dot, y + v * dot
            picture[top : top + dot, left : left + dot] = colour
            points.append((left + dot / 2, top + dot / 2))
        boxes.append((x, y, x + side, y + side))
        landmarks.append(points)
    return picture, np.array(boxes, float), np.array(landmarks, float)


class PaintedFaceDetector:
    """Finds painted faces and their points, the left one of each pair first, as a real one does in any picture."""

    info = spec = None

    def __init__(self, score=0.9, clip=True):
        self.sizes, self.closed, self.score, self.clip = [], False, score, clip

    def __call__(self, picture):
        assert picture.flags.c_contiguous
        self.sizes.append(picture.shape[1::-1])
        lit = (picture.max(axis=2) > 127).astype(np.uint8)
        _, _, stats, _ = cv2.connectedComponentsWithStats(lit)
        boxes = [(x, y, x + w, y + h) for x, y, w, h, _ in stats[1:].tolist()]
        landmarks = [self.points(picture[y1:y2, x1:x2], x1, y1) for x1, y1, x2, y2 in boxes]
        return Faces(
            np.array(boxes, np.float32).reshape(-1, 4),
            np.full(len(boxes), self.score, np.float32),
            np.array(landmarks, np.float32).reshape(-1, 5, 2),
            width=picture.shape[1],
            height=picture.shape[0],
        )

    @staticmethod
    def points(face, x, y):
        found = []
        for channel, count in ((0, 2), (1, 1), (2, 2)):
            others = [c for c in range(3) if c != channel]
            mask = (face[..., channel] > 160) & (face[..., others].max(axis=2) < 96)
            number, _, stats, centres = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
            assert number > count, "a painted point was lost"
            largest = np.argsort(-stats[1:, cv2.CC_STAT_AREA])[:count] + 1
            found += sorted((cx + 0.5 + x, cy + 0.5 + y) for cx, cy in centres[largest].tolist())
        return [found[0], found[1], found[2], found[3], found[4]]

    def close(self):
        self.closed = True


FACES = [(40, 30, 160), (420, 90, 96), (611, 333, 189), (0, 440, 160)]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("scale", [300, 500, 600, 800, 1100, 1400, 1700])
@pytest.mark.parametrize("size", [(800, 600), (801, 613)])
def test_every_size_and_its_mirror_image_put_faces_where_they_are(scale, flip, size):
    picture, boxes, landmarks = paint(*size, FACES)
    exact = PaintedFaceDetector()
    found = AugmentedDetector(exact, scales=[scale], flip=flip)(picture)
    assert len(exact.sizes) == 1 + flip
    assert min(exact.sizes[0]) == scale
    assert len(found) == len(FACES)
    # within a pixel of the picture that the detector saw, at most
    tolerance = 1.0 * max(1, min(size) / scale)
    for box, points in zip(boxes, landmarks, strict=True):
        nearest = np.abs(found.boxes - box).max(axis=1).argmin()
        np.testing.assert_allclose(found.boxes[nearest], box, atol=tolerance)
        np.testing.assert_allclose(found.landmarks[nearest], points, atol=tolerance)
        assert found.landmarks[nearest, 0, 0] < found.landmarks[nearest, 1, 0]
        assert found.landmarks[nearest, 3, 0] < found.landmarks[nearest, 4, 0]


def test_the_mirrored_pass_alone_gives_the_unmirrored_faces():
    """A detector blind to faces in the left half sees those of the left half in the mirror only."""
    picture, boxes, landmarks = paint(800, 600, FACES[:2])

    class HalfBlind(PaintedFaceDetector):
        def __call__(self, picture):
            faces = super().__call__(picture)
            keep = faces.boxes[:, 0] > picture.shape[1] / 2
            return replace(faces, boxes=faces.boxes[keep], scores=faces.scores[keep], landmarks=faces.landmarks[keep])

    found = AugmentedDetector(HalfBlind(), scales=[600])(picture)
    order = np.argsort(found.boxes[:, 0])
    np.testing.assert_allclose(found.boxes[order], boxes, atol=1e-3)
    np.testing.assert_allclose(found.landmarks[order], landmarks, atol=0.01)


def test_all_passes_together_average_to_the_faces():
    picture, boxes, landmarks = paint(801, 613, FACES)
    exact = PaintedFaceDetector()
    found = AugmentedDetector(exact)(picture)
    assert [min(size) for size in exact.sizes] == [s for s in SCALES for _ in range(2)]
    assert len(found) == len(FACES)
    order = [np.abs(found.boxes - box).max(axis=1).argmin() for box in boxes]
    np.testing.assert_allclose(found.boxes[order], boxes, atol=0.6)
    np.testing.assert_allclose(found.landmarks[order], landmarks, atol=0.6)


def test_columns_and_rows_are_mapped_by_their_own_scale():
    """33 rows become 32, 4000 columns 3879: rounding makes the two scales differ by 1 in 20,000."""

    class Whole(PaintedFaceDetector):
        def __call__(self, picture):
            height, width = picture.shape[:2]
            box = np.array([[0, 0, width, height]], np.float32)
            points = np.broadcast_to(np.array([width, height], np.float32), (1, 5, 2))
            return Faces(box, np.array([0.5], np.float32), points)

    found = AugmentedDetector(Whole(clip=False), scales=[32], flip=False)(np.zeros((33, 4000, 3), np.uint8))
    np.testing.assert_allclose(found.boxes, [[0, 0, 4000, 33]], atol=0.01)
    np.testing.assert_allclose(found.landmarks[0], np.full((5, 2), [4000, 33]), atol=0.01)


@pytest.mark.parametrize("scale", [32, 40, 50, 64, 99, 100, 101, 180])
def test_pictures_are_resampled_by_the_definition_of_the_detector(scale):
    picture = np.random.default_rng(0).integers(0, 256, (100, 151, 3)).astype(np.uint8)
    shown = []

    class Recorder(PaintedFaceDetector):
        def __call__(self, picture):
            shown.append(picture.copy())
            return Faces()

    detector = AugmentedDetector(Recorder(), scales=[scale])
    detector(picture)
    look = detector.looks(151, 100)[0]
    expected = np.empty((1, look.height, look.width, 3), np.uint8)
    placement = Placement(151, 100, look.width, look.height, look.width, look.height)
    preprocess([Frame.from_bgr(picture)], [placement], DetectorSpec(), expected)
    np.testing.assert_array_equal(shown[0], expected[0])
    np.testing.assert_array_equal(shown[1], expected[0][:, ::-1])


def test_mirroring_twice_changes_nothing_and_once_swaps_left_and_right():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 50, (6, 2)).astype(np.float32)
    faces = Faces(np.hstack([corner, corner + 20]), np.ones(6, np.float32), rng.random((6, 5, 2)).astype(np.float32))
    once = mirror(faces, 100)
    np.testing.assert_allclose(once.landmarks[0, 3], [100 - faces.landmarks[0, 4, 0], faces.landmarks[0, 4, 1]])
    np.testing.assert_allclose(once.landmarks[0, 2], [100 - faces.landmarks[0, 2, 0], faces.landmarks[0, 2, 1]])
    np.testing.assert_allclose(once.boxes[:, 0], 100 - faces.boxes[:, 2])
    twice = mirror(once, 100)
    np.testing.assert_allclose(twice.boxes, faces.boxes, atol=1e-5)
    np.testing.assert_allclose(twice.landmarks, faces.landmarks, atol=1e-5)


def test_the_limit_on_pixels_reduces_large_passes_and_says_so(caplog):
    detector = AugmentedDetector(PaintedFaceDetector(), max_pixels=1_000_000)
    picture, boxes, _ = paint(800, 600, FACES)
    with caplog.at_level(logging.WARNING):
        found = detector(picture)
        detector(picture)
    assert [record.getMessage() for record in caplog.records] == [
        "pictures of 800x600 at a short side of 1100, 1400, 1700 would have more than 1000000 pixels; "
        "they are reduced to that"
    ]
    looks = detector.looks(800, 600)
    # 1100, 1400 and 1700 become one size
    assert [(look.width, look.height) for look in looks[::2]] == [(667, 500), (1067, 800), (1155, 866)]
    assert len(found) == len(boxes)


def test_looks_list_sizes_of_upright_pictures_too():
    looks = AugmentedDetector(PaintedFaceDetector(), scales=(500, 800), flip=False).looks(600, 1200)
    assert looks == [Look(500, 1000, False), Look(800, 1600, False)]


def test_one_picture_gives_faces_and_several_give_a_list_and_frames_keep_their_identity():
    picture, _, _ = paint(320, 240, [(40, 30, 96)])
    frame = Frame.from_bgr(picture, index=7, source="a.png")
    detector = AugmentedDetector(PaintedFaceDetector(), scales=[240])
    one = detector(frame)
    assert (one.source, one.index, one.width, one.height) == ("a.png", 7, 320, 240)
    several = detector([picture, frame, picture])
    assert [faces.index for faces in several] == [0, 7, 2]
    assert detector([]) == []
    assert [faces.index for faces in detector.stream(iter([picture, picture]))] == [0, 1]


def test_a_stored_frame_that_must_be_turned_gives_faces_of_the_upright_picture():
    picture, boxes, landmarks = paint(400, 300, [(200, 30, 96)])
    stored = np.ascontiguousarray(np.rot90(picture, -1))
    frame = Frame((stored,), PIXEL_FORMATS["bgr24"], 300, 400, full_range=True, rotation=90)
    found = AugmentedDetector(PaintedFaceDetector(), scales=[300])(frame)
    assert (found.width, found.height) == (400, 300)
    np.testing.assert_allclose(found.boxes, boxes, atol=0.01)
    np.testing.assert_allclose(found.landmarks, landmarks, atol=0.01)


@pytest.mark.parametrize("clip", [True, False])
def test_boxes_are_clipped_where_the_detector_clips(clip):
    class Outside(PaintedFaceDetector):
        def __call__(self, picture):
            height, width = picture.shape[:2]
            box = np.array([[-0.1 * width, -0.1 * height, 0.5 * width, 0.5 * height]], np.float32)
            return Faces(box, np.array([0.5], np.float32), np.zeros((1, 5, 2), np.float32))

    found = AugmentedDetector(Outside(clip=clip), scales=[200], flip=False)(np.zeros((100, 200, 3), np.uint8))
    expected = [0, 0, 100, 50] if clip else [-20, -10, 100, 50]
    np.testing.assert_allclose(found.boxes, [expected], atol=1e-3)


def test_more_faces_than_the_detector_allows_are_cut_and_said():
    exact = PaintedFaceDetector()
    exact.max_faces = 3
    picture, _, _ = paint(800, 600, FACES)
    found = AugmentedDetector(exact, scales=[600])(picture)
    assert len(found) == 3
    assert found.overflow


def test_closing_closes_the_detector():
    exact = PaintedFaceDetector()
    with AugmentedDetector(exact) as detector:
        assert not exact.closed
    assert exact.closed
    assert detector.info is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"scales": ()}, "at least one short side"),
        ({"scales": (8,)}, "from 32 to 16384"),
        ({"scales": (500.5,)}, "whole pixels"),
        ({"iou": 2}, "iou is 2"),
        ({"max_pixels": 10}, "max_pixels is 10"),
        ({"threshold": 0.3}, r"settings \['threshold'\] were given beside a detector"),
    ],
)
def test_wrong_arguments_are_refused_in_words(arguments, says):
    with pytest.raises(UsageError, match=says):
        AugmentedDetector(PaintedFaceDetector(), **arguments)


def test_a_detector_that_resizes_itself_is_refused(tiny_model):
    from retinastream.pipeline.detector import Detector

    with (
        Detector(tiny_model["fused"], size="fit:640", threads=1) as detector,
        pytest.raises(UsageError, match="looks at size fit:640; expected size='native'"),
    ):
        AugmentedDetector(detector)
    with pytest.raises(UsageError, match="beside scales"):
        AugmentedDetector(tiny_model["fused"], size="native")
    with pytest.raises(UsageError, match="pictures were given as str"):
        AugmentedDetector(PaintedFaceDetector())("picture.png")


def test_a_picture_shown_once_as_it_is_gives_what_the_detector_gives(tiny_model):
    """With random weights there are clumps of candidates: voting keeps the scores of the faces that NMS keeps."""
    from retinastream.pipeline.detector import Detector

    picture = np.random.default_rng(4).integers(0, 255, (160, 224, 3)).astype(np.uint8)
    settings = {"threads": 1, "threshold": 0.3, "clip": False}
    with Detector(tiny_model["fused"], size="native", iou=0.4, **settings) as plain:
        expected = plain(picture)
    with AugmentedDetector(tiny_model["fused"], scales=[160], flip=False, **settings) as detector:
        found = detector(picture)
    assert len(expected) > 3
    np.testing.assert_array_equal(found.scores, expected.scores)


@pytest.mark.data
@pytest.mark.slow
def test_a_crowd_has_at_least_the_faces_that_one_pass_finds(data, real_model):
    from retinastream.evaluation.average_precision import box_iou
    from retinastream.pipeline.detector import Detector

    picture = cv2.imread(str(data / "stills" / "biubug6_curve_test.jpg"))
    with Detector(real_model, size="native", threads=2) as detector:
        plain = detector(picture)
    with AugmentedDetector(real_model, threshold=0.3, threads=2) as detector:
        found = detector(picture)
    assert len(plain) == 28
    overlaps = box_iou(plain.boxes, found.boxes)
    assert (overlaps.max(axis=1) > 0.5).all()
    # The two weakest, around 0.5, move with the size; whatever is a clear face stays one.
    sure = plain.scores > 0.6
    assert (found.scores[overlaps.argmax(axis=1)][sure] > 0.6).all()
    assert len(found.above(0.5)) > len(plain)
    assert (np.diff(found.scores) <= 0).all()
