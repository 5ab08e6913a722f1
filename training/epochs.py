"""In which order pictures are seen, epoch after epoch, as a function of the seed alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# Keeps these draws apart from those of the steps, which start from (seed, step, item).
_EPOCH_STREAM = 0x65706F6368


class Epochs:
    """The endless row of pictures: position p belongs to epoch p // length, whose order is drawn from (seed, epoch).

    Without weights every picture appears once per epoch. A picture of ``weights`` (N,) w appears w times, rounded up
    or down by chance, and ``length`` is the sum of the weights.
    """

    def __init__(self, weights: npt.NDArray[np.float64], seed: int) -> None:
        self._weights, self._seed = weights, seed
        self.length = max(1, round(float(weights.sum())))
        self._orders: dict[int, npt.NDArray[np.int64]] = {}

    def picture(self, position: int) -> int:
        """Index of the picture at a position."""
        epoch, place = divmod(position, self.length)
        if epoch not in self._orders:
            if len(self._orders) > 2:
                self._orders.clear()
            self._orders[epoch] = self._order(epoch)
        return int(self._orders[epoch][place])

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        """Draw each picture as often as its weight says, rounded up or down by chance, and shuffle."""
        rng = np.random.default_rng([self._seed, _EPOCH_STREAM, epoch])
        mixed = rng.permutation(len(self._weights))
        steps = np.cumsum(self._weights[mixed])
        # Evenly spaced points on the row of weights: the counts always add up to the same length.
        points = (rng.random() + np.arange(self.length)) * (steps[-1] / self.length)
        chosen = np.minimum(np.searchsorted(steps, points, side="right"), len(mixed) - 1)
        order: npt.NDArray[np.int64] = rng.permutation(mixed[chosen])
        return order
