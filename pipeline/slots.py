"""Reuse of engine slots, keyed by input size."""

from __future__ import annotations

import threading
from collections import OrderedDict

from retinastream.engines.engine import Engine, EngineSlot

SlotKey = tuple[int, int, int, bool]  # batch, height, width, steady

# A video needs one size (two with a pyramid); pictures come in any. Beyond these, idle buffers of old sizes are freed.
_KEPT_SIZES = 4


class SlotPool:
    """Hands out slots of a size and takes them back; makes a new one when none is free.

    It never waits: how many are in flight is bounded by the queues between the stages.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._idle: OrderedDict[SlotKey, list[EngineSlot]] = OrderedDict()

    def acquire(self, key: SlotKey) -> EngineSlot:
        """Return a slot of this size for the caller's sole use."""
        with self._lock:
            idle = self._idle.get(key)
            if idle:
                return idle.pop()
        batch, height, width, steady = key
        return self._engine.slot(batch, height, width, steady=steady)

    def release(self, key: SlotKey, slot: EngineSlot) -> None:
        """Give a slot back; its buffers may be overwritten from now on."""
        with self._lock:
            self._idle.setdefault(key, []).append(slot)
            self._idle.move_to_end(key)
            while len(self._idle) > _KEPT_SIZES:
                self._idle.popitem(last=False)

    def clear(self) -> None:
        """Free every idle slot."""
        with self._lock:
            self._idle.clear()
