import json

import cv2
import numpy as np
import pytest

from retinastream.errors import InputError, UsageError
from retinastream.evaluation.integrity import check_pictures
from retinastream.evaluation.labelled_set import read_labelled_set

FACE = [10.0, 20.0, 30.0, 50.0]


def picture(path, width=100, height=80, seed=0):
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    path.write_bytes(cv2.imencode(path.suffix, pixels)[1].tobytes())
    return path


def labelled(folder, count=4, boxes=(FACE,), size=(100, 80), extension=".jpg", make=True):
    """A set of ``count`` pictures p0, p1, ... with the same labels."""
    names = [f"p{n}{extension}" for n in range(count)]
    (folder / "images").mkdir()
    if make:
        for n, name in enumerate(names):
            picture(folder / "images" / name, seed=n)
    entry = {"boxes": [list(b) for b in boxes]} | ({"size": list(size)} if size else {})
    path = folder / "boxes.json"
    path.write_text(json.dumps(dict.fromkeys(names, entry)))
    return path


def turn(path, orientation):
    from test_picture_header import with_exif

    path.write_bytes(with_exif(path.read_bytes(), orientation))


@pytest.mark.parametrize("decode", [False, True])
def test_a_whole_set_comes_back_as_it_is_with_a_report(tmp_path, decode):
    found = read_labelled_set(labelled(tmp_path))
    checked, report = check_pictures(found, decode=decode)
    assert checked.pictures == found.pictures
    assert (report.listed, report.usable, report.unusable, report.faces, report.backgrounds) == (4, 4, 0, 4, 0)
    assert (report.missing, report.undecodable, report.resized, report.same_bytes, report.turned) == ((),) * 5
    assert (report.sizes, report.face_heights, report.decoded) == ((100, 80, 100, 80), (30, 30, 30), decode)
    assert "4 of 4 pictures usable" in str(report)
    assert ("decoded" in str(report)) == decode


def test_missing_pictures_are_listed_and_left_out_up_to_the_limit(tmp_path):
    found = read_labelled_set(labelled(tmp_path))
    (tmp_path / "images" / "p2.jpg").unlink()
    checked, report = check_pictures(found, missing_limit=0.25)
    assert [p.name for p in checked.pictures] == ["p0.jpg", "p1.jpg", "p3.jpg"]
    assert (report.missing, report.usable, report.faces) == (("p2.jpg",), 3, 3)
    assert "missing: 1: p2.jpg" in str(report)
    with pytest.raises(InputError, match=r"(?s)1 of 4 pictures.*limit of 0\.2 .*missing: 1: p2\.jpg"):
        check_pictures(found, missing_limit=0.2)
    with pytest.raises(InputError):
        check_pictures(found)


def test_a_picture_folder_that_is_not_there_is_named(tmp_path):
    path = labelled(tmp_path, make=False)
    (tmp_path / "images").rmdir()
    with pytest.raises(InputError, match=r"4 of 4.*images does not exist: name it with images="):
        check_pictures(read_labelled_set(path))


@pytest.mark.parametrize("extension", [".jpg", ".png", ".bmp"])
@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("damage", ["cut", "empty", "text", "folder"])
def test_pictures_that_cannot_be_decoded_are_listed_with_the_reason(tmp_path, extension, decode, damage):
    found = read_labelled_set(labelled(tmp_path, extension=extension))
    bad = found.pictures[1].path
    whole = bad.read_bytes()
    bad.unlink()
    if damage == "folder":
        bad.mkdir()
    else:
        bad.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"not found\n" * 50}[damage])
    checked, report = check_pictures(found, missing_limit=0.5, decode=decode)
    assert [name for name, _ in report.undecodable] == [bad.name]
    assert report.undecodable[0][1]
    assert report.missing == ()
    assert len(checked) == 3
    assert f"not readable: 1: {bad.name} " in str(report)


def test_damage_inside_a_file_is_found_when_pictures_are_decoded(tmp_path):
    found = read_labelled_set(labelled(tmp_path, extension=".png"))
    content = bytearray(found.pictures[1].path.read_bytes())
    content[40:400] = bytes(360)
    found.pictures[1].path.write_bytes(content)
    assert check_pictures(found, missing_limit=0.5)[1].undecodable == ()
    assert [name for name, _ in check_pictures(found, missing_limit=0.5, decode=True)[1].undecodable] == ["p1.png"]


@pytest.mark.parametrize("decode", [False, True])
def test_a_picture_of_another_size_than_its_labels_say_is_left_out(tmp_path, decode):
    found = read_labelled_set(labelled(tmp_path))
    picture(found.pictures[3].path, 50, 40)
    checked, report = check_pictures(found, missing_limit=0.5, decode=decode)
    assert report.resized == (("p3.jpg", "is 50x40, its labels are for 100x80"),)
    assert len(checked) == 3
    with pytest.raises(InputError, match=r"of another size: 1: p3\.jpg is 50x40"):
        check_pictures(found)


