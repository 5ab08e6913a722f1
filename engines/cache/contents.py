"""What lies in the folder of the cache, read file by file."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from retinastream.engines.cache.entry import (
    BAD_SUFFIX,
    PART_SUFFIX,
    PLAN_SUFFIX,
    SIDECAR_SUFFIX,
    Entry,
    name_of,
)
from retinastream.engines.cache.errors import DamagedPlanError, UntrustedPlanError
from retinastream.engines.cache.sidecar import read_sidecar
from retinastream.engines.cache.trust import open_folder, open_trusted

BAD_PLAN_SUFFIX = f"{PLAN_SUFFIX}{BAD_SUFFIX}"
BAD_NOTE_SUFFIX = f"{BAD_SUFFIX}{SIDECAR_SUFFIX}"


@dataclass(frozen=True, slots=True)
class Unusable:
    """A file that looks like an engine and cannot be used; ``reason`` is a sentence."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A plan that was put aside: its name, why, when (ISO 8601), of which model, and how many bytes."""

    name: str
    path: Path
    reason: str
    when: str
    model: str
    size: int


def read_entry(folder: int, path: Path, name: str) -> Entry:
    """Read one engine of an open folder, whose path is ``path``.

    Raises FileNotFoundError where there is none, UntrustedPlanError and DamagedPlanError where it cannot be used.
    """
    shown = path / f"{name}{SIDECAR_SUFFIX}"
    with open_trusted(folder, shown.name, shown) as file:
        entry = Entry(path, read_sidecar(file.read(), str(shown)))
    if name_of(entry.digest) != name:
        raise DamagedPlanError(f"{shown} describes another engine ({entry.short}) than its name says; build it again")
    _check_size(folder, entry)
    return entry


def usable(path: Path) -> tuple[list[Entry], list[Unusable]]:
    """Read all engines of the folder: those that can be used, and those that cannot, with the reason."""
    found: list[Entry] = []
    refused: list[Unusable] = []
    with contextlib.suppress(FileNotFoundError), open_folder(path) as folder:
        for name in _names(folder, SIDECAR_SUFFIX, not_ending=BAD_NOTE_SUFFIX):
            try:
                found.append(read_entry(folder, path, name))
            except (UntrustedPlanError, DamagedPlanError) as error:
                refused.append(Unusable(path / f"{name}{SIDECAR_SUFFIX}", str(error)))
            except OSError as error:
                refused.append(Unusable(path / f"{name}{SIDECAR_SUFFIX}", f"cannot be read: {error.strerror}"))
    return found, refused


def quarantined(path: Path) -> list[Quarantined]:
    """Read what was put aside."""
    found = []
    with contextlib.suppress(FileNotFoundError), open_folder(path) as folder:
        for name in _names(folder, BAD_PLAN_SUFFIX):
            plan = path / f"{name}{BAD_PLAN_SUFFIX}"
            note = _note(path / f"{name}{BAD_NOTE_SUFFIX}")
            reason, when, model = (note.get(key, "") for key in ("reason", "when", "model"))
            found.append(Quarantined(name, plan, reason, when, model, plan.lstat().st_size))
    return found


def leftovers(path: Path, name: str = "") -> list[Path]:
    """Return what builds that were killed have left: temporary files and folders, and plans without a sidecar.

    Those of one engine where its ``name`` is given. Whether a build still runs is for the caller to know.
    """
    try:
        names = sorted(item.name for item in path.iterdir() if item.name.startswith(name))
    except FileNotFoundError:
        return []
    there = set(names)
    parts = [n for n in names if n.endswith(PART_SUFFIX)]
    orphans = [
        n for n in names if n.endswith(PLAN_SUFFIX) and f"{n.removesuffix(PLAN_SUFFIX)}{SIDECAR_SUFFIX}" not in there
    ]
    return [path / n for n in (*parts, *orphans)]


def remove(item: Path) -> None:
    """Remove a file, a link or a folder; what is gone already is fine."""
    if item.is_dir() and not item.is_symlink():
        shutil.rmtree(item, ignore_errors=True)
    else:
        item.unlink(missing_ok=True)


def _names(folder: int, suffix: str, not_ending: str = "\0") -> Iterator[str]:
    for name in sorted(os.listdir(folder)):
        if name.endswith(suffix) and not name.endswith(not_ending) and not name.startswith("."):
            yield name.removesuffix(suffix)


def _check_size(folder: int, entry: Entry) -> None:
    try:
        state = os.stat(entry.plan_path.name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        raise DamagedPlanError(f"{entry.plan_path} is missing, its sidecar is there; build the engine again") from None
    if stat.S_ISREG(state.st_mode) and state.st_size != entry.sidecar.plan_size:
        raise DamagedPlanError(
            f"{entry.plan_path} has {state.st_size} bytes, {entry.sidecar.plan_size} were written; "
            "it was truncated or replaced, build the engine again"
        )


def _note(path: Path) -> dict[str, str]:
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return {key: str(value) for key, value in values.items()} if isinstance(values, dict) else {}
