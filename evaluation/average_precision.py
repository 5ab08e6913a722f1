"""Average precision of a face detector, and recall by face height.

The definition is that of the PASCAL VOC challenge from 2010 on (Everingham et al., "The PASCAL Visual Object Classes
Challenge: A Retrospective", IJCV 2015, and its development kit): predictions of the whole set are ranked by score, each
is compared with the truth that it overlaps most, a truth counts once, and the area is taken under the precision
envelope at every recall reached. Boxes are continuous here (width = x2 - x1), where the kit counts whole pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from retinastream.errors import UsageError

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Boxes = npt.NDArray[np.floating[Any]]
Prediction = tuple[Boxes, npt.NDArray[np.floating[Any]]]


@dataclass(frozen=True, slots=True, eq=False)
class AveragePrecision:
    """Area under the precision envelope (``ap``) and the curve that it was computed from.

    ``scores``, ``precision`` and ``recall`` have one entry per prediction that counted, best score first; entry k
    is what a threshold just below ``scores[k]`` gives. ``truths`` is how many faces there were to find. ``ap`` is NaN
    where there were none.
    """

    ap: float
    scores: Float64
    precision: Float64
    recall: Float64
    truths: int


@dataclass(frozen=True, slots=True, eq=False)
class RecallByHeight:
    """How many faces of each height were found: bin i holds heights ``edges[i] <= h < edges[i + 1]`` in pixels.

    ``truths`` and ``found`` count faces per bin; ``recall`` is their quotient, NaN where a bin is empty.
    """

    edges: Float64
    truths: Int64
    found: Int64
    recall: Float64


@dataclass(frozen=True, slots=True, eq=False)
class _Picture:
    """Checked inputs of one picture, its predictions best score first."""

    boxes: Float64
    scores: Float64
    truths: Float64
    ignore: Flags


@dataclass(frozen=True, slots=True, eq=False)
class Claims:
    """Which ranked predictions (N,) are right and which count at all; which found each truth (M,), -1 for none."""

    right: Flags
    counted: Flags
    finder: Int64


def average_precision(
    predictions: Sequence[Prediction],
    truths: Sequence[Boxes],
    iou: float = 0.5,
    *,
    ignore: Sequence[npt.NDArray[np.bool_]] | None = None,
) -> AveragePrecision:
    """Measure average precision over a set of pictures.

    ``predictions`` holds per picture boxes (N, 4) xyxy and scores (N,); ``truths`` boxes (M, 4) in the same pixels;
    ``ignore`` flags (M,) of truths that are neither to be found nor to be held against a prediction on them. A
    prediction is right where its overlap is at least ``iou``. Equal scores rank in the order given.
    Raises UsageError for lengths or shapes that do not match, scores that are not finite, or ``iou`` outside 0..1.
    """
    pictures = _read(predictions, truths, iou, ignore)
    scores: list[Float64] = [np.zeros(0)]
    right: list[Flags] = [np.zeros(0, np.bool_)]
    for picture in pictures:
        matches = _match(picture, iou)
        scores.append(picture.scores[matches.counted])
        right.append(matches.right[matches.counted])
    ranked = np.concatenate(scores)
    order = np.argsort(-ranked, kind="stable")
    hits = np.cumsum(np.concatenate(right)[order])
    total = sum(int(np.count_nonzero(~p.ignore)) for p in pictures)
    precision = hits / np.arange(1, len(hits) + 1)
    recall = hits / total if total else np.full(len(hits), np.nan)
    area = _area_under_envelope(precision, recall) if total else float("nan")
    return AveragePrecision(area, ranked[order], precision, recall, total)


def recall_by_height(
    predictions: Sequence[Prediction],
    truths: Sequence[Boxes],
    edges: Sequence[float],
    threshold: float,
    *,
    iou: float = 0.5,
    ignore: Sequence[npt.NDArray[np.bool_]] | None = None,
) -> RecallByHeight:
    """Count the faces found by height, of predictions whose score is at least ``threshold``.

    ``edges`` (B + 1 ascending heights in pixels, the last may be infinite) bound B bins; a height outside counts
    nowhere. The other arguments, the matching and the errors are those of ``average_precision``.
    """
    bounds = np.asarray(edges, np.float64)
    if bounds.ndim != 1 or len(bounds) < 2 or not bool((np.diff(bounds) > 0).all()):
        raise UsageError(f"edges {list(edges)} must be at least two heights in ascending order")
    heights: list[Float64] = [np.zeros(0)]
    found: list[Flags] = [np.zeros(0, np.bool_)]
    for picture in _read(predictions, truths, iou, ignore):
        above = picture.scores >= threshold
        kept = _Picture(picture.boxes[above], picture.scores[above], picture.truths, picture.ignore)
        wanted = ~kept.ignore
        heights.append((kept.truths[:, 3] - kept.truths[:, 1])[wanted])
        found.append(_match(kept, iou).finder[wanted] >= 0)
    inside = np.digitize(np.concatenate(heights), bounds)
    bins = len(bounds) - 1
    counts = np.bincount(inside, minlength=bins + 2)[1 : bins + 1].astype(np.int64)
    hits = np.bincount(inside[np.concatenate(found)], minlength=bins + 2)[1 : bins + 1].astype(np.int64)
    recall = np.full(bins, np.nan)
    np.divide(hits, counts, out=recall, where=counts > 0)
    return RecallByHeight(bounds, counts, hits, recall)


def finders(
    prediction: Prediction, truths: Boxes, iou: float = 0.5, *, ignore: npt.NDArray[np.bool_] | None = None
) -> Int64:
    """Return for each truth of one picture (M,) the index of the prediction that found it, or -1.

    The arguments, the matching and the errors are those of ``average_precision``, for a single picture; nothing finds
    an ignored truth.
    """
    picture = _read([prediction], [truths], iou, None if ignore is None else [ignore])[0]
    finder = _match(picture, iou).finder
    order = np.argsort(-np.asarray(prediction[1], np.float64), kind="stable")
    found = np.full(len(finder), -1)
    found[finder >= 0] = order[finder[finder >= 0]]
    return found


def box_iou(first: Boxes, second: Boxes) -> Float64:
    """Overlap of every box of ``first`` (N, 4) with every box of ``second`` (M, 4), xyxy: (N, M) in 0..1.

    A box without area overlaps nothing.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    shared = np.clip(sides, 0, None).prod(axis=2)
    area_a, area_b = (np.clip(c[:, 2:] - c[:, :2], 0, None).prod(axis=1) for c in (a, b))
    union = area_a[:, None] + area_b[None, :] - shared
    overlap = np.zeros(shared.shape)
    np.divide(shared, union, out=overlap, where=union > 0)
    return overlap


