"""What a check of precision found: losses and their limits, and what else differs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from retinastream.errors import UsageError
from retinastream.evaluation.measures import Measures, finite

if TYPE_CHECKING:
    from retinastream.evaluation.agreement import Agreement


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that may be lost, in points of average precision (hundredths); ``hard`` is that of WIDER FACE hard."""

    ap: float
    hard: float

    def __post_init__(self) -> None:
        for name in ("ap", "hard"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0.0 <= value <= 100.0):
                raise UsageError(f"the limit {name} is {value!r}; expected points of average precision, 0 to 100")


LIMITS: Mapping[str, Limits] = {
    "f32": Limits(0.1, 0.1),
    "fp16": Limits(0.1, 0.1),
    "int8": Limits(1.0, 1.5),
    "fp8": Limits(1.0, 1.5),
}


@dataclass(frozen=True, slots=True)
class Loss:
    """One average precision of both models: ``points`` lost (hundredths, negative where it rose) of ``limit``."""

    measure: str
    reference: float
    candidate: float
    points: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the loss is within its limit."""
        return self.points <= self.limit + 1e-9

    @property
    def used(self) -> float:
        """The loss as a part of what is allowed; 0 where nothing is lost, infinite where nothing may be lost."""
        if self.points <= 0:
            return 0.0
        return self.points / self.limit if self.limit else math.inf


@dataclass(frozen=True, slots=True)
class PrecisionReport:
    """What a candidate loses, on what, and within which limits; all values are such that JSON can hold them.

    ``kind`` is "labelled", "wider" or "self-labelled" (the reference's detections are the truth). ``recall_by_height``
    and ``landmarks`` hold what both models do, ``agreement`` how the candidate's detections meet the reference's.
    """

    reference: dict[str, Any]
    candidate: dict[str, Any]
    kind: str
    on: dict[str, Any]
    losses: tuple[Loss, ...]
    recall_by_height: list[dict[str, Any]] = field(default_factory=list)
    landmarks: dict[str, Any] = field(default_factory=dict)
    agreement: dict[str, Any] = field(default_factory=dict)

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences on what the figures cannot say: of few faces each counts for more than what may be lost."""
        faces = self.on.get("faces")
        least = min(loss.limit for loss in self.losses)
        if not faces or not least or 100.0 / faces <= least:
            return ()
        wanted = math.ceil(100.0 / least)
        return (
            f"of {faces} faces one is {100.0 / faces:.2g} points, more than the {least:g} that may be lost: give a set "
            f"of {wanted} faces or more for a verdict that says something",
        )

    @property
    def passed(self) -> bool:
        """Whether every loss is within its limit."""
        return all(loss.passed for loss in self.losses)

    @property
    def used(self) -> float:
        """The largest loss as a part of what is allowed: up to 1 passes."""
        return max(loss.used for loss in self.losses)

    def to_dict(self) -> dict[str, Any]:
        """All numbers as JSON can hold them."""
        rows = [{**asdict(loss), "passed": loss.passed} for loss in self.losses]
        plain: dict[str, Any] = finite(
            {**asdict(self), "losses": rows, "passed": self.passed, "remarks": list(self.remarks)}
        )
        return plain


def recalls(one: Measures, other: Measures) -> list[dict[str, Any]]:
    """Recall of both by face height, for the heights that there are faces of."""
    bins = one.recall_by_height
    return [
        {
            "from": float(bins.edges[i]),
            "to": float(bins.edges[i + 1]),
            "faces": int(bins.truths[i]),
            "reference": float(bins.recall[i]),
            "candidate": float(other.recall_by_height.recall[i]),
        }
        for i in range(len(bins.truths))
        if bins.truths[i]
    ]


def landmark_errors(one: Measures, other: Measures) -> dict[str, Any]:
    """Landmark error of both, as a part of sqrt(box area)."""
    names = ("reference", "candidate")
    return {
        name: {"faces": measures.landmarks.faces, "mean": measures.landmarks.mean}
        for name, measures in zip(names, (one, other), strict=True)
    }


def agreed(met: Agreement) -> dict[str, Any]:
    """How the candidate's detections meet the reference's."""
    return {
        "score": met.rules.score,
        "faces": met.faces,
        "recall": met.recall,
        "precision": met.precision,
        "overlap": met.overlap,
        "landmarks_apart": met.landmarks.mean,
    }
