"""A bounded queue that knows who waited for whom.

Whoever waits is not the bottleneck: a producer that waits has a slow consumer behind it, a consumer that waits has a
slow producer in front of it. Counting both, per queue, is what lets a run say which stage held it up.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class QueueStats:
    """What a queue has seen: items passed, the deepest it was, mean depth at arrival, and seconds of waiting."""

    capacity: int
    items: int = 0
    max_depth: int = 0
    depth_sum: int = 0
    producer_wait: float = 0.0
    consumer_wait: float = 0.0

    @property
    def mean_depth(self) -> float:
        """Mean number of items found waiting when another one arrived."""
        return self.depth_sum / self.items if self.items else 0.0


class Cancelled(Exception):  # noqa: N818 - a signal to the threads of a pipeline, never shown to a caller
    """The queue was cancelled while waiting for it."""


class BoundedQueue(Generic[T]):
    """First in, first out, at most ``capacity`` items; ``close`` ends it after what is in it, ``cancel`` at once."""

    def __init__(self, capacity: int) -> None:
        self._items: deque[T] = deque()
        self._condition = threading.Condition()
        self._closed = False
        self._cancelled = False
        self.stats = QueueStats(capacity)

    def put(self, item: T) -> None:
        """Append an item, waiting for room; raises Cancelled when the queue is cancelled."""
        with self._condition:
            if len(self._items) >= self.stats.capacity and not self._cancelled:
                began = time.perf_counter()
                self._condition.wait_for(lambda: len(self._items) < self.stats.capacity or self._cancelled)
                self.stats.producer_wait += time.perf_counter() - began
            if self._cancelled:
                raise Cancelled
            stats = self.stats
            stats.items += 1
            stats.depth_sum += len(self._items)
            self._items.append(item)
            stats.max_depth = max(stats.max_depth, len(self._items))
            self._condition.notify_all()

    def __iter__(self) -> Iterator[T]:
        """Take items until the queue is closed and empty; several threads may iterate at once."""
        while True:
            with self._condition:
                if not self._items and not self._closed and not self._cancelled:
                    began = time.perf_counter()
                    self._condition.wait_for(lambda: bool(self._items) or self._closed or self._cancelled)
                    self.stats.consumer_wait += time.perf_counter() - began
                if self._cancelled:
                    raise Cancelled
                if not self._items:
                    return
                taken = [self._items.popleft()]
                self._condition.notify_all()
            yield taken.pop()  # a name for it here would keep a 4K frame alive while waiting for the next one

    def close(self) -> None:
        """Say that no more items come; what is in the queue is still delivered."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    def cancel(self) -> None:
        """Drop everything and wake everybody with Cancelled."""
        with self._condition:
            self._cancelled = True
            self._items.clear()
            self._condition.notify_all()
