"""What the GPU benchmarks work on: surfaces on the device, and head maps in which a known number of faces stands."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from retinastream.kernels.device import Device, Stream
from retinastream.models.spec import DetectorSpec
from retinastream.types import PIXEL_FORMATS, Frame

SCORE = (0.6, 0.999)


def on_device(device: Device, stream: Stream, values: np.ndarray) -> Any:
    """A device array with these values."""
    pinned, target = device.empty_pinned(values.shape, values.dtype), device.empty(values.shape, values.dtype)
    pinned[...] = values
    device.copy_in(target, pinned, stream)
    stream.synchronize()
    return target


def records_on_device(device: Device, stream: Stream, records: np.ndarray) -> Any:
    """Structures (n,) on the device, as bytes (n, size): CuPy has no arrays of structures."""
    return on_device(device, stream, records.view(np.uint8).reshape(len(records), records.itemsize))


def host_frame(fmt: str, width: int, height: int, *, seed: int = 0, rotation: int = 0) -> Frame:
    """A picture of noise in a pixel format, in the host's memory."""
    kind, rng = PIXEL_FORMATS[fmt], np.random.default_rng(seed)
    planes = tuple(
        (rng.integers(16, 236, shape, np.uint8) if kind.bits == 8 else rng.integers(64, 940, shape, np.uint16))
        << kind.shift
        for shape in kind.plane_shapes(width, height)
    )
    return Frame(planes, kind, width, height, full_range=not kind.is_yuv, rotation=rotation)


def device_frame(device: Device, stream: Stream, frame: Frame) -> Frame:
    """The same picture with its planes on the device."""
    planes = tuple(on_device(device, stream, np.ascontiguousarray(plane)) for plane in frame.planes)
    return Frame(planes, frame.format, frame.width, frame.height, frame.matrix, frame.full_range, frame.rotation)


def surfaces(
    device: Device, stream: Stream, fmt: str, width: int, height: int, count: int, rotation: int = 0
) -> list[Frame]:
    """Pictures of noise on the device, each in memory of its own."""
    frame = host_frame(fmt, width, height, rotation=rotation)
    return [device_frame(device, stream, frame) for _ in range(count)]


def fused_maps(
    spec: DetectorSpec, height: int, width: int, *, faces: int, per_face: int, seed: int = 0
) -> list[np.ndarray]:
    """Fused head maps (channels, rows, columns) float32 of one frame, in which NMS leaves ``faces`` faces.

    Each stands in the finest level, in ``per_face`` anchors of adjacent cells that agree on its box, with scores from
    0.6; all other anchors stay far below any threshold. ValueError where so many do not fit side by side.
    """
    rng = np.random.default_rng(seed)
    maps = []
    for (rows, columns), sizes in zip(spec.feature_sizes(height, width), spec.anchor_sizes, strict=True):
        values = rng.standard_normal((16 * len(sizes), rows, columns), np.float32)
        values[0 : 2 * len(sizes) : 2] += 8
        values[1 : 2 * len(sizes) : 2] -= 8
        maps.append(values)
    for row, column in _places(maps[0].shape[1:], faces, per_face):
        _plant(maps[0], spec, row, column, per_face, rng)
    return maps


def classic_tensors(spec: DetectorSpec, maps: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same as loc (anchors, 4), conf (anchors, 2) as probabilities and landms (anchors, 10)."""
    parts: list[list[np.ndarray]] = [[], [], []]
    for values, sizes in zip(maps, spec.anchor_sizes, strict=True):
        count = len(sizes)
        for into, channels, start in zip(parts, (4, 2, 10), (2 * count, 0, 6 * count), strict=True):
            block = values[start : start + count * channels].transpose(1, 2, 0)
            into.append(block.reshape(-1, channels))
    loc, logits, landms = (np.concatenate(part) for part in parts)
    face = 1 / (1 + np.exp(logits[:, :1] - logits[:, 1:]))
    return loc, np.concatenate([1 - face, face], 1).astype(np.float32), landms


def _places(shape: tuple[int, ...], faces: int, per_face: int) -> list[tuple[int, int]]:
    """The top left cells of the faces, far enough apart that no two overlap."""
    step = _side(per_face) + 8
    grid = list(itertools.product(range(0, shape[0] - step + 1, step), range(0, shape[1] - step + 1, step)))
    if len(grid) < faces:
        raise ValueError(f"{faces} faces were asked for; {len(grid)} fit side by side into {shape[0]}x{shape[1]} cells")
    return [grid[k * len(grid) // faces] for k in range(faces)]


def _side(per_face: int) -> int:
    return math.ceil(math.sqrt(per_face))


def _plant(values: np.ndarray, spec: DetectorSpec, row: int, column: int, per_face: int, rng: Any) -> None:
    stride, sizes, side = spec.strides[0], spec.anchor_sizes[0], _side(per_face)
    anchor, count = sizes[-1], len(sizes)
    which = count - 1
    centre = np.array([column + side / 2, row + side / 2]) * stride
    length = max(side * stride, anchor)
    boxes, points = 2 * count + 4 * which, 6 * count + 10 * which
    around = np.array([(-0.2, -0.15), (0.2, -0.15), (0, 0), (-0.15, 0.2), (0.15, 0.2)]) * length
    for k in range(per_face):
        y, x = row + k // side, column + k % side
        away = centre - (np.array([x, y]) + 0.5) * stride
        score = rng.uniform(*SCORE)
        values[2 * which : 2 * which + 2, y, x] = 0, math.log(score / (1 - score))
        values[boxes : boxes + 2, y, x] = away / (spec.variances[0] * anchor)
        values[boxes + 2 : boxes + 4, y, x] = math.log(length / anchor) / spec.variances[1]
        values[points : points + 10, y, x] = ((away + around) / (spec.variances[0] * anchor)).reshape(-1)
