"""Reader of the format "voc": a folder with one XML file per picture.

The format is that of the development kit of the PASCAL VOC challenge (Everingham et al., IJCV 2010): annotation with
filename, size, and an object with name, difficult and bndbox for each thing.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from pathlib import PurePosixPath
from xml.etree import ElementTree

import numpy as np

from retinastream.errors import InputError
from retinastream.evaluation.labels_raw import LabelSource, RawPicture, no_landmarks, picture_name, picture_size

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_voc(
    source: LabelSource, categories: Collection[str] | None = None, *, one_based: bool = False
) -> Iterator[RawPicture]:
    """Read the pictures of a folder of XML files, sorted by file name; unknown elements are allowed.

    ``categories`` names the objects that are faces (None: all); "difficult" ones are ignored. Coordinates are taken as
    they are: most tools write them from 0. With ``one_based`` they are whole pixels counted from 1, both ends included,
    as in the challenge itself, so that 1 is subtracted from xmin and ymin. Raises InputError.
    """
    for file, content in source.content:
        where = f"{source.path / file}"
        root = _parse(content, where)
        yield _read_picture(root, PurePosixPath(file).stem, where, categories, one_based)


def _parse(content: bytes, where: str) -> ElementTree.Element:
    try:
        root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise InputError(f"{where} is not XML ({error}); is the file cut off?") from error
    if root.tag != "annotation":
        raise InputError(f"{where}: the outer element is <{root.tag}>; expected <annotation> of Pascal VOC")
    return root


def _read_picture(
    root: ElementTree.Element, stem: str, where: str, categories: Collection[str] | None, one_based: bool
) -> RawPicture:
    name = (root.findtext("filename") or "").strip() or stem
    if not PurePosixPath(name).suffix:
        name += ".jpg"  # the tools that leave the extension out label JPEG files
    width, height = (_whole(root.findtext(f"size/{side}"), f"{where}, size/{side}") for side in ("width", "height"))
    chosen = [item for item in root.iter("object") if categories is None or _class_of(item) in categories]
    boxes = np.array([_box(item, where) for item in chosen], np.float64).reshape(-1, 4)
    if one_based:
        boxes[:, :2] -= 1
    difficult = [(item.findtext("difficult") or "0").strip() not in ("", "0") for item in chosen]
    count = len(chosen)
    return RawPicture(
        picture_name(name, where),
        boxes,
        no_landmarks(count),
        np.array(difficult, np.bool_),
        np.ones(count),
        *picture_size(width, height, where),
    )


def _class_of(item: ElementTree.Element) -> str:
    return (item.findtext("name") or "").strip()


def _whole(text: str | None, where: str) -> int | None:
    if text is None or not text.strip():
        return None
    value = _number(text, where)
    if not value.is_integer():
        raise InputError(f"{where} is {text!r}; expected a whole number of pixels")
    return int(value)


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise InputError(f"{where} is {text!r}; expected a number") from error
    # NaN and infinity are the business of whoever cleans the boxes; a size may not be either.
    return value if math.isfinite(value) else math.nan


def _box(item: ElementTree.Element, where: str) -> list[float]:
    texts = [item.findtext(f"bndbox/{corner}") for corner in _CORNERS]
    if None in texts:
        raise InputError(f"{where}: object {_class_of(item)!r} has no bndbox with {', '.join(_CORNERS)}")
    return [
        _number(text or "", f"{where}, object {_class_of(item)!r}, {corner}")
        for text, corner in zip(texts, _CORNERS, strict=True)
    ]
