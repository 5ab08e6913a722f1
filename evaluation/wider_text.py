"""Prediction files in the layout of WIDER FACE: ``<event>/<picture>.txt``.

The first line of a file is the name of the picture, the second how many boxes follow, and each further line has
x, y, width, height and score of one, separated by blanks.
"""

from __future__ import annotations

import math
from pathlib import Path, PurePosixPath

import numpy as np

from retinastream.errors import InputError, OutputError
from retinastream.evaluation.wider_face import Predictions
from retinastream.evaluation.wider_truth import Float64

_LINE = "x y width height score"


def read_predictions(folder: str | Path) -> dict[str, dict[str, Float64]]:
    """Read all ``<event>/<picture>.txt`` of ``folder``: event -> picture -> (N, 5) rows in the order of the file.

    The file names the picture; its name line must agree, with or without extension and folders before it. Raises
    InputError for a folder without such files, and for a file that is not of the layout, with the number of the line.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; expected one with <event>/<picture>.txt")
    found: dict[str, dict[str, Float64]] = {}
    for path in sorted(folder.glob("*/*.txt")):
        found.setdefault(path.parent.name, {})[path.stem] = read_prediction_file(path)
    if not found:
        raise InputError(f"{folder} has no predictions; expected files <event>/<picture>.txt in it")
    return found


def read_prediction_file(path: Path) -> Float64:
    """Read the predictions of one picture: (N, 5) of x, y, width, height, score. Raises InputError."""
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} could not be read as text: {error}") from error
    if len(lines) < 2:
        raise InputError(
            f"{path}, line {len(lines) + 1}: the file ends; expected the picture's name, a count, and boxes"
        )
    named = PurePosixPath(lines[0].strip().replace("\\", "/"))
    if path.stem not in (named.name, named.stem):
        raise InputError(f"{path}, line 1: the name is {lines[0]!r}; expected {path.stem}, with or without extension")
    boxes = [_read_box(path, number, line) for number, line in enumerate(lines[2:], start=3)]
    count = lines[1].strip()
    if not (count.isascii() and count.isdigit()):
        raise InputError(f"{path}, line 2: the count is {lines[1]!r}; expected how many boxes follow")
    if int(count) != len(boxes):
        raise InputError(f"{path}, line 2: the count is {count}, but {len(boxes)} boxes follow; is the file cut off?")
    return np.array(boxes, np.float64).reshape(-1, 5)


def write_predictions(folder: str | Path, predictions: Predictions) -> None:
    """Write ``<event>/<picture>.txt`` for every picture of ``predictions``, so that reading gives the same numbers.

    Files of the same names are replaced. Raises OutputError where the folder cannot be written.
    """
    for event, pictures in predictions.items():
        target = Path(folder) / event
        try:
            target.mkdir(parents=True, exist_ok=True)
            for picture, rows in pictures.items():
                values = np.asarray(rows, np.float64).reshape(-1, 5).tolist()
                lines = [picture, str(len(values)), *(" ".join(map(repr, row)) for row in values)]
                (target / f"{picture}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{target} could not be written: {error}; choose a folder that can be") from error


def _read_box(path: Path, number: int, line: str) -> list[float]:
    try:
        values = [float(word) for word in line.split()]
    except ValueError as error:
        raise InputError(f"{path}, line {number}: {line!r} is not five numbers; expected {_LINE}") from error
    if len(values) != 5 or not all(map(math.isfinite, values)):
        raise InputError(f"{path}, line {number}: {line!r} is not five finite numbers; expected {_LINE}")
    return values
