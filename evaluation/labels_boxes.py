"""Reader of the format "boxes": a JSON object of picture name -> size, boxes and, if any, their classes.

{"a.jpg": {"size": [width, height], "boxes": [[x1, y1, x2, y2], ...], "labels": ["face", ...]}, ...}
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from retinastream.errors import InputError
from retinastream.evaluation.labels_raw import (
    LabelSource,
    RawPicture,
    no_landmarks,
    picture_name,
    picture_size,
    rows,
    typed,
)


def read_boxes(source: LabelSource, categories: Collection[str] | None = None) -> Iterator[RawPicture]:
    """Read boxes made by hand; unknown keys are allowed, "size" and "labels" may be absent.

    ``categories`` names the classes that are faces (None: all); boxes of others are no faces. Raises InputError.
    """
    for key, value in typed(source.content, dict, f"{source.path}").items():
        where = f"{source.path}, picture {key!r}"
        entry = typed(value, dict, where)
        if "boxes" not in entry:
            raise InputError(f'{where}: has {sorted(entry)}; expected "boxes", and "size" and "labels" if known')
        boxes = rows(entry["boxes"], 4, f'{where}: "boxes"')
        boxes = boxes[_chosen(entry.get("labels"), len(boxes), categories, where)]
        size = typed(entry.get("size", [None, None]), list, f'{where}: "size"')
        if len(size) != 2:
            raise InputError(f'{where}: "size" is {size}; expected [width, height]')
        count = len(boxes)
        yield RawPicture(
            picture_name(key, where),
            boxes,
            no_landmarks(count),
            np.zeros(count, np.bool_),
            np.ones(count),
            *picture_size(size[0], size[1], where),
        )


def _chosen(labels: Any, count: int, categories: Collection[str] | None, where: str) -> list[int]:
    """Indices of the boxes whose class is one of ``categories``."""
    if labels is not None and len(typed(labels, list, f'{where}: "labels"')) != count:
        raise InputError(f"{where}: {count} boxes have {len(labels)} labels; expected one label for each box")
    if categories is None:
        return list(range(count))
    if labels is None:
        if count:
            raise InputError(f'{where}: has no "labels", so that {sorted(categories)} cannot be chosen among its boxes')
        return []
    return [n for n, label in enumerate(labels) if isinstance(label, str) and label in categories]
