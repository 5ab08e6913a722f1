"""Reader of the format "wider": the two text files in which the labels of WIDER FACE come.

The official one (wider_face_train_bbx_gt.txt) has for every picture its path, a line with the number of faces, and for
each face: x y w h blur expression illumination invalid occlusion pose. The one with five landmarks, of the light
RetinaFace lineage, has a line "# path" and for each face: x y w h, five times x y flag, and a quality.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from retinastream.errors import InputError
from retinastream.evaluation.labels_raw import Flags, Float64, LabelSource, RawPicture, no_landmarks, picture_name

_OFFICIAL, _INVALID = 10, 7
_PLAIN, _LANDMARKED = 4, 19


def read_wider(source: LabelSource) -> Iterator[RawPicture]:
    """Read either text; which one follows from its first line. Picture sizes are not in it.

    Official: faces marked invalid are ignored; a picture with 0 faces is followed by one line of zeros, which is no
    face. With landmarks: points of -1 are missing; lines of 4 numbers are boxes alone; the quality is not a score and
    is not kept. Raises InputError, with the number of the line.
    """
    lines = [(number, line.strip()) for number, line in enumerate(source.content, start=1) if line.strip()]
    if lines and lines[0][1].startswith("#"):
        return _read_landmarked(source.path, lines)
    return _read_official(source.path, lines)


def _read_landmarked(path: Path, lines: list[tuple[int, str]]) -> Iterator[RawPicture]:
    name, faces = "", list[Float64]()
    for number, line in lines:
        if not line.startswith("#"):
            faces.append(_landmarked_face(line, f"{path}, line {number}"))
            continue
        if name:
            yield _landmarked_picture(name, faces)
        name, faces = picture_name(line[1:], f"{path}, line {number}"), []
    yield _landmarked_picture(name, faces)


def _landmarked_face(line: str, where: str) -> Float64:
    """Box and landmarks of a line: (4 + 15,); a line without landmarks has -1 for them, as the format itself does."""
    values = _numbers(line, where)
    if len(values) == _PLAIN:
        return np.concatenate([values, np.full(_LANDMARKED - _PLAIN, -1.0)])
    if len(values) not in (_LANDMARKED, _LANDMARKED + 1):
        raise InputError(
            f"{where} has {len(values)} numbers; expected x y w h, then five times x y flag and a quality, or x y w h"
        )
    return values[:_LANDMARKED]


def _landmarked_picture(name: str, faces: list[Float64]) -> RawPicture:
    table = np.array(faces, np.float64).reshape(-1, _LANDMARKED)
    points = table[:, _PLAIN:].reshape(-1, 5, 3)
    # A flag of 1 means hidden, and the point is still there; only -1 throughout means that nobody labelled it.
    missing = (points == -1).all(axis=2)
    landmarks = np.where(missing[:, :, None], np.nan, points[:, :, :2])
    return _picture(name, table[:, :4], landmarks, np.zeros(len(table), np.bool_))


def _read_official(path: Path, lines: list[tuple[int, str]]) -> Iterator[RawPicture]:
    at = 0
    while at < len(lines):
        number, line = lines[at]
        name = picture_name(line, f"{path}, line {number}")
        if at + 1 == len(lines) or not (lines[at + 1][1].isascii() and lines[at + 1][1].isdigit()):
            given = repr(lines[at + 1][1][:60]) if at + 1 < len(lines) else "missing"
            raise InputError(f"{path}, line {number + 1}: the number of faces of {name} is {given}; expected 0, 1, ...")
        count = int(lines[at + 1][1])
        faces = [_official_face(path, entry, name) for entry in lines[at + 2 : at + 2 + count]]
        if len(faces) < count:
            raise InputError(f"{path}, line {number + 1}: {name} has {count} faces, but {len(faces)} lines follow")
        at += 2 + count
        if count == 0 and at < len(lines) and lines[at][1].split() == ["0"] * _OFFICIAL:
            at += 1
        table = np.array(faces, np.float64).reshape(-1, _OFFICIAL)
        yield _picture(name, table[:, :4], no_landmarks(count), table[:, _INVALID] == 1)


def _official_face(path: Path, entry: tuple[int, str], name: str) -> Float64:
    number, line = entry
    values = _numbers(line, f"{path}, line {number}, a face of {name}")
    if len(values) != _OFFICIAL:
        raise InputError(
            f"{path}, line {number}, a face of {name}: has {len(values)} numbers; expected "
            "x y w h blur expression illumination invalid occlusion pose"
        )
    return values


def _picture(name: str, boxes: Float64, landmarks: Float64, ignore: Flags) -> RawPicture:
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    return RawPicture(name, corners, landmarks, ignore, np.ones(len(boxes)))


def _numbers(line: str, where: str) -> Float64:
    try:
        return np.array([float(text) for text in line.split()])
    except ValueError as error:
        raise InputError(f"{where}: {line[:60]!r} are not all numbers; expected numbers separated by blanks") from error
