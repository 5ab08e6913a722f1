"""Times of work on a stream: by CUDA events on a GPU, by the host's clock on a device of the tests.

A piece of work is queued several times as one CUDA graph where it can be captured, so that what is timed is the device
and not the host that launches it.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from retinastream.kernels.cupy_streams import own_stream
from retinastream.kernels.device import CaptureError, Device, Stream

Queue = Callable[[], None]


class Timer(Protocol):
    """Times work on a stream and moves bytes in the two ways that ``Device`` has no use for."""

    clock: str

    def seconds(self, stream: Stream, launch: Queue) -> float:
        """Run what ``launch`` queues and return how long the device took; waits."""
        ...

    def copy(self, target: Any, source: Any, stream: Stream) -> None:
        """Queue a copy within the device."""
        ...

    def copy_pageable(self, target: Any, source: np.ndarray, stream: Stream) -> None:
        """Copy ordinary host memory to the device, as one does who has not heard of pinned memory."""
        ...


class CudaTimer:
    """CUDA events, through CuPy; for streams of a CuPyDevice."""

    clock = "cuda events"

    def __init__(self) -> None:
        import cupy

        self._cuda = cupy.cuda
        self._start, self._end = cupy.cuda.Event(), cupy.cuda.Event()

    def seconds(self, stream: Stream, launch: Queue) -> float:
        own = own_stream(stream).cupy
        self._start.record(own)
        launch()
        self._end.record(own)
        self._end.synchronize()
        return float(self._cuda.get_elapsed_time(self._start, self._end)) / 1e3

    def copy(self, target: Any, source: Any, stream: Stream) -> None:
        runtime = self._cuda.runtime
        kind = runtime.memcpyDeviceToDevice
        runtime.memcpyAsync(target.data.ptr, source.data.ptr, source.nbytes, kind, stream.handle)

    def copy_pageable(self, target: Any, source: np.ndarray, stream: Stream) -> None:
        runtime = self._cuda.runtime
        kind = runtime.memcpyHostToDevice
        runtime.memcpyAsync(target.data.ptr, source.ctypes.data, source.nbytes, kind, stream.handle)


class HostTimer:
    """The host's clock around everything; for a device whose arrays are NumPy's. Its times say nothing about a GPU."""

    clock = "host clock"

    def seconds(self, stream: Stream, launch: Queue) -> float:
        stream.synchronize()
        began = time.perf_counter()
        launch()
        stream.synchronize()
        return time.perf_counter() - began

    def copy(self, target: Any, source: Any, stream: Stream) -> None:
        stream.synchronize()
        np.copyto(target, source)

    def copy_pageable(self, target: Any, source: np.ndarray, stream: Stream) -> None:
        self.copy(target, source, stream)


@dataclass(frozen=True)
class Times:
    """Seconds of one run each, and whether the runs were launched as a CUDA graph."""

    seconds: tuple[float, ...]
    graph: bool

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def as_row(self) -> dict[str, Any]:
        """Microseconds, for JSON."""
        return {
            "median_us": self.median * 1e6,
            "least_us": min(self.seconds) * 1e6,
            "most_us": max(self.seconds) * 1e6,
            "runs": len(self.seconds),
            "graph": self.graph,
        }


def in_one_launch(device: Device, stream: Stream, queue: Queue) -> tuple[Queue, bool]:
    """What launches this work as a CUDA graph, or the work itself where it cannot be captured; and which it is."""
    queue()  # what the first run prepares must not be captured
    stream.synchronize()
    try:
        return device.capture(stream, queue), True
    except CaptureError:
        return queue, False


def measure_work(
    device: Device, timer: Timer, stream: Stream, turns: Sequence[Queue], *, runs: int, repeats: int = 1
) -> Times:
    """Time the work of ``turns``, one after the other, ``repeats`` times over; a time is that of one turn.

    Give as many turns, each on other memory, as it takes that what one reads has left the cache when its turn comes.
    """
    queues = list(turns) * repeats

    def queue_all() -> None:
        for queue in queues:
            queue()

    launch, graph = in_one_launch(device, stream, queue_all)
    timer.seconds(stream, launch)
    return Times(tuple(timer.seconds(stream, launch) / len(queues) for _ in range(runs)), graph)


def measure_wall(work: Callable[[], Any], runs: int) -> Times:
    """Time by the host's clock what ends with a wait of its own; once before, untimed."""
    work()
    found = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return Times(tuple(found), graph=False)


def copy_bandwidth(device: Device, timer: Timer, stream: Stream, nbytes: int, runs: int) -> float:
    """Bytes per second, read plus written, of a copy of ``nbytes`` within the device."""
    source, target = device.empty((nbytes,), np.uint8), device.empty((nbytes,), np.uint8)
    device.clear(source, stream)
    times = measure_work(device, timer, stream, [lambda: timer.copy(target, source, stream)], runs=runs)
    return 2 * nbytes / max(times.median, 1e-12)


def turns_beyond_cache(bytes_of_one: int, cache_bytes: int, most: int = 16) -> int:
    """How many buffers to take in turn so that they do not fit into a GPU's cache together."""
    return max(1, min(most, math.ceil(cache_bytes / max(1, bytes_of_one))))
