"""How well similarities tell pairs of one person from pairs of two: TAR at FAR, AUC, EER, best accuracy.

A pair is accepted at a threshold when its similarity is at least that. FAR is accepted different pairs / all different
pairs, TAR accepted same pairs / all same pairs (as in NIST's evaluations and IJB-C). A similarity of -inf stands for a
pair that could not be compared: it is accepted at no threshold and counts in the denominators.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt

from retinastream.errors import UsageError

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """What one threshold gives: ``tar`` and ``far`` reached at ``threshold``, for the FAR that was asked for.

    ``wanted_far`` is None where none was. ``threshold`` is inf where nothing may be accepted. ``resolved`` is False
    where there are fewer than 1 / ``wanted_far`` different pairs: then not one may be accepted, and the TAR is that at
    a FAR of zero in this set, which says little about the FAR that was asked for.
    """

    threshold: float
    far: float
    tar: float
    wanted_far: float | None = None
    resolved: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Values as JSON holds them; a threshold of inf becomes None."""
        threshold = self.threshold if np.isfinite(self.threshold) else None
        values = {"threshold": threshold, "far": self.far, "tar": self.tar}
        return (
            values if self.wanted_far is None else {"wanted_far": self.wanted_far, **values, "resolved": self.resolved}
        )


@dataclass(frozen=True, slots=True, eq=False)
class VerificationCurve:
    """Every operating point of a set of pairs, from accepting nothing to accepting all that could be compared.

    ``thresholds`` (K,) are inf and then the distinct similarities, descending; ``accepted_same`` and
    ``accepted_different`` (K,) count pairs at or above each. ``same`` and ``different`` are how many pairs there are.
    """

    thresholds: Float64
    accepted_same: Int64
    accepted_different: Int64
    same: int
    different: int

    @property
    def tar(self) -> Float64:
        """Accepted same pairs / all same pairs, per threshold."""
        return self.accepted_same / self.same

    @property
    def far(self) -> Float64:
        """Accepted different pairs / all different pairs, per threshold."""
        return self.accepted_different / self.different

    def at_far(self, far: float) -> OperatingPoint:
        """Return the lowest of the thresholds whose FAR is at most ``far``, and its TAR.

        No threshold between two similarities does better, because it accepts what the next similarity above it does.
        Raises UsageError unless 0 < ``far`` <= 1.
        """
        if not (isinstance(far, int | float) and 0.0 < far <= 1.0):
            raise UsageError(f"a FAR of {far!r} was asked for; expected a number above 0 and at most 1, such as 1e-3")
        return self._point(int(np.searchsorted(self.far, far, side="right")) - 1, far)

    @property
    def auc(self) -> float:
        """Area under the ROC curve: how often a same pair is more alike than a different one, equal counting half."""
        tar, far = self._to_the_corner()
        return float(np.sum(np.diff(far) * (tar[1:] + tar[:-1]) / 2))

    @property
    def eer(self) -> float:
        """Equal error rate: where the ROC curve, linear between its points, has FAR = 1 - TAR."""
        tar, far = self._to_the_corner()
        excess = far + tar - 1
        after = int(np.argmax(excess >= 0))  # never 0: the curve begins at -1 and ends at 1
        step = excess[after] - excess[after - 1]
        return float(far[after] - (far[after] - far[after - 1]) * excess[after] / step)

    @property
    def best_accuracy(self) -> tuple[float, float]:
        """The highest share of pairs judged rightly, and the lowest threshold that reaches it (on these same pairs)."""
        right = self.accepted_same + self.different - self.accepted_different
        last = len(right) - 1 - int(np.argmax(right[::-1]))
        return float(right[last] / (self.same + self.different)), float(self.thresholds[last])

    def _point(self, index: int, wanted: float) -> OperatingPoint:
        return OperatingPoint(
            threshold=float(self.thresholds[index]),
            far=float(self.far[index]),
            tar=float(self.tar[index]),
            wanted_far=float(wanted),
            resolved=1 / self.different <= wanted,
        )

    def _to_the_corner(self) -> tuple[Float64, Float64]:
        """Add the point (1, 1): pairs that could not be compared tie for the last place."""
        return np.append(self.tar, 1.0), np.append(self.far, 1.0)


def verification_curve(similarities: npt.ArrayLike, same: npt.ArrayLike) -> VerificationCurve:
    """Count accepted pairs at every threshold that matters.

    ``similarities`` (P,) are any numbers, larger for more alike, -inf for pairs that could not be compared; ``same``
    (P,) says which pairs are of one person. Raises UsageError for other shapes, NaN or +inf, and where there is not at
    least one pair of each kind.
    """
    values, flags = np.asarray(similarities, np.float64), np.asarray(same)
    if values.ndim != 1 or values.shape != flags.shape:
        raise UsageError(f"similarities and same have the shapes {values.shape} and {flags.shape}; expected (P,) twice")
    if flags.dtype != np.bool_:
        if not np.isin(flags, (0, 1)).all():
            raise UsageError("same holds other values than 0 and 1; expected true for pairs of one person")
        flags = flags.astype(np.bool_)
    if np.isnan(values).any() or np.isposinf(values).any():
        raise UsageError("similarities hold NaN or +inf; expected finite numbers, or -inf for a pair without a face")
    total_same = int(np.count_nonzero(flags))
    if not 0 < total_same < len(flags):
        raise UsageError(
            f"{total_same} pairs are of one person and {len(flags) - total_same} of two; expected at least one of each"
        )
    compared = np.isfinite(values)
    order = np.argsort(-values[compared], kind="stable")
    ranked, hits = values[compared][order], flags[compared][order]
    # Pairs that are equally alike are accepted together, so only the last of each run is a threshold.
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)) if len(ranked) else np.zeros(0, np.int64)
    accepted_same = np.cumsum(hits, dtype=np.int64)[last]
    accepted = last.astype(np.int64) + 1
    return VerificationCurve(
        thresholds=np.append(np.inf, ranked[last]),
        accepted_same=np.append(0, accepted_same).astype(np.int64),
        accepted_different=np.append(0, accepted - accepted_same).astype(np.int64),
        same=total_same,
        different=len(flags) - total_same,
    )


def pairs_to_resolve(far: float) -> int:
    """How many different pairs a FAR needs, so that one accepted pair does not already exceed it."""
    return ceil(round(1 / far, 6))
