"""One engine that is kept: two files of one name in the cache."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from retinastream.engines.cache.key import NAME_DIGITS
from retinastream.engines.cache.sidecar import Sidecar

PLAN_SUFFIX = ".plan"
SIDECAR_SUFFIX = ".json"
BAD_SUFFIX = ".bad"
PART_SUFFIX = ".part"
LOCK_SUFFIX = ".lock"
SHORT_DIGITS = 12
# The name of an engine at the beginning of a file's.
NAME_PATTERN = re.compile(rf"[0-9a-f]{{{NAME_DIGITS}}}(?=\.)")


def name_of(digest: str) -> str:
    """Return the name, without a suffix, under which the engine of a digest is kept."""
    return digest[:NAME_DIGITS]


@dataclass(frozen=True, slots=True)
class Entry:
    """An engine whose sidecar was read and fits its name; the plan itself has not been looked at."""

    folder: Path
    sidecar: Sidecar

    @property
    def digest(self) -> str:
        """The digest of its key."""
        return self.sidecar.key.digest

    @property
    def short(self) -> str:
        """As many digits as people want to read; commands take them."""
        return self.digest[:SHORT_DIGITS]

    @property
    def plan_path(self) -> Path:
        """Where the plan lies."""
        return self.folder / f"{name_of(self.digest)}{PLAN_SUFFIX}"

    @property
    def sidecar_path(self) -> Path:
        """Where the sidecar lies."""
        return self.folder / f"{name_of(self.digest)}{SIDECAR_SUFFIX}"

    @property
    def used(self) -> datetime:
        """When it was last loaded, or built; the beginning of time where that cannot be told."""
        try:
            return datetime.fromtimestamp(self.sidecar_path.stat().st_mtime, UTC)
        except OSError:
            return datetime.fromtimestamp(0, UTC)

    def __str__(self) -> str:
        """Describe it in half a line."""
        key = self.sidecar.key
        shapes = "; ".join(f"{shape}" for profile in key.profiles for shape in profile.values())
        return f"{self.short} ({self.sidecar.build.model} {key.precision}, {shapes})"
