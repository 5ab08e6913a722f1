"""Labels that a detector makes, alone and together with those that are there: by hand, and through the label file."""

import cv2
import numpy as np
import pytest

from retinastream.errors import InputError, UsageError
from retinastream.evaluation.labelled_set import LabelledPicture, LabelledSet, read_labelled_set
from retinastream.evaluation.labels_pack import write_pack
from retinastream.training.pseudo_labels import (
    MERGES,
    PseudoLabelRecipe,
    label_with_teacher,
    merge_faces,
    unlabelled_set,
)
from retinastream.types import Faces

WIDTH, HEIGHT = 200, 100
POINTS = np.array([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.8], [0.65, 0.8]], np.float32)


def square(x, y, side):
    return [x, y, x + side, y + side]


def points_in(box):
    low, high = np.array(box[:2], np.float32), np.array(box[2:], np.float32)
    return low + POINTS * (high - low)


def labelled(*entries, path="a.png", size=(WIDTH, HEIGHT)):
    """A picture with (box, ignore, has landmarks) each."""
    boxes = np.array([e[0] for e in entries], np.float32).reshape(-1, 4)
    points = np.array([points_in(e[0]) if e[2] else np.full((5, 2), np.nan) for e in entries], np.float32)
    ignore = np.array([e[1] for e in entries], np.bool_)
    scores = np.ones(len(entries), np.float32)
    return LabelledPicture("a.png", path, *size, boxes, points.reshape(-1, 5, 2), ignore, scores)


def found(*entries, size=(WIDTH, HEIGHT)):
    """What a teacher found: (box, score) each."""
    boxes = np.array([e[0] for e in entries], np.float32).reshape(-1, 4)
    points = np.array([points_in(e[0]) for e in entries], np.float32).reshape(-1, 5, 2)
    return Faces(boxes, np.array([e[1] for e in entries], np.float32), points, width=size[0], height=size[1])


def rows(picture):
    return [
        (box.tolist(), bool(ignore), round(float(score), 4))
        for box, ignore, score in zip(picture.boxes, picture.ignore, picture.scores, strict=True)
    ]


NEAR, FAR, LOW, EDGE = square(10, 10, 40), square(100, 10, 40), square(60, 60, 30), square(180, 80, 40)


def test_a_teacher_alone_gives_three_bands_of_score():
    faces = found((NEAR, 0.95), (FAR, 0.7), (LOW, 0.69), (square(150, 50, 20), 0.3), (square(0, 60, 20), 0.29))
    merged = merge_faces(labelled((NEAR, False, True)), faces, PseudoLabelRecipe())
    assert rows(merged) == [
        (NEAR, False, 0.95),
        (FAR, False, 0.7),
        (LOW, True, 0.69),
        (square(150, 50, 20), True, 0.3),
    ]
    np.testing.assert_array_equal(merged.landmarks[1], points_in(FAR))


def test_faces_come_best_first_cut_at_the_border_and_low_ones_are_ignored():
    faces = found((LOW, 0.8), (EDGE, 0.9), (NEAR, 0.95))
    merged = merge_faces(labelled(size=(None, None)), faces, PseudoLabelRecipe(least_height=25))
    assert rows(merged) == [(NEAR, False, 0.95), ([180, 80, 200, 100], True, 0.9), (LOW, False, 0.8)]
    assert (merged.width, merged.height) == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(merged.landmarks[1], points_in(EDGE))


def test_labels_first_keeps_them_as_they_are_and_adds_faces_elsewhere():
    picture = labelled((NEAR, False, True), (square(140, 40, 50), True, False))
    faces = found(
        (square(12, 12, 40), 0.99),  # the labelled face
        (square(20, 20, 15), 0.9),  # inside it
        (square(150, 50, 20), 0.9),  # inside the ignored region
        (LOW, 0.8),
        (square(60, 5, 25), 0.5),
        (square(0, 70, 25), 0.2),
    )
    merged = merge_faces(picture, faces, PseudoLabelRecipe(merge="labels"))
    assert rows(merged) == [
        (NEAR, False, 1.0),
        (square(140, 40, 50), True, 1.0),
        (LOW, False, 0.8),
        (square(60, 5, 25), True, 0.5),
    ]
    np.testing.assert_array_equal(merged.landmarks[0], points_in(NEAR))
    np.testing.assert_array_equal(merged.landmarks[2], points_in(LOW))


