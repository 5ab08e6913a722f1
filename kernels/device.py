"""What a CUDA device is to the rest of the package: memory, streams, events, kernels, graphs.

One class drives a GPU through CuPy (cupy_device.py). Another, of the tests, runs the same kernels as host C++ on NumPy
arrays and executes what was queued as late as it may, so that the order of the work can be tested without a GPU.

Nothing here waits, except what is named ``synchronize``. Work on different streams is ordered by events alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy.typing as npt


class Event(Protocol):
    """A point in the work of a stream."""

    @property
    def done(self) -> bool:
        """Whether all work before the point has finished; True before the first record."""
        ...

    def synchronize(self) -> None:
        """Wait for it, without holding the interpreter's lock or spinning."""
        ...


class Stream(Protocol):
    """Work in order; never the default stream, and not ordered with it."""

    @property
    def handle(self) -> int:
        """The cudaStream_t."""
        ...

    def record(self, event: Event) -> None:
        """Put the event after all work queued so far."""
        ...

    def wait(self, event: Event) -> None:
        """Let the work that is queued from now on wait for the event."""
        ...

    def synchronize(self) -> None:
        """Wait for all work queued so far."""
        ...


class Device(Protocol):
    """One device. Its arrays have ``__cuda_array_interface__`` (those of the tests ``__array_interface__``)."""

    index: int
    label: str  # "cuda:0"
    name: str  # "NVIDIA H200"

    def current(self) -> AbstractContextManager[None]:
        """Make the device current on this thread for a while; all other methods expect that."""
        ...

    def stream(self) -> Stream:
        """Create a non-blocking stream."""
        ...

    def foreign_stream(self, handle: int) -> Stream:
        """Wrap a stream of somebody else: 0 or 1 is the legacy default stream, 2 the per-thread one."""
        ...

    def event(self) -> Event:
        """Create an event without timing, whose waits yield the processor."""
        ...

    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike, stream: Stream | None = None) -> Any:
        """Allocate a C-contiguous array, 256-byte aligned; DeviceMemoryError says what was asked and what was free.

        ``stream`` is where its work is queued. Memory that was freed while work was queued may be given out again, in
        the order of that stream; without one, in that of the package's current stream, which orders nothing on others.
        """
        ...

    def empty_pinned(self, shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Allocate a page-locked host array: copies from and to it do not block."""
        ...

    def copy_in(self, target: Any, source: npt.NDArray[Any], stream: Stream) -> None:
        """Queue a copy of a pinned array to a device array of the same shape and dtype, both C-contiguous."""
        ...

    def copy_out(self, target: npt.NDArray[Any], source: Any, stream: Stream) -> None:
        """Queue a copy of a device array to a pinned one of the same shape and dtype, both C-contiguous."""
        ...

    def clear(self, target: Any, stream: Stream) -> None:
        """Queue setting all bytes of a device array to zero."""
        ...

    def launch(
        self,
        stream: Stream,
        name: str,
        grid: tuple[int, ...],
        block: int | tuple[int, ...],
        arguments: Sequence[Any],
        *,
        shared: int = 0,
    ) -> None:
        """Queue a kernel of ``kernels/cuda``: device arrays become pointers, NumPy values go by value."""
        ...

    def prepare_kernels(self) -> None:
        """Compile all kernels now (seconds, once per machine) rather than at their first launch."""
        ...

    def capture(self, stream: Stream, queue: Callable[[], None]) -> Callable[[], None]:
        """Record what ``queue`` puts on the stream as a CUDA graph and return what launches it on that stream.

        CaptureError when something in it cannot be captured; the stream is usable afterwards.
        """
        ...

    def memory(self) -> tuple[int, int]:
        """Return free and total bytes of device memory."""
        ...

    def release_unused(self) -> None:
        """Give memory that was freed and is kept for later back to the device, for whoever needs it next."""
        ...

    def device_of(self, array: Any) -> int:
        """Return the index of the device that holds an array's memory, -1 for host memory."""
        ...


class CaptureError(Exception):
    """What was queued cannot be part of a CUDA graph; it can be queued plainly."""
