"""Two sets of predictions on the same labelled pictures: is one better than the other, or could it be chance?

The pictures are drawn again and again with replacement, the same draw for both (a paired bootstrap: Efron and
Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13), and the differences of the measures are what an
interval is taken of. What makes a picture hard is hard for both, so the interval of the difference is far narrower
than those of the two measures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from retinastream.errors import UsageError
from retinastream.evaluation.average_precision import finders
from retinastream.evaluation.landmark_error import landmark_distances
from retinastream.evaluation.measures import IOUS, finite
from retinastream.evaluation.ranked_hits import RankedHits, match

if TYPE_CHECKING:
    from retinastream.evaluation.labelled_set import LabelledPicture, LabelledSet
    from retinastream.types import Faces

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Winner = Literal["A", "B", "none", "unknown"]

# Resamples without a face, or in which neither found one with landmarks, say nothing; with fewer than this part left
# an interval would be of a chosen few.
_ENOUGH = 0.5


@dataclass(frozen=True, slots=True)
class Difference:
    """One measure of both: ``a``, ``b``, ``difference`` = b - a, and its percentile interval ``low`` to ``high``.

    ``b_higher`` is the part of the resamples in which b is above a. ``higher_is_better`` is False for errors. NaN where
    there was nothing to measure.
    """

    measure: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    b_higher: float
    higher_is_better: bool = True

    @property
    def better(self) -> Winner:
        """Which of the two is better: "none" where the interval holds 0, "unknown" where there is no interval."""
        if math.isnan(self.low) or math.isnan(self.difference):
            return "unknown"
        if self.low <= 0.0 <= self.high:
            return "none"
        return "B" if (self.low > 0) == self.higher_is_better else "A"

    @property
    def verdict(self) -> str:
        """The same in words."""
        texts = {"A": "A is better", "B": "B is better", "none": "no difference shown", "unknown": "not measured"}
        return texts[self.better]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Differences of all measures, and what they were measured on.

    ``score_threshold`` is that of precision and recall, ``large_height`` the height from which faces count as large,
    ``landmarked`` the number of faces that both found and whose landmarks were compared.
    """

    differences: tuple[Difference, ...]
    pictures: int
    faces: int
    landmarked: int
    score_threshold: float
    large_height: float
    resamples: int
    confidence: float
    seed: int

    def __getitem__(self, measure: str) -> Difference:
        """Return the difference of one measure by its name; KeyError where there is none."""
        for difference in self.differences:
            if difference.measure == measure:
                return difference
        raise KeyError(measure)

    def to_dict(self) -> dict[str, Any]:
        """All numbers as JSON can hold them: NaN becomes None."""
        rows = [{**asdict(d), "better": d.better, "verdict": d.verdict} for d in self.differences]
        plain: dict[str, Any] = finite({**asdict(self), "differences": rows})
        return plain


@dataclass(frozen=True, slots=True, eq=False)
class _Side:
    """What resampling one set of predictions needs: ranked hits, and sums per picture whose quotients are measures.

    ``parts`` maps a measure to numerators and denominators (P,).
    """

    hits: RankedHits
    parts: dict[str, tuple[Float64, Float64]]

    def measures(self, draws: Int64) -> list[float]:
        """Average precision at 0.5, its mean over all overlaps, and the quotients, of one resample."""
        precisions = self.hits.average_precisions(draws)
        quotients = [_divide(float(draws @ above), float(draws @ below)) for above, below in self.parts.values()]
        return [float(precisions[0]), float(precisions.mean()), *quotients]


