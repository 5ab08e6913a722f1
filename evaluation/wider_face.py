"""Average precision on WIDER FACE, by the protocol of the official evaluation, on its official ground truth.

The protocol is that of the MATLAB tools of Yang et al., "WIDER FACE: A Face Detection Benchmark" (CVPR 2016). It
differs from the PASCAL VOC measure of ``average_precision`` in four ways: boxes count whole pixels, so that a box of
width w is w + 1 wide; scores are stretched to 0..1 over all predictions; the curve has 1,000 thresholds; and every face
of a picture can be matched in every setting, but matches with a face outside the setting are left out of the count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from retinastream.errors import UsageError
from retinastream.evaluation.wider_truth import SETTINGS, Float64, GroundTruth, Int64

Flags = npt.NDArray[np.bool_]
Predictions = Mapping[str, Mapping[str, npt.NDArray[np.floating[Any]]]]
"""Event name -> picture name (without extension) -> (N, 5) of x, y, width, height and score, pixels, in any order."""

IOU = 0.5
THRESHOLDS: Float64 = 1.0 - np.arange(1, 1001) / 1000


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Precision and recall of one setting at the 1,000 ``thresholds`` on the stretched score, from 0.999 down to 0.

    ``hits`` faces were found by ``proposals`` predictions that count. ``precision`` is NaN where none counts,
    ``recall`` and ``ap`` where the setting has no face.
    """

    ap: float
    thresholds: Float64
    precision: Float64
    recall: Float64
    hits: Int64
    proposals: Int64
    faces: int


@dataclass(frozen=True, slots=True, eq=False)
class WiderFaceResult:
    """Average precision (0..1) and the curve behind it, both by setting: easy, medium, hard."""

    ap: dict[str, float]
    curves: dict[str, Curve]


@dataclass(frozen=True, slots=True, eq=False)
class _Matches:
    """Predictions of one picture, best score first: which face each overlaps most, and whether by enough."""

    scores: Float64
    best: Int64
    touches: Flags


def evaluate(predictions: Predictions, truth: GroundTruth) -> WiderFaceResult:
    """Measure ``predictions`` against ``truth`` in the settings easy, medium and hard.

    A picture without an entry has no predictions. Raises UsageError for events and pictures that the truth does not
    have, for arrays that are not (N, 5), and for numbers that are not finite.
    """
    checked = _check(predictions, truth)
    low, high = _score_range(checked)
    bins: list[Int64] = []
    counted: dict[str, list[Flags]] = {setting: [] for setting in SETTINGS}
    claims: dict[str, list[Flags]] = {setting: [] for setting in SETTINGS}
    for event in truth.events:
        for picture in event.pictures:
            rows = checked.get((event.name, picture.name))
            # As in the official evaluation: a picture on which nothing is labelled says nothing about a prediction.
            if rows is None or not len(rows) or not len(picture.boxes):
                continue
            matches = _match(rows, picture.boxes)
            bins.append(_first_threshold(matches.scores, low, high))
            for setting in SETTINGS:
                right, valid = _judge(matches, len(picture.boxes), picture.counted[setting])
                claims[setting].append(right)
                counted[setting].append(valid)
    curves = {s: _curve(bins, claims[s], counted[s], truth.faces(s)) for s in SETTINGS}
    return WiderFaceResult({s: curve.ap for s, curve in curves.items()}, curves)


