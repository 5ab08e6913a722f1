"""From head maps to candidate faces: scores first, everything else only for the anchors that pass.

Two numbers bound it: at 3840x2160 a frame has 340,320 anchors, so the score test reads 2.7 MB of logits and does one
subtraction and one comparison each; boxes and landmarks cost 14 values per candidate, of which there are few.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from retinastream.kernels.sizing import Placement
from retinastream.models.spec import DetectorSpec

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

# exp(10) times the largest anchor is far beyond any picture; it keeps a wild offset from becoming infinite.
_MAX_LOG_SIZE = np.float32(10.0)
_NO_INDEX = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Faces before NMS: (N, 4) xyxy boxes, (N,) scores, (N, K, 2) landmarks, (N,) anchor indices.

    Sorted by score, best first, ties by anchor index. ``overflow`` says that candidates beyond the limit were dropped,
    ``not_a_number`` counts the anchors whose score was NaN; they are not among the candidates.
    """

    boxes: Float32
    scores: Float32
    landmarks: Float32
    anchors: Int64
    overflow: bool = False
    not_a_number: int = 0

    def __len__(self) -> int:
        """Return the number of candidates."""
        return len(self.scores)


def score_logit(threshold: float) -> float:
    """Return the difference of logits at which sigmoid reaches ``threshold``; infinite at 0 and 1."""
    if threshold <= 0.0:
        return -math.inf
    return math.inf if threshold >= 1.0 else math.log(threshold / (1.0 - threshold))


@cache
def level_offsets(spec: DetectorSpec, height: int, width: int) -> tuple[int, ...]:
    """Index of the first anchor of every level for an input of this size."""
    counts = [r * c * len(a) for (r, c), a in zip(spec.feature_sizes(height, width), spec.anchor_sizes, strict=True)]
    return tuple(int(v) for v in np.cumsum([0, *counts[:-1]]))


