"""The slots of a device, used in turn, and the batches that are on their way in them.

A batch is read by whoever needs it first: its owner, or a thread that needs its slot. So nobody ever waits for another
thread to take its results, only for the device: several users of one detector cannot block each other, and a batch that
was given up, as by leaving a stream early, costs nothing but its turn.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from retinastream.kernels.sizing import Placement
from retinastream.pipeline.backend import blank_faces
from retinastream.pipeline.gpu_slot import GpuSlot
from retinastream.pipeline.limit_log import LimitLog
from retinastream.types import Faces, Frame

logger = logging.getLogger(__name__)


class Flight:
    """A batch on its way: it has a slot until it is read, then its faces or the error of its work."""

    def __init__(self, ring: SlotRing, slot: GpuSlot, blanks: Sequence[Faces]) -> None:
        self._ring = ring
        self._slot: GpuSlot | None = slot
        self._blanks = blanks
        self._lock = threading.Lock()
        self._faces: list[Faces] = []
        self._error: BaseException | None = None

    def faces(self) -> list[Faces]:
        """Return the faces of every frame; waits for them. Raises what went wrong in the work of this batch."""
        self.land()
        if self._error is not None:
            raise self._error
        return self._faces

    def land(self) -> None:
        """Wait for the batch and free its slot, once; an error is kept for ``faces``."""
        with self._lock:
            if self._slot is None:
                return
            slot, self._slot = self._slot, None
            try:
                self._faces = self._ring.read(slot, self._blanks)
            except BaseException as error:  # noqa: BLE001 - carried to the owner of the batch
                self._error = error
            finally:
                self._ring.recover(slot, self)


class SlotRing:
    """Up to ``size`` slots, made when they are first needed; ``current`` makes their device current."""

    def __init__(
        self, make: Callable[[], GpuSlot], size: int, current: Callable[[], AbstractContextManager[None]], log: LimitLog
    ) -> None:
        self._make, self.size, self._current, self._log = make, size, current, log
        self._lock = threading.Lock()
        self._idle: list[GpuSlot] = []
        self._flights: deque[Flight] = deque()
        self._made = 0

    def launch(self, frames: Sequence[Frame], placements: Sequence[Placement]) -> Flight:
        """Queue a batch in a free slot, or in the one of the oldest batch after that has landed.

        Not to be called by two threads at once. What ``GpuSlot.submit`` raises leaves the ring as it was.
        """
        slot = self._acquire()
        flight = Flight(self, slot, [blank_faces(frame) for frame in frames])
        try:
            with self._current():
                slot.submit(frames, placements)
        except BaseException:
            self.recover(slot, flight)
            raise
        with self._lock:
            self._flights.append(flight)
        return flight

    def read(self, slot: GpuSlot, blanks: Sequence[Faces]) -> list[Faces]:
        """Return the faces of a slot's batch; waits for them."""
        with self._current():
            faces, counts = slot.read(blanks)
        self._log.observe(faces, counts)
        return faces

    def recover(self, slot: GpuSlot, flight: Flight) -> None:
        """Take a slot back after its flight; one whose work has failed makes room for a new one."""
        failed = slot.is_busy
        if failed:
            self._close(slot)
        with self._lock:
            if flight in self._flights:
                self._flights.remove(flight)
            if failed:
                self._made -= 1
            else:
                self._idle.append(slot)

    def land_all(self) -> None:
        """Wait for every batch that is on its way now; their owners get the faces later."""
        with self._lock:
            flights = list(self._flights)
        for flight in flights:
            flight.land()

    def release(self) -> None:
        """Wait for every batch and release the memory of all slots; nothing is launched meanwhile, but may be later."""
        self.land_all()
        with self._lock:
            idle, self._idle = self._idle, []
            self._made -= len(idle)
        for slot in idle:
            self._close(slot)

    def _acquire(self) -> GpuSlot:
        while True:
            with self._lock:
                if self._idle:
                    return self._idle.pop()
                may_make = self._made < self.size
                self._made += may_make
                oldest = self._flights[0] if self._flights else None
            if may_make:
                return self._made_slot()
            if oldest is not None:
                oldest.land()

    def _made_slot(self) -> GpuSlot:
        try:
            with self._current():
                return self._make()
        except BaseException:
            with self._lock:
                self._made -= 1
            raise

    def _close(self, slot: GpuSlot) -> None:
        try:
            with self._current():
                slot.close()
        except Exception as error:  # noqa: BLE001 - of a driver, of any class; the first error is what its owner gets
            logger.warning("a slot of the device could not be closed cleanly: %s", error)
