"""Timestamps that a container accepts: those of the source wherever they rise, mended where they do not."""

from __future__ import annotations

from fractions import Fraction


class Timeline:
    """Places timestamps one after the other, strictly rising, in ticks of ``time_base`` (seconds per tick).

    A timestamp that is later than the one before is kept exactly. A missing one follows at the nominal ``step``
    (seconds). One that lies up to a second back is moved just behind its predecessor; one that lies further back is
    taken as the start of a new clock, and everything after it is shifted to continue where the old clock ended.
    ``mended`` counts the timestamps that were not kept.
    """

    def __init__(self, time_base: Fraction, step: Fraction) -> None:
        self.time_base = time_base
        self.mended = 0
        self.last: int | None = None
        self._step = max(1, round(step / time_base))
        self._offset = 0

    def place(self, ticks: int | None) -> int:
        """Return the tick for a timestamp, or for a missing one."""
        self.last = self._place(ticks)
        if self.last != ticks:
            self.mended += 1
        return self.last

    def _place(self, ticks: int | None) -> int:
        if self.last is None:
            return 0 if ticks is None else ticks
        if ticks is None:
            return self.last + self._step
        if ticks > self.last:
            self._offset = 0  # also where a single wrong timestamp had looked like a new clock
            return ticks
        placed = ticks + self._offset
        if placed > self.last:
            return placed
        if (self.last - placed) * self.time_base <= 1:
            return self.last + 1
        self._offset = self.last + self._step - ticks
        return self.last + self._step
