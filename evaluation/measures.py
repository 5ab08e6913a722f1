"""Everything that is measured of a detector on a labelled set, in one pass: what ``retinastream eval set`` prints."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from retinastream.errors import UsageError
from retinastream.evaluation.average_precision import (
    AveragePrecision,
    RecallByHeight,
    average_precision,
    recall_by_height,
)
from retinastream.evaluation.landmark_error import POINTS, LandmarkError, landmark_distances
from retinastream.evaluation.ranked_hits import RankedHits

if TYPE_CHECKING:
    from retinastream.evaluation.labelled_set import LabelledPicture, LabelledSet
    from retinastream.types import Faces

IOUS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
HEIGHT_EDGES = (0.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, math.inf)


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """What a threshold on the score gives: faces ``found`` and ``missed``, predictions that are ``wrong``.

    ``precision`` is found / (found + wrong), ``recall`` found / (found + missed), ``f1`` their harmonic mean; NaN where
    there is nothing to divide by. Scores of ``threshold`` and more count.
    """

    threshold: float
    precision: float
    recall: float
    f1: float
    found: int
    wrong: int
    missed: int


@dataclass(frozen=True, slots=True)
class Counts:
    """What was compared: pictures, faces to be found, ignored faces, faces with landmarks, and predictions."""

    pictures: int
    faces: int
    ignored: int
    landmarked: int
    predictions: int


@dataclass(frozen=True, slots=True, eq=False)
class Measures:
    """The measures of one detector on one labelled set; NaN where there was nothing to measure.

    ``ap50`` is average precision at IoU 0.5, ``ap`` the mean of ``ap_by_iou`` over 0.5, 0.55, ... 0.95; ``curve`` what
    ``ap50`` was computed from. ``at_score`` is what the chosen score threshold gives, ``at_precision`` the lowest
    threshold with the precision asked for (None where none has it). ``recall_by_height`` counts predictions from the
    chosen score on, ``recall_by_height_any_score`` all. ``landmarks_large`` is of faces of ``large_height`` pixels and
    more, ``landmarks_by_height`` has an entry per bin of heights.
    """

    ap50: float
    ap: float
    ap_by_iou: Mapping[float, float]
    curve: AveragePrecision
    at_score: OperatingPoint
    precision_target: float
    at_precision: OperatingPoint | None
    recall_by_height: RecallByHeight
    recall_by_height_any_score: RecallByHeight
    landmarks: LandmarkError
    landmarks_large: LandmarkError
    large_height: float
    landmarks_by_height: tuple[LandmarkError, ...]
    counts: Counts

    def to_dict(self) -> dict[str, Any]:
        """All numbers but the curve, as JSON can hold them: NaN and infinity become None."""
        plain = {
            "ap50": self.ap50,
            "ap": self.ap,
            "ap_by_iou": {f"{iou:.2f}": value for iou, value in self.ap_by_iou.items()},
            "at_score": asdict(self.at_score),
            "precision_target": self.precision_target,
            "at_precision": None if self.at_precision is None else asdict(self.at_precision),
            "recall_by_height": _bins(self.recall_by_height),
            "recall_by_height_any_score": _bins(self.recall_by_height_any_score),
            "landmarks": _landmarks(self.landmarks),
            "landmarks_large": {"height": self.large_height, **_landmarks(self.landmarks_large)},
            "landmarks_by_height": [_landmarks(error) for error in self.landmarks_by_height],
            "counts": asdict(self.counts),
        }
        return {name: finite(value) for name, value in plain.items()}


def measure(
    predictions: Sequence[Faces],
    truths: LabelledSet | Sequence[LabelledPicture],
    *,
    score_threshold: float = 0.5,
    precision_target: float = 0.95,
    height_edges: Sequence[float] = HEIGHT_EDGES,
    large_height: float = 40.0,
) -> Measures:
    """Measure ``predictions``, one ``Faces`` per picture of ``truths`` and in the same order.

    Boxes and landmarks of both are in pixels of the picture. Average precision needs the predictions with low scores,
    too: run the detector with a threshold of about 0.02. Matching is that of ``average_precision`` at every IoU.
    Raises UsageError for lengths and shapes that do not match.
    """
    pictures = truths if isinstance(truths, Sequence) else truths.pictures
    if len(predictions) != len(pictures):
        raise UsageError(f"{len(predictions)} predictions for {len(pictures)} pictures; expected one for each")
    found = [(faces.boxes, faces.scores) for faces in predictions]
    boxes, ignore = [p.boxes for p in pictures], [p.ignore for p in pictures]
    curve = average_precision(found, boxes, 0.5, ignore=ignore)
    # Matched once for all ten overlaps; only the first is wanted as a curve.
    by_iou = RankedHits.of(predictions, pictures, IOUS).average_precisions().tolist()
    distances = landmark_distances(predictions, pictures)
    return Measures(
        ap50=curve.ap,
        ap=float(np.mean(by_iou)),
        ap_by_iou=dict(zip(IOUS, by_iou, strict=True)),
        curve=curve,
        at_score=operating_point(curve, score_threshold),
        precision_target=precision_target,
        at_precision=point_of_precision(curve, precision_target),
        recall_by_height=recall_by_height(found, boxes, height_edges, score_threshold, ignore=ignore),
        recall_by_height_any_score=recall_by_height(found, boxes, height_edges, -math.inf, ignore=ignore),
        landmarks=distances.error(),
        landmarks_large=distances.error(large_height),
        large_height=large_height,
        landmarks_by_height=tuple(distances.error(*bounds) for bounds in pairwise(height_edges)),
        counts=_count(predictions, pictures),
    )


def operating_point(curve: AveragePrecision, threshold: float) -> OperatingPoint:
    """Read off ``curve`` what predictions with a score of at least ``threshold`` give."""
    above = int(np.count_nonzero(curve.scores >= threshold))
    found = round(float(curve.precision[above - 1]) * above) if above else 0
    wrong, missed = above - found, curve.truths - found
    relevant = 2 * found + wrong + missed
    return OperatingPoint(
        threshold=float(threshold),
        precision=found / above if above else math.nan,
        recall=found / curve.truths if curve.truths else math.nan,
        f1=2 * found / relevant if relevant else math.nan,
        found=found,
        wrong=wrong,
        missed=missed,
    )


def point_of_precision(curve: AveragePrecision, target: float) -> OperatingPoint | None:
    """Find the lowest threshold whose precision is at least ``target``, which has the highest recall of these.

    None where no threshold reaches it. Predictions of equal score are taken or left together.
    """
    last_of_score = np.append(np.diff(curve.scores) != 0, True) if len(curve.scores) else np.zeros(0, np.bool_)
    reached = np.flatnonzero(last_of_score & (curve.precision >= target))
    return operating_point(curve, float(curve.scores[reached[-1]])) if len(reached) else None


def finite(value: Any) -> Any:
    """Replace NaN and infinity by None, in dicts, lists and tuples too: JSON has no word for them."""
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _bins(recall: RecallByHeight) -> list[dict[str, Any]]:
    columns = (recall.edges[:-1], recall.edges[1:], recall.truths, recall.found, recall.recall)
    names = ("from", "to", "faces", "found", "recall")
    return [dict(zip(names, row, strict=True)) for row in zip(*(c.tolist() for c in columns), strict=True)]


def _landmarks(error: LandmarkError) -> dict[str, Any]:
    plain = asdict(error)
    return {**plain, "per_point": dict(zip(POINTS, error.per_point, strict=True))}


def _count(predictions: Sequence[Faces], pictures: Sequence[LabelledPicture]) -> Counts:
    return Counts(
        pictures=len(pictures),
        faces=sum(int(np.count_nonzero(~p.ignore)) for p in pictures),
        ignored=sum(int(np.count_nonzero(p.ignore)) for p in pictures),
        landmarked=sum(int(np.count_nonzero(~p.ignore & np.isfinite(p.landmarks).all(axis=(1, 2)))) for p in pictures),
        predictions=sum(len(faces) for faces in predictions),
    )
