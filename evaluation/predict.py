"""Running a detector over picture files: what is measured afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from retinastream.errors import InputError, ModelError, UsageError
from retinastream.pipeline.images import PICTURE_EXTENSIONS, read_picture
from retinastream.pipeline.listing import media_files
from retinastream.types import Faces

Picture = npt.NDArray[np.uint8]
Progress = Callable[[int, int], None]
"""Called with how many pictures are done, and how many there are."""
FindFaces = Callable[[list[Picture]], list[Faces]]
"""What finds the faces of several BGR pictures of one size: a ``Detector``, or anything that is called like it."""

# Pictures that wait for others of their size; beyond this many the fullest group goes ahead as it is.
_WAITING_BATCHES = 4
_NAMED = 5


def predict(
    detector: FindFaces, files: Sequence[Path], *, batch: int = 1, progress: Progress | None = None
) -> list[Faces]:
    """Find the faces of every picture file, in the order given; ``source`` of each result is the file.

    Up to ``batch`` pictures of the same size go to the detector together, wherever they stand in ``files``. Pictures
    are read upright; at most ``batch`` * 4 are held at a time. Raises InputError, before anything runs, where files do
    not exist, and for one that cannot be decoded; ModelError for a detector that gives numbers that are not finite;
    UsageError for ``batch`` below 1.
    """
    if batch < 1:
        raise UsageError(f"batch is {batch}; expected at least 1")
    check_files(files)
    results: dict[int, Faces] = {}
    for group in _groups(files, batch):
        found = detector([picture for _, picture in group])
        if len(found) != len(group):
            raise UsageError(f"the detector gave {len(found)} results for {len(group)} pictures; expected one for each")
        for (index, picture), faces in zip(group, found, strict=True):
            _check_finite(faces, files[index])
            height, width = picture.shape[:2]
            results[index] = replace(faces, source=str(files[index]), index=index, width=width, height=height)
        if progress is not None:
            progress(len(results), len(files))
    return [results[index] for index in range(len(files))]


def check_files(files: Sequence[Path]) -> None:
    """Raise InputError naming the first of the picture files that do not exist, and how many there are."""
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise InputError(
            f"{len(missing)} of {len(files)} pictures are not there: {', '.join(missing[:_NAMED])}{more}; "
            "give the folder that the names of the labels are relative to"
        )


def list_pictures(folder: str | Path) -> list[Path]:
    """Return the picture files of ``folder`` and of the folders in it, in natural order.

    Raises InputError for a folder that does not exist or holds none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; expected one with pictures")
    files = [file for file in media_files(folder, recursive=True) if file.suffix.lower() in PICTURE_EXTENSIONS]
    if not files:
        raise InputError(f"{folder} has no pictures in it; looked for {' '.join(sorted(PICTURE_EXTENSIONS))}")
    return files


def _check_finite(faces: Faces, file: Path) -> None:
    if not all(np.isfinite(values).all() for values in (faces.boxes, faces.scores, faces.landmarks)):
        raise ModelError(
            f"{file}: the model gave a box, score or landmark that is not a finite number; its weights are broken, or "
            "its precision is too low for it: try --precision f32"
        )


def _groups(files: Sequence[Path], batch: int) -> Iterator[list[tuple[int, Picture]]]:
    """Read the files and yield up to ``batch`` pictures of one size at a time, each with its position."""
    waiting: dict[tuple[int, ...], list[tuple[int, Picture]]] = {}
    held = 0
    for index, file in enumerate(files):
        picture = read_picture(file)
        group = waiting.setdefault(picture.shape, [])
        group.append((index, picture))
        held += 1
        if len(group) < batch and held >= batch * _WAITING_BATCHES:
            group = max(waiting.values(), key=len)
        elif len(group) < batch:
            continue
        held -= len(group)
        yield waiting.pop(group[0][1].shape)
    yield from waiting.values()
