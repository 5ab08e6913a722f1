"""A network and all that surrounds it, bound to device memory: what runs between a batch's planes and its faces.

One block of memory holds the inputs, outputs and face buffers of whichever shape runs; shapes share it, as a slot runs
one batch at a time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from retinastream.engines.device_engine import DeviceEngine, DeviceEngineSlot
from retinastream.kernels.cuda_faces import FaceLimits, pass_structure, queue_faces
from retinastream.kernels.device import Device, Stream
from retinastream.kernels.picture_kernels import queue_preprocess
from retinastream.kernels.sizing import Placement
from retinastream.pipeline.backend import DetectionRules
from retinastream.pipeline.device_pictures import address_of
from retinastream.pipeline.gpu_replay import GraphSwitch, Replays
from retinastream.pipeline.gpu_staging import Parameters, aligned

# A video needs one shape, and one for its last frames; pictures come in any. The oldest beyond these is let go.
_KEPT_SHAPES = 4
_RESULTS = ("counts", "rows")

Buffer = tuple[tuple[int, ...], npt.DTypeLike]


@dataclass(frozen=True, slots=True)
class BatchShape:
    """How many frames, and the (height, width) of the network's input in every pass."""

    frames: int
    inputs: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, frames: int, placements: Sequence[Placement]) -> BatchShape:
        """Return the shape of a batch of frames with these placements."""
        return cls(frames, tuple((p.padded_height, p.padded_width) for p in placements))


@dataclass(frozen=True, slots=True)
class BoundPass:
    """One run of the network: its input, what runs it, and what the kernels are told about its outputs."""

    image: Any
    slot: DeviceEngineSlot
    structure: npt.NDArray[np.void]


