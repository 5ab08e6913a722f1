"""A picture at full, half, quarter size and so on: where the levels lie in one flat buffer, and what is in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
import numpy.typing as npt

UInt8 = npt.NDArray[np.uint8]
Int64 = npt.NDArray[np.int64]

# Reducing further than this loses every face that has a label.
SMALLEST_LEVEL = 16


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Where the levels lie: (N, L) offsets in bytes, widths and heights; 0 wide where a picture has no such level."""

    offsets: Int64
    widths: Int64
    heights: Int64
    counts: Int64
    total: int


def lay_out(sizes: Int64, long_side: int) -> Layout:
    """Lay out the levels of pictures of ``sizes`` (N, 2), long sides limited, down to the smallest level."""
    factor = np.minimum(1.0, long_side / sizes.max(axis=1))
    width, height = np.maximum(1, np.rint(sizes * factor[:, None])).astype(np.int64).T
    widths, heights = [width], [height]
    while (more := np.maximum(widths[-1], heights[-1]) > SMALLEST_LEVEL).any():
        widths.append(np.where(more, -(-widths[-1] // 2), 0))
        heights.append(np.where(more, -(-heights[-1] // 2), 0))
    all_widths, all_heights = np.stack(widths, axis=1), np.stack(heights, axis=1)
    lengths = 3 * all_widths * all_heights
    ends = np.cumsum(lengths.ravel())
    offsets = (ends - lengths.ravel()).reshape(lengths.shape)
    return Layout(offsets, all_widths, all_heights, (all_widths > 0).sum(axis=1), int(ends[-1]))


def level_view(flat: UInt8, layout: Layout, i: int, level: int) -> UInt8:
    """One level of one picture as (height, width, 3), a view of ``flat``."""
    width, height = int(layout.widths[i, level]), int(layout.heights[i, level])
    start = int(layout.offsets[i, level])
    return flat[start : start + 3 * width * height].reshape(height, width, 3)


def fill_levels(picture: UInt8, levels: Sequence[UInt8]) -> None:
    """Write a picture to its first level, reduced by area where it is larger, and means of 2x2 pixels to the others."""
    height, width = levels[0].shape[:2]
    same = picture.shape == levels[0].shape
    levels[0][:] = picture if same else cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    for finer, coarser in pairwise(levels):
        height, width = finer.shape[:2]
        even = cv2.copyMakeBorder(finer, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        coarser[:] = cv2.resize(even, (coarser.shape[1], coarser.shape[0]), interpolation=cv2.INTER_AREA)
