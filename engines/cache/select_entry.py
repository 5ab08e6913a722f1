"""Which engine a person means: the first digits of its key, or the name of its model."""

from __future__ import annotations

from retinastream.engines.cache import contents
from retinastream.engines.cache.entry import Entry
from retinastream.engines.cache.store import EngineCache
from retinastream.errors import SetupError, UsageError

_FEWEST_DIGITS = 4


def select_entry(cache: EngineCache, name: str) -> Entry:
    """Return the one engine that ``name`` means.

    Raises UsageError where there is none or more than one, listing what there is; SetupError, with the reason, for one
    that is there and cannot be used.
    """
    entries = cache.entries()
    digits = name.lower()
    is_key = len(digits) >= _FEWEST_DIGITS
    found = [entry for entry in entries if is_key and entry.digest.startswith(digits)]
    found = found or [e for e in entries if e.sidecar.build.model == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(
            f"{name} names {len(found)} engines: {'; '.join(map(str, found))}. Give the first digits of one"
        )
    for item in contents.usable(cache.folder)[1]:
        if is_key and item.path.name.startswith(digits):
            raise SetupError(item.reason)
    if not entries:
        raise UsageError(
            f"no engine is called {name!r}: none is kept in {cache.folder}. `retinastream engine build` makes one"
        )
    kept = "; ".join(map(str, entries))
    raise UsageError(f"no engine is called {name!r}; kept are: {kept}")
