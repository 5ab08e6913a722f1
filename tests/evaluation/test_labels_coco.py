import json

import numpy as np
import pytest

from retinastream.errors import InputError
from retinastream.evaluation.labelled_set import read_labelled_set

IMAGES = [
    {"id": 7, "file_name": "b/x.jpg", "width": 100, "height": 80, "license": 3},
    {"id": "y", "file_name": "a.jpg"},
]
POINTS = [15, 30, 2, 25, 30, 2, 20, 35, 1, 16, 42, 2, 24, 42, 2]


def annotation(image=7, box=(10, 20, 20, 30), **extra):
    return {"image_id": image, "category_id": 1, "bbox": list(box), **extra}


def read(folder, *annotations, images=IMAGES, categories_in_file=None, **kwargs):
    path = folder / "instances.json"
    content = {"info": {}, "images": images, "annotations": list(annotations)}
    if categories_in_file is not None:
        content["categories"] = categories_in_file
    path.write_text(json.dumps(content))
    return read_labelled_set(path, **kwargs)


def test_pictures_keep_the_order_of_the_file_and_get_their_own_annotations(tmp_path):
    found = read(tmp_path, annotation("y", (1, 2, 3, 4)), annotation(), annotation("y", (0.5, 0, 1, 1)))
    assert [(p.name, p.width, p.height) for p in found.pictures] == [("b/x.jpg", 100, 80), ("a.jpg", None, None)]
    np.testing.assert_array_equal(found.pictures[0].boxes, [[10, 20, 30, 50]])
    np.testing.assert_array_equal(found.pictures[1].boxes, [[1, 2, 4, 6], [0.5, 0, 1.5, 1]])
    assert found.pictures[1].scores.tolist() == [1, 1]


def test_crowds_and_ignored_annotations_are_ignored_faces(tmp_path):
    found = read(tmp_path, annotation(iscrowd=1), annotation(iscrowd=0), annotation(ignore=1), annotation(area=3))
    assert found.pictures[0].ignore.tolist() == [True, False, True, False]


def test_five_keypoints_are_landmarks_whatever_their_visibility_above_0(tmp_path):
    found = read(tmp_path, annotation(keypoints=POINTS), annotation(), annotation(keypoints=[]))
    np.testing.assert_array_equal(found.pictures[0].landmarks[0], [[15, 30], [25, 30], [20, 35], [16, 42], [24, 42]])
    assert (found.faces, found.landmarked, found.problems) == (3, 1, ())


def test_a_keypoint_of_visibility_0_makes_all_landmarks_missing(tmp_path):
    found = read(tmp_path, annotation(keypoints=[*POINTS[:12], 0, 0, 0]), annotation(keypoints=[0] * 15))
    assert np.isnan(found.pictures[0].landmarks).all()
    assert [p.kind for p in found.problems] == ["landmarks"]


def test_other_numbers_of_keypoints_are_no_landmarks_and_reported(tmp_path):
    found = read(tmp_path, annotation(keypoints=[1] * 51))
    assert (found.faces, found.landmarked) == (1, 0)
    assert [(p.kind, p.text.split()[0]) for p in found.problems] == [("landmarks", "51")]


def test_a_score_is_kept(tmp_path):
    found = read(tmp_path, annotation(score=0.25), annotation())
    assert found.pictures[0].scores.tolist() == [0.25, 1]


def test_only_the_chosen_categories_are_faces(tmp_path):
    named = [{"id": 1, "name": "face"}, {"id": 2, "name": "person"}]
    both = [annotation(), annotation(category_id=2, box=(1, 1, 5, 5))]
    found = read(tmp_path, *both, categories_in_file=named, categories=["person"])
    np.testing.assert_array_equal(found.pictures[0].boxes, [[1, 1, 6, 6]])
    assert read(tmp_path, *both, categories_in_file=named).faces == 2
    with pytest.raises(InputError, match="no category dog; it has face, person"):
        read(tmp_path, *both, categories_in_file=named, categories=["dog"])


@pytest.mark.parametrize(
    ("annotations", "words"),
    [
        ([annotation(), annotation(99), annotation(98)], ["98, 99", "2 in all"]),
        ([annotation(box=(1, 2, 3))], ["b/x.jpg", "row 0", "[1, 2, 3]"]),
        ([annotation(box=("1", 2, 3, 4))], ["b/x.jpg", "row 0"]),
        ([annotation(), {"image_id": 7}], ["annotation 1", "bbox"]),
        ([annotation(), 5], ["annotation 1", "5"]),
        ([annotation(None)], ["annotation 0", "image_id", "None"]),
        ([annotation([])], ["annotation 0", "image_id", "[]"]),
        ([annotation(score="high")], ["b/x.jpg", "score", "high"]),
        ([annotation(keypoints="none")], ["b/x.jpg", "keypoints", "none"]),
        ([annotation(keypoints=[None] * 15)], ["b/x.jpg", "keypoints"]),
    ],
)
def test_wrong_annotations_are_refused_by_number_or_picture(tmp_path, annotations, words):
    with pytest.raises(InputError) as error:
        read(tmp_path, *annotations)
    for word in [*words, "instances.json"]:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([IMAGES[0], {"id": 7, "file_name": "c.jpg"}], ["id 7", "b/x.jpg", "c.jpg"]),
        ([IMAGES[0], {"id": 8}], ["image 1", "None"]),
        ([IMAGES[0], {"file_name": "c.jpg"}], ["image 1", "id", "None"]),
        ([IMAGES[0], "c.jpg"], ["image 1", "c.jpg"]),
        ([IMAGES[0], {"id": 8, "file_name": "c.jpg", "width": 5}], ["image 1", "5"]),
    ],
)
def test_wrong_images_are_refused_by_number(tmp_path, images, words):
    with pytest.raises(InputError) as error:
        read(tmp_path, annotation(), images=images)
    for word in [*words, "instances.json"]:
        assert word in str(error.value)


def test_a_picture_listed_under_two_ids_is_refused_if_its_faces_differ(tmp_path):
    images = [IMAGES[0], {"id": 8, "file_name": "b/x.jpg", "width": 100, "height": 80}]
    with pytest.raises(InputError, match="twice with different"):
        read(tmp_path, annotation(), images=images)
    found = read(tmp_path, annotation(), annotation(8), images=images)
    assert (len(found), found.faces, [p.kind for p in found.problems]) == (1, 1, ["duplicate"])


def test_a_file_without_one_of_the_lists_is_refused(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"images": [], "boxes": []}))
    with pytest.raises(InputError, match='"annotations"'):
        read_labelled_set(path, format="coco")
