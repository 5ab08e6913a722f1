"""Reader of the format "coco": one JSON file with the lists images, annotations and, if any, categories.

The format is that of the COCO data set (Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014): a box is
[x, y, width, height], keypoints are x, y, visibility by turns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from retinastream.errors import InputError
from retinastream.evaluation.labels_raw import (
    Float64,
    LabelProblem,
    LabelSource,
    RawPicture,
    no_landmarks,
    picture_name,
    picture_size,
    rows,
    typed,
)

_FIVE_POINTS = 15


def read_coco(source: LabelSource, categories: Collection[str] | None = None) -> Iterator[RawPicture]:
    """Read the pictures of a COCO file in its order; unknown keys are allowed.

    Annotations with "iscrowd" or "ignore" are ignored faces. Five keypoints are landmarks, in the order of this package
    (eyes, nose, mouth corners; image left first); a point of visibility 0 is missing. Other numbers of keypoints are no
    landmarks, which is reported. A "score" is kept. ``categories`` names the categories that are faces (None: all).
    Raises InputError.
    """
    content = typed(source.content, dict, f"{source.path}")
    for part in ("images", "annotations"):
        if part not in content:
            raise InputError(f'{source.path}: has {sorted(content)[:5]}; expected "images" and "annotations"')
    chosen = _category_ids(content, categories, source)
    by_picture = _by_picture(typed(content["annotations"], list, f'{source.path}: "annotations"'), chosen, source)
    seen: dict[int | str, str] = {}
    for number, value in enumerate(typed(content["images"], list, f'{source.path}: "images"')):
        where = f"{source.path}, image {number}"
        image = typed(value, dict, where)
        name = picture_name(image.get("file_name"), where)
        key = _key(image.get("id"), f'{where}: "id"')
        if seen.setdefault(key, name) != name:
            raise InputError(f"{where}: the id {key} belongs to {seen[key]!r} and to {name!r}; ids must be unique")
        size = picture_size(image.get("width"), image.get("height"), where)
        yield _read_picture(name, size, by_picture.get(key, []), source)
    unknown = sorted(str(key) for key in by_picture.keys() - seen.keys())
    if unknown:
        raise InputError(
            f"{source.path}: annotations name image ids that are not in the file ({', '.join(unknown[:5])}, "
            f"{len(unknown)} in all); is a list cut off?"
        )


def _key(value: Any, where: str) -> int | str:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise InputError(f"{where} is {value!r}; expected a whole number or text")
    return value


def _category_ids(
    content: dict[str, Any], categories: Collection[str] | None, source: LabelSource
) -> set[int | str] | None:
    if categories is None:
        return None
    where = f'{source.path}: "categories"'
    entries = [typed(entry, dict, where) for entry in typed(content.get("categories", []), list, where)]
    named = {str(entry.get("name")): _key(entry.get("id"), f"{where}, an id") for entry in entries}
    unknown = sorted(set(categories) - named.keys())
    if unknown:
        raise InputError(f"{source.path} has no category {', '.join(unknown)}; it has {', '.join(sorted(named))}")
    return {named[name] for name in categories}


def _by_picture(
    annotations: list[Any], chosen: set[int | str] | None, source: LabelSource
) -> dict[int | str, list[dict[str, Any]]]:
    grouped: defaultdict[int | str, list[dict[str, Any]]] = defaultdict(list)
    for number, value in enumerate(annotations):
        where = f"{source.path}, annotation {number}"
        annotation = typed(value, dict, where)
        key = _key(annotation.get("image_id"), f'{where}: "image_id"')
        if "bbox" not in annotation:
            raise InputError(f'{where}: has no "bbox"; expected [x, y, width, height]')
        if chosen is None or _key(annotation.get("category_id"), f'{where}: "category_id"') in chosen:
            grouped[key].append(annotation)
    return grouped


def _read_picture(
    name: str, size: tuple[int | None, int | None], annotations: list[dict[str, Any]], source: LabelSource
) -> RawPicture:
    where = f"{source.path}, annotations of {name!r}"
    boxes = rows([a["bbox"] for a in annotations], 4, f'{where}: "bbox"')
    boxes[:, 2:] += boxes[:, :2]
    scores = rows([[a.get("score", 1.0)] for a in annotations], 1, f'{where}: "score"')[:, 0]
    ignore = np.array([bool(a.get("iscrowd")) or bool(a.get("ignore")) for a in annotations], np.bool_)
    landmarks, problems = _landmarks(name, [a.get("keypoints") for a in annotations], where)
    return RawPicture(name, boxes, landmarks, ignore, scores, *size, problems)


def _landmarks(name: str, keypoints: list[Any], where: str) -> tuple[Float64, tuple[LabelProblem, ...]]:
    landmarks = no_landmarks(len(keypoints))
    problems = []
    for face, value in enumerate(keypoints):
        if value is None or value == []:
            continue
        points = typed(value, list, f'{where}: "keypoints"')
        if len(points) != _FIVE_POINTS:
            text = f"{len(points)} numbers as keypoints are no five landmarks; they are left out"
            problems.append(LabelProblem(name, "landmarks", text))
            continue
        flagged = rows([points], _FIVE_POINTS, f'{where}: "keypoints"').reshape(5, 3)
        landmarks[face] = np.where(flagged[:, 2:] > 0, flagged[:, :2], np.nan)
    return landmarks, tuple(problems)
