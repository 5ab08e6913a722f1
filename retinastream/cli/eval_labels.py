"""Labels that ``retinastream eval`` measures against: read, checked, and said aloud."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from retinastream.evaluation.labelled_set import LabelledSet


def read_labels(
    labels: Path, label_format: str, images: Path | None, limit: float | None, *, quiet: bool
) -> LabelledSet:
    """Read the labels; with a ``limit`` the pictures are needed, so they are checked as well."""
    from retinastream.cli.picture_progress import PictureProgress
    from retinastream.errors import InputError
    from retinastream.evaluation.integrity import check_pictures
    from retinastream.evaluation.labelled_set import read_labelled_set

    found = read_labelled_set(labels, format=label_format, images=images)
    if limit is not None:
        with PictureProgress(f"{found.name}, checking", quiet=quiet) as progress:
            found, report = check_pictures(found, missing_limit=limit, progress=progress)
        if not quiet:
            typer.echo(str(report), err=True)
    if not found.faces:
        raise InputError(f"{labels} has no face to be found in {len(found)} pictures; expected a set with faces")
    return found
