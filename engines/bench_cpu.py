"""Measures a runtime on the CPU: as many threads as there are streams, each with a slot of its own."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from retinastream.engines.bench import (
    BenchResult,
    BenchSettings,
    Measured,
    NothingMeasuredError,
    Pace,
    Query,
    summarise,
)
from retinastream.engines.engine import Engine, EngineSlot


def bench_engine(engine: Engine, settings: BenchSettings, *, stop: threading.Event | None = None) -> BenchResult:
    """Run the network on random pictures and time it; blocks for warm-up and duration.

    ``stop`` ends it early with what has been measured. Raises NothingMeasuredError where that is nothing, and what the
    runtime raises.
    """
    stop = stop or threading.Event()
    size = (settings.batch, settings.height, settings.width)
    slots = [engine.slot(*size, steady=True) for _ in range(settings.streams)]
    for number, slot in enumerate(slots):
        fill(slot.input, number)
        slot.run()  # what is made at the first run is not to be timed, nor be made by several threads at once
    pace = Pace(settings, time.perf_counter(), stop)
    tally = _Tally()
    failed = threading.Event()
    with ThreadPoolExecutor(len(slots), thread_name_prefix="bench") as pool:
        try:
            running = [pool.submit(_measure, slot, pace, tally, failed) for slot in slots]
            for each in running:
                each.result()
        finally:
            failed.set()  # whatever ends this thread's wait early ends the others
    return summarise(tally.measured(), engine.info, settings)


def fill(buffer: npt.NDArray[Any], seed: int) -> None:
    """Put noise into an input. Not zeros: their products are denormal or nothing, and take another time."""
    random = np.random.default_rng(seed)
    if buffer.dtype.kind == "f":
        buffer[...] = random.integers(-128, 128, buffer.shape, np.int16)
    else:
        limits = np.iinfo(buffer.dtype)
        buffer[...] = random.integers(limits.min, limits.max, buffer.shape, buffer.dtype, endpoint=True)


class _Tally:
    """The queries of all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._times: list[tuple[float, float]] = []

    def add(self, begin: float, end: float) -> None:
        with self._lock:
            self._times.append((begin, end))

    def __len__(self) -> int:
        return len(self._times)

    def measured(self) -> Measured:
        if not self._times:
            raise NothingMeasuredError
        seconds = max(end for _, end in self._times) - min(begin for begin, _ in self._times)
        return Measured(tuple(Query(1000 * (end - begin)) for begin, end in self._times), seconds)


def _measure(slot: EngineSlot, pace: Pace, tally: _Tally, failed: threading.Event) -> None:
    try:
        now = time.perf_counter()
        while not failed.is_set() and not pace.is_over(now, len(tally)):
            begin = now
            slot.run()
            now = time.perf_counter()
            if pace.is_warm(begin):
                tally.add(begin, now)
    except BaseException:
        failed.set()
        raise
