"""The faces of a batch in the memory of the device that found them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from retinastream.kernels.cuda_faces import FACES
from retinastream.kernels.device import Device, Event
from retinastream.pipeline.gpu_slot import faces_of
from retinastream.pipeline.limit_log import LimitLog
from retinastream.types import Faces


class DeviceFaces:
    """What ``Detector.detect_device`` returns: arrays on the device, which may not have been computed yet.

    ``rows`` (batch, max_faces, 16) float32 holds per face box x1, y1, x2, y2, score and five landmarks x, y, best score
    first, in pixels of the original picture; the last value is the face's anchor, and rows after the last face are
    zero. ``counts`` (batch, 4) int32: candidates found, candidates that are not a number, faces, and bits of what was
    cut off (1 candidates lost, 2 candidates beyond the limit, 4 faces beyond max_faces). They are CuPy arrays of their
    own memory, which other packages take by ``__cuda_array_interface__`` or DLPack.

    Work on the stream that was given to ``detect_device`` may use them at once; other streams wait for that one. Their
    memory is that stream's: they may be dropped while work on it still reads them, but not while work on others does.
    """

    def __init__(
        self, device: Device, rows: Any, counts: Any, done: Sequence[Event], blanks: list[Faces], log: LimitLog
    ) -> None:
        self.rows, self.counts = rows, counts
        self._device, self._done, self._blanks, self._log = device, done, blanks, log

    @property
    def device(self) -> Device:
        """The device that holds them, on which further kernels can be queued."""
        return self._device

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self._blanks)

    @property
    def boxes(self) -> Any:
        """(batch, max_faces, 4) float32, a view of ``rows``."""
        return self.rows[:, :, :4]

    @property
    def scores(self) -> Any:
        """(batch, max_faces) float32, a view of ``rows``; 0 after the last face."""
        return self.rows[:, :, 4]

    @property
    def landmarks(self) -> Any:
        """(batch, max_faces, 5, 2) float32, a view of ``rows``."""
        return self.rows[:, :, 5:15].reshape(*self.rows.shape[:2], 5, 2)

    @property
    def face_counts(self) -> Any:
        """(batch,) int32, a view of ``counts``: how many rows of a picture are faces."""
        return self.counts[:, FACES]

    def to_host(self) -> list[Faces]:
        """Wait for the faces and copy them to the host; errors of the work are raised here."""
        with self._device.current():
            stream = self._device.stream()
            for event in self._done:
                stream.wait(event)
            rows = self._device.empty_pinned(self.rows.shape, np.float32)
            counts = self._device.empty_pinned(self.counts.shape, np.int32)
            self._device.copy_out(rows, self.rows, stream)
            self._device.copy_out(counts, self.counts, stream)
            try:
                stream.synchronize()
            except BaseException:
                # The copies may be to come, and their target is about to be given back.
                with suppress(Exception):
                    stream.synchronize()
                raise
        found = [faces_of(*one) for one in zip(self._blanks, np.asarray(rows), np.asarray(counts), strict=True)]
        self._log.observe(found, np.asarray(counts))
        return found
