"""Where models lie, how much room there is, and what the environment sets."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from retinastream.diagnosis.finding import Finding
from retinastream.errors import RetinastreamError

_PREFIX = "RETINASTREAM_"
_LITTLE_ROOM = 2**30


def check_models() -> Iterator[Finding]:
    """Look at the cache of models: its place, whether it can be written, and which models of the zoo are there."""
    from retinastream.models.zoo import cache_dir

    yield _cache(cache_dir())
    yield _models("detector")
    yield _models("embedder")


def check_disk() -> Iterator[Finding]:
    """Look at the free space of the cache and of the working directory."""
    from retinastream.models.zoo import cache_dir

    yield _room("cache", cache_dir(), "another folder for it: RETINASTREAM_CACHE")
    try:
        here = Path.cwd()
    except OSError:
        remedy = "change to a directory that exists"
        yield Finding("disk", "working directory", "warning", "it was removed, or cannot be reached", remedy)
        return
    yield _room("working directory", here, "results elsewhere: --output")
    if not os.access(here, os.W_OK | os.X_OK):
        yield Finding("disk", "results", "warning", f"{here} cannot be written", "results elsewhere: --output")


def check_settings() -> Iterator[Finding]:
    """Look at the settings that the environment gives, and whether a run would accept them."""
    from retinastream.settings import load_settings

    given = {name: value for name, value in sorted(os.environ.items()) if name.startswith(_PREFIX)}
    if not given:
        yield Finding("settings", "environment", "ok", f"no {_PREFIX}... variable is set: defaults apply")
        return
    yield from (Finding("settings", name, "ok", value or "(empty)") for name, value in given.items())
    try:
        load_settings({})
    except RetinastreamError as error:
        yield Finding("settings", "environment", "error", str(error), "correct or unset the variable")


def _nearest_existing(path: Path) -> Path:
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())


def _cache(folder: Path) -> Finding:
    existing = _nearest_existing(folder)
    remedy = f"make it writable, or set {_PREFIX}CACHE to a folder that is; models can be given by their path, too"
    if not existing.is_dir():
        return Finding("models", "cache", "warning", f"{folder} cannot be made: {existing} is not a folder", remedy)
    if not os.access(existing, os.W_OK | os.X_OK):
        return Finding("models", "cache", "warning", f"{folder} cannot be written ({existing} is protected)", remedy)
    state = "writable" if existing == folder.absolute() else "made when it is needed"
    return Finding("models", "cache", "ok", f"{folder} ({state})")


def _models(kind: str) -> Finding:
    from retinastream.models.zoo import path_of
    from retinastream.models.zoo_entries import zoo

    there = [(entry, path_of(entry)) for entry in zoo().values() if entry.kind == kind]
    present = [f"{entry.name} ({_size(path.stat().st_size)})" for entry, path in there if path.is_file()]
    if present:
        return Finding("models", f"{kind}s", "ok", ", ".join(present))
    if kind == "embedder":
        return Finding("models", "embedders", "missing", "none here (optional; detection needs none)")
    remedy = "`retinastream model list` shows how to get one; any RetinaFace .onnx file works by its path"
    return Finding("models", "detectors", "missing", "none of the known models is here", remedy)


def _room(name: str, folder: Path, elsewhere: str) -> Finding:
    existing = _nearest_existing(folder)
    free = shutil.disk_usage(existing).free
    detail = f"{_size(free)} free at {existing}"
    if free < _LITTLE_ROOM:
        return Finding("disk", name, "warning", detail, f"free some space, or choose {elsewhere}")
    return Finding("disk", name, "ok", detail)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
