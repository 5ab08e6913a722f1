import dataclasses
import json
import stat

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinastream.errors import InputError, OutputError, UsageError
from retinastream.evaluation.labelled_set import LabelledPicture, LabelledSet, read_labelled_set
from retinastream.evaluation.labels_pack import write_pack

FACE = [10.0, 20.0, 30.0, 50.0]
POINTS = [15.0, 30.0, 25.0, 30.0, 20.0, 35.0, 16.0, 42.0, 24.0, 42.0]
NONE = [-1] * 10


def read(folder, *faces, **kwargs):
    extra = kwargs.pop("extra", {})
    path = folder / "labels.json"
    path.write_text(json.dumps({"a.jpg": {"width": 100, "height": 80, "faces": list(faces), "src": "x", **extra}}))
    return read_labelled_set(path, format="pack", **kwargs)


def equal(first, second):
    assert [(p.name, p.width, p.height) for p in first.pictures] == [
        (p.name, p.width, p.height) for p in second.pictures
    ]
    for a, b in zip(first.pictures, second.pictures, strict=True):
        for field in ("boxes", "landmarks", "ignore", "scores"):
            np.testing.assert_array_equal(getattr(a, field), getattr(b, field))
            assert getattr(a, field).dtype == getattr(b, field).dtype


def one_picture(boxes, landmarks, ignore, scores, size=(100, 80), name="a/b.jpg"):
    n = len(boxes)
    return LabelledPicture(
        name,
        None,
        *size,
        np.asarray(boxes, np.float32).reshape(n, 4),
        np.asarray(landmarks, np.float32).reshape(n, 5, 2),
        np.asarray(ignore, np.bool_).reshape(n),
        np.asarray(scores, np.float32).reshape(n),
    )


def set_of(*pictures):
    return LabelledSet("x", None, "boxes", "", pictures)


def test_scores_from_0_7_are_faces_and_below_are_ignored_and_all_are_kept(tmp_path):
    scores = [1.0, 0.7, 0.69, 0.5, 0.3]
    picture = read(tmp_path, *([*FACE, *POINTS, s] for s in scores)).pictures[0]
    np.testing.assert_array_equal(picture.scores, np.array(scores, np.float32))
    assert picture.ignore.tolist() == [False, False, True, True, True]
    np.testing.assert_array_equal(picture.landmarks[0], np.reshape(POINTS, (5, 2)))
    assert picture.landmarks.shape == (5, 5, 2)


def test_faces_below_0_3_are_dropped_and_reported(tmp_path):
    found = read(tmp_path, [*FACE, *POINTS, 0.29], [*FACE, *POINTS, 0.9])
    np.testing.assert_array_equal(found.pictures[0].scores, np.float32([0.9]))
    assert [(p.kind, p.picture) for p in found.problems] == [("score", "a.jpg")]


@pytest.mark.parametrize("score", [float("nan"), 1.5, float("inf")])
def test_scores_that_are_no_scores_are_dropped_and_reported(tmp_path, score):
    found = read(tmp_path, [*FACE, *POINTS, score], [*FACE, *POINTS, 0.9])
    assert (found.faces, [p.kind for p in found.problems]) == (1, ["score"])


def test_faces_that_the_teacher_missed_are_ignored_or_faces_without_landmarks_if_wanted(tmp_path):
    faces = [[*FACE, *NONE, 0.5], [*FACE, *POINTS, 0.5], [*FACE, *NONE, 0.69]]
    found = read(tmp_path, *faces)
    assert (found.faces, found.ignored) == (0, 3)
    found = read(tmp_path, *faces, missed_as_faces=True)
    assert found.pictures[0].ignore.tolist() == [False, True, True]
    np.testing.assert_array_equal(found.pictures[0].scores, np.float32([1.0, 0.5, 0.69]))
    assert found.landmarked == 0


def test_landmarks_are_not_clipped_and_one_coordinate_of_minus_1_is_a_place(tmp_path):
    points = [-1, 30, -7, 30, 120, 35, 16, 90, -1, -1]
    found = read(tmp_path, [*FACE, *points, 0.9])
    np.testing.assert_array_equal(found.pictures[0].landmarks[0], np.reshape(points, (5, 2)))
    assert (found.landmarked, found.problems) == (1, ())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_partly_missing_landmarks_become_missing_and_are_reported(tmp_path, bad):
    found = read(tmp_path, [*FACE, *POINTS[:9], bad, 0.9], [*FACE, *[float("nan")] * 10, 0.9])
    assert np.isnan(found.pictures[0].landmarks).all()
    assert (found.faces, found.landmarked) == (2, 0)
    assert [p.kind for p in found.problems] == ["landmarks"]


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"faces": [FACE]}, ["row 0", "15 numbers"]),
        ({"faces": {}}, ["{}", "15 numbers"]),
        ({"width": "100"}, ["'100'"]),
        ({"ignore": [0]}, ["[0]", "2 faces"]),
        ({"ignore": [0, 2]}, ["[0, 2]"]),
        ({"ignore": 1}, ["1", "list"]),
    ],
)
def test_wrong_types_are_refused_with_the_picture(tmp_path, extra, words):
    with pytest.raises(InputError) as error:
        read(tmp_path, [*FACE, *POINTS, 0.9], [*FACE, *POINTS, 0.9], extra=extra)
    for word in [*words, "labels.json", "a.jpg"]:
        assert word in str(error.value)


