"""Grids and blocks of the CUDA kernels that work on pictures, and the scratch memory that they need.

The numbers belong to the sources in ``kernels/cuda`` and change with them.
"""

from __future__ import annotations

from typing import NamedTuple

_THREADS = 256
_PREPROCESS_BLOCK = (32, 8)
_TILE = (128, 64)
# Pixels of a crop per block: few enough to fill a GPU with one face, enough to be worth fitting its transform.
_CROP_PIXELS = 2048

# Bytes per face of scratch memory: struct Region of cuda/redact.cu, struct Marks of cuda/draw.cu.
REGION_BYTES = 72
MARKS_BYTES = 128


class LaunchShape(NamedTuple):
    """How many blocks, and how many threads in each, along x, y and z."""

    grid: tuple[int, int, int]
    block: tuple[int, int, int]


def preprocess(batch: int, width: int, height: int, value_bytes: int) -> LaunchShape:
    """Shape for preprocess_f32, _f16 and _i8: input of ``width`` x ``height`` values of 4, 2 or 1 bytes."""
    columns, rows = _PREPROCESS_BLOCK
    pixels = columns * (4 if value_bytes == 4 else 8)
    return LaunchShape((_blocks(width, pixels), _blocks(height, 2 * rows), batch), (columns, rows, 1))


def align(batch: int, most: int, size: int) -> LaunchShape:
    """Shape for align_u8, _f32 and _f16: up to ``most`` faces per picture, crops of ``size`` pixels."""
    return LaunchShape((_blocks(size * size, _CROP_PIXELS), most, batch), (_THREADS, 1, 1))


def per_face(batch: int, most: int) -> LaunchShape:
    """Shape for find_regions and find_marks: a thread per face."""
    return LaunchShape((_blocks(most, _THREADS), 1, batch), (_THREADS, 1, 1))


def cell_means(batch: int, most: int, cells: int) -> LaunchShape:
    """Shape for cell_means: a block per row of cells; a grid has up to one cell more than asked for."""
    return LaunchShape((cells + 1, most, batch), (_THREADS, 1, 1))


def tiles(batch: int, width: int, height: int) -> LaunchShape:
    """Shape for redact and draw: a block per tile of the largest picture as stored."""
    return LaunchShape((_blocks(width, _TILE[0]), _blocks(height, _TILE[1]), batch), (_THREADS, 1, 1))


def mean_values(batch: int, most: int, cells: int) -> int:
    """Return how many float32 cell_means needs for its results."""
    return batch * most * (cells + 1) ** 2 * 3


def _blocks(size: int, per_block: int) -> int:
    return max(1, -(-size // per_block))
