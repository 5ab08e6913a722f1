"""Bringing a batch to a device in one copy: what kernels are told about its frames, then planes from host memory.

Planes go up as they are decoded, in their own pixel format: half the bytes of BGR for 4:2:0, and no work on the way but
the copy into pinned memory. Planes that lie on the device stay where they are and are told by their addresses, so the
layout of a batch of such frames, and with it a CUDA graph, is the same whatever the addresses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from retinastream.errors import UsageError
from retinastream.kernels.cuda_faces import PLACED, placed_structures
from retinastream.kernels.descriptors import FRAME_DESCRIPTOR, describe_frames
from retinastream.kernels.device import Device, Stream
from retinastream.kernels.picture_kernels import record_bytes
from retinastream.kernels.sizing import Placement
from retinastream.pipeline.device_pictures import DeviceSurface, address_of, device_of_plane
from retinastream.types import Frame

# Of every plane, row and structure: what the widest loads and whole memory transactions want.
ALIGNMENT = 256


@dataclass(frozen=True, slots=True)
class Parameters:
    """Where in a block the structures of a batch lie: (frames, bytes of one) uint8 each, the layout of its shape."""

    frames: int
    passes: int

    @property
    def nbytes(self) -> int:
        """Bytes of the block that they take."""
        return self.passes * self._descriptor_bytes + aligned(self.frames * PLACED.itemsize)

    @property
    def _descriptor_bytes(self) -> int:
        return aligned(self.frames * FRAME_DESCRIPTOR.itemsize)

    def descriptors(self, block: Any, number: int) -> Any:
        """Return the frame descriptors of a pass, in a block of uint8 on the device or the host."""
        return self._rows(block, number * self._descriptor_bytes, FRAME_DESCRIPTOR.itemsize)

    def placed(self, block: Any) -> Any:
        """Return what maps faces back to their frames."""
        return self._rows(block, self.passes * self._descriptor_bytes, PLACED.itemsize)

    def write(self, block: npt.NDArray[np.uint8], frames: Sequence[Frame], placements: Sequence[Placement]) -> None:
        """Fill them on the host; UsageError for planes that do not fit their frame."""
        for number, placement in enumerate(placements):
            records = describe_frames(frames, [placement] * self.frames)
            self.descriptors(block, number)[...] = record_bytes(records)
        places = [[(item, placement) for placement in placements] for item in range(self.frames)]
        self.placed(block)[...] = record_bytes(placed_structures(places))

    def _rows(self, block: Any, start: int, size: int) -> Any:
        return block[start : start + self.frames * size].reshape(self.frames, size)


@dataclass(frozen=True, slots=True)
class Staged:
    """What was staged: bytes to copy from the start of the block, and the frames that stay where they are."""

    nbytes: int
    on_device: list[Frame]


class Staging:
    """A block of pinned memory and its twin on the device, as large as the largest batch so far.

    Copies out of the pinned block are queued on ``stream``, by the caller, who sees to it that none is under way when
    it is filled.
    """

    def __init__(self, device: Device, stream: Stream) -> None:
        self._device, self._stream = device, stream
        self.pinned: npt.NDArray[np.uint8] = np.zeros(0, np.uint8)
        self.block: Any = None
        self.moves = 0  # how often the two got other addresses

    def fill(self, frames: Sequence[Frame], placements: Sequence[Placement]) -> Staged:
        """Write a batch into the pinned block; what is only in host memory is not needed afterwards.

        UsageError for planes that do not fit their frame's format or lie on another device.
        """
        parameters = Parameters(len(frames), len(placements))
        copied, located, end = [], [], parameters.nbytes
        on_device: list[Frame] = []
        for frame in frames:
            planes = []
            for plane, shape in zip(frame.planes, _plane_shapes(frame), strict=True):
                if device_of_plane(plane, self._device) >= 0:
                    planes.append(plane)
                    continue
                place = _Place(end, shape, frame.format.dtype)
                copied.append((place, _host_plane(plane, frame, shape)))
                planes.append(place)
                end += place.nbytes
            located.append(planes)
            if not all(isinstance(place, _Place) for place in planes):
                on_device.append(frame)
        self._make_room(end)
        for place, source in copied:
            np.copyto(place.of(self.pinned), source)
        start = address_of(self.block)
        moved = [
            replace(frame, planes=tuple(p.surface(start) if isinstance(p, _Place) else p for p in planes))
            for frame, planes in zip(frames, located, strict=True)
        ]
        parameters.write(self.pinned, moved, placements)
        return Staged(end, on_device)

    def _make_room(self, nbytes: int) -> None:
        if nbytes <= len(self.pinned):
            return
        self.moves += 1
        # Dropped first, so that both need not fit at once.
        self.block, self.pinned = None, np.zeros(0, np.uint8)
        self.block = self._device.empty((nbytes,), np.uint8, self._stream)
        self.pinned = self._device.empty_pinned((nbytes,), np.uint8)


@dataclass(frozen=True, slots=True)
class _Place:
    """A plane's place in the block."""

    start: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape[1:])) * self.dtype.itemsize

    @property
    def pitch(self) -> int:
        return aligned(self.row_bytes)

    @property
    def nbytes(self) -> int:
        return self.shape[0] * self.pitch

    def of(self, block: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """Return the plane within a block in host memory."""
        rows = block[self.start : self.start + self.nbytes].reshape(self.shape[0], self.pitch)
        return rows[:, : self.row_bytes].view(self.dtype).reshape(self.shape)

    def surface(self, block: int) -> DeviceSurface:
        """Return the plane within the block at an address of the device."""
        return DeviceSurface(block + self.start, self.pitch, self.shape, self.dtype)


def aligned(nbytes: int) -> int:
    """Return the next multiple of ALIGNMENT."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _plane_shapes(frame: Frame) -> tuple[tuple[int, ...], ...]:
    shapes = frame.format.plane_shapes(frame.width, frame.height)
    if len(frame.planes) != len(shapes):
        raise UsageError(f"a {frame.format.name} frame has {len(frame.planes)} planes; expected {len(shapes)}")
    return shapes


def _host_plane(plane: Any, frame: Frame, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    if not hasattr(plane, "__array_interface__"):
        raise UsageError(f"a plane was given as {type(plane).__name__}; expected an array in host or device memory")
    found = np.asarray(plane)
    if found.shape != shape or found.dtype != frame.format.dtype:
        raise UsageError(
            f"a plane of {frame.format.name} was given as {found.dtype} {found.shape}; expected "
            f"{frame.format.dtype} {shape}"
        )
    return found
