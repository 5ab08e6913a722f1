"""Faces made unrecognisable in place, on the surface that an encoder takes.

A face's box is enlarged about its centre; the pixels whose centres lie in it, or in the ellipse inscribed in it, are
its region. A grid of square cells covers the region: as many as ``cells`` along the longer side, of an even number of
pixels, from the region's first even pixel on. What replaces a pixel depends on the method:

mosaic
    the mean of its cell, which is taken over the whole cell within the picture;
blur
    the means of the 3x3 cells around it, weighted by a quadratic B-spline at its position, edges replicated;
solid
    one colour.

So of a face at most (cells + 1) squared means are left, whatever its size, and none of its samples. All means are taken
before anything is written. Where regions overlap, the one with the larger cells counts, then the first. A chroma sample
is replaced when any of the pixels that it stands for is, by the region that counts among theirs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from retinastream.errors import UsageError
from retinastream.kernels.surfaces import chroma_cells, code_values, pixel_ranges, stored_boxes, writable_channels
from retinastream.types import Faces, Frame

Float64 = npt.NDArray[np.float64]
Method = Literal["solid", "mosaic", "blur"]
Shape = Literal["box", "ellipse"]

_MOST_CELLS = 64


@dataclass(frozen=True, slots=True, eq=False)
class _Region:
    centre: Float64  # x, y
    half: Float64  # half of width and height, not clipped
    x0: int
    y0: int
    x1: int
    y1: int
    cell: int

    @property
    def grid(self) -> tuple[int, int, int, int]:
        """First pixel along x and y, both even, and the number of columns and rows."""
        x, y = self.x0 // 2 * 2, self.y0 // 2 * 2
        return x, y, -(-(self.x1 - x) // self.cell), -(-(self.y1 - y) // self.cell)

    def mask(self, shape: Shape) -> npt.NDArray[np.bool_]:
        """Which pixels of its range it covers."""
        if shape == "box":
            return np.ones((self.y1 - self.y0, self.x1 - self.x0), bool)
        x = np.arange(self.x0, self.x1) + 0.5 - self.centre[0]
        y = np.arange(self.y0, self.y1) + 0.5 - self.centre[1]
        width, height = self.half**2
        inside: npt.NDArray[np.bool_] = (x**2 * height) + (y**2 * width)[:, None] <= width * height
        return inside


def redact(
    frames: Sequence[Frame],
    faces: Sequence[Faces],
    *,
    method: Method = "blur",
    shape: Shape = "ellipse",
    enlarge: float = 1.3,
    cells: int = 8,
    colour: tuple[float, float, float] = (0, 0, 0),
) -> None:
    """Replace the faces of every frame, in place; this module says by what.

    ``enlarge`` multiplies width and height of the boxes, ``colour`` is B, G, R from 0 to 255. Frames are luma and
    chroma of any format. A box that is not finite or has no area covers nothing. UsageError for settings that are not
    allowed, for packed and for read-only pictures.
    """
    check_settings(method, shape, enlarge, cells)
    for frame, found in zip(frames, faces, strict=True):
        channels = writable_channels(frame)
        regions = _regions(frame, found.boxes, enlarge, cells)
        fill = code_values(colour, frame)
        values = [_replacements(region, frame, channels, method, fill) for region in regions]
        _write(frame, channels, regions, values, shape)


def check_settings(method: str, shape: str, enlarge: float, cells: int) -> None:
    """Raise UsageError for settings that no backend takes."""
    if method not in ("solid", "mosaic", "blur"):
        raise UsageError(f"method {method!r} is not known; allowed are solid, mosaic and blur")
    if shape not in ("box", "ellipse"):
        raise UsageError(f"shape {shape!r} is not known; allowed are box and ellipse")
    if not 0 < enlarge <= 100:
        raise UsageError(f"enlarge is {enlarge!r}; expected a factor above 0 and up to 100")
    if isinstance(cells, bool) or not isinstance(cells, int) or not 1 <= cells <= _MOST_CELLS:
        raise UsageError(f"cells is {cells!r}; expected a whole number from 1 to {_MOST_CELLS}")


def _regions(frame: Frame, boxes: npt.NDArray[Any], enlarge: float, cells: int) -> list[_Region]:
    """Regions in the order in which they are written: those that count come last."""
    found = []
    for box in stored_boxes(boxes, frame):
        half = (box[2:] - box[:2]) * 0.5 * float(np.float32(enlarge))
        if not np.isfinite(box).all() or (half <= 0).any():
            continue
        centre = (box[:2] + box[2:]) * 0.5
        whole = pixel_ranges(np.concatenate([centre - half, centre + half]))
        x0, y0 = np.maximum(whole[:2], 0)
        x1, y1 = np.minimum(whole[2:], (frame.width, frame.height))
        if x0 < x1 and y0 < y1:
            longest = int((whole[2:] - whole[:2]).max())
            cell = max(2, math.ceil(longest / cells / 2) * 2)
            found.append(_Region(centre, half, int(x0), int(y0), int(x1), int(y1), cell))
    found.reverse()
    return sorted(found, key=lambda region: region.cell)


def _replacements(
    region: _Region, frame: Frame, channels: tuple[npt.NDArray[Any], ...], method: Method, fill: tuple[int, int, int]
) -> list[npt.NDArray[Any]]:
    """What replaces each channel over the region's range, in stored units."""
    values = []
    for k, channel in enumerate(channels):
        steps = (1, 1) if k == 0 else (frame.format.sub_x, frame.format.sub_y)
        if method == "solid":
            codes = np.full([b - a for a, b in reversed(_ranges(region, steps))], fill[k])
        else:
            means = _cell_means(channel >> frame.format.shift, region, steps)
            across, down = (_weights(region, steps, axis, method) for axis in range(2))
            codes = np.rint(down @ means @ across.T).astype(int)
        values.append((codes << frame.format.shift).astype(channel.dtype))
    return values