def test_labels_of_a_picture_turned_by_exif_must_be_upright(tmp_path):
    found = read_labelled_set(labelled(tmp_path, size=(100, 80)))
    turn(found.pictures[0].path, 6)
    turn(found.pictures[1].path, 3)
    _, report = check_pictures(found, missing_limit=0.5)
    assert report.resized == (
        ("p0.jpg", "is 80x100, its labels are for 100x80; its EXIF orientation is 6: label it upright"),
    )
    assert report.turned == ("p0.jpg", "p1.jpg")
    assert "turned by EXIF, labels must be upright: 2" in str(report)


@pytest.mark.parametrize("decode", [False, True])
def test_pictures_whose_labels_do_not_say_a_size_get_it_and_their_boxes_are_clipped(tmp_path, decode):
    boxes = [FACE, [90, 70, 300, 400], [100, 10, 200, 20], [-0.5, 0, 5, 5]]
    found = read_labelled_set(labelled(tmp_path, boxes=boxes, size=None))
    checked, report = check_pictures(found, decode=decode)
    for one in checked.pictures:
        assert (one.width, one.height) == (100, 80)
        np.testing.assert_array_equal(one.boxes, [FACE, [90, 70, 100, 80], [0, 0, 5, 5]])
    assert [p.kind for p in checked.problems] == ["outside", "clipped"] * 4
    assert report.to_dict()["problem_counts"] == {"outside": 4, "clipped": 4}
    assert "labels, clipped: 4, the first: p0.jpg: face at [90, 70, 300, 400]" in str(report)


def test_a_set_without_a_face_is_refused_with_what_was_read(tmp_path):
    found = read_labelled_set(labelled(tmp_path, boxes=[[10, 10, 10, 20]]))
    assert found.faces == 0
    with pytest.raises(InputError, match="no face to be found: read as 'boxes', 4 pictures, 0 ignored faces, 4 prob"):
        check_pictures(found)


def test_equal_files_under_several_names_are_reported_and_kept(tmp_path):
    found = read_labelled_set(labelled(tmp_path))
    found.pictures[3].path.write_bytes(found.pictures[1].path.read_bytes())
    checked, report = check_pictures(found)
    assert report.same_bytes == (("p1.jpg", "p3.jpg"),)
    assert len(checked) == 4
    assert "equal files: 1: p1.jpg = p3.jpg" in str(report)


def test_long_lists_are_shortened_in_print_and_whole_in_the_data(tmp_path):
    found = read_labelled_set(labelled(tmp_path, count=9))
    for n in range(8):
        found.pictures[n].path.unlink()
    report = check_pictures(found, missing_limit=1)[1]
    assert "missing: 8: p0.jpg; p1.jpg; p2.jpg; p3.jpg; p4.jpg, and 3 more" in str(report)
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert plain["missing"] == [f"p{n}.jpg" for n in range(8)]
    assert plain["sha256"] == found.sha256


def test_backgrounds_and_ignored_faces_are_counted(tmp_path):
    path = tmp_path / "labels.json"
    points = [-1] * 10
    faces = {"a.png": [[*FACE, *points, 0.9]], "b.png": [[*FACE, *points, 0.5]], "c.png": []}
    path.write_text(json.dumps({n: {"width": 100, "height": 80, "faces": f} for n, f in faces.items()}))
    for name in faces:
        picture(tmp_path / "images" / name)
    report = check_pictures(read_labelled_set(path))[1]
    assert (report.faces, report.ignored, report.landmarked, report.backgrounds) == (1, 1, 0, 2)


def test_progress_is_told_for_every_picture(tmp_path):
    told = []
    check_pictures(read_labelled_set(labelled(tmp_path)), progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize("options", [{"missing_limit": -0.1}, {"missing_limit": 1.1}, {"threads": 0}])
def test_values_out_of_range_are_usage_errors(tmp_path, options):
    with pytest.raises(UsageError, match="expected"):
        check_pictures(read_labelled_set(labelled(tmp_path)), **options)


@pytest.mark.data
def test_the_pictures_of_the_test_data_are_all_there_and_of_the_size_of_their_labels(data):
    for labels, faces in (("facemask/boxes.json", 2210), ("train/labels.json", 8542)):
        _, report = check_pictures(read_labelled_set(data / labels), missing_limit=0)
        assert (report.unusable, report.faces, report.turned, report.problems) == (0, faces, (), ())
