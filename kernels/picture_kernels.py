"""The CUDA kernels that work on pictures, queued on any device: network input, aligned crops, redacting, drawing.

What they do is said by their references, preprocess.py, align.py, redact.py and draw_surface.py. Everything that a
function here takes lies on the device already, nothing is allocated and nothing waits, so that all of it can be part of
a CUDA graph. Faces are taken as ``cuda_faces.queue_faces`` leaves them: no count needs to travel to the host.

descriptors
    (batch, 128) uint8: the bytes of ``descriptors.describe_frames``, as ``record_bytes`` gives them for the upload.
rows, counts
    (batch, most, 16) float32, and int32: (batch, 4) as the face kernels count, or (batch,) as ``pack_faces`` does.

Scratch memory is declared by ``redact_scratch`` and ``draw_scratch``, as {name: (shape, dtype)}; its content does not
matter before and after.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from retinastream.errors import UsageError
from retinastream.kernels import draw_surface, launch_shapes, redact
from retinastream.kernels.cuda_faces import FACES
from retinastream.kernels.descriptors import FACE_FLOATS, FRAME_DESCRIPTOR
from retinastream.kernels.device import Device, Stream
from retinastream.kernels.draw_surface import BOX_COLOUR, LANDMARK_COLOURS, Bgr, mark_colours
from retinastream.kernels.redact import Method, Shape
from retinastream.kernels.surfaces import code_values
from retinastream.models.spec import DetectorSpec
from retinastream.types import Frame

ChannelOrder = Literal["bgr", "rgb"]
Scratch = dict[str, tuple[tuple[int, ...], npt.DTypeLike]]

_PREPROCESS = {"float32": "preprocess_f32", "float16": "preprocess_f16", "int8": "preprocess_i8"}
_ALIGN = {"uint8": "align_u8", "float32": "align_f32", "float16": "align_f16"}
# enum RedactMethod of cuda/redact.cu.
_METHODS = {"solid": 0, "mosaic": 1, "blur": 2}


def record_bytes(records: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return structures, (batch,), as (batch, bytes) uint8 without a copy: device arrays hold numbers only."""
    return records.view(np.uint8).reshape(len(records), records.itemsize)


def queue_preprocess(
    device: Device, stream: Stream, descriptors: Any, out: Any, spec: DetectorSpec, *, input_scale: float | None = None
) -> None:
    """Queue the filling of a batch of network input, (batch, 3, height, width), from frames of any format.

    ``out`` is float32, float16 or int8, normalised in the spec's channel order; padding is 0, the mean. For int8,
    ``input_scale`` is what a step of 1 stands for, and values saturate at -128 and 127.
    """
    batch = _batch_of(descriptors)
    if len(out.shape) != 4 or tuple(out.shape[:2]) != (batch, 3) or str(out.dtype) not in _PREPROCESS:
        raise UsageError(
            f"network input {out.dtype} {tuple(out.shape)} was given for {batch} frames; expected "
            f"({batch}, 3, height, width) of {', '.join(_PREPROCESS)}"
        )
    if (str(out.dtype) == "int8") != (input_scale is not None) or (input_scale is not None and not input_scale > 0):
        raise UsageError(f"input_scale {input_scale!r} was given for {out.dtype}; int8 needs one above 0, others none")
    height, width = (int(v) for v in out.shape[2:])
    scale = spec.scale if input_scale is None else spec.scale / input_scale
    arguments = [descriptors, out, np.int32(width), np.int32(height)]
    arguments += _normalisation(spec.mean, scale, spec.channel_order)
    shape = launch_shapes.preprocess(batch, width, height, out.dtype.itemsize)
    device.launch(stream, _PREPROCESS[str(out.dtype)], *shape, arguments)


