import dataclasses
import json

import numpy as np
import pytest

from retinastream.errors import InputError
from retinastream.evaluation.data_hash import data_hash
from retinastream.evaluation.labelled_set import read_labelled_set
from retinastream.evaluation.labels_pack import write_pack

POINTS = [15.0, 30.0, 25.0, 30.0, 20.0, 35.0, 16.0, 42.0, 24.0, 42.0]


@pytest.fixture
def found(tmp_path):
    faces = [[10, 20, 30, 50, *POINTS, 0.9], [0, 0, 5, 5, *[-1] * 10, 0.5]]
    entries = {name: {"width": 100, "height": 80, "faces": faces} for name in ("a.jpg", "b.jpg")}
    (tmp_path / "labels.json").write_text(json.dumps(entries))
    (tmp_path / "images").mkdir()
    for name in entries:
        (tmp_path / "images" / name).write_bytes(name.encode() * 1000)
    return read_labelled_set(tmp_path / "labels.json")


def changed(found, **fields):
    return dataclasses.replace(found, pictures=(dataclasses.replace(found.pictures[0], **fields), found.pictures[1]))


def test_equal_labels_and_pictures_have_the_same_hash_wherever_they_lie(found, tmp_path):
    copy = write_pack(found, tmp_path / "elsewhere" / "x.json")
    again = read_labelled_set(copy, images=tmp_path / "images")
    assert data_hash(again) == data_hash(found)
    assert len(data_hash(found)) == 64


def test_every_nan_and_every_zero_counts_the_same(found):
    boxes, landmarks = found.pictures[0].boxes.copy(), found.pictures[0].landmarks.copy()
    landmarks[1] = -landmarks[1]  # the sign bit of NaN
    boxes[1, :2] = -0.0
    assert data_hash(changed(found, boxes=boxes, landmarks=landmarks)) == data_hash(found)


def test_any_change_of_a_label_a_name_an_order_or_a_picture_changes_the_hash(found, tmp_path):
    first = found.pictures[0]
    hashes = [data_hash(found)]
    for field in ("boxes", "landmarks", "scores"):
        array = getattr(first, field).copy()
        array.flat[0] = np.nextafter(array.flat[0], np.float32(1000))
        hashes.append(data_hash(changed(found, **{field: array})))
    hashes.append(data_hash(changed(found, ignore=~first.ignore)))
    hashes.append(data_hash(changed(found, name="c.jpg")))
    hashes.append(data_hash(changed(found, width=101)))
    hashes.append(data_hash(dataclasses.replace(found, pictures=found.pictures[::-1])))
    hashes.append(data_hash(dataclasses.replace(found, pictures=found.pictures[:1])))
    content = bytearray(first.path.read_bytes())
    content[-1] ^= 1
    first.path.write_bytes(content)
    hashes.append(data_hash(found))
    assert len(set(hashes)) == len(hashes) == 10


def test_a_picture_that_is_missing_is_an_error(found):
    found.pictures[1].path.unlink()
    with pytest.raises(InputError, match=r"b\.jpg cannot be read.*check_pictures"):
        data_hash(found)


def test_progress_is_told_for_every_picture(found):
    told = []
    data_hash(found, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 2), (2, 2)]
