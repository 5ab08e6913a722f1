"""The kernels that work on pictures: network input of every kind, crops, redacting and drawing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import ceil, pi
from typing import Any

import numpy as np
from gpu_cases import Case, Sizes
from gpu_inputs import on_device, records_on_device, surfaces

from retinastream.kernels import picture_kernels
from retinastream.kernels.align import ARCFACE_SIZE, template
from retinastream.kernels.cuda_faces import FACES, ROW
from retinastream.kernels.descriptors import describe_frames
from retinastream.kernels.device import Device, Stream
from retinastream.kernels.sizing import Placement
from retinastream.models.spec import DetectorSpec
from retinastream.types import Frame

INT8_SCALE, ENLARGE, CELLS = 1.0, 1.3, 8
DTYPES = {"fp16": np.float16, "fp32": np.float32, "int8": np.int8}


class Preprocess:
    """Network input of a batch of surfaces."""

    def __init__(self, device: Device, stream: Stream, frames: Sequence[Frame], dtype: Any, side: int = 0) -> None:
        self.device, self.stream, self.spec = device, stream, DetectorSpec()
        self.frames = frames
        placement = _placement(*frames[0].upright_size, side, self.spec.max_stride)
        self.input_size = placement.padded_width, placement.padded_height
        shape = (len(frames), 3, placement.padded_height, placement.padded_width)
        self.out = device.empty(shape, dtype)
        self.descriptors = records_on_device(device, stream, describe_frames(frames, [placement] * len(frames)))
        self.input_scale = INT8_SCALE if np.dtype(dtype) == np.int8 else None
        self.nbytes = sum(frame.nbytes for frame in frames) + int(np.prod(shape)) * np.dtype(dtype).itemsize

    def queue(self) -> None:
        """Queue the batch."""
        picture_kernels.queue_preprocess(
            self.device, self.stream, self.descriptors, self.out, self.spec, input_scale=self.input_scale
        )

    def case(self, name: str) -> Case:
        """The batch as a case."""
        return Case(name, self.nbytes, [self.queue], repeats=2, keep=(self,))


def picture_cases(device: Device, stream: Stream, sizes: Sizes) -> Iterator[Case]:
    """All cases, each built when its turn comes."""
    yield from _preprocess_cases(device, stream, sizes)
    frames = surfaces(device, stream, "nv12", sizes.width, sizes.height, sizes.batch)
    yield from _face_cases(device, stream, sizes, frames)


def _preprocess_cases(device: Device, stream: Stream, sizes: Sizes) -> Iterator[Case]:
    def frames(fmt: str, rotation: int = 0) -> list[Frame]:
        return surfaces(device, stream, fmt, sizes.width, sizes.height, sizes.batch, rotation)

    def made(batch: Sequence[Frame], dtype: str, side: int = 0) -> Preprocess:
        return Preprocess(device, stream, batch, DTYPES[dtype], side)

    nv12 = frames("nv12")
    first = made(nv12, "fp16")
    yield first.case(f"preprocess NV12 -> fp16, native, {first.input_size[0]}x{first.input_size[1]}")
    del first
    yield made(nv12, "fp32").case("preprocess NV12 -> fp32, native")
    yield made(nv12, "int8").case("preprocess NV12 -> int8, native")
    side = sizes.reduced_side
    taps = ceil(sizes.width / side)
    yield made(nv12, "fp16", side).case(f"preprocess NV12 -> fp16, fit:{side} (means of {taps}x{taps})")
    turned = [replace(frame, rotation=90) for frame in nv12]
    yield made(turned, "fp16").case("preprocess NV12 -> fp16, 90 degrees, native")
    del nv12, turned
    yield made(frames("p010"), "fp16").case("preprocess P010 -> fp16, native")
    yield made(frames("yuv420p"), "fp16").case("preprocess YUV420P -> fp16, native (upload path)")
    yield made(frames("bgr24"), "fp16").case("preprocess BGR24 -> fp16, native")


def _face_cases(device: Device, stream: Stream, sizes: Sizes, frames: list[Frame]) -> Iterator[Case]:
    descriptors = records_on_device(device, stream, describe_frames(frames))
    rows, counts = (on_device(device, stream, v) for v in face_rows(sizes))
    faces, side = sizes.faces * sizes.batch, sizes.face_side
    largest = (sizes.width, sizes.height)
    keep = (frames, descriptors, rows, counts)

    crops = device.empty((faces, ARCFACE_SIZE, ARCFACE_SIZE, 3), np.uint8)
    transforms = device.empty((faces, 2, 3), np.float32)
    yield Case(
        f"align, {sizes.faces} faces a frame: {faces} crops of {ARCFACE_SIZE}, u8",
        int(crops.nbytes + faces * side * side * 1.5),
        [lambda: picture_kernels.queue_align(device, stream, descriptors, rows, counts, crops, transforms)],
        repeats=4,
        keep=(*keep, crops, transforms),
    )
    scratch = _scratch(device, picture_kernels.redact_scratch(sizes.batch, sizes.most_faces, CELLS))
    fills = on_device(device, stream, picture_kernels.fill_codes(frames))
    region = faces * (side * ENLARGE) ** 2 * 1.5
    for method, name, nbytes in (
        ("blur", f"{sizes.faces} faces of {side}x{side} a frame, enlarged {ENLARGE}", region * (1 + pi / 4)),
        ("solid", "same", region * pi / 4),
    ):
        yield Case(
            f"redact ({method}), {name}",
            int(nbytes),
            [lambda method=method: picture_kernels.queue_redact(
                device, stream, descriptors, rows, counts, scratch, fills,
                largest=largest, method=method, enlarge=ENLARGE, cells=CELLS,
            )],
            repeats=4,
            keep=(*keep, scratch, fills),
        )  # fmt: skip
    marks = _scratch(device, picture_kernels.draw_scratch(sizes.batch, sizes.most_faces))
    colours = on_device(device, stream, picture_kernels.colour_codes(frames))
    yield Case(
        f"draw, {sizes.faces} faces a frame",
        0,
        [lambda: picture_kernels.queue_draw(
            device, stream, descriptors, rows, counts, marks, colours, largest=largest
        )],
        repeats=4,
        keep=(*keep, marks, colours),
    )  # fmt: skip


def face_rows(sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
    """Rows (batch, most, 16) and counts (batch, 4) of square faces side by side, each looking straight ahead."""
    rows = np.zeros((sizes.batch, sizes.most_faces, ROW), np.float32)
    counts = np.zeros((sizes.batch, 4), np.int32)
    counts[:, FACES] = sizes.faces
    columns = ceil((sizes.faces * sizes.width / sizes.height) ** 0.5)
    lines = ceil(sizes.faces / columns)
    places = np.arange(sizes.faces)
    corners = np.stack([places % columns * sizes.width / columns, places // columns * sizes.height / lines], -1)
    points = template(sizes.face_side)
    rows[:, : sizes.faces, 0:2] = corners
    rows[:, : sizes.faces, 2:4] = corners + sizes.face_side
    rows[:, : sizes.faces, 4] = 0.9
    rows[:, : sizes.faces, 5:15] = (corners[:, None] + points).reshape(-1, 10)
    return rows, counts


def _placement(width: int, height: int, side: int, stride: int) -> Placement:
    scale = side / max(width, height) if side else 1.0
    w, h = round(width * scale), round(height * scale)
    return Placement(width, height, w, h, ceil(w / stride) * stride, ceil(h / stride) * stride)


def _scratch(device: Device, declared: picture_kernels.Scratch) -> dict[str, Any]:
    return {name: device.empty(shape, dtype) for name, (shape, dtype) in declared.items()}
