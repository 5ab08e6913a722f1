"""Box voting: boxes that cover the same face become one, placed where their scores say.

Introduced by Gidaris and Komodakis, "Object detection via a multi-region and semantic segmentation-aware CNN model"
(ICCV 2015); RetinaFace (arXiv 1905.00641, section 4.2) votes at an overlap of 0.4 over flipped and rescaled passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from retinastream.errors import UsageError

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Votes:
    """One entry per group, best score first: ``boxes`` (K, 4) xyxy, ``scores`` (K,) and ``landmarks`` (K, 5, 2).

    ``sizes`` (K,) counts the members of each group; ``groups`` (N,) says for every box given which group it is in.
    """

    boxes: Float32
    scores: Float32
    landmarks: Float32
    sizes: Int64
    groups: Int64


def vote(
    boxes: npt.NDArray[np.floating[Any]],
    scores: npt.NDArray[np.floating[Any]],
    landmarks: npt.NDArray[np.floating[Any]],
    iou: float = 0.4,
) -> Votes:
    """Group boxes as NMS would suppress them, and replace each group by its mean, weighted by score.

    ``boxes`` (N, 4) xyxy, ``scores`` (N,) from 0 and ``landmarks`` (N, 5, 2) in the same pixels, in any order. The best
    box that is in no group yet starts one and takes all others that overlap it by more than ``iou``; of equal scores
    the first given is the better one. Boxes and landmarks of a group are averaged, its score is the best of its
    members. Raises UsageError for shapes that do not match, numbers that are not finite, scores below 0 and ``iou``
    outside 0..1.
    """
    _check(boxes, scores, landmarks, iou)
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    ranked = np.asarray(boxes, np.float64)[order]
    group = _group(ranked, iou)
    weights = np.asarray(scores, np.float64)[order]
    leaders = np.unique(group, return_index=True)[1]
    # A group of scores that are all zero would divide by zero; its members then count alike.
    weights = np.where((weights[leaders] > 0)[group], weights, 1.0)
    values = np.hstack([ranked, np.asarray(landmarks, np.float64)[order].reshape(-1, 10)])
    means = _weighted_means(values, weights, group, len(leaders))
    groups = np.empty(len(order), np.int64)
    groups[order] = group
    return Votes(
        boxes=means[:, :4].astype(np.float32),
        scores=np.asarray(scores, np.float32)[order[leaders]],
        landmarks=means[:, 4:].reshape(-1, 5, 2).astype(np.float32),
        sizes=np.bincount(group, minlength=len(leaders)),
        groups=groups,
    )


def _group(boxes: Float64, iou: float) -> Int64:
    """Number the groups of boxes (N, 4), best first, in the order of their best members."""
    group = np.empty(len(boxes), np.int64)
    x1, y1, x2, y2 = np.ascontiguousarray(boxes.T)
    areas = (x2 - x1) * (y2 - y1)
    left = np.arange(len(boxes))
    number = 0
    while len(left):
        best, rest = left[0], left[1:]
        width = np.minimum(x2[best], x2[rest]) - np.maximum(x1[best], x1[rest])
        height = np.minimum(y2[best], y2[rest]) - np.maximum(y1[best], y1[rest])
        shared = np.maximum(width, 0) * np.maximum(height, 0)
        # Without a division: boxes whose union is zero then stay apart.
        joins = shared > iou * (areas[best] + areas[rest] - shared)
        group[best] = number
        group[rest[joins]] = number
        left = rest[~joins]
        number += 1
    return group


def _weighted_means(values: Float64, weights: Float64, group: Int64, count: int) -> Float64:
    """Average rows (N, D) by group: (count, D)."""
    total = np.bincount(group, weights, count)
    sums = [np.bincount(group, weights * column, count) for column in values.T]
    means: Float64 = np.stack(sums, axis=1) / total[:, None]
    return means


def _check(
    boxes: npt.NDArray[np.floating[Any]],
    scores: npt.NDArray[np.floating[Any]],
    landmarks: npt.NDArray[np.floating[Any]],
    iou: float,
) -> None:
    if not 0.0 <= iou <= 1.0:
        raise UsageError(f"iou is {iou}; expected a value from 0 to 1")
    n = len(scores)
    given = (boxes.shape, scores.shape, landmarks.shape)
    if given != ((n, 4), (n,), (n, 5, 2)):
        raise UsageError(f"boxes, scores and landmarks have shapes {given}; expected (N, 4), (N,) and (N, 5, 2)")
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all() and (scores >= 0).all()):
        raise UsageError("a box or a score is not a finite number, or a score is below 0; expected values that average")