def match_ranked(boxes: Boxes, truths: Boxes, ignore: Flags, ious: Sequence[float]) -> list[Claims]:
    """Match the predictions (N, 4) of one picture, best score first, with its truths (M, 4), at each of ``ious``.

    Each prediction goes to the truth that it overlaps most; of those that overlap it by at least the limit, the first
    found it. A prediction on a truth of ``ignore`` (M,) does not count.
    """
    n, m = len(boxes), len(truths)
    if n == 0 or m == 0:
        return [Claims(np.zeros(n, np.bool_), np.ones(n, np.bool_), np.full(m, -1)) for _ in ious]
    overlap = box_iou(boxes, truths)
    best = overlap.argmax(axis=1)
    reached = overlap[np.arange(n), best]
    return [_claim(best, reached >= iou, ignore) for iou in ious]


def _claim(best: Int64, touches: Flags, ignore: Flags) -> Claims:
    right, finder = np.zeros(len(best), np.bool_), np.full(len(ignore), -1)
    counted = ~(touches & ignore[best])
    claims = np.flatnonzero(touches & counted)
    # unique gives the first claim of each truth, which is the one with the best score
    taken, first = np.unique(best[claims], return_index=True)
    right[claims[first]] = True
    finder[taken] = claims[first]
    return Claims(right, counted, finder)


def _read(
    predictions: Sequence[Prediction],
    truths: Sequence[Boxes],
    iou: float,
    ignore: Sequence[npt.NDArray[np.bool_]] | None,
) -> list[_Picture]:
    if not 0.0 < iou <= 1.0:
        raise UsageError(f"iou is {iou}; expected a value above 0 and at most 1")
    flags = [np.zeros(len(t), np.bool_) for t in truths] if ignore is None else list(ignore)
    if not len(predictions) == len(truths) == len(flags):
        raise UsageError(
            f"{len(predictions)} pictures have predictions, {len(truths)} truths and {len(flags)} ignore flags; "
            "expected one entry per picture in each"
        )
    return [_read_picture(n, *entry) for n, entry in enumerate(zip(predictions, truths, flags, strict=True))]


def _read_picture(index: int, prediction: Prediction, truth: Boxes, ignore: npt.NDArray[np.bool_]) -> _Picture:
    boxes, scores, truths = (np.asarray(v, np.float64) for v in (*prediction, truth))
    boxes = boxes.reshape(0, 4) if boxes.size == 0 else boxes
    truths = truths.reshape(0, 4) if truths.size == 0 else truths
    flags = np.asarray(ignore, np.bool_)
    given = (boxes.shape, scores.shape, truths.shape, flags.shape)
    if given != ((len(scores), 4), (len(scores),), (len(flags), 4), (len(flags),)):
        raise UsageError(
            f"picture {index}: boxes, scores, truths and ignore flags have shapes {given}; "
            "expected (N, 4), (N,), (M, 4) and (M,)"
        )
    if not np.isfinite(scores).all():
        raise UsageError(f"picture {index}: a score is not a finite number; expected values that can be ranked")
    order = np.argsort(-scores, kind="stable")
    return _Picture(boxes[order], scores[order], truths, flags)


def _match(picture: _Picture, iou: float) -> Claims:
    return match_ranked(picture.boxes, picture.truths, picture.ignore, (iou,))[0]


def _area_under_envelope(precision: Float64, recall: Float64) -> float:
    """Area under the largest precision reached at each recall or beyond it."""
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))