@dataclass(frozen=True, slots=True)
class Region:
    """The place of an array in a block of bytes."""

    start: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.start + int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def of(self, block: Any) -> Any:
        """Return the array in a block, of the device or of the host."""
        return block[self.start : self.end].view(self.dtype).reshape(self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class BoundNetwork:
    """One shape's passes and face kernels at their addresses; ``regions`` are the places of its arrays in ``block``."""

    engine: DeviceEngine
    stream: Stream
    parameters: Parameters
    limits: FaceLimits
    block: Any
    regions: dict[str, Region]
    passes: list[BoundPass]
    replays: Replays

    @property
    def result_bytes(self) -> int:
        """Bytes at the start of the block that hold counts and rows."""
        return self.regions["rows"].end

    def queue(self, upload: Any, results: dict[str, Any] | None = None) -> None:
        """Queue everything from the parameters in ``upload`` to counts and rows, by default those in the block."""
        device, spec, scale = self.engine.device, self.engine.model.spec, self.engine.input_scale
        buffers = {name: self.regions[name].of(self.block) for name in self.limits.buffers(1)} | (results or {})
        device.clear(buffers["counts"], self.stream)
        for number, one in enumerate(self.passes):
            descriptors, image = self.parameters.descriptors(upload, number), one.image[: self.parameters.frames]
            queue_preprocess(device, self.stream, descriptors, image, spec, input_scale=scale)
            one.slot.run()
        launch, structures = partial(device.launch, self.stream), [one.structure for one in self.passes]
        queue_faces(launch, structures, self.parameters.placed(upload), buffers, self.limits)

    def close(self) -> None:
        """Release the network; none of its work is queued any more."""
        self.replays.forget()
        for one in self.passes:
            one.slot.close()


class NetworkMemory:
    """The block of memory of a stream, and the shapes that are bound to it."""

    def __init__(self, engine: DeviceEngine, stream: Stream, rules: DetectionRules, switch: GraphSwitch) -> None:
        self._engine, self._stream, self._rules, self._switch = engine, stream, rules, switch
        self._device: Device = engine.device
        self._block: Any = None
        self._bound: OrderedDict[BatchShape, BoundNetwork] = OrderedDict()

    def bind(self, shape: BatchShape) -> BoundNetwork:
        """Return the network bound for a shape; the first time, this allocates and may wait.

        Raises DeviceMemoryError where it does not fit, UsageError for a shape that the engine does not take.
        """
        found = self._bound.get(shape)
        if found is None:
            found = self._bound[shape] = self._bind(shape)
        self._bound.move_to_end(shape)
        if len(self._bound) > _KEPT_SHAPES:
            self._stream.synchronize()
            self._bound.popitem(last=False)[1].close()
        return found

    def forget_replays(self) -> None:
        """Drop all graphs, because an address outside of this block has changed."""
        for bound in self._bound.values():
            bound.replays.forget()

    def close(self) -> None:
        """Release everything; the stream has no work left."""
        while self._bound:
            self._bound.popitem()[1].close()
        self._block = None

    def _bind(self, shape: BatchShape) -> BoundNetwork:
        limits = face_limits(self._engine, self._rules, shape)
        regions = lay_out(self._buffers(shape, limits))
        self._make_room(max(region.end for region in regions.values()))
        with ExitStack() as on_error:
            passes = []
            for number in range(len(shape.inputs)):
                passes.append(one := self._bind_pass(shape, number, regions))
                on_error.callback(one.slot.close)
            on_error.pop_all()
        parameters = Parameters(shape.frames, len(shape.inputs))
        replays = Replays(self._engine, self._stream, self._switch)
        return BoundNetwork(self._engine, self._stream, parameters, limits, self._block, regions, passes, replays)

    def _make_room(self, nbytes: int) -> None:
        if self._block is not None and nbytes <= len(self._block):
            return
        if self._bound:
            self._stream.synchronize()
        self.close()
        self._block = self._device.empty((nbytes,), np.uint8, self._stream)

    def _bind_pass(self, shape: BatchShape, number: int, regions: dict[str, Region]) -> BoundPass:
        engine, (height, width) = self._engine, shape.inputs[number]
        image = regions[f"input {number}"].of(self._block)
        outputs = [regions[name].of(self._block) for name in regions if name.startswith(f"output {number}.")]
        structure = pass_structure(
            engine.model.spec,
            height,
            width,
            self._rules.threshold,
            [address_of(output) for output in outputs],
            half=engine.output_dtype == np.float16,
            number=number,
        )
        return BoundPass(image, engine.bind(image, outputs, self._stream), structure)

    def _buffers(self, shape: BatchShape, limits: FaceLimits) -> dict[str, Buffer]:
        """Return what a shape needs, in the order of its places; the results come first."""
        engine, faces = self._engine, limits.buffers(shape.frames)
        # A model of one batch runs it whole, also for the last frames of a video.
        items = engine.model.input_shape[0] or shape.frames
        found: dict[str, Buffer] = {name: faces.pop(name) for name in _RESULTS}
        for number, (height, width) in enumerate(shape.inputs):
            found[f"input {number}"] = ((items, 3, height, width), engine.input_dtype)
            for k, output in enumerate(engine.output_shapes(items, height, width)):
                found[f"output {number}.{k}"] = (output, engine.output_dtype)
        return found | faces


def face_limits(engine: DeviceEngine, rules: DetectionRules, shape: BatchShape) -> FaceLimits:
    """Return limits with a place for every anchor of all passes: no candidate is ever lost at random."""
    anchors = sum(engine.model.spec.anchor_count(height, width) for height, width in shape.inputs)
    return FaceLimits(anchors, max_faces=rules.max_faces, iou=rules.iou, plus_one=rules.plus_one, clip=rules.clip)


def lay_out(buffers: dict[str, Buffer]) -> dict[str, Region]:
    """Give every array its place in one block, in this order, each aligned."""
    regions: dict[str, Region] = {}
    end = 0
    for name, (shape, dtype) in buffers.items():
        regions[name] = Region(aligned(end), shape, np.dtype(dtype))
        end = regions[name].end
    return regions
