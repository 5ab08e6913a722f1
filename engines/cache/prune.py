"""Which engines go when room is needed, and their removal."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from retinastream.engines.cache import contents, durable
from retinastream.engines.cache.contents import BAD_NOTE_SUFFIX
from retinastream.engines.cache.entry import LOCK_SUFFIX, NAME_PATTERN, Entry, name_of
from retinastream.engines.cache.lock import held, is_free
from retinastream.engines.cache.store import EngineCache
from retinastream.engines.cache.timing import TIMING_SUFFIX
from retinastream.errors import UsageError

_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


@dataclass(frozen=True, slots=True)
class Removal:
    """Files that belong together and go together: what they are, why they go, and how many bytes they have."""

    name: str
    what: str
    reason: str
    paths: tuple[Path, ...]
    size: int


def read_age(text: str) -> timedelta:
    """Read "30d", "12h" or "2w"; raises UsageError for anything else."""
    match = re.fullmatch(r"(\d{1,5})([hdw])", text.strip())
    if match is None:
        raise UsageError(f"the age {text!r} is not understood; expected a number with h, d or w, like 12h, 30d or 2w")
    return int(match[1]) * _UNITS[match[2]]


def plan_removals(
    cache: EngineCache,
    *,
    older_than: timedelta | None = None,
    keep: int | None = None,
    everything: bool = False,
    quarantined: bool = False,
    now: datetime | None = None,
) -> list[Removal]:
    """Choose what goes; nothing is touched.

    ``older_than`` chooses engines that were not used for so long, ``keep`` all but so many that were used last; with
    both an engine goes when either says so. ``quarantined`` chooses plans that were put aside, ``everything`` all there
    is, timings included. What killed builds left, and what cannot be used any more, goes in any case.
    """
    if keep is not None and keep < 0:
        raise UsageError(f"keep was given as {keep}; expected 0 or more")
    chosen = list(_unfinished(cache))
    chosen += _unusable(cache)
    for place, entry in enumerate(cache.entries()):
        reason = _reason(entry, place, older_than, keep, everything, now or datetime.now(UTC))
        if reason:
            chosen.append(_removal(entry.digest, str(entry), reason, (entry.sidecar_path, entry.plan_path)))
    if quarantined or everything:
        chosen += _put_aside(cache)
    if everything:
        chosen += [_removal(p.stem, "timings of the builder", "all were asked for", (p,)) for p in _timings(cache)]
    return chosen


def remove(cache: EngineCache, removals: Sequence[Removal]) -> Iterator[tuple[Removal, bool]]:
    """Remove what was chosen; yields each with whether it went: what a process is building at this moment stays.

    Raises OutputError where the folder cannot be written.
    """
    for removal in removals:
        lock = cache.folder / f"{name_of(removal.name)}{LOCK_SUFFIX}"
        if not is_free(lock):
            yield removal, False
            continue
        with held(lock, "working on this engine"):
            try:
                for path in removal.paths:
                    contents.remove(path)
                lock.unlink(missing_ok=True)
            except OSError as error:
                raise durable.failure(cache.folder, error) from error
        yield removal, True


def _reason(
    entry: Entry, place: int, older_than: timedelta | None, keep: int | None, everything: bool, now: datetime
) -> str:
    if everything:
        return "all were asked for"
    if older_than is not None and now - entry.used > older_than:
        return f"last used {entry.used:%Y-%m-%d}"
    if keep is not None and place >= keep:
        return f"not among the {keep} used last"
    return ""


def _unfinished(cache: EngineCache) -> Iterator[Removal]:
    for path in contents.leftovers(cache.folder):
        named = NAME_PATTERN.match(path.name)
        name = named[0] if named else path.name
        if is_free(cache.folder / f"{name}{LOCK_SUFFIX}"):
            yield _removal(name, f"leftover {path.name}", "its build was killed", (path,))


def _unusable(cache: EngineCache) -> Iterator[Removal]:
    for item in contents.usable(cache.folder)[1]:
        name = item.path.stem
        yield _removal(name, f"unusable {name[:12]}", item.reason, (item.path, item.path.with_suffix(".plan")))


def _put_aside(cache: EngineCache) -> Iterator[Removal]:
    for item in cache.quarantined():
        note = cache.folder / f"{item.name}{BAD_NOTE_SUFFIX}"
        yield _removal(item.name, f"put aside {item.name[:12]}", item.reason or "quarantined", (item.path, note))


def _timings(cache: EngineCache) -> list[Path]:
    return sorted(cache.folder.glob(f"*{TIMING_SUFFIX}"))


def _removal(name: str, what: str, reason: str, paths: tuple[Path, ...]) -> Removal:
    return Removal(name, what, reason, paths, sum(map(_bytes, paths)))


def _bytes(path: Path) -> int:
    try:
        if path.is_dir() and not path.is_symlink():
            return sum(_bytes(item) for item in path.iterdir())
        return path.lstat().st_size
    except OSError:
        return 0
