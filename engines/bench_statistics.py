"""What a series of times amounts to, in the words of trtexec."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

PERCENTILES = (90, 95, 99)


@dataclass(frozen=True, slots=True)
class Spread:
    """A series of times, summarised; all in milliseconds."""

    min: float
    max: float
    mean: float
    median: float
    p90: float
    p95: float
    p99: float

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> Spread:
        """Summarise one or more times."""
        ordered = sorted(milliseconds)
        p90, p95, p99 = (percentile(ordered, percent) for percent in PERCENTILES)
        return cls(
            ordered[0], ordered[-1], statistics.fmean(ordered), statistics.median(ordered), p90=p90, p95=p95, p99=p99
        )

    def to_dict(self) -> dict[str, float]:
        """Plain values for JSON, rounded to a nanosecond."""
        return {name: round(value, 6) for name, value in asdict(self).items()}

    def __str__(self) -> str:
        """Return a line like trtexec's."""
        return (
            f"min = {self.min:.4g} ms, max = {self.max:.4g} ms, mean = {self.mean:.4g} ms, "
            f"median = {self.median:.4g} ms, percentile(90%) = {self.p90:.4g} ms, percentile(95%) = {self.p95:.4g} ms, "
            f"percentile(99%) = {self.p99:.4g} ms"
        )


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the smallest of the ascending values that at least ``percent`` per cent of them do not exceed."""
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def variation(values: Sequence[float]) -> float:
    """Return the coefficient of variation: standard deviation over mean, 0 for fewer than two values."""
    return statistics.pstdev(values) / statistics.fmean(values) if len(values) > 1 and any(values) else 0.0