def queue_align(
    device: Device,
    stream: Stream,
    descriptors: Any,
    rows: Any,
    counts: Any,
    crops: Any,
    transforms: Any,
    *,
    mean: tuple[float, float, float] = (127.5, 127.5, 127.5),
    scale: float = 1 / 128,
    channel_order: ChannelOrder = "bgr",
) -> None:
    """Queue the cutting of every face out of its picture, turned and scaled onto the template.

    ``crops`` is (capacity, size, size, 3) uint8 in BGR, or the input of a network, (capacity, 3, size, size) float32 or
    float16: (level - mean) * scale, ``mean`` in the order of the channels. They lie one behind the other, picture by
    picture, in the order of the faces; what is beyond the capacity is left out. ``transforms`` (capacity, 2, 3) float32
    receives the matrices from picture to crop: NaN, and the crop black, where landmarks do not define one.
    """
    faces = _face_arguments(descriptors, counts, rows)
    kind = str(crops.dtype)
    capacity, _, size, _ = sizes = (*(int(v) for v in crops.shape), 0, 0, 0, 0)[:4]
    expected = (capacity, size, size, 3) if kind == "uint8" else (capacity, 3, size, size)
    if kind not in _ALIGN or size < 1 or sizes != expected or tuple(transforms.shape) != (capacity, 2, 3):
        raise UsageError(
            f"crops {kind} {tuple(crops.shape)} and transforms {tuple(transforms.shape)} were given; expected uint8 "
            "(capacity, size, size, 3) or float32 or float16 (capacity, 3, size, size), and (capacity, 2, 3)"
        )
    arguments = [descriptors, rows, *faces, np.int32(size), np.int32(capacity), crops, transforms]
    if kind != "uint8":
        arguments += _normalisation(mean, scale, channel_order)
    batch, most = (int(v) for v in rows.shape[:2])
    device.launch(stream, _ALIGN[kind], *launch_shapes.align(batch, most, size), arguments)


