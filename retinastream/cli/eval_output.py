"""What evaluation commands leave in ``--output``: names checked before the work, files written after it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retinastream.errors import UsageError


def check_output(folder: Path, names: Sequence[str], *, overwrite: bool) -> None:
    """Refuse an output that could not be written, before anything is measured.

    Raises UsageError for a ``folder`` that is something else or holds files of ``names`` already (without
    ``overwrite``), and MissingPackageError where the curves could not be drawn.
    """
    from retinastream.evaluation.curves import check_matplotlib
    from retinastream.pipeline.sinks.part_file import check_target

    if folder.exists() and not folder.is_dir():
        raise UsageError(f"the output {folder} is a file; give the name of a folder")
    for name in names:
        check_target(folder / name, overwrite=overwrite)
    check_matplotlib()


def check_predictions_folder(folder: Path, wanted: Sequence[str], *, overwrite: bool) -> None:
    """Refuse a folder of text files that has files already (without ``overwrite``), or any beside ``wanted``."""
    there = {file.relative_to(folder).as_posix() for file in folder.rglob("*.txt")} if folder.is_dir() else set()
    if there and not overwrite:
        raise UsageError(f"{folder} has predictions already; choose another --output, or pass --overwrite")
    if strange := sorted(there.difference(wanted)):
        raise UsageError(
            f"{folder} has predictions of other pictures, such as {strange[0]}, which would mix with these; choose "
            "another --output, or remove them"
        )


def write_json(path: Path, values: Mapping[str, Any], *, overwrite: bool) -> Path:
    """Write ``values`` as indented JSON; returns the path."""
    from retinastream.pipeline.sinks.part_file import write_whole

    text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(path, text.encode("utf-8", "replace"), overwrite=overwrite)
    return path
