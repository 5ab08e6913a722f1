"""How fast an engine is, measured in the same way for every runtime, so that the figures can be compared.

The terms are those of trtexec. A query is one run of the network on one batch. ``iterations`` and ``duration`` are both
lower bounds; what runs during the warm-up does not count.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from retinastream.engines.bench_statistics import Spread, variation
from retinastream.engines.engine import EngineInfo
from retinastream.errors import SetupError, UsageError

# Above this share of the compute time it is the host that sets the pace, or soon will.
_ENQUEUE_BOUND = 0.8
# trtexec warns from the same figure on.
_UNSTABLE = 0.01


class NothingMeasuredError(SetupError):
    """It was stopped before the warm-up had ended."""

    def __init__(self) -> None:
        super().__init__("nothing was measured: it was stopped before the warm-up had ended")


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """What is measured: the input (``batch``, ``height``, ``width`` of the network), and for how long.

    ``warm_up`` in milliseconds, ``duration`` in seconds, ``streams`` is how many queries are in flight. ``cuda_graph``
    and ``transfers`` (copies of the input to the GPU and of the outputs back) concern GPUs only.
    """

    batch: int
    height: int
    width: int
    warm_up: float = 200.0
    duration: float = 3.0
    iterations: int = 10
    streams: int = 1
    cuda_graph: bool = True
    transfers: bool = False

    def __post_init__(self) -> None:
        """Refuse values with which nothing can be measured."""
        for name, low in (("batch", 1), ("height", 1), ("width", 1), ("iterations", 1), ("streams", 1)):
            if getattr(self, name) < low:
                raise UsageError(f"{name} was given as {getattr(self, name)}; expected {low} or more")
        for name in ("warm_up", "duration"):
            if not 0 <= getattr(self, name) < 1e6:
                raise UsageError(f"{name} was given as {getattr(self, name)}; expected 0 or more")


@dataclass(frozen=True, slots=True)
class Query:
    """The times of one query in milliseconds; None where there is nothing to tell.

    ``latency`` is the sum of the copy in, the computation and the copy out where the GPU's clock measured them, else
    the host's time from queueing to the end.
    """

    latency: float
    enqueue: float | None = None
    compute: float | None = None
    copy_in: float | None = None
    copy_out: float | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """What the measuring of one engine gave; ``seconds`` is the host's time for all queries."""

    queries: tuple[Query, ...]
    seconds: float
    cuda_graph: bool | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BenchResult:
    """The figures of one engine."""

    info: EngineInfo
    settings: BenchSettings
    iterations: int
    seconds: float
    cuda_graph: bool | None
    times: dict[str, Spread]
    compute_seconds: float | None
    notes: tuple[str, ...] = field(default=())

    @property
    def throughput(self) -> float:
        """Queries per second."""
        return self.iterations / self.seconds

    @property
    def label(self) -> str:
        """Runtime, precision and device."""
        return f"{self.info.runtime} {self.info.precision} on {self.info.device}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; times in milliseconds."""
        settings = self.settings
        return {
            "runtime": self.info.runtime,
            "runtime_version": self.info.runtime_version,
            "precision": self.info.precision,
            "device": self.info.device,
            "device_name": self.info.device_name,
            "threads": self.info.threads,
            "reason": self.info.reason,
            "batch": settings.batch,
            "height": settings.height,
            "width": settings.width,
            "streams": settings.streams,
            "cuda_graph": self.cuda_graph,
            "transfers": "copy_in" in self.times,
            "warm_up_ms": settings.warm_up,
            "iterations": self.iterations,
            "host_walltime_s": round(self.seconds, 6),
            "gpu_compute_s": None if self.compute_seconds is None else round(self.compute_seconds, 6),
            "throughput_qps": round(self.throughput, 4),
            "pictures_per_second": round(self.throughput * settings.batch, 4),
            "times_ms": {name: spread.to_dict() for name, spread in self.times.items()},
            "notes": list(self.notes),
        }


def summarise(measured: Measured, info: EngineInfo, settings: BenchSettings) -> BenchResult:
    """Turn the times of the queries into figures and remarks."""
    times = {}
    for name in ("latency", "enqueue", "copy_in", "compute", "copy_out"):
        values = [value for query in measured.queries if (value := getattr(query, name)) is not None]
        if values:
            times[name] = Spread.of(values)
    computed = [query.compute for query in measured.queries if query.compute is not None]
    return BenchResult(
        info=info,
        settings=settings,
        iterations=len(measured.queries),
        seconds=measured.seconds,
        cuda_graph=measured.cuda_graph,
        times=times,
        compute_seconds=sum(computed) / 1000 if computed else None,
        notes=(*measured.notes, *_remarks(measured, times, computed)),
    )


class Pace:
    """When the warm-up is over, and when there is enough; ``stop`` ends it early. Times in seconds."""

    def __init__(self, settings: BenchSettings, begin: float, stop: threading.Event) -> None:
        self._measured_from = begin + settings.warm_up / 1000
        self._until = self._measured_from + settings.duration
        self._iterations = settings.iterations
        self._stop = stop

    def is_warm(self, now: float) -> bool:
        """Whether what begins now counts."""
        return now >= self._measured_from

    def is_over(self, now: float, count: int) -> bool:
        """Whether ``count`` queries and the time are enough."""
        return self._stop.is_set() or (now >= self._until and count >= self._iterations)


def _remarks(measured: Measured, times: dict[str, Spread], computed: Sequence[float]) -> list[str]:
    if "compute" not in times:
        return []
    remarks = []
    enqueue, compute = times["enqueue"].median, times["compute"].median
    if enqueue > _ENQUEUE_BOUND * compute:
        cure = (
            "a larger batch gives the GPU more to do per launch"
            if measured.cuda_graph
            else "a CUDA graph (--cuda-graph) or a larger batch helps"
        )
        remarks.append(
            f"throughput may be bound by the enqueue time and not by the GPU: queueing takes {enqueue:.3g} ms, "
            f"computing {compute:.3g} ms; {cure}"
        )
    if variation(computed) > _UNSTABLE:
        remarks.append(
            f"GPU compute time is not stable, its coefficient of variation is {100 * variation(computed):.1f} %; lock "
            "the GPU's clocks, or run longer (--duration)"
        )
    return remarks