def redact_scratch(batch: int, most: int, cells: int = 8) -> Scratch:
    """Scratch memory of ``queue_redact`` for up to ``most`` faces per picture."""
    return {
        "regions": ((batch, most, launch_shapes.REGION_BYTES // 8), np.float64),
        "means": ((batch, most, cells + 1, cells + 1, 3), np.float32),
    }


def fill_codes(frames: Sequence[Frame], colour: Bgr = (0, 0, 0)) -> npt.NDArray[np.int32]:
    """Return ``fills`` of ``queue_redact``: (batch, 3) Y, U, V of a colour at the frames' depths, for the upload."""
    return np.array([code_values(colour, frame) for frame in frames], np.int32).reshape(len(frames), 3)


def queue_redact(
    device: Device,
    stream: Stream,
    descriptors: Any,
    rows: Any,
    counts: Any,
    scratch: dict[str, Any],
    fills: Any,
    *,
    largest: tuple[int, int],
    method: Method = "blur",
    shape: Shape = "ellipse",
    enlarge: float = 1.3,
    cells: int = 8,
) -> None:
    """Queue the replacing of all faces, in place, by what ``redact.redact`` says.

    ``largest`` is the width and height that no picture exceeds, as stored. Pictures are luma and chroma, and their
    memory is written to. The means that blur and mosaic show are taken before anything is written.
    """
    redact.check_settings(method, shape, enlarge, cells)
    faces = _face_arguments(descriptors, counts, rows)
    batch, most = (int(v) for v in rows.shape[:2])
    _check_scratch(scratch, redact_scratch(batch, most, cells))
    _check_shape("fills", fills, (batch, 3))
    regions, means = scratch["regions"], scratch["means"]
    grid = np.int32(cells)
    arguments = [descriptors, rows, *faces, np.float32(enlarge), grid, regions]
    device.launch(stream, "find_regions", *launch_shapes.per_face(batch, most), arguments)
    if method != "solid":
        arguments = [descriptors, *faces, grid, regions, means]
        device.launch(stream, "cell_means", *launch_shapes.cell_means(batch, most, cells), arguments)
    how = [np.int32(_METHODS[method]), np.int32(shape == "ellipse")]
    arguments = [descriptors, *faces, grid, regions, means, *how, fills]
    device.launch(stream, "redact", *launch_shapes.tiles(batch, *largest), arguments)


def draw_scratch(batch: int, most: int) -> Scratch:
    """Scratch memory of ``queue_draw`` for up to ``most`` faces per picture."""
    return {"marks": ((batch, most, launch_shapes.MARKS_BYTES // 8), np.float64)}


def colour_codes(
    frames: Sequence[Frame], box_colour: Bgr = BOX_COLOUR, landmark_colours: Sequence[Bgr] = LANDMARK_COLOURS
) -> npt.NDArray[np.int32]:
    """Return ``colours`` of ``queue_draw``: (batch, 6, 3) Y, U, V at the frames' depths, for the upload."""
    draw_surface.check_settings(0, 0, landmark_colours)
    return np.stack([mark_colours(frame, box_colour, landmark_colours) for frame in frames])


def queue_draw(
    device: Device,
    stream: Stream,
    descriptors: Any,
    rows: Any,
    counts: Any,
    scratch: dict[str, Any],
    colours: Any,
    *,
    largest: tuple[int, int],
    thickness: float = 2.0,
    radius: float = 2.0,
) -> None:
    """Queue the drawing of all faces, in place, as ``draw_surface.draw_faces`` says; ``largest`` as in queue_redact."""
    draw_surface.check_settings(thickness, radius, LANDMARK_COLOURS)
    faces = _face_arguments(descriptors, counts, rows)
    batch, most = (int(v) for v in rows.shape[:2])
    _check_scratch(scratch, draw_scratch(batch, most))
    _check_shape("colours", colours, (batch, 6, 3))
    marks = scratch["marks"]
    arguments = [descriptors, rows, *faces, np.float32(thickness), np.float32(radius), marks]
    device.launch(stream, "find_marks", *launch_shapes.per_face(batch, most), arguments)
    arguments = [descriptors, *faces, np.float32(radius), marks, colours]
    device.launch(stream, "draw", *launch_shapes.tiles(batch, *largest), arguments)


def _normalisation(mean: Sequence[float], scale: float, channel_order: ChannelOrder) -> list[Any]:
    return [*(np.float32(v) for v in (*mean, scale)), np.int32(channel_order == "rgb")]


def _batch_of(descriptors: Any) -> int:
    shape = tuple(descriptors.shape)
    if len(shape) != 2 or shape[1] != FRAME_DESCRIPTOR.itemsize or str(descriptors.dtype) != "uint8":
        raise UsageError(
            f"descriptors were given as {descriptors.dtype} {shape}; expected uint8 (batch, "
            f"{FRAME_DESCRIPTOR.itemsize}), the bytes of describe_frames (see record_bytes)"
        )
    return int(shape[0])


def _face_arguments(descriptors: Any, counts: Any, rows: Any) -> list[Any]:
    """Return the counts as kernels take them: where the first one is, how far it is to the next, most faces."""
    batch = _batch_of(descriptors)
    shape = tuple(rows.shape)
    if len(shape) != 3 or (shape[0], shape[2]) != (batch, FACE_FLOATS) or str(rows.dtype) != "float32":
        raise UsageError(
            f"face rows {rows.dtype} {shape} were given for {batch} frames; expected float32 ({batch}, most, 16)"
        )
    if tuple(counts.shape) not in ((batch,), (batch, 4)) or str(counts.dtype) != "int32":
        raise UsageError(
            f"face counts {counts.dtype} {tuple(counts.shape)} were given for {batch} frames; expected int32 "
            f"({batch},) or ({batch}, 4)"
        )
    if len(counts.shape) == 1:
        return [counts, np.int32(1), np.int32(shape[1])]
    return [counts.reshape(-1)[FACES:], np.int32(counts.shape[1]), np.int32(shape[1])]


def _check_scratch(scratch: dict[str, Any], declared: Scratch) -> None:
    for name, (shape, _) in declared.items():
        if name not in scratch:
            raise UsageError(f"scratch memory {name!r} is missing; expected an array {shape}")
        _check_shape(name, scratch[name], shape)


def _check_shape(name: str, array: Any, shape: tuple[int, ...]) -> None:
    if tuple(array.shape) != shape:
        raise UsageError(f"{name} has the shape {tuple(array.shape)}; expected {shape}")
