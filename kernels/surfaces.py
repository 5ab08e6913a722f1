"""Faces and colours in terms of a picture as it is stored: turned, in luma and chroma, at its own depth.

Boxes and landmarks are pixels of the upright picture; a surface that is changed in place is the stored one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from retinastream.errors import UsageError
from retinastream.kernels import colour
from retinastream.types import Frame

Float64 = npt.NDArray[np.float64]

_FAR = 1e6  # pixels; farther outside of a picture than any of its pixels


def stored_points(points: npt.ArrayLike, frame: Frame) -> Float64:
    """Map points (..., 2) of the upright picture to the stored one."""
    given = np.asarray(points, np.float64)
    x, y = given[..., 0], given[..., 1]
    mapped = {
        0: (x, y),
        90: (frame.width - y, x),
        180: (frame.width - x, frame.height - y),
        270: (y, frame.height - x),
    }[frame.rotation]
    return np.stack(mapped, -1)


def stored_boxes(boxes: npt.ArrayLike, frame: Frame) -> Float64:
    """Map boxes (N, 4) x1, y1, x2, y2 of the upright picture to the stored one; a box without area stays so."""
    given = np.asarray(boxes, np.float64).reshape(-1, 2, 2)
    corners = stored_points(given, frame)
    turned = frame.rotation in (90, 180), frame.rotation in (180, 270)
    for axis in range(2):
        if turned[axis]:
            corners[..., axis] = corners[:, ::-1, axis].copy()
    return corners.reshape(-1, 4)


def pixel_ranges(boxes: Float64) -> npt.NDArray[np.int64]:
    """Return the pixels (N, 4) x0, y0, x1, y1, ends excluded, whose centres lie in finite boxes (N, 4).

    A centre on the left or upper border is inside, on the right or lower one outside.
    """
    return np.ceil(np.clip(boxes, -_FAR, _FAR) - 0.5).astype(np.int64)


def code_values(bgr: tuple[float, float, float], frame: Frame) -> tuple[int, int, int]:
    """Return Y, U, V of a colour (0 to 255) in the frame's matrix and range, at its depth (0 to 1023 for 10 bits)."""
    matrix = colour.yuv_to_bgr_matrix(frame.matrix, frame.full_range)
    yuv = np.linalg.solve(matrix[:, :3], np.asarray(bgr, np.float64) - matrix[:, 3])
    y, u, v = np.clip(np.rint(yuv), 0, 255).astype(int) << (frame.format.bits - 8)
    return int(y), int(u), int(v)


def writable_channels(frame: Frame) -> tuple[npt.NDArray[Any], ...]:
    """Return views of Y, U and V (Y alone of a grey picture) for writing; UsageError where that cannot be done."""
    if not frame.format.is_yuv:
        raise UsageError(f"a {frame.format.name} frame was given; expected luma and chroma, such as nv12 or p010")
    if not all(plane.flags.writeable for plane in frame.planes):
        raise UsageError("a frame was given whose planes are read-only; copy them, as it is changed in place")
    if frame.format.planes == 1:
        return (colour.luma(frame),)
    return (colour.luma(frame), *colour.chroma(frame))


def chroma_cells(values: npt.NDArray[Any], frame: Frame, empty: int) -> npt.NDArray[Any]:
    """Return (rows, columns, pixels) of a map of the luma grid: the pixels that each chroma sample stands for.

    Cells that reach beyond an odd edge are filled up with ``empty``.
    """
    fmt = frame.format
    rows, columns = -(-frame.height // fmt.sub_y), -(-frame.width // fmt.sub_x)
    missing = (rows * fmt.sub_y - frame.height, columns * fmt.sub_x - frame.width)
    whole = np.pad(values, ((0, missing[0]), (0, missing[1])), constant_values=empty)
    cells = whole.reshape(rows, fmt.sub_y, columns, fmt.sub_x).transpose(0, 2, 1, 3)
    return cells.reshape(rows, columns, fmt.sub_y * fmt.sub_x)