def test_a_picture_without_faces_key_is_refused(tmp_path):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({"a.jpg": {"width": 1, "height": 1}}))
    with pytest.raises(InputError, match=r"a\.jpg.*expected \"faces\""):
        read_labelled_set(path, format="pack")


numbers = st.floats(-50, 900, width=32)
scores = st.sampled_from([0.0, 0.2, 0.3, 0.5, 0.69, 0.7, 1.0]) | st.floats(0, 1, width=32)


@st.composite
def random_face(draw):
    x, y = draw(st.floats(0, 400, width=32)), draw(st.floats(0, 400, width=32))
    box = [x, y, x + draw(st.floats(0.125, 200, width=32)), y + draw(st.floats(0.125, 200, width=32))]
    points = draw(st.just([np.nan] * 10) | st.lists(numbers, min_size=10, max_size=10))
    points = [np.nan] * 10 if all(p == -1 for p in points) else points
    return box, points, draw(st.booleans()), draw(scores)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(random_face(), max_size=4), min_size=1, max_size=3), st.booleans())
def test_what_is_written_reads_back_equal_to_the_last_bit(tmp_path_factory, pictures, sized):
    written = set_of(
        *(
            one_picture(*zip(*faces, strict=True), size=(700, 700) if sized else (None, None), name=f"{n}.jpg")
            if faces
            else one_picture([], [], [], [], name=f"{n}.jpg")
            for n, faces in enumerate(pictures)
        )
    )
    path = write_pack(written, tmp_path_factory.mktemp("pack") / "labels.json")
    found = read_labelled_set(path, format="pack")
    assert found.problems == ()
    equal(written, found)


def test_ignore_flags_that_scores_do_not_say_are_written_and_others_are_not(tmp_path):
    nan = np.full((2, 5, 2), np.nan)
    path = write_pack(set_of(one_picture([FACE, FACE], nan, [False, True], [0.8, 0.4])), tmp_path / "a.json")
    assert "ignore" not in json.loads(path.read_text())["a/b.jpg"]
    path = write_pack(set_of(one_picture([FACE, FACE], nan, [False, True], [0.8, 0.9])), path)
    assert json.loads(path.read_text())["a/b.jpg"]["ignore"] == [0, 1]


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path):
    nan = np.full((1, 5, 2), np.nan)
    good = set_of(one_picture([FACE], nan, [False], [1]))
    path = write_pack(good, tmp_path / "a.json")
    before = path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    broken = set_of(dataclasses.replace(good.pictures[0], boxes=np.full((1, 4), np.nan, np.float32)))
    with pytest.raises(UsageError, match=r"a/b\.jpg.*not finite"):
        write_pack(broken, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_path_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "a.json", tmp_path / "folder"):
        with pytest.raises(OutputError, match="cannot be written"):
            write_pack(set_of(one_picture([], [], [], [])), path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.data
def test_the_real_pack_survives_writing_and_has_95_missed_faces(data, tmp_path):
    found = read_labelled_set(data / "train" / "labels.json")
    copy = write_pack(found, tmp_path / "labels.json")
    equal(found, read_labelled_set(copy))
    more = read_labelled_set(data / "train" / "labels.json", missed_as_faces=True)
    assert (more.faces - found.faces, found.ignored - more.ignored, more.landmarked) == (95, 95, 8542)
    assert json.loads(copy.read_text())["coco_00004.jpg"]["faces"][0] == pytest.approx(
        [179.2, 154.1, 243.5, 235.4, 189.5, 187.3, 215.0, 178.7, 201.5, 195.8, 199.6, 213.7, 222.8, 206.4, 1.0], abs=0
    )


@pytest.mark.parametrize(
    "other",
    [
        {"faces": [[*FACE, *POINTS, 0.8]]},
        {"faces": [[*FACE, *POINTS[::-1], 0.9]]},
        {"faces": [[*FACE, *POINTS, 0.9]], "ignore": [1]},
    ],
    ids=["score", "landmarks", "ignore"],
)
def test_a_picture_listed_twice_with_the_same_boxes_but_other_labels_is_refused(tmp_path, other):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({"a.jpg": {"faces": [[*FACE, *POINTS, 0.9]]}, "./a.jpg": other}))
    with pytest.raises(InputError, match="twice with different"):
        read_labelled_set(path)