def compare(
    a: Sequence[Faces],
    b: Sequence[Faces],
    truths: LabelledSet | Sequence[LabelledPicture],
    *,
    score_threshold: float = 0.5,
    large_height: float = 40.0,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Compare predictions ``a`` and ``b``, one ``Faces`` per picture of ``truths`` and in the same order.

    Measures: "ap50"; "ap", the mean over overlaps of 0.5 to 0.95; "recall" and "precision" of scores from
    ``score_threshold`` on, at an overlap of 0.5; "landmark_error" and "landmark_error_large" (labelled height of
    ``large_height`` and more): the mean distance as a part of sqrt(box area), over the faces that both found, so that
    none is punished for finding a harder one. Average precision needs predictions with low scores, too.
    The same ``seed`` gives the same numbers. Raises UsageError for lengths and shapes that do not match and values
    that are not allowed.
    """
    pictures = list(truths if isinstance(truths, Sequence) else truths.pictures)
    _check(a, b, pictures, resamples, confidence)
    distances = _shared_landmark_distances(a, b, pictures, large_height)
    one, other = (
        _Side(RankedHits.of(side, pictures, IOUS), {**_at_threshold(side, pictures, score_threshold), **parts})
        for side, parts in zip((a, b), distances, strict=True)
    )
    whole = np.ones(len(pictures), np.int64)
    drawn = _resample(one, other, len(pictures), resamples, seed, progress)
    names = ["ap50", "ap", *one.parts]
    both = zip(names, one.measures(whole), other.measures(whole), drawn.transpose(1, 2, 0), strict=True)
    return Comparison(
        differences=tuple(_difference(name, x, y, samples, confidence) for name, x, y, samples in both),
        pictures=len(pictures),
        faces=int(one.hits.truths.sum()),
        landmarked=int(one.parts["landmark_error"][1].sum()),
        score_threshold=score_threshold,
        large_height=large_height,
        resamples=resamples,
        confidence=confidence,
        seed=seed,
    )


def _resample(
    a: _Side, b: _Side, pictures: int, resamples: int, seed: int, progress: Callable[[int, int], None] | None
) -> Float64:
    """Measure both on the same draws: (resamples, measures, 2)."""
    rng = np.random.default_rng(seed)
    drawn = np.empty((resamples, 2 + len(a.parts), 2))
    for index in range(resamples):
        draws = np.bincount(rng.integers(pictures, size=pictures), minlength=pictures)
        drawn[index, :, 0], drawn[index, :, 1] = a.measures(draws), b.measures(draws)
        if progress is not None:
            progress(index + 1, resamples)
    return drawn


def _difference(name: str, a: float, b: float, samples: Float64, confidence: float) -> Difference:
    """Summarise one measure from ``samples`` (2, resamples)."""
    differences = samples[1] - samples[0]
    known = differences[~np.isnan(differences)]
    low = high = above = math.nan
    if len(known) >= max(1, _ENOUGH * len(differences)):
        tail = (1 - confidence) / 2
        low, high = (float(v) for v in np.quantile(known, (tail, 1 - tail)))
        above = float(np.mean(known > 0))
    return Difference(name, a, b, b - a, low, high, above, not name.startswith("landmark_error"))


def _at_threshold(
    predictions: Sequence[Faces], pictures: Sequence[LabelledPicture], threshold: float
) -> dict[str, tuple[Float64, Float64]]:
    right, counted = np.zeros(len(pictures)), np.zeros(len(pictures))
    for index, (faces, picture) in enumerate(zip(predictions, pictures, strict=True)):
        above = faces.above(threshold)
        matched = match(above.boxes, above.scores, picture.boxes, picture.ignore, (0.5,))
        right[index], counted[index] = matched.right.sum(), matched.counted.sum()
    wanted = np.array([float(np.count_nonzero(~picture.ignore)) for picture in pictures])
    return {"recall": (right, wanted), "precision": (right, counted)}


def _shared_landmark_distances(
    a: Sequence[Faces], b: Sequence[Faces], pictures: Sequence[LabelledPicture], large: float
) -> tuple[dict[str, tuple[Float64, Float64]], dict[str, tuple[Float64, Float64]]]:
    """Sum the distances of each picture's faces that both found, of both sides; and count these faces."""
    sums = np.zeros((2, 2, len(pictures)))
    counts = np.zeros((2, len(pictures)))
    for index, (faces_a, faces_b, picture) in enumerate(zip(a, b, pictures, strict=True)):
        common = replace(picture, ignore=~(_found(faces_a, picture) & _found(faces_b, picture)))
        for side, faces in enumerate((faces_a, faces_b)):
            found = landmark_distances([faces], [common])
            sizes = found.heights >= large
            means = found.distances.mean(axis=1)
            sums[side, :, index] = means.sum(), means[sizes].sum()
            counts[:, index] = len(means), sizes.sum()
    names = ("landmark_error", "landmark_error_large")
    one, other = (
        {name: (above, below) for name, above, below in zip(names, side, counts, strict=True)} for side in sums
    )
    return one, other


def _found(faces: Faces, picture: LabelledPicture) -> npt.NDArray[np.bool_]:
    """Return which labelled faces were found by a prediction that has landmarks."""
    finder = finders((faces.boxes, faces.scores), picture.boxes, ignore=picture.ignore)
    complete = np.append(np.isfinite(faces.landmarks).all(axis=(1, 2)), False)
    return np.asarray(complete[finder], np.bool_)  # -1, not found, is the last: False


def _divide(above: float, below: float) -> float:
    return above / below if below else math.nan


def _check(
    a: Sequence[Faces], b: Sequence[Faces], pictures: Sequence[LabelledPicture], resamples: int, confidence: float
) -> None:
    if not len(a) == len(b) == len(pictures):
        raise UsageError(
            f"{len(a)} predictions of A and {len(b)} of B for {len(pictures)} pictures; expected one for each"
        )
    if not pictures:
        raise UsageError("there are no pictures to compare on; expected at least one")
    if isinstance(resamples, bool) or not isinstance(resamples, int) or resamples < 1:
        raise UsageError(f"resamples is {resamples!r}; expected a whole number, 1 or more")
    if not 0.0 < confidence < 1.0:
        raise UsageError(f"confidence is {confidence}; expected a value between 0 and 1, such as 0.95")