@pytest.mark.parametrize(
    ("shift", "added"),
    [(10, 0), (19, 0), (21, 1), (40, 1)],  # half of either box is covered at 20
)
def test_a_face_beside_a_labelled_one_is_a_further_one_when_less_than_half_of_it_is_covered(shift, added):
    merged = merge_faces(
        labelled((NEAR, False, True)), found((square(10 + shift, 10, 40), 0.9)), PseudoLabelRecipe(merge="labels")
    )
    assert len(merged) == 1 + added


def test_a_lower_iou_keeps_faces_further_away():
    beside = found((square(35, 10, 40), 0.9))  # IoU 15 / 65 = 0.23
    counts = [
        len(merge_faces(labelled((NEAR, False, True)), beside, PseudoLabelRecipe(merge="labels", iou=iou)))
        for iou in (0.2, 0.3)
    ]
    assert counts == [1, 2]


def test_scores_go_to_the_labels_that_the_teacher_found_and_nothing_else_changes():
    picture = labelled((NEAR, False, True), (FAR, False, True), (LOW, True, True))
    faces = found((square(12, 10, 40), 0.45), (LOW, 0.9), (square(150, 50, 20), 0.95))
    merged = merge_faces(picture, faces, PseudoLabelRecipe(merge="scores"))
    assert rows(merged) == [(NEAR, False, 0.45), (FAR, False, 1.0), (LOW, True, 1.0)]
    np.testing.assert_array_equal(merged.landmarks, picture.landmarks)


def test_every_label_gets_one_face_and_every_face_one_label_the_best_iou_first():
    left, right = square(10, 10, 40), square(18, 10, 40)
    picture = labelled((left, False, True), (right, False, True))
    # The stronger face is nearest to the right label; the left one gets what remains.
    merged = merge_faces(
        picture, found((square(17, 10, 40), 0.9), (square(12, 10, 40), 0.6)), PseudoLabelRecipe(merge="scores")
    )
    assert rows(merged) == [(left, False, 0.6), (right, False, 0.9)]
    alone = merge_faces(picture, found((square(17, 10, 40), 0.9)), PseudoLabelRecipe(merge="scores"))
    assert rows(alone) == [(left, False, 1.0), (right, False, 0.9)]


@pytest.mark.parametrize("merge", ["labels", "scores"])
def test_labels_without_landmarks_get_those_of_a_sure_teacher(merge):
    picture = labelled((NEAR, False, False), (FAR, False, False), (LOW, True, False))
    seen = square(12, 10, 40)
    faces = found((seen, 0.9), (FAR, 0.69), (LOW, 0.9))
    merged = merge_faces(picture, faces, PseudoLabelRecipe(merge=merge))
    np.testing.assert_array_equal(merged.landmarks[0], points_in(seen))
    assert np.isnan(merged.landmarks[1:3]).all()
    bare = merge_faces(picture, faces, PseudoLabelRecipe(merge=merge, fill_landmarks=False))
    assert np.isnan(bare.landmarks[:3]).all()


@pytest.mark.parametrize("merge", MERGES)
def test_pictures_without_labels_or_without_faces_are_no_special_case(merge):
    recipe = PseudoLabelRecipe(merge=merge)
    assert len(merge_faces(labelled(), found(), recipe)) == 0
    assert len(merge_faces(labelled((NEAR, False, True)), found(), recipe)) == (merge != "teacher")
    assert len(merge_faces(labelled(), found((NEAR, 0.9)), recipe)) == (merge != "scores")


def test_the_labels_given_are_not_changed():
    picture = labelled((NEAR, False, False))
    merge_faces(picture, found((NEAR, 0.8)), PseudoLabelRecipe(merge="scores"))
    assert picture.scores.tolist() == [1.0]
    assert np.isnan(picture.landmarks).all()


def test_a_picture_of_another_size_than_its_labels_is_refused():
    with pytest.raises(InputError, match="is 100x200 and its labels are for 200x100"):
        merge_faces(labelled((NEAR, False, True)), found(size=(100, 200)), PseudoLabelRecipe())


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"merge": "both"}, "both.*teacher, labels, scores"),
        ({"positive": 0.2}, "positive 0.2"),
        ({"ignore_above": -0.1}, "ignore_above -0.1"),
        ({"iou": 0.0}, "iou 0.0"),
        ({"least_height": float("nan")}, "least_height nan"),
    ],
)
def test_recipes_that_contradict_themselves_are_refused(values, named):
    with pytest.raises(UsageError, match=named):
        PseudoLabelRecipe(**values)


