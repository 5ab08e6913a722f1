"""Where engines are kept."""

from __future__ import annotations

from pathlib import Path

from retinastream.models.zoo import cache_dir


def engines_dir() -> Path:
    """Return the folder of engines: beside the models, in the user's cache or in RETINASTREAM_CACHE."""
    return cache_dir().parent / "engines"
