"""The plan of an output picture: which pixels it shows, in which colours, and what its labels are then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from retinastream.errors import UsageError

if TYPE_CHECKING:
    from retinastream.evaluation.labelled_set import LabelledPicture

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

# Left and right change places in a mirrored face.
MIRRORED = (1, 0, 2, 4, 3)


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """The faces of all pictures and what a plan must know of them.

    ``sizes`` (N, 2) holds width and height ; ``chances`` (N,) rises to 1: a number drawn from 0..1 picks a
    picture, in proportion to the weights.
    """

    pictures: tuple[LabelledPicture, ...]
    sizes: Float64
    chances: Float64

    @classmethod
    def of(
        cls,
        pictures: Sequence[LabelledPicture],
        sizes: npt.ArrayLike,
        weights: Sequence[float] | Float64 | None = None,
    ) -> Self:
        """Join labels and sizes; ``weights`` (N,) say how often a picture joins a mosaic, equally often by default."""
        known = np.asarray(sizes, np.float64).reshape(-1, 2)
        weight = np.ones(len(pictures)) if weights is None else np.asarray(weights, np.float64)
        if len(known) != len(pictures) or weight.shape != (len(pictures),):
            raise UsageError(f"{len(pictures)} pictures have {len(known)} sizes and {weight.shape} weights")
        if not len(pictures) or not np.isfinite(weight).all() or (weight < 0).any() or weight.sum() <= 0:
            raise UsageError("weights of pictures must be finite, not negative, and one of them above 0")
        chances = np.cumsum(weight) / weight.sum()
        return cls(tuple(pictures), known, chances)


@dataclass(frozen=True, slots=True, eq=False)
class Tile:
    """A part of an output picture: ``rectangle`` x0, y0, x1, y1 (whole pixels) shows one picture.

    ``affine`` (2, 3) leads from output pixels to pixels of the picture; in both the centre of the first
    pixel is at (0.5, 0.5).
    """

    picture: int
    affine: Float64
    rectangle: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class OutputPlan:
    """One output picture of ``size`` x ``size`` pixels and its labels, in output pixels.

    ``tiles`` cover it without overlap. ``colour`` (3, 4) leads from BGR and 1 to BGR (0..255). ``blur`` is how many
    halvings coarser the source is than needed. ``boxes`` (M, 4), ``landmarks`` (M, 5, 2) with NaN where a face has
    none, ``ignore`` (M,), ``scores`` (M,). ``picture`` is the index that the plan was asked for.
    """

    picture: int
    size: int
    tiles: tuple[Tile, ...]
    colour: Float32
    blur: int
    boxes: Float32
    landmarks: Float32
    ignore: Bool
    scores: Float32


def carry_labels(
    labels: Labels,
    index: int,
    tiles: tuple[Tile, ...],
    *,
    size: int,
    colour: Float32,
    blur: int,
    min_face: float,
    visible: float,
) -> OutputPlan:
    """Complete a plan: carry the labels of every tile's picture to the output.

    Boxes are cut to their tile. A face stays one if its centre lies in the tile and the geometric mean of the sides
    that are left is at least ``min_face``; smaller ones, and those of which more than ``visible`` is left while the
    centre is cut off, are ignored from then on, and what is ignored already stays so. The rest is dropped.
    """
    parts = [_tile_labels(labels.pictures[tile.picture], tile, min_face, visible) for tile in tiles]
    boxes, landmarks, ignore, scores = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return OutputPlan(index, size, tiles, colour, blur, boxes, landmarks, ignore, scores)


def _tile_labels(
    picture: LabelledPicture, tile: Tile, min_face: float, visible: float
) -> tuple[Float32, Float32, Bool, Float32]:
    """Carry the labels of a picture to a tile and decide what each of them still is."""
    inverse = np.linalg.inv(tile.affine[:, :2]).astype(np.float64)
    offset = -inverse @ tile.affine[:, 2]
    boxes = _carry_boxes(np.asarray(picture.boxes, np.float64).reshape(-1, 4), inverse, offset)
    landmarks = np.asarray(picture.landmarks, np.float64).reshape(-1, 5, 2) @ inverse.T + offset
    if np.linalg.det(inverse) < 0:
        landmarks = landmarks[:, MIRRORED]

    low, high = np.array(tile.rectangle[:2], np.float64), np.array(tile.rectangle[2:], np.float64)
    clipped = np.concatenate([np.clip(boxes[:, :2], low, high), np.clip(boxes[:, 2:], low, high)], axis=1)
    sides, left = boxes[:, 2:] - boxes[:, :2], clipped[:, 2:] - clipped[:, :2]
    seen = np.prod(left, axis=1) / np.maximum(np.prod(sides, axis=1), 1e-9)
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    centred = ((middle >= low) & (middle < high)).all(axis=1)
    small = np.sqrt(np.prod(left, axis=1)) < min_face
    was_ignored = np.asarray(picture.ignore, bool)
    # Thinner than this and float32 would make nothing of it.
    keep = (left > 1e-3).all(axis=1) & (centred | was_ignored | (seen > visible))
    ignore = was_ignored | ~centred | small
    scores = np.asarray(picture.scores, np.float32)
    return clipped[keep].astype(np.float32), landmarks[keep].astype(np.float32), ignore[keep], scores[keep]


def _carry_boxes(boxes: Float64, inverse: Float64, offset: Float64) -> Float64:
    """Boxes of the ellipses that the boxes hold: heads are round, and the box of turned corners would grow."""
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2 @ inverse.T + offset
    half = np.sqrt(((boxes[:, 2:] - boxes[:, :2]) / 2) ** 2 @ (inverse.T**2))
    return np.concatenate([middle - half, middle + half], axis=1)
