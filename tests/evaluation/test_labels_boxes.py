import json

import numpy as np
import pytest

from retinastream.errors import InputError
from retinastream.evaluation.labelled_set import read_labelled_set

FACE = [10.0, 20.0, 30.0, 50.0]


def read(folder, entry, **kwargs):
    path = folder / "boxes.json"
    path.write_text(json.dumps({"a.jpg": entry}))
    return read_labelled_set(path, **{"format": "boxes", **kwargs})


def test_faces_made_by_hand_have_score_1_no_landmarks_and_are_not_ignored(tmp_path):
    picture = read(tmp_path, {"size": [100, 80], "boxes": [FACE, FACE], "author": "me"}).pictures[0]
    assert (picture.width, picture.height, len(picture)) == (100, 80, 2)
    assert picture.scores.tolist() == [1, 1]
    assert not picture.ignore.any()
    assert np.isnan(picture.landmarks).all()


def test_a_picture_without_boxes_is_a_background(tmp_path):
    picture = read(tmp_path, {"boxes": []}).pictures[0]
    assert picture.boxes.shape == (0, 4)
    assert picture.landmarks.shape == (0, 5, 2)


def test_only_boxes_of_the_chosen_classes_are_faces(tmp_path):
    entry = {"boxes": [[0, 0, n, n] for n in (1, 2, 3, 4)], "labels": ["face", "helmet", "mask", ["face"]]}
    found = read(tmp_path, entry, categories=["face", "mask"])
    assert found.pictures[0].boxes[:, 2].tolist() == [1, 3]
    assert read(tmp_path, entry).faces == 4
    with pytest.raises(InputError, match=r"no face of the classes \['dog'\]"):
        read(tmp_path, entry, categories={"dog"})


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ([], ["'a.jpg'", "[]", "object"]),
        ({"size": [1, 2]}, ['expected "boxes"', "size"]),
        ({"boxes": None}, ["None", "4 numbers"]),
        ({"boxes": [FACE, FACE[:3]]}, ["row 1", "[10.0, 20.0, 30.0]"]),
        ({"boxes": [FACE, ["1", "2", "3", "4"]]}, ["row 1", "'1'"]),
        ({"boxes": [FACE, None]}, ["row 1", "None"]),
        ({"boxes": [FACE, [1, 2, 3, None]]}, ["row 1", "None"]),
        ({"boxes": [[True, True, False, False]]}, ["row 0"]),
        ({"boxes": FACE}, ["row 0", "10.0"]),
        ({"boxes": [FACE], "size": [100]}, ["[100]", "[width, height]"]),
        ({"boxes": [FACE], "size": "100x80"}, ["'100x80'", "list"]),
        ({"boxes": [FACE], "size": [100, "80"]}, ["'80'"]),
        ({"boxes": [FACE], "size": [100, -80]}, ["-80"]),
        ({"boxes": [FACE], "size": [100, 80.5]}, ["80.5"]),
        ({"boxes": [FACE], "size": [100, float("inf")]}, ["inf"]),
        ({"boxes": [FACE], "size": [float("nan"), 80]}, ["nan"]),
        ({"boxes": [FACE], "size": [100, None]}, ["None"]),
        ({"boxes": [FACE], "labels": ["a", "b"]}, ["1 boxes", "2 labels"]),
        ({"boxes": [FACE], "labels": "a"}, ["'a'", "list"]),
    ],
)
def test_wrong_types_and_shapes_are_refused_with_the_picture(tmp_path, entry, words):
    with pytest.raises(InputError) as error:
        read(tmp_path, entry)
    for word in [*words, "boxes.json", "a.jpg"]:
        assert word in str(error.value)


def test_choosing_classes_among_boxes_without_classes_is_an_error(tmp_path):
    with pytest.raises(InputError, match='no "labels"'):
        read(tmp_path, {"boxes": [FACE]}, categories=["face"])