def pixel_iou(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> Float64:
    """Overlap (N, M) of boxes (N, 4) with boxes (M, 4) of x, y, width, height, counted as the official tools do.

    A box reaches from x to x + width and both ends belong to it, so its width counts as width + 1, and boxes that only
    touch, or lie less than a pixel apart, do overlap.
    """
    a, b = (np.asarray(boxes, np.float64) for boxes in (first, second))
    a_end, b_end = a[:, :2] + a[:, 2:], b[:, :2] + b[:, 2:]
    shared_sides = np.minimum(a_end[:, None], b_end[None]) - np.maximum(a[:, None, :2], b[None, :, :2]) + 1
    shared = shared_sides.prod(axis=2)
    area_a, area_b = (a_end - a[:, :2] + 1).prod(axis=1), (b_end - b[:, :2] + 1).prod(axis=1)
    overlap = np.zeros(shared.shape)
    np.divide(shared, area_a[:, None] + area_b[None] - shared, out=overlap, where=(shared_sides > 0).all(axis=2))
    return overlap


def _check(predictions: Predictions, truth: GroundTruth) -> dict[tuple[str, str], Float64]:
    known = {(event.name, picture.name) for event in truth.events for picture in event.pictures}
    events = {event.name for event in truth.events}
    unknown = [event for event in predictions if event not in events]
    unknown += [
        f"{e}/{p}" for e, pictures in predictions.items() if e in events for p in pictures if (e, p) not in known
    ]
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise UsageError(
            f"the ground truth does not have {', '.join(unknown[:5])}{more}; "
            "expected its names of events and of pictures, these without extension"
        )
    checked: dict[tuple[str, str], Float64] = {}
    for event, pictures in predictions.items():
        for picture, given in pictures.items():
            rows = np.asarray(given, np.float64)
            rows = rows.reshape(0, 5) if rows.size == 0 else rows
            if rows.ndim != 2 or rows.shape[1] != 5:
                raise UsageError(f"{event}/{picture}: predictions have shape {rows.shape}; expected (N, 5)")
            if not np.isfinite(rows).all():
                raise UsageError(f"{event}/{picture}: a prediction is not finite; leave such boxes out")
            checked[event, picture] = rows
    return checked


def _score_range(checked: Mapping[tuple[str, str], Float64]) -> tuple[float, float]:
    scores = [rows[:, 4] for rows in checked.values() if len(rows)]
    return (min(float(s.min()) for s in scores), max(float(s.max()) for s in scores)) if scores else (0.0, 1.0)


def _match(rows: Float64, truth: Float64) -> _Matches:
    ranked = rows[np.argsort(-rows[:, 4], kind="stable")]
    overlap = pixel_iou(ranked[:, :4], truth)
    best = overlap.argmax(axis=1)
    return _Matches(ranked[:, 4], best, overlap[np.arange(len(best)), best] >= IOU)


def _first_threshold(scores: Float64, low: float, high: float) -> Int64:
    """The index of the first (highest) threshold that each score reaches once stretched to 0..1."""
    # Where all scores are equal the official quotient is 0 / 0 and nothing counts; here they all become 1.
    stretched = (scores - low) / (high - low) if high > low else np.ones(len(scores))
    return len(THRESHOLDS) - np.searchsorted(THRESHOLDS[::-1], stretched, side="right")


def _judge(matches: _Matches, faces: int, kept: Int64) -> tuple[Flags, Flags]:
    """Which predictions are the first on a face that counts, and which count at all in this setting."""
    wanted = np.zeros(faces, np.bool_)
    wanted[kept] = True
    on_wanted = wanted[matches.best]
    right = np.zeros(len(matches.best), np.bool_)
    candidates = np.flatnonzero(matches.touches & on_wanted)
    # unique gives the first of each face, which is the one with the best score
    right[candidates[np.unique(matches.best[candidates], return_index=True)[1]]] = True
    return right, ~matches.touches | on_wanted


def _curve(bins: list[Int64], claims: list[Flags], counted: list[Flags], faces: int) -> Curve:
    reached = np.concatenate([np.zeros(0, np.int64), *bins])
    hits, proposals = (
        np.cumsum(np.bincount(reached[np.concatenate([np.zeros(0, np.bool_), *flags])], minlength=len(THRESHOLDS)))
        for flags in (claims, counted)
    )
    precision, recall = np.full((2, len(THRESHOLDS)), np.nan)
    np.divide(hits, proposals, out=precision, where=proposals > 0)
    if faces:
        recall = hits / faces
    envelope = np.maximum.accumulate(np.nan_to_num(precision)[::-1])[::-1]
    # In faces and divided once at the end: sums of rounded recalls would make a perfect result miss 1 by an ulp.
    area = math.fsum(np.diff(hits, prepend=0) * envelope) / faces if faces else math.nan
    return Curve(area, THRESHOLDS, precision, recall, hits, proposals, faces)
