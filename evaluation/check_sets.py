"""What a person names to check a model on: labels, WIDER FACE, pictures or a video without labels."""

from __future__ import annotations

from pathlib import Path

from retinastream.errors import InputError, UsageError
from retinastream.evaluation.integrity import check_pictures
from retinastream.evaluation.labelled_set import read_labelled_set
from retinastream.evaluation.media_predictions import find_media
from retinastream.evaluation.precision_check import CheckSet, WiderSet
from retinastream.evaluation.wider_pictures import find_pictures
from retinastream.evaluation.wider_truth import read_ground_truth
from retinastream.pipeline.images import PICTURE_EXTENSIONS
from retinastream.pipeline.listing import VIDEO_EXTENSIONS

_WIDER_FILE = "wider_face_val.mat"


def open_check_set(
    on: str | Path, *, images: str | Path | None = None, label_format: str = "auto", missing_limit: float = 0.0
) -> CheckSet:
    """Return the set that ``on`` means.

    A folder with the ground truth of WIDER FACE (its pictures in ``images``: all that are there count), a label file or
    a folder of annotations in one of the formats of ``read_labelled_set``, or pictures or a video without labels.
    Raises InputError where there is none, or where it has no face; UsageError for options that it does not have.
    """
    path = Path(on)
    if (path / _WIDER_FILE).is_file():
        if images is None:
            raise UsageError(f"{on} is the ground truth of WIDER FACE; give the folder of its pictures, too (--images)")
        truth = read_ground_truth(path)
        return WiderSet(truth, find_pictures(images, truth))
    if is_unlabelled(path, label_format):
        if images is not None:
            raise UsageError(f"{on} has no labels, so there is no folder of pictures (--images) to go with it")
        return find_media(path)
    found = read_labelled_set(path, format=label_format, images=images)
    found, _ = check_pictures(found, missing_limit=missing_limit)
    if not found.faces:
        raise InputError(f"{on} has no face to be found in {len(found)} pictures; expected a set with faces")
    return found


def is_unlabelled(path: Path, label_format: str = "auto") -> bool:
    """Whether ``path`` is a folder without annotations, a picture, or a video."""
    if label_format != "auto":
        return False
    if path.is_dir():
        return next(path.rglob("*.xml"), None) is None
    return path.suffix.lower() in PICTURE_EXTENSIONS | VIDEO_EXTENSIONS