class ByColour:
    """Finds one face per picture, whose place and score the first pixel tells."""

    def __init__(self, threshold):
        self.threshold = threshold

    def __call__(self, pictures):
        result = []
        for picture in pictures:
            x, y, score = picture[0, 0].tolist()
            faces = found((square(x, y, 20), score / 255), size=picture.shape[1::-1])
            result.append(faces)
        return result


@pytest.fixture
def folder(tmp_path):
    """Three pictures, one in a folder below, of two sizes."""
    root = tmp_path / "images"
    for name, (x, y, score), size in (
        ("a.png", (10, 20, 255), (100, 200)),
        ("below/b.png", (30, 40, 130), (100, 200)),
        ("c.png", (5, 5, 20), (64, 64)),
    ):
        picture = np.zeros((*size, 3), np.uint8)
        picture[0, 0] = x, y, score
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / name), picture)
    return root


def test_a_folder_is_labelled_and_its_label_file_reads_back_the_same(folder, tmp_path):
    pictures, left_out = unlabelled_set(folder)
    assert left_out == ()
    told = []
    result = label_with_teacher(pictures, ByColour(0.3), batch=2, progress=lambda *counts: told.append(counts))
    assert {p.name: rows(p) for p in result.pictures} == {
        "a.png": [(square(10, 20, 20), False, 1.0)],
        "below/b.png": [(square(30, 40, 20), True, 0.5098)],
        "c.png": [],
    }
    assert told[-1] == (3, 3)
    assert result.sha256 == ""
    again = read_labelled_set(write_pack(result, tmp_path / "labels.json"))
    assert again.format == "pack"
    assert (again.faces, again.ignored, again.landmarked) == (1, 1, 1)
    for written, read in zip(result.pictures, again.pictures, strict=True):
        assert (written.name, written.path, written.width, written.height) == (
            read.name,
            read.path,
            read.width,
            read.height,
        )
        for part in ("boxes", "landmarks", "ignore", "scores"):
            np.testing.assert_array_equal(getattr(written, part), getattr(read, part))


def test_damaged_pictures_of_a_folder_are_left_out_and_named(folder):
    whole = (folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("no picture")
    pictures, left_out = unlabelled_set(folder)
    assert {p.name for p in pictures.pictures} == {"a.png", "below/b.png", "c.png"}
    assert [reason.split(":")[0] for reason in left_out] == ["cut.png", "text.jpg"]
    assert "cut short" in left_out[0]


def test_a_folder_with_nothing_of_use_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a folder"):
        unlabelled_set(tmp_path / "absent")
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(InputError, match=r"no picture that can be used; text\.jpg"):
        unlabelled_set(tmp_path)


def test_a_detector_that_hides_what_is_asked_for_is_refused(folder):
    pictures, _ = unlabelled_set(folder)
    with pytest.raises(UsageError, match=r"from the score 0\.5 on"):
        label_with_teacher(pictures, ByColour(0.5))
    recipe = PseudoLabelRecipe(ignore_above=0.5)
    assert len(label_with_teacher(pictures, ByColour(0.5), recipe)) == 3


def test_a_detector_of_this_project_labels_a_set(tiny_model, folder):
    from retinastream.pipeline.detector import Detector

    pictures, _ = unlabelled_set(folder)
    recipe = PseudoLabelRecipe(positive=0.5, ignore_above=0.4)
    with Detector(tiny_model["fused"], threshold=0.4, size="native", threads=1, max_faces=20) as detector:
        result = label_with_teacher(pictures, detector, recipe)
        direct = detector(cv2.imread(str(folder / "a.png")))
    assert isinstance(result, LabelledSet)
    assert len(direct) > 0
    np.testing.assert_array_equal(result.pictures[0].boxes, direct.boxes)
    np.testing.assert_array_equal(result.pictures[0].scores, direct.scores)
    np.testing.assert_array_equal(result.pictures[0].ignore, direct.scores < 0.5)
