"""Streams and events on the host: work is queued, and runs as late as it may."""

import threading
from collections import deque
from dataclasses import dataclass, field

from retinastream.kernels.device import CaptureError

# One for all devices: a stream of one may wait for an event of another.
LOCK = threading.RLock()


class UseAfterFree(Exception):  # noqa: N818  (what it is)
    """Work ran whose memory had been freed after it was queued."""


@dataclass
class Work:
    """Something that was queued: a function, its name, and weak references to the memory that it uses."""

    name: str
    function: object
    memory: list = field(default_factory=list)

    def run(self):
        lost = [number for number, reference in enumerate(self.memory) if reference() is None]
        if lost:
            raise UseAfterFree(f"{self.name}: memory {lost} of its {len(self.memory)} was freed before it ran")
        self.function()


@dataclass
class Point:
    """A place in a stream's work that an event was recorded at."""

    stream: object
    done: bool = False


class HostEvent:
    def __init__(self, device):
        self.device = device
        self.point = None

    @property
    def done(self):
        """Looking makes nothing happen, unless the device shuffles."""
        with LOCK:
            self.device.refuse_in_capture("asking an event")
            self.device.advance_randomly()
            return self.point is None or self.point.done

    def synchronize(self):
        with LOCK:
            self.device.refuse_in_capture("waiting for an event")
            self.device.synchronizations += 1
            self.device.advance_randomly()
            if self.point is not None:
                self.point.stream.run_until(self.point)


class HostStream:
    def __init__(self, device, handle):
        self.device = device
        self.handle = handle
        self.pending = deque()

    def record(self, event):
        if event.device is not self.device:
            raise ValueError(f"an event of {event.device.label} cannot be recorded on a stream of {self.device.label}")
        with LOCK:
            self.device.refuse_in_capture("recording an event")
            event.point = Point(self)
            self._put(event.point)

    def wait(self, event):
        with LOCK:
            self.device.refuse_in_capture("waiting for an event from outside of the capture")
            # as CUDA does, for the record that is there now: a later one of the same event does not count
            if event.point is not None and not event.point.done:
                self._put(("wait", event.point))

    def synchronize(self):
        with LOCK:
            self.device.refuse_in_capture("waiting for a stream")
            self.device.synchronizations += 1
            self.device.advance_randomly()
            self.run_until(None)

    def put(self, work):
        """Queue work, or record it where this thread is capturing this stream."""
        with LOCK:
            recording = self.device.recording
            if recording is None:
                self._put(work)
            elif recording.stream is not self:
                raise CaptureError(f"{work.name} is queued on another stream than the one that is captured")
            else:
                recording.works.append(work)

    def _put(self, entry):
        self.pending.append(entry)
        if self.device.eager:
            self.run_until(None)

    def run_until(self, point):
        """Run what is queued up to a point of this stream, and all that this waits for; None means everything."""
        while self.pending and not (point is not None and point.done):
            self.step()

    def step(self):
        """Run the first entry; for a wait, what it waits for first."""
        entry = self.pending[0]
        if isinstance(entry, Work):
            self.pending.popleft()
            self.device.run(entry)
        elif isinstance(entry, Point):
            self.pending.popleft()
            entry.done = True
        else:
            entry[1].stream.run_until(entry[1])
            self.pending.popleft()

    @property
    def is_blocked(self):
        """Whether the next entry waits for a point that is not reached."""
        return bool(self.pending) and isinstance(self.pending[0], tuple) and not self.pending[0][1].done
