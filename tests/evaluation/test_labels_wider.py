import numpy as np
import pytest

from retinastream.errors import InputError
from retinastream.evaluation.labelled_set import read_labelled_set

POINTS = [15, 30, 0.0, 25, 30, 1.0, 20, 35, 0.0, 16, 42, 1.0, 24, 42, 0.0]
FACE = "10 20 20 30 " + " ".join(str(v) for v in POINTS) + " 0.82"
UNMARKED = "1 2 3 4 " + "-1.0 " * 15 + "0.5"
ZEROS = "0 0 0 0 0 0 0 0 0 0 "


def read(folder, *lines, **kwargs):
    path = folder / "label.txt"
    path.write_text("\n".join(lines) + "\n")
    return read_labelled_set(path, **{"format": "wider", **kwargs})


def test_a_line_with_landmarks_gives_box_and_five_points_also_of_hidden_ones(tmp_path):
    found = read(tmp_path, "# 0--Parade/x.jpg", FACE)
    picture = found.pictures[0]
    assert (picture.name, picture.width, picture.height) == ("0--Parade/x.jpg", None, None)
    np.testing.assert_array_equal(picture.boxes, [[10, 20, 30, 50]])
    np.testing.assert_array_equal(picture.landmarks[0], [[15, 30], [25, 30], [20, 35], [16, 42], [24, 42]])
    assert picture.scores.tolist() == [1]


def test_lines_without_landmarks_or_with_minus_1_are_faces_without_them(tmp_path):
    found = read(tmp_path, "# x.jpg", UNMARKED, "5 6 7 8", FACE.rsplit(" ", 1)[0])
    np.testing.assert_array_equal(found.pictures[0].boxes, [[1, 2, 4, 6], [5, 6, 12, 14], [10, 20, 30, 50]])
    assert found.pictures[0].has_landmarks.tolist() == [False, False, True]
    assert (found.faces, found.problems) == (3, ())


def test_a_missing_point_among_others_drops_the_landmarks_of_that_face(tmp_path):
    partly = FACE.replace("20 35 0.0", "-1 -1 -1")
    found = read(tmp_path, "# x.jpg", partly, FACE)
    assert found.pictures[0].has_landmarks.tolist() == [False, True]
    assert [p.kind for p in found.problems] == ["landmarks"]


def test_pictures_without_lines_are_backgrounds_and_blank_lines_do_not_count(tmp_path):
    found = read(tmp_path, "# a.jpg", "# b.jpg", FACE, "", "# c.jpg")
    assert [(p.name, len(p)) for p in found.pictures] == [("a.jpg", 0), ("b.jpg", 1), ("c.jpg", 0)]


def test_the_official_text_ignores_invalid_faces_and_skips_the_zeros_of_empty_pictures(tmp_path):
    found = read(
        tmp_path,
        "0--Parade/a.jpg",
        "2",
        "449 330 122 149 0 0 0 0 0 0 ",
        "10 20 20 30 2 1 0 1 2 0 ",
        "0--Parade/empty.jpg",
        "0",
        ZEROS,
        "1--Handshaking/b 1.jpg",
        "1",
        "1 2 0 4 0 0 0 0 0 0 ",
        "2--X/last.jpg",
        "0",
    )
    assert [(p.name, len(p)) for p in found.pictures] == [
        ("0--Parade/a.jpg", 2),
        ("0--Parade/empty.jpg", 0),
        ("1--Handshaking/b 1.jpg", 0),
        ("2--X/last.jpg", 0),
    ]
    np.testing.assert_array_equal(found.pictures[0].boxes, [[449, 330, 571, 479], [10, 20, 30, 50]])
    assert found.pictures[0].ignore.tolist() == [False, True]
    assert [(p.picture, p.kind) for p in found.problems] == [("1--Handshaking/b 1.jpg", "box")]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["# a.jpg", FACE, "1 2 3"], ["line 3", "3 numbers"]),
        (["# a.jpg", FACE + " 5"], ["line 2", "21 numbers"]),
        (["# a.jpg", "1 2 x 4"], ["line 2", "1 2 x 4"]),
        (["#", FACE], ["line 1", "name"]),
        (["a.jpg", "1", "1 2 3 4"], ["line 3", "a.jpg", "4 numbers"]),
        (["a.jpg", "2", ZEROS], ["line 2", "2 faces", "1 lines"]),
        (["a.jpg", "0", "b.jpg"], ["line 4", "b.jpg", "missing"]),
        (["a.jpg", "1", ZEROS, ZEROS, "b.jpg", "0"], ["line 5", "'b.jpg'"]),
        (["a.jpg", "two", ZEROS], ["line 2", "'two'"]),
        (["a.jpg", "2", ZEROS, "b.jpg", "0"], ["line 4", "'b.jpg'"]),
    ],
)
def test_wrong_lines_are_refused_with_their_number(tmp_path, lines, words):
    with pytest.raises(InputError) as error:
        read(tmp_path, *lines)
    for word in [*words, "label.txt"]:
        assert word in str(error.value)


def test_an_empty_text_lists_no_picture(tmp_path):
    with pytest.raises(InputError, match="no picture"):
        read(tmp_path)
