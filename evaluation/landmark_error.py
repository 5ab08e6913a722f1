"""How far the five landmarks lie from where they were labelled, as a part of the face's size.

A distance is divided by the square root of the area of the labelled box, so that large and small faces weigh the same.
Deng et al., "RetinaFace" (arXiv 1905.00641), measure the localisation of five landmarks with the same divisor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from retinastream.errors import UsageError
from retinastream.evaluation.average_precision import Float64, finders

if TYPE_CHECKING:
    from retinastream.evaluation.labelled_set import LabelledPicture
    from retinastream.types import Faces

POINTS = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")


@dataclass(frozen=True, slots=True)
class LandmarkError:
    """Error of ``faces`` faces as a part of sqrt(box area): 0.03 is 3 %.

    ``mean`` and ``median`` are over faces, each the mean of its five points; ``per_point`` the means of each point, in
    the order of POINTS. All are NaN where no face was compared.
    """

    faces: int
    mean: float
    median: float
    per_point: tuple[float, float, float, float, float]


@dataclass(frozen=True, slots=True, eq=False)
class LandmarkDistances:
    """One row per face compared: ``distances`` (K, 5) as a part of sqrt(box area), ``heights`` (K,) in pixels."""

    distances: Float64
    heights: Float64

    def error(self, low: float = 0.0, high: float = math.inf) -> LandmarkError:
        """Summarise the faces with ``low <= height < high`` pixels."""
        rows = self.distances[(self.heights >= low) & (self.heights < high)]
        if not len(rows):
            return LandmarkError(0, math.nan, math.nan, (math.nan,) * 5)
        faces = rows.mean(axis=1)
        a, b, c, d, e = rows.mean(axis=0).tolist()
        return LandmarkError(len(rows), float(faces.mean()), float(np.median(faces)), (a, b, c, d, e))


def landmark_distances(
    predictions: Sequence[Faces], pictures: Sequence[LabelledPicture], iou: float = 0.5
) -> LandmarkDistances:
    """Compare the landmarks of every labelled face that was found, at an overlap of at least ``iou``.

    A face is compared with the prediction that found it, which is the one of the best score. Left out are faces that
    are ignored, have no landmarks or no area, or that were found by a prediction without landmarks (NaN).
    Raises UsageError for lengths that differ or landmarks that are not (M, 5, 2).
    """
    if len(predictions) != len(pictures):
        raise UsageError(f"{len(predictions)} predictions for {len(pictures)} pictures; expected one for each")
    distances, heights = [np.zeros((0, 5))], [np.zeros(0)]
    for found, truth in zip(predictions, pictures, strict=True):
        if not len(truth.boxes):
            continue
        if truth.landmarks.shape != (len(truth.boxes), 5, 2):
            raise UsageError(
                f"{truth.name}: landmarks have shape {truth.landmarks.shape}; expected ({len(truth.boxes)}, 5, 2)"
            )
        sides = (truth.boxes[:, 2:] - truth.boxes[:, :2]).astype(np.float64)
        finder = finders((found.boxes, found.scores), truth.boxes, iou, ignore=truth.ignore)
        compared = np.flatnonzero((finder >= 0) & _complete(truth.landmarks) & (sides > 0).all(axis=1))
        compared = compared[_complete(found.landmarks[finder[compared]])]
        offsets = found.landmarks[finder[compared]].astype(np.float64) - truth.landmarks[compared]
        size = np.sqrt(sides[compared].prod(axis=1))
        distances.append(np.hypot(offsets[..., 0], offsets[..., 1]) / size[:, None])
        heights.append(sides[compared, 1])
    return LandmarkDistances(np.concatenate(distances), np.concatenate(heights))


def _complete(landmarks: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    return np.asarray(np.isfinite(landmarks).all(axis=(1, 2)), np.bool_)
