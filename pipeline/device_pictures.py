"""Pictures in the memory of a device, of whatever package: where they lie, and after what they may be read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from retinastream.errors import UsageError
from retinastream.kernels.device import Device, Stream
from retinastream.types import PIXEL_FORMATS, Frame

LEGACY_STREAM, PER_THREAD_STREAM = 1, 2
_EXPECTED = "expected uint8 BGR, (height, width, 3) or (batch, height, width, 3), not empty"


@dataclass(frozen=True, slots=True, eq=False)
class DeviceSurface:
    """Samples at an address of a device, rows ``pitch`` bytes apart: an array as far as a kernel is concerned.

    For decoders that give a pointer and a line size, as PyAV's CUDA planes do. ``base`` is whatever owns the memory; it
    lives as long as the surface. Samples of a row are adjacent.
    """

    address: int
    pitch: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    base: Any = None

    @property
    def nbytes(self) -> int:
        """Bytes of samples, without the gaps between rows."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        packed = [self.dtype.itemsize * math.prod(self.shape[k + 1 :]) for k in range(1, len(self.shape))]
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": (self.pitch, *packed),
            "version": 3,
        }


def address_of(array: Any) -> int:
    """Return the address of an array's first element."""
    return int(_interface(array)["data"][0])


def device_of_plane(plane: Any, device: Device) -> int:
    """Return ``device.index`` for a plane on the device and -1 for one in host memory; UsageError for another's."""
    index = device.device_of(plane)
    if index not in (-1, device.index):
        raise UsageError(
            f"a picture lies on cuda:{index}, and the detector runs on {device.label}; decode or copy it to "
            f"{device.label}, or create the detector with device='cuda:{index}'"
        )
    return index


def declared_streams(frames: Iterable[Frame]) -> set[int]:
    """Return the streams that the planes say they are written on; what says nothing is on the legacy default stream.

    Decoded frames say nothing, and NVDEC by way of FFmpeg writes on that stream.
    """
    return {_declared_stream(plane) for frame in frames for plane in frame.planes}


def stream_handle(stream: Any) -> int:
    """Return the cudaStream_t of a stream of CuPy, torch, PyCUDA or anybody, or of a number; 0 becomes 1.

    Both stand for the legacy default stream. Raises UsageError for what is no stream.
    """
    protocol = getattr(stream, "__cuda_stream__", None)
    if protocol is not None:
        stream = protocol()[1]
    for name in ("ptr", "cuda_stream", "handle"):
        stream = getattr(stream, name, stream)
    if isinstance(stream, bool) or not isinstance(stream, int) or stream < 0:
        raise UsageError(
            f"stream was given as {stream!r}; expected a stream of CuPy, torch or PyCUDA, or a cudaStream_t as a number"
        )
    return stream or LEGACY_STREAM


def picture_list(pictures: Any) -> list[Any]:
    """Return one picture, or a sequence of them, as a list; UsageError for what is neither."""
    if isinstance(pictures, Frame) or _is_array(pictures):
        return [pictures]
    if not isinstance(pictures, list | tuple):
        raise UsageError(
            f"pictures were given as {type(pictures).__name__}; expected an array on a GPU "
            "(__cuda_array_interface__ or __dlpack__), a Frame, or a sequence of them"
        )
    return list(pictures)


def device_frames(pictures: Sequence[Any], device: Device, consumer: Stream) -> list[Frame]:
    """Return the frames that pictures on a device are, nothing copied; each keeps its picture's memory alive.

    What has only ``__dlpack__`` is asked to be ready on the stream ``consumer``. Raises UsageError for other kinds of
    pictures, for host memory and for other devices.
    """
    frames: list[Frame] = []
    for picture in pictures:
        if isinstance(picture, Frame):
            frames.append(picture)
        else:
            frames += _frames_of_array(picture, device, consumer, len(frames))
    for frame in frames:
        for plane in frame.planes:
            if device_of_plane(plane, device) < 0:
                raise UsageError(
                    f"a picture lies in host memory, and detect_device takes those on {device.label}; call "
                    "detector(pictures), or copy it there first"
                )
    return frames


def _frames_of_array(array: Any, device: Device, consumer: Stream, first: int) -> Iterator[Frame]:
    if not _is_array(array):
        raise UsageError(f"a picture was given as {type(array).__name__}; {_EXPECTED}")
    if _interface_or_none(array) is None:
        array = _from_dlpack(array, consumer)
    device_of_plane(array, device)
    interface = _interface(array)
    shape, kind = tuple(int(v) for v in interface["shape"]), np.dtype(interface["typestr"])
    if kind != np.uint8 or len(shape) not in (3, 4) or shape[-1] != 3 or not math.prod(shape):
        raise UsageError(f"a picture was given as {kind} {shape}; {_EXPECTED}")
    packed = tuple(math.prod(shape[k + 1 :]) for k in range(len(shape)))
    strides = tuple(interface.get("strides") or packed)
    if strides[-2:] != (3, 1):
        raise UsageError(
            f"a picture {shape} was given with strides of {strides} bytes; expected B, G and R of neighbouring pixels "
            "next to each other (3, 1): make a contiguous copy, and note that (3, height, width) is no picture"
        )
    count, step = (1, 0) if len(shape) == 3 else (shape[0], int(strides[0]))
    height, width, _ = shape[-3:]
    for number in range(count):
        address = int(interface["data"][0]) + number * step
        surface = DeviceSurface(address, int(strides[-3]), (height, width, 3), kind, array)
        yield Frame((surface,), PIXEL_FORMATS["bgr24"], width, height, full_range=True, index=first + number)


def _is_array(picture: Any) -> bool:
    return _interface_or_none(picture) is not None or hasattr(picture, "__dlpack__")


def _interface_or_none(array: Any) -> dict[str, Any] | None:
    for name in ("__cuda_array_interface__", "__array_interface__"):
        found: dict[str, Any] | None = getattr(array, name, None)
        if found is not None:
            return found
    return None


def _interface(array: Any) -> dict[str, Any]:
    found = _interface_or_none(array)
    if found is None:
        raise UsageError(
            f"{type(array).__name__} is no array; expected one with __cuda_array_interface__ or __array_interface__"
        )
    return found


def _declared_stream(plane: Any) -> int:
    if isinstance(plane, DeviceSurface):
        return LEGACY_STREAM if plane.base is None else _declared_stream(plane.base)
    interface = getattr(plane, "__cuda_array_interface__", None)
    return int((interface or {}).get("stream") or LEGACY_STREAM)


def _from_dlpack(array: Any, consumer: Stream) -> Any:
    """Wrap what has DLPack alone; its package makes it ready on the consumer's stream, as the protocol asks."""
    import cupy

    with cupy.cuda.Stream.from_external(_Handle(consumer.handle)):
        try:
            return cupy.from_dlpack(array)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise UsageError(f"a picture of {type(array).__name__} cannot be taken by DLPack: {error}") from error


@dataclass(frozen=True, slots=True)
class _Handle:
    """A cudaStream_t as an object of the stream protocol, which CuPy wraps."""

    value: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.value
