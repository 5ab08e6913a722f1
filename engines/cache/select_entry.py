"""Which engine a person means: the first digits of its key, or the name of its model."""

from __future__ import annotations

from retinastream.engines.cache.entry import Entry
from retinastream.engines.cache.store import EngineCache
from retinastream.errors import UsageError

_FEWEST_DIGITS = 4


def select_entry(cache: EngineCache, name: str) -> Entry:
    """Return the one engine that ``name`` means.

    Raises UsageError where there is none or more than one, listing what there is.
    """
    entries = cache.entries()
    digits = name.lower()
    found = [e for e in entries if len(digits) >= _FEWEST_DIGITS and e.digest.startswith(digits)]
    found = found or [e for e in entries if e.sidecar.build.model == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(
            f"{name} names {len(found)} engines: {'; '.join(map(str, found))}. Give the first digits of one"
        )
    kept = "; ".join(map(str, entries)) or "none"
    raise UsageError(f"no engine is called {name!r}; kept are: {kept}")
