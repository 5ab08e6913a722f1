"""Says once per source, and counts, what had to be left out of the faces: it never happens silently."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from retinastream.kernels.cuda_faces import BEYOND_LIMIT, BEYOND_MAX_FACES, LIST_FULL, NOT_A_NUMBER, OVERFLOW
from retinastream.kernels.postprocess import PRE_NMS_LIMIT
from retinastream.types import Faces

logger = logging.getLogger(__name__)

# A camera server sees few sources, a folder of pictures is one: beyond these, nothing more is said.
_MOST_SOURCES = 1000

_NAN, _SOME_LIMIT = 0, -1  # beside the bits of the overflow count
_REASONS = {
    _NAN: "the network gave candidates that are not a number, and they were left out: its weights are broken, or its "
    "precision does not suit them (try precision f32)",
    LIST_FULL: "more candidates than there is memory for: faces were lost at random",
    BEYOND_LIMIT: f"more than {PRE_NMS_LIMIT} candidates above the threshold: the best of them were kept; "
    "a higher threshold leaves fewer",
    BEYOND_MAX_FACES: "more faces than max_faces: the best of them were kept",
    _SOME_LIMIT: f"more than {PRE_NMS_LIMIT} candidates above the threshold, or more faces than max_faces: the best of "
    "them were kept",
}


class LimitLog:
    """``frames`` counts, over all sources, the frames with "overflow" and with "not_a_number"."""

    def __init__(self) -> None:
        self.frames: Counter[str] = Counter()
        self._said: set[tuple[str, int]] = set()
        self._lock = threading.Lock()

    def observe(self, faces: Sequence[Faces], counts: npt.NDArray[np.int32]) -> None:
        """Look at what was counted for the frames of a batch, (frames, 4)."""
        if not counts[:, [NOT_A_NUMBER, OVERFLOW]].any():
            return
        for found, row in zip(faces, counts, strict=True):
            self._observe_frame(found, int(row[OVERFLOW]), int(row[NOT_A_NUMBER]))

    def observe_faces(self, found: Faces) -> None:
        """Look at the faces of a frame, where nothing else was counted."""
        if found.overflow or found.not_a_number:
            self._observe_frame(found, _SOME_LIMIT if found.overflow else 0, found.not_a_number)

    def _observe_frame(self, found: Faces, overflow: int, not_a_number: int) -> None:
        with self._lock:
            self.frames["overflow"] += bool(overflow)
            self.frames["not_a_number"] += bool(not_a_number)
        if not_a_number:
            self._say(found, _NAN)
        if overflow == _SOME_LIMIT:
            self._say(found, _SOME_LIMIT)
            return
        for bit in (LIST_FULL, BEYOND_LIMIT, BEYOND_MAX_FACES):
            if overflow & bit:
                self._say(found, bit)

    def _say(self, found: Faces, reason: int) -> None:
        with self._lock:
            if (found.source, reason) in self._said or len(self._said) >= _MOST_SOURCES:
                return
            self._said.add((found.source, reason))
        logger.warning(
            "%s, frame %d: %s (said once; Faces.overflow and Faces.not_a_number tell of every frame)",
            found.source or "pictures",
            found.index,
            _REASONS[reason],
        )
