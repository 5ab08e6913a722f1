"""The format "pack", read and written: faces with landmarks and the score of a teacher, or 1 where made by hand.

    {"a.jpg": {"width": w, "height": h, "faces": [[x1, y1, x2, y2, lx0, ly0, ..., lx4, ly4, score], ...]}, ...}

A score of 0.7 or more is a face; from 0.3 to 0.7 it is to be ignored. Landmarks that are all -1 are absent; with a
score of exactly 0.5 they mark a box made by hand that the teacher missed. Landmarks may lie outside the picture. A list
"ignore" of 0 and 1, one per face, overrules what the scores say.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retinastream.errors import InputError, OutputError, UsageError
from retinastream.evaluation.labels_raw import (
    Flags,
    Float64,
    LabelProblem,
    LabelSource,
    RawPicture,
    picture_name,
    picture_size,
    rows,
    typed,
)

if TYPE_CHECKING:
    from retinastream.evaluation.labelled_set import LabelledPicture, LabelledSet

POSITIVE, IGNORED, MISSED = 0.7, 0.3, 0.5


def read_pack(source: LabelSource, *, missed_as_faces: bool = False) -> Iterator[RawPicture]:
    """Read a pack; unknown keys are allowed.

    ``missed_as_faces``: boxes that the teacher missed become faces of score 1 without landmarks, else they are ignored.
    Faces below 0.3 are no faces for anyone: dropped and reported. Raises InputError.
    """
    for key, value in typed(source.content, dict, f"{source.path}").items():
        where = f"{source.path}, picture {key!r}"
        entry = typed(value, dict, where)
        if "faces" not in entry:
            raise InputError(f'{where}: has {sorted(entry)}; expected "faces", "width" and "height"')
        yield _read_picture(picture_name(key, where), entry, missed_as_faces, where)


def write_pack(found: LabelledSet, path: str | Path) -> Path:
    """Write ``found`` as a pack that reads back equal, whole or not at all; returns the path.

    The pictures are not copied: read it with ``images=`` their folder, or put the file beside their folder "images".
    Raises OutputError where the file cannot be written, UsageError for boxes or scores that are not finite.
    """
    path = Path(path)
    text = json.dumps({p.name: _entry(p) for p in found.pictures}, separators=(",", ":"), allow_nan=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # not NamedTemporaryFile's own rights (0600): labels are meant to be read by others
        fd, partial = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        try:
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
            Path(partial).chmod(0o644)
            Path(partial).replace(path)
        finally:
            Path(partial).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror or error}); give another path") from error
    return path


def _read_picture(name: str, entry: dict[str, Any], missed_as_faces: bool, where: str) -> RawPicture:
    faces = rows(entry["faces"], 15, f'{where}: "faces"')
    points, scores = faces[:, 4:14].copy(), faces[:, 14].copy()
    absent = (points == -1).all(axis=1)
    points[absent] = np.nan
    ignore = scores < POSITIVE
    if missed_as_faces:
        missed = absent & (scores == MISSED)
        ignore, scores = ignore & ~missed, np.where(missed, 1.0, scores)
    kept = ~(scores < IGNORED)
    if "ignore" in entry:
        ignore = _flags(entry["ignore"], len(faces), where)
        kept = np.ones(len(faces), np.bool_)
    problems = tuple(
        LabelProblem(name, "score", f"face with the score {score:g}, below {IGNORED}, is left out")
        for score in scores[~kept]
    )
    width, height = picture_size(entry.get("width"), entry.get("height"), where)
    landmarks: Float64 = points[kept].reshape(-1, 5, 2)
    return RawPicture(name, faces[kept, :4], landmarks, ignore[kept], scores[kept], width, height, problems)


def _flags(value: Any, count: int, where: str) -> Flags:
    flags = typed(value, list, f'{where}: "ignore"')
    if len(flags) != count or any(flag not in (0, 1) for flag in flags):
        raise InputError(f'{where}: "ignore" is {flags}; expected 0 or 1 for each of the {count} faces')
    return np.asarray(flags, np.bool_)


def _entry(picture: LabelledPicture) -> dict[str, Any]:
    if not (np.isfinite(picture.boxes).all() and np.isfinite(picture.scores).all()):
        raise UsageError(f"picture {picture.name}: a box or score is not finite; leave that face out before writing")
    points = picture.landmarks.reshape(-1, 10).copy()
    points[np.isnan(points).any(axis=1)] = -1
    faces = np.concatenate([picture.boxes, points, picture.scores[:, None]], axis=1)
    # The shortest decimal that is this float32, so that 243.5 does not become 243.50000762939453 for 243.50001.
    entry: dict[str, Any] = {
        "width": picture.width,
        "height": picture.height,
        "faces": [[float(str(v)) for v in row] for row in faces],
    }
    scores = np.asarray([row[14] for row in entry["faces"]])
    if not np.array_equal(scores < POSITIVE, picture.ignore) or (scores < IGNORED).any():
        entry["ignore"] = [int(flag) for flag in picture.ignore]
    return entry
