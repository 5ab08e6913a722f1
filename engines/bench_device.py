"""Measures a runtime on a GPU: one thread queues for all streams in turn, and waits for the oldest query only."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from functools import partial

from retinastream.engines.bench import (
    BenchResult,
    BenchSettings,
    Measured,
    NothingMeasuredError,
    Pace,
    Query,
    summarise,
)
from retinastream.engines.bench_clock import GpuClock, clock_of
from retinastream.engines.bench_cpu import fill
from retinastream.engines.device_engine import DeviceEngine
from retinastream.kernels.device import CaptureError


def bench_device_engine(
    engine: DeviceEngine,
    settings: BenchSettings,
    *,
    clock: GpuClock | None = None,
    stop: threading.Event | None = None,
) -> BenchResult:
    """Run the network on noise and time it; blocks for warm-up and duration.

    ``clock`` is by default that of the device, where it has one. ``stop`` ends it early with what has been measured.
    Raises NothingMeasuredError where that is nothing, and what the engine raises: UsageError for a size it does not
    take, DeviceMemoryError.
    """
    device = engine.device
    with device.current(), contextlib.ExitStack() as stack:
        clock = clock or clock_of(device)
        lanes = []
        for seed in range(settings.streams):
            lanes.append(_Lane(engine, settings, clock, seed))
            stack.callback(lanes[-1].close)
        for lane in lanes:
            lane.prepare()
        measured = _measure(lanes, settings, stop or threading.Event())
    return summarise(measured, engine.info, settings)


class _Lane:
    """A stream with buffers of its own and at most one query in flight."""

    def __init__(self, engine: DeviceEngine, settings: BenchSettings, clock: GpuClock | None, seed: int) -> None:
        device = self._device = engine.device
        size = (settings.batch, settings.height, settings.width)
        self._stream = device.stream()
        self._image = device.empty((size[0], 3, *size[1:]), engine.input_dtype)
        self._outputs = [device.empty(shape, engine.output_dtype) for shape in engine.output_shapes(*size)]
        self._source = device.empty_pinned(self._image.shape, engine.input_dtype)
        self._results = [device.empty_pinned(o.shape, engine.output_dtype) for o in self._outputs]
        fill(self._source, seed)
        device.copy_in(self._image, self._source, self._stream)
        # Should binding fail, the buffers go, and nothing queued may use them then.
        self._stream.synchronize()
        self._slot = engine.bind(self._image, self._outputs, self._stream)
        self._launch: Callable[[], None] = self._slot.run
        self._capture = partial(engine.capture, self._stream, self._slot.run) if settings.cuda_graph else None
        self.is_graph = False
        self.note = ""
        self._transfers = settings.transfers
        self._done = device.event()
        self._marks = None if clock is None else tuple(clock.mark() for _ in range(4))
        self._begin = 0.0
        self._enqueue = 0.0
        self.begun: float | None = None

    def prepare(self) -> None:
        """Run once, and capture the graph where one is wanted."""
        # Plainly first: what is prepared at the first run cannot be captured, and is not to be timed.
        self._slot.run()
        self._stream.synchronize()
        if self._capture is None:
            return
        try:
            self._launch = self._capture()
            self.is_graph = True
        except CaptureError as error:
            self.note = f"without a CUDA graph: {error}"

    def enqueue(self, now: float) -> None:
        """Queue one query and return."""
        self.begun = now
        self._mark(0)
        if self._transfers:
            self._device.copy_in(self._image, self._source, self._stream)
        self._mark(1)
        before = time.perf_counter()
        self._launch()
        self._enqueue = 1000 * (time.perf_counter() - before)
        self._mark(2)
        if self._transfers:
            for result, output in zip(self._results, self._outputs, strict=True):
                self._device.copy_out(result, output, self._stream)
        self._mark(3)
        self._stream.record(self._done)

    def finish(self) -> Query:
        """Wait for the query in flight and return its times."""
        assert self.begun is not None
        self._done.synchronize()
        host = 1000 * (time.perf_counter() - self.begun)
        self.begun = None
        if self._marks is None:
            return Query(host, self._enqueue)
        copy_in, compute, copy_out = (
            later.milliseconds_since(earlier) for earlier, later in zip(self._marks, self._marks[1:], strict=False)
        )
        if not self._transfers:
            return Query(compute, self._enqueue, compute)
        return Query(copy_in + compute + copy_out, self._enqueue, compute, copy_in, copy_out)

    def close(self) -> None:
        """Wait for what is queued and release what was bound."""
        try:
            self._stream.synchronize()
        finally:
            self._slot.close()

    def _mark(self, index: int) -> None:
        if self._marks is not None:
            self._marks[index].record(self._stream)


def _measure(lanes: list[_Lane], settings: BenchSettings, stop: threading.Event) -> Measured:
    queries: list[Query] = []
    pace = Pace(settings, time.perf_counter(), stop)
    first = last = None
    turn = 0
    while True:
        lane = lanes[turn % len(lanes)]
        last = _collect(lane, pace, queries) or last
        now = time.perf_counter()
        in_flight = sum(other.begun is not None and pace.is_warm(other.begun) for other in lanes)
        if pace.is_over(now, len(queries) + in_flight):
            break
        if first is None and pace.is_warm(now):
            first = now
        lane.enqueue(now)
        turn += 1
    for offset in range(len(lanes)):
        last = _collect(lanes[(turn + offset) % len(lanes)], pace, queries) or last
    if not queries or first is None or last is None:
        raise NothingMeasuredError
    notes = tuple(dict.fromkeys(lane.note for lane in lanes if lane.note))
    return Measured(tuple(queries), last - first, all(lane.is_graph for lane in lanes), notes)


def _collect(lane: _Lane, pace: Pace, queries: list[Query]) -> float | None:
    """Take the query in flight, if any; returns when it had ended, None where it does not count."""
    if lane.begun is None:
        return None
    counts = pace.is_warm(lane.begun)
    query = lane.finish()
    if not counts:
        return None
    queries.append(query)
    return time.perf_counter()
