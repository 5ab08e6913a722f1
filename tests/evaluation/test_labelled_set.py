import json

import numpy as np
import pytest

from retinastream.errors import InputError, UsageError
from retinastream.evaluation.labelled_set import FORMATS, LabelledPicture, read_labelled_set

FACE = [10.0, 20.0, 30.0, 50.0]
POINTS = [15.0, 30.0, 25.0, 30.0, 20.0, 35.0, 16.0, 42.0, 24.0, 42.0]
BOXES = {"a.jpg": {"size": [100, 80], "boxes": [FACE], "labels": ["face"]}}
PACK = {"a.jpg": {"width": 100, "height": 80, "faces": [[*FACE, *POINTS, 0.9]]}}
COCO = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 80}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 20, 20, 30]}],
}
VOC = (
    "<annotation><filename>a.jpg</filename><size><width>100</width><height>80</height></size><object><name>face</name>"
    "<bndbox><xmin>10</xmin><ymin>20</ymin><xmax>30</xmax><ymax>50</ymax></bndbox></object></annotation>"
)
LIGHT = "# a.jpg\n10 20 20 30\n"
OFFICIAL = "a.jpg\n1\n10 20 20 30 0 0 0 0 0 0\n"


def write(folder, content, name="some_file.dat"):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def write_voc(folder, *documents):
    inside = folder / "Annotations"
    inside.mkdir()
    for number, document in enumerate(documents):
        (inside / f"{number}.xml").write_text(document)
    return inside


def read_boxes(folder, boxes, size=(100, 80), **kwargs):
    return read_labelled_set(write(folder, {"a.jpg": {"size": list(size), "boxes": boxes}}), **kwargs)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [(BOXES, "boxes"), (PACK, "pack"), (COCO, "coco"), (LIGHT, "wider"), (OFFICIAL, "wider"), (VOC, "voc")],
    ids=["boxes", "pack", "coco", "light", "official", "voc"],
)
def test_the_format_is_told_by_the_content_and_every_format_gives_the_same_face(tmp_path, content, wanted):
    path = write_voc(tmp_path, content) if wanted == "voc" else write(tmp_path, content)
    found = read_labelled_set(path)
    assert found.format == wanted
    assert [p.name for p in found.pictures] == ["a.jpg"]
    picture = found.pictures[0]
    np.testing.assert_array_equal(picture.boxes, [FACE])
    assert (picture.width, picture.height) == ((None, None) if wanted == "wider" else (100, 80))
    assert [a.dtype for a in (picture.boxes, picture.landmarks, picture.ignore, picture.scores)] == [
        np.float32,
        np.float32,
        np.bool_,
        np.float32,
    ]
    assert np.isnan(picture.landmarks).all() == (wanted != "pack")
    assert (found.faces, found.ignored, found.landmarked, found.problems) == (1, 0, int(wanted == "pack"), ())
    explicit = read_labelled_set(path, format=wanted)
    assert explicit.sha256 == found.sha256
    assert len(found.sha256) == 64


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"a.jpg": {"boxes": [], "faces": []}}, ["boxes and pack"]),
        ({"a.jpg": {"boxes": []}, "b.jpg": {"faces": []}}, ['1 with "boxes"', '1 with "faces"']),
        ({"hello": 1}, ["hello"]),
        ([], ["list"]),
        ({}, ["no format"]),
        ("", ["empty file"]),
        ("hello world\nhow are you\n", ["hello world"]),
        ("1 2 3\n4\n", ["1 2 3"]),
    ],
)
def test_content_of_no_format_or_of_two_is_refused_with_what_was_found_and_the_formats(tmp_path, content, words):
    with pytest.raises(InputError) as error:
        read_labelled_set(write(tmp_path, content))
    for word in [*words, *FORMATS, "some_file.dat"]:
        assert word in str(error.value)


def test_an_ambiguous_file_is_read_when_its_format_is_named(tmp_path):
    both = {"a.jpg": BOXES["a.jpg"] | PACK["a.jpg"]}
    assert read_labelled_set(write(tmp_path, both), format="boxes").landmarked == 0
    assert read_labelled_set(write(tmp_path, both), format="pack").landmarked == 1


@pytest.mark.parametrize("chosen", FORMATS)
def test_a_format_that_the_labels_are_not_of_is_an_error(tmp_path, chosen):
    paths = {"boxes": write(tmp_path, BOXES, "b.json"), "wider": write(tmp_path, LIGHT, "w.txt")}
    paths["voc"] = write_voc(tmp_path, VOC)
    paths["coco"] = write(tmp_path, COCO, "c.json")
    for kind, path in paths.items():
        if kind != chosen:
            with pytest.raises(InputError, match=r"expected|name the right format"):
                read_labelled_set(path, format=chosen)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"a": ', ["line 1", "cut off"]),
        ('{"a.jpg": {"faces": [[1' + "0" * 5000 + "]]}}", ["ordinary length"]),
        ("[" * 100_000, ["nested too deeply"]),
        ("<annotation/>", ["folder"]),
    ],
)
def test_a_damaged_label_file_is_refused_and_named(tmp_path, content, words):
    with pytest.raises(InputError) as error:
        read_labelled_set(write(tmp_path, content))
    for word in [*words, "some_file.dat"]:
        assert word in str(error.value)