def _ranges(region: _Region, steps: tuple[int, int]) -> list[tuple[int, int]]:
    """First and end of the samples of a channel along x and y that stand for pixels of the region's range."""
    ends = ((region.x0, region.x1), (region.y0, region.y1))
    return [(first // step, (end - 1) // step + 1) for (first, end), step in zip(ends, steps, strict=True)]


def _cell_means(channel: npt.NDArray[Any], region: _Region, steps: tuple[int, int]) -> Float64:
    """Means (rows, columns) of the grid's cells, to the precision of float32, as kernels keep them."""
    x, y, columns, rows = region.grid
    means = np.empty((rows, columns))
    width, height = region.cell // steps[0], region.cell // steps[1]
    for row in range(rows):
        top = y // steps[1] + row * height
        for column in range(columns):
            left = x // steps[0] + column * width
            means[row, column] = channel[top : top + height, left : left + width].mean()
    return means.astype(np.float32).astype(np.float64)


def _weights(region: _Region, steps: tuple[int, int], axis: int, method: Method) -> Float64:
    """Weights (samples of the range, cells) along one axis."""
    first, end = _ranges(region, steps)[axis]
    start, count = region.grid[axis], region.grid[2 + axis]
    samples = np.arange(first, end)
    rows = np.arange(len(samples))
    weights = np.zeros((len(samples), count))
    if method == "mosaic":
        weights[rows, (samples * steps[axis] - start) // region.cell] = 1
        return weights
    position = ((samples + 0.5) * steps[axis] - start) / region.cell
    middle = np.floor(position).astype(int)
    offset = position - middle - 0.5
    for step, share in ((-1, (0.5 - offset) ** 2 / 2), (0, 0.75 - offset**2), (1, (0.5 + offset) ** 2 / 2)):
        np.add.at(weights, (rows, np.clip(middle + step, 0, count - 1)), share)
    return weights


def _write(
    frame: Frame,
    channels: tuple[npt.NDArray[Any], ...],
    regions: list[_Region],
    values: list[list[npt.NDArray[Any]]],
    shape: Shape,
) -> None:
    counting = np.full((frame.height, frame.width), -1)
    for number, region in enumerate(regions):
        counting[region.y0 : region.y1, region.x0 : region.x1][region.mask(shape)] = number
    for k, channel in enumerate(channels):
        steps = (1, 1) if k == 0 else (frame.format.sub_x, frame.format.sub_y)
        numbers = counting if k == 0 else chroma_cells(counting, frame, -1).max(axis=2)
        for number, region in enumerate(regions):
            (x0, x1), (y0, y1) = _ranges(region, steps)
            chosen = numbers[y0:y1, x0:x1] == number
            channel[y0:y1, x0:x1][chosen] = values[number][k][chosen]
