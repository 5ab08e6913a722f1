"""The learning rate as a pure function of the step: warm-up, then steps down or a cosine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from retinastream.errors import UsageError

Shape = Literal["steps", "cosine"]


def _ascending(values: tuple[float, ...]) -> bool:
    return all(a < b for a, b in pairwise(values))


@dataclass(frozen=True, slots=True)
class Schedule:
    """Rates and when they change; every time is counted in epochs and may be a fraction.

    The rate rises linearly from ``warmup_rate`` to ``rate`` over the first ``warmup_epochs``. Then, for "steps", it is
    multiplied by ``factor`` at each epoch of ``drops``; for "cosine" it falls along half a cosine and reaches
    ``final_rate`` with the last step. ``epochs`` is the length. Raises UsageError for values that
    contradict each other.
    """

    shape: Shape
    rate: float
    epochs: float
    warmup_epochs: float = 0.0
    warmup_rate: float = 0.0
    drops: tuple[float, ...] = ()
    factor: float = 0.1
    final_rate: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be followed."""
        if self.shape not in ("steps", "cosine"):
            raise UsageError(f"schedule shape {self.shape!r} is unknown; allowed are steps, cosine")
        if not (math.isfinite(self.rate) and self.rate > 0 and math.isfinite(self.epochs) and self.epochs > 0):
            raise UsageError(f"schedule: rate {self.rate} and epochs {self.epochs} must be positive numbers")
        if self.warmup_rate < 0 or self.final_rate < 0 or not 0 < self.factor <= 1:
            raise UsageError(
                f"schedule: warmup_rate {self.warmup_rate} and final_rate {self.final_rate} must not be negative, "
                f"and factor {self.factor} must be above 0 and at most 1"
            )
        if not 0 <= self.warmup_epochs < self.epochs:
            raise UsageError(f"schedule: warmup_epochs {self.warmup_epochs} must be at least 0 and below {self.epochs}")
        if self.drops and (
            self.shape == "cosine" or min(self.drops) < self.warmup_epochs or not _ascending(self.drops)
        ):
            raise UsageError(
                f"schedule: drops {list(self.drops)} must be ascending epochs after the warm-up of "
                f"{self.warmup_epochs}, and a cosine has none"
            )


# The light PyTorch lineage (mobilenet0.25 and ResNet-50 as published, warm-up off); and arXiv 1905.00641 section 4.2.
LIGHT_MNET025 = Schedule("steps", rate=1e-3, epochs=250, drops=(190, 220))
LIGHT_RESNET50 = Schedule("steps", rate=1e-3, epochs=100, drops=(70, 90))
PAPER = Schedule("steps", rate=1e-2, epochs=80, warmup_epochs=5, warmup_rate=1e-3, drops=(55, 68))


def total_steps(schedule: Schedule, steps_per_epoch: int) -> int:
    """Count the steps of the whole schedule, one at the least."""
    return max(1, round(schedule.epochs * steps_per_epoch))


def rate_at(schedule: Schedule, step: int, steps_per_epoch: int) -> float:
    """Return the rate of step ``step``, counted from 0; steps beyond the end keep the last rate."""
    epoch = step / steps_per_epoch
    if epoch < schedule.warmup_epochs:
        risen = epoch / schedule.warmup_epochs
        return schedule.warmup_rate + (schedule.rate - schedule.warmup_rate) * risen
    if schedule.shape == "steps":
        return schedule.rate * schedule.factor ** sum(epoch >= drop for drop in schedule.drops)
    first = schedule.warmup_epochs * steps_per_epoch
    last = total_steps(schedule, steps_per_epoch) - 1
    passed = min(1.0, (step - first) / max(last - first, 1e-9)) if step < last else 1.0
    return schedule.final_rate + (schedule.rate - schedule.final_rate) * (1 + math.cos(math.pi * passed)) / 2
