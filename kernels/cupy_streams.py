"""Streams, events and CUDA graphs of CuPy, as ``kernels/device.py`` describes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from retinastream.errors import UsageError
from retinastream.kernels.device import CaptureError, Event, Stream

_LEGACY_STREAMS, _PER_THREAD_STREAM = (0, 1), 2
_NOT_READY = 600


class CuPyEvent:
    """An event without timing, whose waits yield the processor."""

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self.cupy = cupy.cuda.Event(block=True, disable_timing=True)

    @property
    def done(self) -> bool:
        """Whether all work before the event has finished; an error of that work is raised here."""
        status = int(self._cupy.cuda.runtime.eventQuery(self.cupy.ptr))
        if status not in (0, _NOT_READY):
            # A sick device would otherwise look busy for ever.
            raise self._cupy.cuda.runtime.CUDARuntimeError(status)
        return status == 0

    def synchronize(self) -> None:
        """Wait for it."""
        self.cupy.synchronize()


class CuPyStream:
    """A stream of CuPy's, created by it or wrapped."""

    def __init__(self, cupy: Any, stream: Any) -> None:
        self._cupy = cupy
        self.cupy = stream

    @property
    def handle(self) -> int:
        """The cudaStream_t."""
        return int(self.cupy.ptr)

    def record(self, event: Event) -> None:
        """Put the event after all work queued so far."""
        self.cupy.record(_own_event(event).cupy)

    def wait(self, event: Event) -> None:
        """Let later work wait for the event."""
        self.cupy.wait_event(_own_event(event).cupy)

    def synchronize(self) -> None:
        """Wait for all work queued so far, by an event: waiting for the stream itself would spin."""
        event = CuPyEvent(self._cupy)
        self.record(event)
        event.synchronize()

    def capture(self, queue: Callable[[], None]) -> Callable[[], None]:
        """Record what ``queue`` puts on the stream as a CUDA graph; returns what launches it on the stream.

        CaptureError when it cannot be captured; the capture has ended then, and the stream is usable.
        """
        try:
            # Of the thread only: what other threads allocate must neither be forbidden nor end the capture.
            self.cupy.begin_capture(mode=self._cupy.cuda.runtime.streamCaptureModeThreadLocal)
        except RuntimeError as error:
            raise CaptureError(f"nothing can be captured on the stream {self.handle:#x}: {error}") from error
        try:
            queue()
        except RuntimeError as error:  # of CuPy and of torch alike
            _abandon_capture(self.cupy)
            raise CaptureError(f"what was queued cannot be captured as a CUDA graph: {error}") from error
        except BaseException:
            _abandon_capture(self.cupy)
            raise
        try:
            graph = self.cupy.end_capture()
            graph.upload(self.cupy)
        except RuntimeError as error:
            raise CaptureError(f"what was queued does not make a CUDA graph: {error}") from error
        return lambda: graph.launch(self.cupy)


def wrap_stream(cupy: Any, handle: int) -> CuPyStream:
    """Wrap the stream of a handle: 0 or 1 is the legacy default stream, 2 the per-thread one."""
    if handle in _LEGACY_STREAMS:
        return CuPyStream(cupy, cupy.cuda.Stream.null)
    if handle == _PER_THREAD_STREAM:
        return CuPyStream(cupy, cupy.cuda.Stream.ptds)
    if handle < 0:
        raise UsageError(f"{handle} is not a cudaStream_t; pass the address, as in torch.cuda.Stream.cuda_stream")
    return CuPyStream(cupy, cupy.cuda.Stream.from_external(_ForeignStream(handle)))


def _own_event(event: Event) -> CuPyEvent:
    if not isinstance(event, CuPyEvent):
        raise UsageError(f"an event of {type(event).__name__} was given; expected one of Device.event()")
    return event


def own_stream(stream: Stream) -> CuPyStream:
    """Return the stream as what it must be; UsageError for one of another kind."""
    if not isinstance(stream, CuPyStream):
        raise UsageError(f"a stream of {type(stream).__name__} was given; wrap it with Device.foreign_stream()")
    return stream


class _ForeignStream:
    """A handle as an object of the CUDA stream protocol, which is what CuPy wraps."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._handle


def _abandon_capture(stream: Any) -> None:
    """End a capture whatever its state, so that the stream is usable; an invalidated one ends with an error."""
    try:
        stream.end_capture()
    except RuntimeError:
        return