def test_missing_and_binary_files_and_folders_without_labels_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_labelled_set(tmp_path / "none.json")
    (tmp_path / "x.json").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(InputError, match=r"x\.json.*no UTF-8"):
        read_labelled_set(tmp_path / "x.json")
    with pytest.raises(InputError, match=r"folder with 1 \.json"):
        read_labelled_set(tmp_path)


def test_a_byte_order_mark_is_tolerated(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(BOXES).encode())
    assert read_labelled_set(path).faces == 1


def test_unknown_formats_and_options_of_other_formats_are_usage_errors(tmp_path):
    path = write(tmp_path, BOXES)
    with pytest.raises(UsageError, match=r"'yolo'.*auto, boxes"):
        read_labelled_set(path, format="yolo")
    with pytest.raises(UsageError, match=r"missed_as_faces; only pack"):
        read_labelled_set(path, missed_as_faces=True)
    with pytest.raises(UsageError, match=r"one_based; only voc"):
        read_labelled_set(path, one_based=True)
    with pytest.raises(UsageError, match="list of names"):
        read_labelled_set(path, categories="face")


@pytest.mark.parametrize(
    ("box", "kept", "kinds"),
    [
        ([0, 0, 100, 80], [0, 0, 100, 80], []),
        ([-1, -0.5, 100.5, 81], [0, 0, 100, 80], []),  # within a pixel: clipped without a word
        ([-1.01, 5, 20, 30], [0, 5, 20, 30], ["clipped"]),
        ([90, 70, 300, 400], [90, 70, 100, 80], ["clipped"]),
        ([100, 10, 100.9, 30], None, ["outside"]),
        ([-30, 10, 0, 30], None, ["outside"]),
        ([10, 90, 30, 120], None, ["outside"]),
        ([10, 10, 10, 30], None, ["box"]),
        ([30, 10, 10, 30], None, ["box"]),
        ([10, 30, 20, 10], None, ["box"]),
        ([10, 10, float("nan"), 30], None, ["box"]),
        ([10, 10, float("inf"), 30], None, ["box"]),
    ],
)
def test_boxes_are_clipped_to_the_picture_or_dropped_and_it_is_reported(tmp_path, box, kept, kinds):
    found = read_boxes(tmp_path, [FACE, box, FACE])
    wanted = [FACE, FACE] if kept is None else [FACE, kept, FACE]
    np.testing.assert_array_equal(found.pictures[0].boxes, np.array(wanted, np.float32))
    assert [p.kind for p in found.problems] == kinds
    assert all(p.picture == "a.jpg" and "[" in p.text for p in found.problems)
    assert [len(a) for a in (found.pictures[0].landmarks, found.pictures[0].ignore, found.pictures[0].scores)] == [
        len(wanted)
    ] * 3


def test_boxes_of_pictures_without_a_size_are_not_clipped(tmp_path):
    found = read_labelled_set(write(tmp_path, {"a.jpg": {"boxes": [[-50, 0, 9000, 10]]}}))
    np.testing.assert_array_equal(found.pictures[0].boxes, [[-50, 0, 9000, 10]])


def test_the_same_picture_twice_with_the_same_faces_is_kept_once_and_reported(tmp_path):
    entry = json.dumps(BOXES["a.jpg"])
    found = read_labelled_set(write(tmp_path, f'{{"a.jpg": {entry}, "a.jpg": {entry}}}'))
    assert (len(found), [(p.picture, p.kind) for p in found.problems]) == (1, [("a.jpg", "duplicate")])
    found = read_labelled_set(write(tmp_path, f'{{"a.jpg": {entry}, "./a.jpg": {entry}}}'))
    assert (len(found), [(p.picture, p.kind) for p in found.problems]) == (1, [("a.jpg", "duplicate")])


@pytest.mark.parametrize("second", ["a.jpg", "./a.jpg"])
def test_the_same_picture_twice_with_other_faces_is_refused(tmp_path, second):
    text = f'{{"a.jpg": {{"boxes": [[1, 2, 3, 4]]}}, "{second}": {{"boxes": [[1, 2, 3, 5]]}}}}'
    with pytest.raises(InputError, match=r"a\.jpg' twice with different"):
        read_labelled_set(write(tmp_path, text))


@pytest.mark.parametrize(
    "name", ["/a.jpg", "../a.jpg", "b/../../a.jpg", "C:\\a.jpg", "", " ", ".", "x" * 300, "a\0b", "\ud800.jpg"]
)
def test_names_that_leave_the_picture_folder_or_name_no_file_are_refused(tmp_path, name):
    with pytest.raises(InputError, match="name is"):
        read_labelled_set(write(tmp_path, {name: BOXES["a.jpg"]}))


