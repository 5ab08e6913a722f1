"""What a runtime on a device looks like to the detector: it queues work on a stream and waits for nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from retinastream.engines.engine import EngineInfo
from retinastream.kernels.device import Device, Stream
from retinastream.models.onnx_file import OnnxModel


class DeviceEngineSlot(Protocol):
    """A network bound to an input, its outputs and a stream."""

    def run(self) -> None:
        """Queue the network on the stream that it is bound to; returns before it has run."""
        ...

    def close(self) -> None:
        """Release what was bound; the stream has no work of it left."""
        ...


class DeviceEngine(Protocol):
    """A network on a device, ready to be bound to buffers.

    ``input_dtype`` is float32, float16 or int8, NCHW; for int8, ``input_scale`` is what a step of 1 stands for in the
    normalised input (None otherwise). ``output_dtype`` is float32 or float16.
    """

    model: OnnxModel
    info: EngineInfo
    device: Device
    input_dtype: np.dtype[Any]
    input_scale: float | None
    output_dtype: np.dtype[Any]

    def output_shapes(self, batch: int, height: int, width: int) -> tuple[tuple[int, ...], ...]:
        """Shapes of the outputs in the order of the model's layout, for an input (batch, 3, height, width)."""
        ...

    def bind(self, image: Any, outputs: Sequence[Any], stream: Stream) -> DeviceEngineSlot:
        """Bind the network to device arrays, whose addresses stay: an input (batch, 3, height, width) and its outputs.

        May wait (first use of a shape prepares for it). UsageError for a shape that the engine does not take,
        DeviceMemoryError where its own memory does not fit.
        """
        ...

    def capture(self, stream: Stream, queue: Callable[[], None]) -> Callable[[], None]:
        """Record ``queue``, which runs slots of this engine, as a CUDA graph: ``Device.capture`` with its own ways.

        CaptureError where this engine or what was queued cannot be captured.
        """
        ...

    def close(self) -> None:
        """Release the network; no slot is used afterwards."""
        ...