def anchors_at(indices: Int64, spec: DetectorSpec, height: int, width: int) -> tuple[Float32, Float32]:
    """Compute centres (N, 2) as x, y and sizes (N,) of anchors from their indices, in input pixels."""
    centres = np.empty((len(indices), 2), np.float32)
    sizes = np.empty(len(indices), np.float32)
    offsets = level_offsets(spec, height, width)
    level_of = np.searchsorted(np.asarray(offsets), indices, side="right") - 1
    for level, (stride, level_sizes) in enumerate(zip(spec.strides, spec.anchor_sizes, strict=True)):
        here = level_of == level
        if not here.any():
            continue
        cell, size_index = np.divmod(indices[here] - offsets[level], len(level_sizes))
        row, column = np.divmod(cell, -(-width // stride))
        centres[here, 0] = (column + 0.5) * stride
        centres[here, 1] = (row + 0.5) * stride
        sizes[here] = np.asarray(level_sizes, np.float32)[size_index]
    return centres, sizes


def decode_offsets(
    box: Float32, landmark: Float32, centres: Float32, sizes: Float32, variances: tuple[float, float]
) -> tuple[Float32, Float32]:
    """Turn offsets (N, 4) and (N, 2 K) into xyxy boxes (N, 4) and landmarks (N, K, 2), in input pixels.

    The inverse of ``encode_offsets``; arXiv 1905.00641 section 3, with the variances of the light lineage.
    """
    near, log = np.float32(variances[0]), np.float32(variances[1])
    middle = centres + box[:, :2] * near * sizes[:, None]
    half = sizes[:, None] * np.exp(np.minimum(box[:, 2:] * log, _MAX_LOG_SIZE)) / 2
    points = centres[:, None] + landmark.reshape(len(landmark), -1, 2) * (near * sizes)[:, None, None]
    return np.hstack([middle - half, middle + half]).astype(np.float32), points.astype(np.float32)


def encode_offsets(
    boxes: Float32, landmarks: Float32, centres: Float32, sizes: Float32, variances: tuple[float, float]
) -> tuple[Float32, Float32]:
    """Turn xyxy boxes (N, 4) and landmarks (N, K, 2) into offsets (N, 4) and (N, 2 K) against square anchors."""
    near, log = np.float32(variances[0]), np.float32(variances[1])
    middle, extent = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    box = np.hstack([(middle - centres) / (near * sizes[:, None]), np.log(extent / sizes[:, None]) / log])
    points = (landmarks - centres[:, None]) / (near * sizes)[:, None, None]
    return box.astype(np.float32), points.reshape(len(points), -1).astype(np.float32)


def decode_fused(
    maps: Sequence[npt.NDArray[Any]], spec: DetectorSpec, height: int, width: int, threshold: float, limit: int
) -> Candidates:
    """Decode one picture from fused maps, one per level of shape (A * 16, rows, columns), float32 or float16.

    Keeps anchors whose score is at least ``threshold``, the best ``limit`` of them. Coordinates are input pixels.
    """
    logit = np.float32(score_logit(threshold))
    per_point = 2 * spec.landmark_count
    parts, not_numbers = [], 0
    for offset, level, sizes in zip(level_offsets(spec, height, width), maps, spec.anchor_sizes, strict=True):
        count = len(sizes)
        with np.errstate(invalid="ignore"):  # infinity less infinity is NaN, which is counted
            margin = np.subtract(level[1 : 2 * count : 2], level[0 : 2 * count : 2], dtype=np.float32)
        flat, passing, lost = _at_least(margin, logit)
        not_numbers += lost
        if len(flat) == 0:
            continue
        which, cell = np.divmod(flat, margin[0].size)
        index = cell * count + which + offset
        channels, which, cell = level.reshape(len(level), -1), which[:, None], cell[:, None]
        box = channels[2 * count + 4 * which + np.arange(4), cell]
        points = channels[6 * count + per_point * which + np.arange(per_point), cell]
        parts.append((index, passing, box, points))
    if not parts:
        return _none(spec, not_numbers)
    index, margin, box, points = (np.concatenate(column) for column in zip(*parts, strict=True))
    scores: Float32 = (1.0 / (1.0 + np.exp(-margin.astype(np.float64)))).astype(np.float32)
    return _best(index, scores, box, points, spec, height, width, limit, not_numbers)


def decode_classic(
    loc: npt.NDArray[Any],
    conf: npt.NDArray[Any],
    landms: npt.NDArray[Any],
    spec: DetectorSpec,
    height: int,
    width: int,
    threshold: float,
    limit: int,
) -> Candidates:
    """Decode one picture from the classic tensors: loc (N, 4), conf (N, 2) probabilities, landms (N, 2 K)."""
    index, scores, not_numbers = _at_least(conf[:, 1], np.float32(threshold))
    if len(index) == 0:
        return _none(spec, not_numbers)
    return _best(index, scores.astype(np.float32), loc[index], landms[index], spec, height, width, limit, not_numbers)


def _at_least(values: npt.NDArray[Any], least: np.float32) -> tuple[Int64, npt.NDArray[Any], int]:
    """Return flat indices of the values from ``least`` on, these values, and how many of all are NaN."""
    # What is not less includes the NaNs, so that they need to be looked for only among few.
    below = np.less(values, least)
    if below.all():
        return _NO_INDEX, values[:0], 0
    index = np.flatnonzero(np.logical_not(below, out=below))
    found = values.reshape(-1)[index]
    is_number = found == found  # noqa: PLR0124  (a third of what np.isnan and its inverse take)
    lost = len(index) - int(np.count_nonzero(is_number))
    return (index[is_number], found[is_number], lost) if lost else (index, found, 0)


def _best(
    index: Int64,
    scores: Float32,
    box: npt.NDArray[Any],
    points: npt.NDArray[Any],
    spec: DetectorSpec,
    height: int,
    width: int,
    limit: int,
    not_numbers: int,
) -> Candidates:
    order = np.lexsort((index, -scores))[:limit]
    centres, sizes = anchors_at(index[order], spec, height, width)
    box, points = box[order].astype(np.float32), points[order].astype(np.float32)
    boxes, landmarks = decode_offsets(box, points, centres, sizes, spec.variances)
    return Candidates(boxes, scores[order], landmarks, index[order], len(index) > limit, not_numbers)


def _none(spec: DetectorSpec, not_numbers: int) -> Candidates:
    points = np.zeros((0, spec.landmark_count, 2), np.float32)
    boxes, scores = np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
    return Candidates(boxes, scores, points, np.zeros(0, np.int64), not_a_number=not_numbers)


def to_source(candidates: Candidates, placement: Placement) -> Candidates:
    """Map coordinates from input pixels to pixels of the upright source picture."""
    scale = np.array([placement.scale_x, placement.scale_y], np.float32)
    boxes: Float32 = candidates.boxes / np.concatenate([scale, scale])
    return Candidates(
        boxes,
        candidates.scores,
        candidates.landmarks / scale,
        candidates.anchors,
        candidates.overflow,
        candidates.not_a_number,
    )


def merge(passes: Sequence[Candidates], limit: int) -> Candidates:
    """Join the passes of one picture, sorted by score; ties go to the earlier pass, then the lower anchor index."""
    if len(passes) == 1:
        return passes[0]
    number = np.concatenate([np.full(len(p), k) for k, p in enumerate(passes)])
    scores = np.concatenate([p.scores for p in passes])
    anchors = np.concatenate([p.anchors for p in passes])
    order = np.lexsort((anchors, number, -scores))
    kept = order[:limit]
    boxes = np.concatenate([p.boxes for p in passes])[kept]
    landmarks = np.concatenate([p.landmarks for p in passes])[kept]
    overflow = any(p.overflow for p in passes) or len(order) > limit
    not_numbers = sum(p.not_a_number for p in passes)
    return Candidates(boxes, scores[kept], landmarks, anchors[kept], overflow, not_numbers)
