"""What a training picture will look like: drawn from numbers alone, before a pixel is touched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Self

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from retinastream.training.colour import colour_matrix
from retinastream.training.output_plan import Labels, OutputPlan, Tile, carry_labels
from retinastream.training.views import View, affine_of, draw_view

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


def _ascending(values: tuple[float, float]) -> tuple[float, float]:
    if not 0 < values[0] <= values[1]:
        raise ValueError(f"{values} is no range: expected two positive numbers, the lower first")
    return values


Range = Annotated[tuple[float, float], AfterValidator(_ascending)]
Probability = Annotated[float, Field(ge=0, le=1)]


class AugmentationSettings(BaseModel):
    """How pictures are changed before a network sees them; the defaults are those of the light lineage.

    Every picture (each of the four in a mosaic) is shown through one of three views, drawn in this order:

    - with ``target_probability``, one of its faces at a height drawn log-uniformly from ``target_heights`` (output
      pixels), enlarged by no more than ``max_enlarge`` and with no more around it than ``shrink``'s upper end allows;
    - with ``shrink_probability``, a square of ``shrink`` times the long side, which makes all faces small;
    - otherwise a square of ``crop`` times the short side that shows at least one face, drawn at random, if it can.

    Then it is mirrored (``flip``) and turned by up to ``rotation`` degrees. ``brightness`` is added (of 255),
    ``contrast`` and ``saturation`` are factors, ``hue`` is in degrees, each drawn with ``colour_probability``; ``gray``
    and ``blur`` are probabilities; blur shows a picture of half or a quarter of the resolution. ``mosaic`` is the
    probability of four pictures in one. Faces smaller than ``min_face`` output pixels (geometric mean of the sides)
    and faces whose centre is cut off but of which ``visible`` is left are neither faces nor background.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    crop: Range = (0.3, 1.0)
    shrink_probability: Probability = 0.0
    shrink: Range = (1.0, 2.0)
    target_probability: Probability = 0.0
    target_heights: Range | None = None
    max_enlarge: float = Field(default=3.0, gt=0)
    flip: Probability = 0.5
    rotation: float = Field(default=0.0, ge=0, le=45)
    mosaic: Probability = 0.0
    colour_probability: Probability = 0.5
    brightness: float = Field(default=32.0, ge=0, le=255)
    contrast: Range = (0.5, 1.5)
    saturation: Range = (0.5, 1.5)
    hue: float = Field(default=18.0, ge=0, le=180)
    gray: Probability = 0.0
    blur: Probability = 0.0
    min_face: float = Field(default=8.0, ge=0)
    visible: float = Field(default=0.2, ge=0, le=1)

    @model_validator(mode="after")
    def _check_target(self) -> Self:
        if self.target_probability > 0 and self.target_heights is None:
            raise ValueError(
                f"target_probability {self.target_probability} needs target_heights, a range such as [10, 300]"
            )
        return self


def plan(
    settings: AugmentationSettings,
    labels: Labels,
    indices: Sequence[int],
    *,
    size: int,
    seed: int,
    step: int,
    first_item: int = 0,
) -> list[OutputPlan]:
    """Plan one output picture of size x size for each index of ``labels``.

    A function of its arguments and nothing else: item i of a step draws from its own generator, seeded with
    (seed, step, first_item + i), so that a resumed run and a run on more devices see the same pictures.
    """
    return [
        _plan_one(settings, labels, int(index), size, np.random.default_rng([seed, step, first_item + item]))
        for item, index in enumerate(indices)
    ]


def plain_plan(labels: Labels, index: int, *, size: int) -> OutputPlan:
    """Plan one picture as it is: the whole of it in a square, nothing drawn by chance."""
    width, height = labels.sizes[index]
    view = View(width / 2, height / 2, max(width, height) / size)
    tile = Tile(index, affine_of(view, (0, 0, size, size), False, 0.0), (0, 0, size, size))
    colour = np.eye(3, 4, dtype=np.float32)
    return carry_labels(labels, index, (tile,), size=size, colour=colour, blur=0, min_face=0, visible=0)


def _plan_one(
    settings: AugmentationSettings, labels: Labels, index: int, size: int, rng: np.random.Generator
) -> OutputPlan:
    sources, rectangles = [index], [(0, 0, size, size)]
    if rng.random() < settings.mosaic:
        others = np.searchsorted(labels.chances, rng.random(3), side="right")
        sources += [int(i) for i in np.minimum(others, len(labels.pictures) - 1)]
        rectangles = _quarters(size, rng)
    tiles = tuple(
        _tile(settings, labels, source, rectangle, rng) for source, rectangle in zip(sources, rectangles, strict=True)
    )
    colour = _draw_colour(settings, rng)
    blur = int(rng.integers(1, 3)) if rng.random() < settings.blur else 0
    return carry_labels(
        labels,
        index,
        tiles,
        size=size,
        colour=colour,
        blur=blur,
        min_face=settings.min_face,
        visible=settings.visible,
    )


def _quarters(size: int, rng: np.random.Generator) -> list[tuple[int, int, int, int]]:
    x, y = (int(v) for v in np.rint(rng.uniform(0.3, 0.7, 2) * size))
    corners = [(0, 0, x, y), (x, 0, size, y), (0, y, x, size), (x, y, size, size)]
    return [corners[i] for i in rng.permutation(4)]


def _tile(
    settings: AugmentationSettings,
    labels: Labels,
    source: int,
    rectangle: tuple[int, int, int, int],
    rng: np.random.Generator,
) -> Tile:
    picture = labels.pictures[source]
    boxes = np.asarray(picture.boxes, np.float64).reshape(-1, 4)[~np.asarray(picture.ignore, bool)]
    out = np.array([rectangle[2] - rectangle[0], rectangle[3] - rectangle[1]], np.float64)
    view = draw_view(settings, boxes, labels.sizes[source], out, rng)
    mirrored = bool(rng.random() < settings.flip)
    degrees = rng.uniform(-settings.rotation, settings.rotation)
    return Tile(source, affine_of(view, rectangle, mirrored, degrees), rectangle)


def _draw_colour(settings: AugmentationSettings, rng: np.random.Generator) -> Float32:
    drawn = rng.random(5)
    values = rng.random(4)
    use = drawn[:4] < settings.colour_probability

    def between(low: float, high: float, part: float) -> float:
        return low + (high - low) * part

    saturation = between(*settings.saturation, values[2]) if use[2] else 1.0
    return colour_matrix(
        brightness=between(-settings.brightness, settings.brightness, values[0]) if use[0] else 0.0,
        contrast=between(*settings.contrast, values[1]) if use[1] else 1.0,
        saturation=0.0 if drawn[4] < settings.gray else saturation,
        hue=between(-settings.hue, settings.hue, values[3]) if use[3] else 0.0,
    )
