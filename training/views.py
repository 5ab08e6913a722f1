"""Which part of a picture a training picture shows: a crop with a face, a face at a wanted size, or more than all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from retinastream.training.augmentation import AugmentationSettings

Float64 = npt.NDArray[np.float64]
Rectangle = tuple[int, int, int, int]

# Crops drawn at once, of which the first that is fit is taken.
CANDIDATES = 8


@dataclass(frozen=True, slots=True)
class View:
    """Which part of a picture is shown: its centre, and source pixels per output pixel."""

    x: float
    y: float
    scale: float


def draw_view(
    settings: AugmentationSettings, boxes: Float64, source: Float64, out: Float64, rng: np.random.Generator
) -> View:
    """Draw the part of a picture of size ``source`` that an output of ``out`` pixels shows; both (width, height).

    ``boxes`` (M, 4) are the faces that count, in pixels of the picture. What is drawn is described at
    ``AugmentationSettings``.
    """
    if rng.random() < settings.target_probability and len(boxes) and settings.target_heights is not None:
        view = _targeted(settings, boxes[rng.integers(len(boxes))], source, out, rng)
        if view is not None:
            return view
    if rng.random() < settings.shrink_probability:
        scale = rng.uniform(*settings.shrink) * source.max() / out.max()
        return _view(_place(source, scale * out, rng.random(2)), scale)
    return _cropped(settings, boxes, source, out, rng)


def _view(centre: Float64, scale: float) -> View:
    return View(float(centre[0]), float(centre[1]), float(scale))


def _place(source: Float64, extent: Float64, where: Float64) -> Float64:
    """Centre of an extent that lies inside the source, or around it where it is larger, per axis."""
    low = np.minimum(0, source - extent)
    centre: Float64 = low + where * np.abs(source - extent) + extent / 2
    return centre


def _targeted(
    settings: AugmentationSettings, box: Float64, source: Float64, out: Float64, rng: np.random.Generator
) -> View | None:
    """Show one face at a height drawn from the range, at a random place but whole where it fits."""
    assert settings.target_heights is not None
    height = box[3] - box[1]
    # A small picture in a large void teaches little: the void is limited, and thereby the reduction.
    least = height * out.max() / (settings.shrink[1] * source.max())
    low, high = max(settings.target_heights[0], least), min(settings.target_heights[1], height * settings.max_enlarge)
    if not 0 < low <= high:
        return None
    scale = height / np.exp(rng.uniform(np.log(low), np.log(high)))
    extent = scale * out
    whole = np.minimum(box[2:] - extent, box[:2]), np.maximum(box[2:] - extent, box[:2])
    inside = np.minimum(0, source - extent), np.maximum(0, source - extent)
    first = np.maximum(whole[0], np.minimum(inside[0], whole[1]))
    last = np.maximum(first, np.minimum(whole[1], inside[1]))
    corner = first + rng.random(2) * (last - first)
    return _view(corner + extent / 2, scale)


def _cropped(
    settings: AugmentationSettings, boxes: Float64, source: Float64, out: Float64, rng: np.random.Generator
) -> View:
    """Crop a part of the short side; around the centre of a face, anywhere in the crop, if the picture has any.

    The light lineage draws crops blindly and tries up to 250 times; a face in a corner is missed by most of them.
    """
    scales = rng.uniform(*settings.crop, CANDIDATES) * source.min() / out.max()
    extents = scales[:, None] * out
    low, high = np.minimum(0, source - extents), np.maximum(0, source - extents)
    best = 0
    if len(boxes):
        middle = ((boxes[:, :2] + boxes[:, 2:]) / 2)[rng.integers(len(boxes), size=CANDIDATES)]
        low, high = np.clip(middle - extents, low, high), np.clip(middle, low, high)
    corners = low + rng.random((CANDIDATES, 2)) * (high - low)
    if len(boxes):
        best = _best_crop(settings, boxes, corners, extents, scales)
    return _view(corners[best] + extents[best] / 2, scales[best])


def _best_crop(
    settings: AugmentationSettings, boxes: Float64, corners: Float64, extents: Float64, scales: Float64
) -> int:
    """Choose the first crop that lies inside no face and holds a centre of one that is large enough.

    Where there is none, the largest if faces are larger than crops, else the one that enlarges most.
    """
    low, high = corners[:, None], (corners + extents)[:, None]
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    held = np.asarray(((middle >= low) & (middle < high)).all(axis=2), np.bool_)
    sides = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
    held &= sides / scales[:, None] >= settings.min_face
    around = np.asarray(((boxes[:, :2] <= low) & (boxes[:, 2:] >= high)).all(axis=2), np.bool_)
    fit = np.flatnonzero(held.any(axis=1) & ~around.any(axis=1))
    if len(fit):
        return int(fit[0])
    return int(np.argmax(scales) if around.any() else np.argmin(scales))


def affine_of(view: View, rectangle: Rectangle, mirrored: bool, degrees: float) -> Float64:
    """Output to source: the centre of the rectangle shows the centre of the view."""
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = view.scale * turn @ np.diag([-1.0 if mirrored else 1.0, 1.0])
    x0, y0, x1, y1 = rectangle
    offset = np.array([view.x, view.y]) - linear @ np.array([(x0 + x1) / 2, (y0 + y1) / 2])
    return np.concatenate([linear, offset[:, None]], axis=1)
