"""Which picture files belong to which pictures of WIDER FACE, and what a detector finds in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from retinastream.errors import InputError
from retinastream.evaluation.predict import FindFaces, Progress, list_pictures, predict
from retinastream.evaluation.prediction_files import to_rows
from retinastream.evaluation.wider_truth import Float64, GroundTruth

PictureName = tuple[str, str]
"""Event and picture, the latter without extension."""

# Every picture of WIDER FACE was brought to this width by its authors.
WIDTH = 1024
_NAMED = 5


def find_pictures(folder: str | Path, truth: GroundTruth) -> dict[PictureName, Path]:
    """Find the pictures of ``truth`` in ``folder``: ``<event>/<picture>.jpg``, or all of them in one folder.

    Any extension of a picture will do. Those that are not there are left out. Raises InputError for a folder without
    pictures, for pictures that the truth does not have, and for two files of one name.
    """
    files = list_pictures(folder)
    events = {event.name for event in truth.events}
    by_name = {picture: (event, picture) for event, picture in truth.names}
    known = set(truth.names)
    found: dict[PictureName, Path] = {}
    unknown: list[str] = []
    for file in files:
        event = file.parent.name
        name = (event, file.stem) if event in events else by_name.get(file.stem, ("", ""))
        if name not in known:
            unknown.append(str(file))
        elif name in found:
            raise InputError(f"{file} and {found[name]} are both {'/'.join(name)}; keep one of them")
        else:
            found[name] = file
    if unknown:
        raise InputError(
            f"the ground truth does not have {_some(unknown)}; expected pictures of WIDER FACE val only, under their "
            "own names"
        )
    return found


def require_all(found: dict[PictureName, Path], truth: GroundTruth, folder: str | Path) -> None:
    """Raise InputError where pictures of ``truth`` are not among ``found``."""
    missing = ["/".join(name) for name in truth.names if name not in found]
    if missing:
        raise InputError(
            f"{len(missing)} of the {truth.pictures} pictures of the ground truth are not in {folder}: "
            f"{_some(missing)}; add them, or measure on those that are there with --only-present"
        )


def predict_pictures(
    detector: FindFaces, found: dict[PictureName, Path], *, batch: int = 1, progress: Progress | None = None
) -> tuple[dict[str, dict[str, Float64]], list[Path]]:
    """Run ``detector`` over the pictures ``found``: predictions as ``wider_face.evaluate`` takes them.

    The second value lists pictures that are not 1024 pixels wide, as those of WIDER FACE are: the labels of such a copy
    do not fit, unless it was cropped nowhere and the labels are for it. Raises as ``predict`` does.
    """
    predictions: dict[str, dict[str, Float64]] = {}
    other_widths: list[Path] = []
    results = predict(detector, list(found.values()), batch=batch, progress=progress)
    for ((event, picture), file), faces in zip(found.items(), results, strict=True):
        predictions.setdefault(event, {})[picture] = to_rows(faces)
        if faces.width != WIDTH:
            other_widths.append(file)
    return predictions, other_widths


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
