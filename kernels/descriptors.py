"""What a CUDA kernel is told about frames and faces: records in memory, laid out as the structs of ``kernels/cuda``.

A descriptor holds addresses, not pixels: the frames must live until the kernel that reads them has finished, and their
planes must be memory that the kernel can reach (the device's; the host's where kernels run as host C++).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from retinastream.errors import UsageError
from retinastream.kernels import colour
from retinastream.kernels.sizing import Placement
from retinastream.types import Faces, Frame, PixelFormat

# struct FrameDescriptor of cuda/frame_descriptor.cuh, which says what the fields mean.
FRAME_DESCRIPTOR = np.dtype(
    [
        ("planes", np.uint64, 3),
        ("pitches", np.int32, 3),
        ("width", np.int32),
        ("height", np.int32),
        ("layout", np.uint8),
        ("shift_x", np.uint8),
        ("shift_y", np.uint8),
        ("sample_bytes", np.uint8),
        ("bits", np.uint8),
        ("low_bits", np.uint8),
        ("quarter_turns", np.uint8),
        ("reserved", np.uint8),
        ("code_values", np.float32),
        ("to_bgr", np.float32, (3, 4)),
        ("left", np.int32),
        ("top", np.int32),
        ("placed_width", np.int32),
        ("placed_height", np.int32),
        ("unused", np.int32, 2),
    ],
    align=True,
)

# Positions are fractions of two sides, kept in 32-bit whole numbers.
LONGEST_SIDE = 32767

# A face of cuda/faces.cuh: box, score, five landmarks x y, one that is not used.
FACE_FLOATS = 16
_BOX, _SCORE, _LANDMARKS = slice(0, 4), 4, slice(5, 15)


def describe_frames(
    frames: Sequence[Frame],
    placements: Sequence[Placement] | None = None,
    *,
    offsets: Sequence[tuple[int, int]] | None = None,
) -> npt.NDArray[Any]:
    """Return one FRAME_DESCRIPTOR per frame, (batch,), with the addresses of its planes.

    Planes are anything with ``__cuda_array_interface__`` or NumPy's ``__array_interface__``, rows at any pitch, also a
    negative one; samples of a row must be adjacent. ``placements`` say which size the upright picture takes in the
    network's input (default: its own), ``offsets`` (left, top) where in the input (default: the top left corner).
    UsageError for planes that do not fit their format, and for sides beyond 32,767.
    """
    records = np.zeros(len(frames), FRAME_DESCRIPTOR)
    sizes = [f.upright_size for f in frames] if placements is None else [(p.width, p.height) for p in placements]
    corners = [(0, 0)] * len(frames) if offsets is None else offsets
    for record, frame, size, corner in zip(records, frames, sizes, corners, strict=True):
        if max(frame.width, frame.height, *size) > LONGEST_SIDE:
            raise UsageError(
                f"a picture of {frame.width}x{frame.height} at {size[0]}x{size[1]} was given; the kernels take sides "
                f"up to {LONGEST_SIDE} pixels, so split or reduce it first"
            )
        _describe_planes(record, frame)
        _describe_samples(record, frame)
        record["placed_width"], record["placed_height"] = size
        record["left"], record["top"] = corner
    return records


def pack_faces(
    faces: Sequence[Faces], most: int | None = None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Return the faces of a batch as kernels take them: (batch, most, 16) float32 and how many of each, (batch,) int32.

    ``most`` is by default the largest count, at least 1. UsageError where a picture has more.
    """
    largest = max((len(f) for f in faces), default=0)
    most = max(1, largest) if most is None else most
    if largest > most:
        raise UsageError(f"a picture has {largest} faces, but room is for {most}; raise the limit or keep the best")
    rows = np.zeros((len(faces), most, FACE_FLOATS), np.float32)
    for row, found in zip(rows, faces, strict=True):
        row[: len(found), _BOX] = found.boxes
        row[: len(found), _SCORE] = found.scores
        row[: len(found), _LANDMARKS] = found.landmarks.reshape(-1, 10)
    return rows, np.array([len(f) for f in faces], np.int32)


def _describe_planes(record: Any, frame: Frame) -> None:
    shapes = frame.format.plane_shapes(frame.width, frame.height)
    if len(frame.planes) != len(shapes):
        raise UsageError(f"a {frame.format.name} frame has {len(frame.planes)} planes; expected {len(shapes)}")
    for k, (plane, shape) in enumerate(zip(frame.planes, shapes, strict=True)):
        record["planes"][k], record["pitches"][k] = _place_in_memory(plane, shape, frame.format)


def _place_in_memory(plane: Any, shape: tuple[int, ...], fmt: PixelFormat) -> tuple[int, int]:
    """Return address and pitch in bytes."""
    interface = getattr(plane, "__cuda_array_interface__", None) or getattr(plane, "__array_interface__", None)
    if interface is None:
        raise UsageError(
            f"a plane was given as {type(plane).__name__}; expected an array with __cuda_array_interface__ or "
            "__array_interface__ (from a DLPack capsule: cupy.from_dlpack first)"
        )
    given, kind = tuple(interface["shape"]), np.dtype(interface["typestr"])
    if given != shape or kind != fmt.dtype:
        raise UsageError(f"a plane of {fmt.name} was given as {kind} {given}; expected {fmt.dtype} {shape}")
    packed = [kind.itemsize * int(np.prod(shape[k + 1 :])) for k in range(len(shape))]
    strides = list(interface.get("strides") or packed)
    if any(s != p for s, p, n in zip(strides[1:], packed[1:], shape[1:], strict=True) if n > 1):
        raise UsageError(f"a plane of {fmt.name} has strides {tuple(strides)}; expected adjacent samples in a row")
    address, pitch = int(interface["data"][0]), int(strides[0]) if shape[0] > 1 else packed[0]
    if address % kind.itemsize or pitch % kind.itemsize or abs(pitch) >= 1 << 31:
        raise UsageError(f"a plane of {fmt.name} at {address:#x} has a pitch of {pitch} bytes; expected whole samples")
    return address, pitch


def _describe_samples(record: Any, frame: Frame) -> None:
    fmt = frame.format
    record["width"], record["height"] = frame.width, frame.height
    record["layout"] = _layout(fmt)
    record["shift_x"], record["shift_y"] = fmt.sub_x.bit_length() - 1, fmt.sub_y.bit_length() - 1
    record["sample_bytes"], record["bits"], record["low_bits"] = fmt.dtype.itemsize, fmt.bits, fmt.shift
    record["quarter_turns"] = frame.rotation // 90
    record["code_values"] = 1.0 / colour.sample_unit(frame)
    record["to_bgr"] = colour.yuv_to_bgr_matrix(frame.matrix, frame.full_range) if fmt.is_yuv else np.eye(3, 4)


def _layout(fmt: PixelFormat) -> int:
    """Return enum SampleLayout of cuda/frame_descriptor.cuh."""
    if not fmt.is_yuv:
        return 0
    if fmt.planes == 1:
        return 1
    return 3 if fmt.interleaved_chroma else 2
