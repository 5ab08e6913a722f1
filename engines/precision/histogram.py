"""How large the values of a tensor are, counted over any number of pictures in one pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from retinastream.errors import ModelError

BINS = 2048


class Histogram:
    """Counts of magnitudes in ``BINS`` bins of equal width from 0 on.

    The width doubles whenever a value lies beyond the last bin, so nothing has to be known in advance and nothing is
    lost: two neighbouring bins become one. ``largest`` is exact.
    """

    def __init__(self) -> None:
        self.counts: npt.NDArray[np.int64] = np.zeros(BINS, np.int64)
        self.width = 0.0
        self.largest = 0.0

    def add(self, values: npt.NDArray[Any]) -> None:
        """Count the magnitudes of ``values``. Raises ModelError for what is not a finite number."""
        sizes = np.abs(values, dtype=np.float32).ravel()
        largest = float(sizes.max(initial=0.0))
        if not np.isfinite(largest):
            raise ModelError("the model computes values that are not finite; its weights or the pictures are broken")
        self._make_room(largest)
        self.largest = max(self.largest, largest)
        if self.width:
            bins = np.minimum((sizes * np.float32(1.0 / self.width)).astype(np.int32), BINS - 1)
            self.counts += np.bincount(bins, minlength=BINS)
        else:
            self.counts[0] += sizes.size

    @property
    def centres(self) -> npt.NDArray[np.float64]:
        """The middle of every bin."""
        return np.asarray((np.arange(BINS) + 0.5) * self.width, np.float64)

    def _make_room(self, largest: float) -> None:
        if not self.width and largest:
            zeros = self.counts[0]
            self.width = largest / BINS
            self.counts[:] = 0
            self.counts[0] = zeros
        while self.width and largest > self.width * BINS * (1 + 1e-6):
            halves = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts[: BINS // 2], self.counts[BINS // 2 :] = halves, 0
            self.width *= 2
