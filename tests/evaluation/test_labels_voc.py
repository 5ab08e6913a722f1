import numpy as np
import pytest

from retinastream.errors import InputError
from retinastream.evaluation.labelled_set import read_labelled_set


def thing(name="face", box=(10, 20, 30, 50), **extra):
    corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    more = "".join(f"<{k}>{v}</{k}>" for k, v in extra.items())
    return f"<object><name> {name} </name><pose>Unspecified</pose>{more}<bndbox>{corners}</bndbox></object>"


def document(*things, filename="a.jpg", size=(100, 80)):
    sides = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>" if size else ""
    return f"<annotation><folder>x</folder><filename>{filename}</filename>{sides}{''.join(things)}</annotation>"


def read(folder, *documents, **kwargs):
    for number, text in enumerate(documents):
        (folder / f"p{number}.xml").write_text(text)
    return read_labelled_set(folder, **kwargs)


def test_coordinates_are_taken_as_they_are_unless_they_count_from_1(tmp_path):
    text = document(thing(box=(1, 1, 100, 80)), thing(box=("10.5", 20, 30, 50)))
    found = read(tmp_path, text)
    np.testing.assert_array_equal(found.pictures[0].boxes, [[1, 1, 100, 80], [10.5, 20, 30, 50]])
    found = read(tmp_path, text, one_based=True)
    np.testing.assert_array_equal(found.pictures[0].boxes, [[0, 0, 100, 80], [9.5, 19, 30, 50]])


def test_pictures_come_sorted_by_file_name_and_difficult_faces_are_ignored(tmp_path):
    found = read(
        tmp_path,
        document(filename="z.png"),
        document(thing(difficult=1), thing(difficult=0), thing(difficult=""), thing(), filename="b.jpg"),
    )
    assert [p.name for p in found.pictures] == ["z.png", "b.jpg"]
    assert found.pictures[1].ignore.tolist() == [True, False, False, False]
    assert (found.faces, found.landmarked) == (3, 0)


def test_all_objects_are_faces_unless_classes_are_chosen(tmp_path):
    text = document(thing("with_mask"), thing("helmet", (1, 2, 3, 4)), thing("without_mask"))
    assert read(tmp_path, text).faces == 3
    found = read(tmp_path, text, categories=("with_mask", "without_mask"))
    np.testing.assert_array_equal(found.pictures[0].boxes, [[10, 20, 30, 50]] * 2)
    with pytest.raises(InputError, match=r"no face of the classes \['dog'\]"):
        read(tmp_path, text, categories=["dog"])


def test_parts_of_an_object_are_not_its_box(tmp_path):
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    inner = thing("person").replace("<pose>", part + "<pose>")
    np.testing.assert_array_equal(read(tmp_path, document(inner)).pictures[0].boxes, [[10, 20, 30, 50]])


@pytest.mark.parametrize(
    ("filename", "name"), [("", "p0.jpg"), ("b", "b.jpg"), ("b.png", "b.png"), ("b\\c.png", "b/c.png")]
)
def test_a_missing_name_or_extension_is_filled_in(tmp_path, filename, name):
    assert read(tmp_path, document(filename=filename)).pictures[0].name == name


@pytest.mark.parametrize("size", [None, (0, 0), ("", "")])
def test_a_size_that_is_absent_or_0_is_unknown(tmp_path, size):
    picture = read(tmp_path, document(thing(box=(0, 0, 900, 900)), size=size)).pictures[0]
    assert (picture.width, picture.height, picture.boxes[0, 2]) == (None, None, 900)


def test_boxes_that_are_not_finite_are_dropped_and_reported(tmp_path):
    found = read(tmp_path, document(thing(box=("nan", 1, 2, 3)), thing(box=(1, 1, "inf", 3)), thing()))
    assert (found.faces, [p.kind for p in found.problems]) == (1, ["box", "box"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<annotation><filename>a", ["not XML", "cut off"]),
        ("", ["not XML"]),
        ("<?xml version='1.0' encoding='no-such'?><annotation/>", ["not XML"]),
        ("<html/>", ["<html>", "<annotation>"]),
        (document("<object><name>face</name></object>"), ["'face'", "bndbox"]),
        (document(thing(box=(1, 2, "x", 4))), ["'face'", "xmax", "'x'"]),
        (document(size=("wide", 80)), ["size/width", "'wide'"]),
        (document(size=(100, "80.5")), ["size/height", "80.5"]),
        (document(size=(100, "nan")), ["size/height", "nan"]),
        (document(size=(100, -80)), ["-80"]),
        (document(filename="../a.jpg"), ["../a.jpg"]),
    ],
)
def test_wrong_documents_are_refused_with_their_file(tmp_path, text, words):
    with pytest.raises(InputError) as error:
        read(tmp_path, text)
    for word in [*words, "p0.xml"]:
        assert word in str(error.value)


def test_two_documents_about_one_picture_are_refused_if_their_faces_differ(tmp_path):
    with pytest.raises(InputError, match=r"a\.jpg' twice with different"):
        read(tmp_path, document(thing()), document())
    found = read(tmp_path, document(thing()), document(thing()))
    assert (len(found), [p.kind for p in found.problems]) == (1, ["duplicate"])


def test_entities_that_multiply_do_not_fill_the_memory(tmp_path):
    bomb = '<!DOCTYPE a [<!ENTITY e0 "0123456789">' + "".join(
        f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10)
    )
    with pytest.raises(InputError, match="not XML"):
        read(tmp_path, f"{bomb}]><annotation><filename>&e9;</filename></annotation>")
