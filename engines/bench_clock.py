"""The GPU's own clock: CUDA events with timing, recorded between what is queued on a stream."""

from __future__ import annotations

from typing import Any, Protocol

from retinastream.kernels.device import Device, Stream


class Mark(Protocol):
    """A point in the work of a stream that knows when the GPU passed it."""

    def record(self, stream: Stream) -> None:
        """Put the mark after all work queued so far."""
        ...

    def milliseconds_since(self, earlier: Mark) -> float:
        """Return the time from an earlier mark of the same stream; both have been passed."""
        ...


class GpuClock(Protocol):
    """Makes marks."""

    def mark(self) -> Mark:
        """Create a mark; it can be recorded again and again."""
        ...


class CuPyClock:
    """CUDA events through CuPy, on the device that is current where they are used."""

    def __init__(self) -> None:
        import cupy

        self._runtime: Any = cupy.cuda.runtime

    def mark(self) -> CuPyMark:
        """Create an event with timing whose waits do not spin."""
        return CuPyMark(self._runtime)


class CuPyMark:
    """One CUDA event."""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self._handle = runtime.eventCreateWithFlags(runtime.eventBlockingSync)

    def record(self, stream: Stream) -> None:
        """Put the mark after all work queued so far."""
        self._runtime.eventRecord(self._handle, stream.handle)

    def milliseconds_since(self, earlier: Mark) -> float:
        """Return the time from an earlier mark; the resolution is about half a microsecond."""
        return float(self._runtime.eventElapsedTime(getattr(earlier, "_handle"), self._handle))  # noqa: B009

    def __del__(self) -> None:
        """Give the event back; at the end of the interpreter there may be nothing left to give it to."""
        destroy = getattr(self._runtime, "eventDestroy", None)
        if destroy is not None:
            destroy(self._handle)


def clock_of(device: Device) -> GpuClock | None:
    """Return the clock of a device, None for one without (the host, in tests)."""
    from retinastream.kernels.cupy_device import CuPyDevice

    return CuPyClock() if isinstance(device, CuPyDevice) else None
