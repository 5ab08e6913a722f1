"""From a key to an engine that runs: the one that is kept, or one that is built now.

The rule: a plan that is damaged, not to be trusted or not taken by TensorRT is put aside and built again, once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from retinastream.engines.cache.entry import Entry
from retinastream.engines.cache.errors import (
    DamagedPlanError,
    EngineMissingError,
    PlanRejectedError,
    UntrustedPlanError,
)
from retinastream.engines.cache.key import EngineKey
from retinastream.engines.cache.match import Miss
from retinastream.engines.cache.plan_header import describe_plan
from retinastream.engines.cache.sidecar import BuildRecord
from retinastream.engines.cache.store import Build, EngineCache, OnWait

logger = logging.getLogger(__name__)

T = TypeVar("T")
Load = Callable[[bytes, Entry], T | None]
Make = Callable[[Build], tuple[bytes | memoryview, BuildRecord]]
_UNUSABLE = (DamagedPlanError, PlanRejectedError, UntrustedPlanError)


@dataclass(frozen=True, slots=True)
class Obtained(Generic[T]):
    """An engine, where it is kept, whether it was built now, and what is to be said about it."""

    engine: T
    entry: Entry
    built: bool
    remarks: tuple[str, ...]


def obtain(
    cache: EngineCache,
    key: EngineKey,
    *,
    load: Load[T],
    build: Make,
    may_build: bool = True,
    rebuild: bool = False,
    gpu: str = "",
    room: int = 0,
    on_wait: OnWait | None = None,
    stop: threading.Event | None = None,
) -> Obtained[T]:
    """Load the engine of a key, building it where that is needed and allowed.

    ``load`` deserialises a plan; None or PlanRejectedError means that it does not. ``build`` makes plan and record.
    ``rebuild`` builds even where an engine is kept. The others are those of ``EngineCache.building``.

    Raises EngineMissingError where there is none and ``may_build`` is False, PlanRejectedError where also the engine
    that was just built is not taken, and what ``building``, ``load`` and ``build`` raise.
    """
    remarks: list[str] = []
    if not rebuild:
        kept = _load_kept(cache, key, load, remarks)
        if kept is not None:
            return Obtained(*kept, built=False, remarks=tuple(remarks))
    if not may_build:
        raise EngineMissingError(
            f"{'; '.join(remarks)}. Building was not allowed: run `retinastream engine build` on this machine first"
        )
    with cache.building(key, gpu=gpu, room=room, on_wait=on_wait, stop=stop) as right:
        taken = right.found if right.waited or not rebuild else None
        entry = taken or right.publish(*build(right))
    try:
        engine = _load(cache, entry, load)
    except _UNUSABLE as error:
        cache.quarantine(entry, str(error))
        raise PlanRejectedError(f"the engine {entry} was just built and cannot be used: {error}") from error
    return Obtained(engine, entry, built=taken is None, remarks=tuple(remarks))


def _load_kept(cache: EngineCache, key: EngineKey, load: Load[T], remarks: list[str]) -> tuple[T, Entry] | None:
    """Load what is kept; what is wrong with it goes into the remarks, and the plan into quarantine."""
    found = cache.find(key)
    if isinstance(found, Miss):
        remarks.append(found.reason)
        return None
    remarks += found.warnings
    try:
        return _load(cache, found.entry, load), found.entry
    except _UNUSABLE as error:
        remarks.append(f"{error} (it was put aside)")
        logger.warning("engine %s cannot be used: %s", found.entry, error)
        cache.quarantine(found.entry, str(error))
        return None


def _load(cache: EngineCache, entry: Entry, load: Load[T]) -> T:
    plan = cache.read_verified_plan(entry)
    engine = load(plan, entry)
    if engine is None:
        raise PlanRejectedError(f"TensorRT does not take the engine {entry.plan_path}, which {describe_plan(plan)}")
    return engine
