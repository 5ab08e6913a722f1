"""A declared pipeline: which stages there are is data, how they run is here.

Each stage has its own threads and a bounded queue in front of it. A stage with several workers still delivers in order.
"""

from __future__ import annotations

import atexit
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from retinastream.pipeline.queues import BoundedQueue, Cancelled, QueueStats

# How long the end of a program waits for threads of a pipeline that is left open, each: a source may block for ever.
_PATIENCE = 10.0


@dataclass(frozen=True, slots=True)
class Stage:
    """One step: ``work`` takes an item and returns the next one; ``capacity`` bounds the queue in front of it."""

    name: str
    work: Callable[[Any], Any]
    workers: int = 1
    capacity: int = 2


@dataclass(slots=True)
class StageStats:
    """What a stage has done: items, seconds at work summed over its workers, and its input queue.

    ``busy`` is wall time, in which a worker may have waited for a core; ``cpu`` is what its own threads computed, not
    what a runtime or a decoder computed for it in threads of its own.
    """

    name: str
    workers: int
    items: int = 0
    busy: float = 0.0
    cpu: float = 0.0
    queue: QueueStats | None = None


@dataclass(slots=True)
class PipelineStats:
    """Statistics of a whole run, first stage first; ``wall`` is seconds from start to end."""

    stages: list[StageStats] = field(default_factory=list)
    wall: float = 0.0

    def bottleneck(self) -> str:
        """Name the stage whose workers were busy for the largest share of the run."""
        if not self.stages or self.wall <= 0:
            return "nothing ran"
        return max(self.stages, key=lambda s: s.busy / s.workers).name

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: seconds and counts per stage."""
        rows = []
        for stage in self.stages:
            row: dict[str, Any] = {"name": stage.name, "workers": stage.workers, "items": stage.items}
            row["busy_seconds"] = round(stage.busy, 4)
            row["cpu_seconds"] = round(stage.cpu, 4)
            row["busy_share"] = round(stage.busy / stage.workers / self.wall, 4) if self.wall else 0.0
            if stage.queue:
                queue = stage.queue
                row["queue"] = {
                    "capacity": queue.capacity,
                    "max_depth": queue.max_depth,
                    "mean_depth": round(queue.mean_depth, 3),
                    "producer_wait_seconds": round(queue.producer_wait, 4),
                    "consumer_wait_seconds": round(queue.consumer_wait, 4),
                }
            rows.append(row)
        return {"wall_seconds": round(self.wall, 4), "bottleneck": self.bottleneck(), "stages": rows}


class Pipeline:
    """Runs ``source`` through ``stages`` in threads; iterate it to receive the results in order.

    An error in any stage ends the pipeline and is raised where the results are received, after the results of the items
    in front of it. ``stop()`` ends the source early: what is in flight is finished and delivered.
    Use it as a context manager: leaving it early cancels what runs and joins every thread.
    """

    def __init__(self, source: Iterable[Any], stages: Sequence[Stage], *, source_name: str = "source") -> None:
        self._source = source
        self._stages = list(stages)
        self._stopping = threading.Event()
        self._errors: list[tuple[int, BaseException]] = []  # the number of the item that failed, and why
        self._lock = threading.Lock()
        self._queues: list[BoundedQueue[tuple[int, Any]]] = [BoundedQueue(s.capacity) for s in stages]
        self._queues.append(BoundedQueue(2))
        self.stats = PipelineStats([StageStats(source_name, 1)])
        for stage, queue in zip(self._stages, self._queues, strict=False):
            self.stats.stages.append(StageStats(stage.name, stage.workers, queue=queue.stats))
        self._threads: list[threading.Thread] = []
        self._began = 0.0

    def stop(self) -> None:
        """Take no more items from the source; everything already taken is finished."""
        self._stopping.set()

    def __enter__(self) -> Pipeline:
        """Start the threads."""
        self._began = time.perf_counter()
        self._threads = [threading.Thread(target=self._feed, name="retinastream-source", daemon=True)]
        for number, stage in enumerate(self._stages):
            turns = _Turns(stage.workers)
            self._threads += [
                threading.Thread(
                    target=self._serve, args=(number, turns), name=f"retinastream-{stage.name}-{worker}", daemon=True
                )
                for worker in range(stage.workers)
            ]
        # A program may end while an iterator is left open. Python then ends the threads wherever they are, and a
        # runtime's or CUDA's code that is left in that way takes the whole process down.
        atexit.register(self._cancel, _PATIENCE)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Cancel what still runs and wait for every thread."""
        atexit.unregister(self._cancel)
        # Python has ended them where it is finalizing itself.
        self._cancel(0 if sys.is_finalizing() else None)
        self.stats.wall = time.perf_counter() - self._began

    def __iter__(self) -> Iterator[Any]:
        """Yield results in order; raises the error of the foremost item that failed."""
        try:
            for _, item in self._queues[-1]:
                yield item
                del item  # nothing of a delivered result may live until the next one is there
        except Cancelled:
            pass
        self.stats.wall = time.perf_counter() - self._began
        if self._errors:
            raise min(self._errors, key=lambda failed: failed[0])[1]

    def _cancel(self, patience: float | None) -> None:
        """Cancel what runs and wait for its threads, ``patience`` seconds for each, None as long as they take."""
        self.stop()
        for queue in self._queues:
            queue.cancel()
        for thread in self._threads:
            thread.join(patience)

    def _feed(self) -> None:
        stats, queue = self.stats.stages[0], self._queues[0]
        items: Iterator[Any] | None = None
        try:
            items = iter(self._source)
            for number in itertools.count():
                if self._stopping.is_set():
                    break
                began, cpu = time.perf_counter(), time.thread_time()
                try:
                    item = next(items)
                except StopIteration:
                    break
                finally:
                    stats.busy += time.perf_counter() - began
                    stats.cpu += time.thread_time() - cpu
                stats.items += 1
                queue.put((number, item))
                del item  # a 4K frame must not live until the next one is decoded
        except Cancelled:
            pass
        except BaseException as error:  # noqa: BLE001 - carried to the consumer, which raises it
            self._errors.append((stats.items, error))
        finally:
            self._close_source(items)
            queue.close()

    def _close_source(self, items: Iterator[Any] | None) -> None:
        close = getattr(items, "close", None)
        if close is None:
            return
        try:
            close()
        except BaseException as error:  # noqa: BLE001 - carried to the consumer, which would wait for ever otherwise
            self._errors.append((self.stats.stages[0].items, error))

    def _serve(self, number: int, turns: _Turns) -> None:
        stage, stats = self._stages[number], self.stats.stages[number + 1]
        queue, following = self._queues[number], self._queues[number + 1]
        try:
            for order, item in queue:
                began, cpu = time.perf_counter(), time.thread_time()
                try:
                    result = stage.work(item)
                except BaseException as error:  # noqa: BLE001 - carried to the consumer, which raises it
                    self._fail(error, number, order, turns)
                    return
                spent, cpu = time.perf_counter() - began, time.thread_time() - cpu
                del item
                with self._lock:
                    stats.busy += spent
                    stats.cpu += cpu
                    stats.items += 1
                turns.deliver(order, result, following)
                del result
        except Cancelled:
            pass
        finally:
            if turns.leave():
                following.close()

    def _fail(self, error: BaseException, number: int, order: int, turns: _Turns) -> None:
        """Stop everything in front of the failed item's stage; what is behind it is still delivered."""
        with self._lock:
            self._errors.append((order, error))
        self._stopping.set()
        turns.fail(order)
        for queue in self._queues[: number + 1]:
            queue.cancel()


class _Turns:
    """Lets the workers of one stage deliver in the order of their items."""

    def __init__(self, workers: int) -> None:
        self._changed = threading.Condition()
        self._next = 0
        self._end: int | None = None
        self._workers = workers

    def deliver(self, order: int, result: Any, queue: BoundedQueue[tuple[int, Any]]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._next == order or self._ended(order))
            if self._ended(order):
                raise Cancelled
        try:
            queue.put((order, result))
        except Cancelled:
            self.fail(order)  # or those whose turn is after this one would wait for it for ever
            raise
        with self._changed:
            self._next = order + 1
            self._changed.notify_all()

    def _ended(self, order: int) -> bool:
        return self._end is not None and order >= self._end

    def fail(self, order: int) -> None:
        """Say that this item will never come, nor any after it."""
        with self._changed:
            self._end = order if self._end is None else min(self._end, order)
            self._changed.notify_all()

    def leave(self) -> bool:
        """Count out one worker; returns whether it was the last."""
        with self._changed:
            self._workers -= 1
            return self._workers == 0
