"""Predictions for the pictures of a labelled set, kept in files: JSON Lines, or a text file per picture.

JSON Lines are those of ``retinastream detect``, written here without rounding, so that the same file gives the same
measures. Text files are those of WIDER FACE, ``<picture>.txt`` for ``<picture>.jpg``, folders included.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from retinastream.errors import InputError, UsageError
from retinastream.evaluation.wider_text import read_prediction_file
from retinastream.pipeline.sinks.jsonl import read_jsonl
from retinastream.pipeline.sinks.part_file import PartFile
from retinastream.pipeline.sinks.sink import RunHeader
from retinastream.types import Faces

_NAMED = 5


def read_faces(path: str | Path, names: Sequence[str]) -> list[Faces]:
    """Read the predictions for the pictures ``names``, in their order, from a .jsonl file or a folder of text files.

    ``names`` are paths relative to the picture folder, with "/" and extension. A picture without an entry has no
    faces. Text files have no landmarks: these are NaN.
    Raises InputError for files that are missing, malformed, cut off or of a video, and UsageError for predictions of
    pictures that are not among ``names`` or are there twice.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path, names)
    if not path.exists():
        raise InputError(f"{path} does not exist; expected a .jsonl file, or a folder with a .txt file per picture")
    return _read_jsonl(path, names)


def write_faces(
    path: Path, predictions: Sequence[Faces], names: Sequence[str], header: RunHeader, *, overwrite: bool = False
) -> None:
    """Write JSON Lines that ``read_faces`` and ``read_jsonl`` read back to the same numbers.

    Raises UsageError where ``path`` exists and ``overwrite`` is not given, OutputError where it cannot be written.
    """
    file = PartFile(path, overwrite=overwrite)
    try:
        file.write(_line({"type": "header", **asdict(replace(header, kind="images"))}))
        for index, (faces, name) in enumerate(zip(predictions, names, strict=True)):
            file.write(_line(_record(faces, name, index)))
        file.write(_line({"type": "end", "complete": True, "frames": len(predictions)}))
    except BaseException:
        file.abort()
        raise
    file.close()


def to_rows(faces: Faces) -> npt.NDArray[np.float64]:
    """Return the boxes as rows of x, y, width, height and score (N, 5), as WIDER FACE has them."""
    boxes = faces.boxes.astype(np.float64)
    return np.column_stack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2], faces.scores])


def from_rows(rows: npt.NDArray[np.floating[Any]]) -> Faces:
    """Make faces, best score first, of rows of x, y, width, height and score; their landmarks are NaN."""
    ranked = rows[np.argsort(-rows[:, 4], kind="stable")]
    boxes = np.column_stack([ranked[:, :2], ranked[:, :2] + ranked[:, 2:4]]).astype(np.float32)
    return Faces(boxes, ranked[:, 4].astype(np.float32), np.full((len(ranked), 5, 2), np.nan, np.float32))


def _read_folder(folder: Path, names: Sequence[str]) -> list[Faces]:
    wanted = {PurePosixPath(name).with_suffix("").as_posix(): index for index, name in enumerate(names)}
    if len(wanted) < len(names):
        raise UsageError(
            f"pictures of the set differ only in their extension, and {folder} cannot tell which of them a text file "
            "is for; use a .jsonl file"
        )
    files = sorted(folder.rglob("*.txt"))
    if not files:
        raise InputError(f"{folder} has no predictions; expected a file <picture>.txt per picture in it")
    found = {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}
    _refuse_unknown([name for name in found if name not in wanted], folder)
    results = [Faces() for _ in names]
    for name, file in found.items():
        results[wanted[name]] = from_rows(read_prediction_file(file))
    return results


def _read_jsonl(path: Path, names: Sequence[str]) -> list[Faces]:
    with warnings.catch_warnings():
        # What is cut off is an error here, and one message about it is enough.
        warnings.simplefilter("ignore")
        header, records = read_jsonl(path)
        frames = list(records)
    if header.get("kind") != "images":
        raise InputError(f"{path} holds the faces of a video; expected those of pictures")
    wanted = {name: index for index, name in enumerate(names)}
    results: dict[int, Faces] = {}
    unknown: list[str] = []
    for faces in frames:
        index = _position(faces.source, wanted)
        if index is None:
            unknown.append(faces.source)
        elif index in results:
            raise UsageError(f"{path} has the picture {names[index]} twice; expected one record for each picture")
        else:
            results[index] = faces
    _refuse_unknown(unknown, path)
    if records.end is None or not records.end.get("complete"):
        raise InputError(f"{path} is not complete: its run was cut off; predict again, with --overwrite")
    return [results.get(index, Faces()) for index in range(len(names))]


def _position(source: str, wanted: Mapping[str, int]) -> int | None:
    """Find the name that ends the path ``source``, the longest one where several do."""
    parts = PurePosixPath(source).parts
    tails = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((wanted[tail] for tail in tails if tail in wanted), None)


def _refuse_unknown(unknown: Sequence[str], where: Path) -> None:
    if unknown:
        more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
        raise UsageError(
            f"{where} has predictions for pictures that the set does not have: {', '.join(unknown[:_NAMED])}{more}; "
            "expected the names of the labels"
        )


def _record(faces: Faces, name: str, index: int) -> dict[str, Any]:
    rows = zip(*(values.tolist() for values in (faces.boxes, faces.scores, faces.landmarks)), strict=True)
    return {
        "type": "frame",
        "index": index,
        "pts": None,
        "source": name,
        "width": faces.width,
        "height": faces.height,
        "faces": [{"box": box, "score": score, "landmarks": landmarks} for box, score, landmarks in rows],
    }


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n"