def test_backslashes_in_names_become_posix_separators(tmp_path):
    found = read_labelled_set(write(tmp_path, {"b\\c\\a.jpg": BOXES["a.jpg"]}))
    assert found.pictures[0].name == "b/c/a.jpg"
    assert found.pictures[0].path == tmp_path / "images" / "b" / "c" / "a.jpg"


@pytest.mark.parametrize("inside", ["images", "."])
def test_the_picture_folder_is_found_beside_the_labels(tmp_path, inside):
    (tmp_path / "images").mkdir()
    (tmp_path / inside / "a.jpg").write_bytes(b"")
    assert read_labelled_set(write(tmp_path, BOXES)).pictures[0].path == tmp_path / inside / "a.jpg"


@pytest.mark.parametrize(
    ("kind", "labels", "pictures"),
    [
        ("voc", "Annotations", "JPEGImages"),
        ("voc", "Annotations", "images"),
        ("voc", "Annotations", "Annotations"),
        ("coco", "annotations/instances_train2017.json", "train2017"),
        ("coco", "annotations/instances_train2017.json", "images/train2017"),
        ("coco", "annotations/instances_train2017.json", "images"),
        ("wider", "wider_face_split/wider_face_val_bbx_gt.txt", "WIDER_val/images"),
        ("wider", "wider_face_split/wider_face_train_bbx_gt.txt", "WIDER_train/images"),
        ("wider", "train/label.txt", "train/images"),
    ],
)
def test_the_usual_places_of_a_format_are_tried(tmp_path, kind, labels, pictures):
    path = tmp_path / labels
    if kind == "voc":
        write_voc(tmp_path, VOC)
    else:
        path.parent.mkdir()
        path.write_text(json.dumps(COCO) if kind == "coco" else OFFICIAL)
    (tmp_path / pictures).mkdir(parents=True, exist_ok=True)
    (tmp_path / pictures / "a.jpg").write_bytes(b"")
    assert read_labelled_set(path).pictures[0].path == tmp_path / pictures / "a.jpg"


def test_a_picture_folder_that_is_named_counts_and_must_exist(tmp_path):
    path = write(tmp_path, BOXES)
    (tmp_path / "mine").mkdir()
    assert read_labelled_set(path, images=tmp_path / "mine").pictures[0].path == tmp_path / "mine" / "a.jpg"
    with pytest.raises(InputError, match=r"no_such does not exist.*a\.jpg"):
        read_labelled_set(path, images=str(tmp_path / "no_such"))


@pytest.mark.parametrize(
    ("file", "name"), [("facemask/boxes.json", "facemask"), ("x/labels.json", "x"), ("x/my_set.json", "my_set")]
)
def test_a_set_is_named_after_its_file_or_the_folder_of_a_file_with_a_plain_name(tmp_path, file, name):
    path = tmp_path / file
    path.parent.mkdir()
    path.write_text(json.dumps(BOXES))
    assert read_labelled_set(path).name == name


def test_the_set_of_a_folder_called_annotations_is_named_after_the_folder_around_it(tmp_path):
    (tmp_path / "faces").mkdir()
    assert read_labelled_set(write_voc(tmp_path / "faces", VOC)).name == "faces"


def test_the_hash_of_a_folder_changes_with_contents_and_names(tmp_path):
    folder = write_voc(tmp_path, VOC)
    first = read_labelled_set(folder).sha256
    (folder / "0.xml").rename(folder / "1.xml")
    second = read_labelled_set(folder).sha256
    (folder / "1.xml").write_text(VOC + "\n")
    assert len({first, second, read_labelled_set(folder).sha256}) == 3


def test_labels_that_list_no_picture_are_refused(tmp_path):
    with pytest.raises(InputError, match="lists no picture"):
        read_labelled_set(write(tmp_path, {"images": [], "annotations": []}))
    with pytest.raises(InputError, match="lists no picture"):
        read_labelled_set(write(tmp_path, {}), format="pack")


def test_a_picture_refuses_arrays_that_do_not_belong_together(tmp_path):
    boxes = np.zeros((2, 4), np.float32)
    points = np.zeros((1, 5, 2), np.float32)
    with pytest.raises(UsageError, match=r"\(2, 4\), \(1, 5, 2\)"):
        LabelledPicture("a", tmp_path, None, None, boxes, points, np.zeros(2, np.bool_), np.ones(2, np.float32))


@pytest.mark.data
def test_the_sets_of_the_test_data_have_the_faces_that_their_notes_count(data):
    found = read_labelled_set(data / "facemask" / "boxes.json")
    assert (found.format, found.name, len(found), found.faces, found.ignored) == ("boxes", "facemask", 500, 2210, 0)
    assert all(p.path.is_file() for p in found.pictures)
    found = read_labelled_set(data / "train" / "labels.json")
    assert (found.format, found.name, len(found), found.faces, found.ignored) == ("pack", "train", 4078, 8542, 3850)
    assert (found.landmarked, found.problems) == (8542, ())
    assert all(p.path.is_file() for p in found.pictures)
