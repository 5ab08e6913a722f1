"""Average precision of many resamples of one set of pictures, without matching or sorting anything twice.

Whether a prediction is right depends on its own picture alone, and the ranking of all predictions does not change when
pictures are drawn several times or not at all. Both are computed once; a resample is then a weight per picture, and its
average precision two running sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from retinastream.errors import UsageError
from retinastream.evaluation.average_precision import match_ranked

if TYPE_CHECKING:
    from retinastream.evaluation.labelled_set import LabelledPicture
    from retinastream.types import Faces

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Matched:
    """The predictions of one picture, best score first: ``scores`` (N,), and per overlap asked for (I, N) flags.

    ``right`` are those that found a face, ``counted`` those that are right or wrong; the others lie on ignored faces.
    """

    scores: Float64
    right: Flags
    counted: Flags


def match(
    boxes: npt.NDArray[np.floating[Any]],
    scores: npt.NDArray[np.floating[Any]],
    truths: npt.NDArray[np.floating[Any]],
    ignore: Flags,
    ious: Sequence[float],
) -> Matched:
    """Match the predictions (N, 4) of one picture with its truths (M, 4) by the rule of ``match_ranked``."""
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    ranked = np.asarray(scores, np.float64)[order]
    levels = match_ranked(boxes[order], truths, ignore, ious)
    return Matched(ranked, np.array([level.right for level in levels]), np.array([level.counted for level in levels]))


@dataclass(frozen=True, slots=True, eq=False)
class _Level:
    """One overlap: which ranked predictions count (None: all), and the ranks and pictures of those that are right."""

    counted: Float64 | None
    ranks: Int64
    pictures: Int64


@dataclass(frozen=True, slots=True, eq=False)
class RankedHits:
    """All predictions of a set, ranked over its pictures, with what is right at each of ``ious``.

    ``pictures`` (N,) says which picture a ranked prediction is of, ``truths`` (P,) how many faces each picture has.
    """

    ious: tuple[float, ...]
    pictures: Int64
    truths: Int64
    levels: tuple[_Level, ...]

    @classmethod
    def of(cls, predictions: Sequence[Faces], truths: Sequence[LabelledPicture], ious: Sequence[float]) -> Self:
        """Match and rank ``predictions``, one ``Faces`` per picture; UsageError for lengths that differ."""
        if len(predictions) != len(truths):
            raise UsageError(f"{len(predictions)} predictions for {len(truths)} pictures; expected one for each")
        found = [
            match(faces.boxes, faces.scores, picture.boxes, picture.ignore, ious)
            for faces, picture in zip(predictions, truths, strict=True)
        ]
        counts = [len(matched.scores) for matched in found]
        scores = np.concatenate([np.zeros(0), *(matched.scores for matched in found)])
        if not np.isfinite(scores).all():
            raise UsageError("a score is not a finite number; expected values that can be ranked")
        order = np.argsort(-scores, kind="stable")
        pictures = np.repeat(np.arange(len(counts)), counts)[order]
        empty = np.zeros((len(ious), 0), np.bool_)
        right = np.concatenate([empty, *(matched.right for matched in found)], axis=1)[:, order]
        counted = np.concatenate([empty, *(matched.counted for matched in found)], axis=1)[:, order]
        levels = []
        for r, c in zip(right, counted, strict=True):
            ranks = np.flatnonzero(r)
            levels.append(_Level(None if c.all() else c.astype(np.float64), ranks, pictures[ranks]))
        wanted = np.array([int(np.count_nonzero(~picture.ignore)) for picture in truths], np.int64)
        return cls(tuple(ious), pictures, wanted, tuple(levels))

    def average_precisions(self, draws: Int64 | None = None) -> Float64:
        """Return the average precision at each of ``ious`` (I,) of the set in which picture p is there draws[p] times.

        The same as ``average_precision`` of the repeated pictures, with all copies of a prediction ranked together. NaN
        where that set has no face. Without ``draws`` every picture is there once.
        """
        weights = np.ones(len(self.truths)) if draws is None else draws.astype(np.float64)
        total = float(weights @ self.truths)
        if not total:
            return np.full(len(self.ious), np.nan)
        each = weights[self.pictures]
        seen_by_all = np.cumsum(each)
        result = np.empty(len(self.ious))
        for index, level in enumerate(self.levels):
            seen = seen_by_all if level.counted is None else np.cumsum(each * level.counted)
            gains = weights[level.pictures]
            # Precision rises over the copies of a hit and falls over misses: the envelope is reached at hits alone.
            precision = np.cumsum(gains) / np.maximum(seen[level.ranks], 1.0)
            envelope = np.maximum.accumulate(precision[::-1])[::-1]
            result[index] = gains @ envelope / total
        return result
