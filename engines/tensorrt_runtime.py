"""TensorRT on a GPU: plans bound to buffers, queued on streams, and nothing waited for once they are bound.

Contexts share the plan of their size. They have no memory of their own: one block per stream serves all contexts that
run on it, because they run one after another there. Every answer of TensorRT is looked at, and an error carries what
TensorRT wrote to its log.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from retinastream.engines.cache.errors import PlanRejectedError
from retinastream.engines.engine import EngineInfo
from retinastream.engines.output_shapes import output_shapes
from retinastream.engines.tensorrt.load import require_tensorrt
from retinastream.engines.tensorrt.loaded_plan import LoadedPlan
from retinastream.engines.tensorrt.log import RING
from retinastream.engines.tensorrt.messages import failure_text
from retinastream.engines.tensorrt.plan_source import PlanSource, network_io, tensor_of
from retinastream.engines.tensorrt.slot import Scratch, TensorRtSlot
from retinastream.errors import EngineError, UsageError
from retinastream.kernels.device import CaptureError, Device, Stream
from retinastream.models.onnx_file import OnnxModel

# The legacy default stream, its handle by name, and the default stream of a thread.
_DEFAULT_STREAMS = (0, 1, 2)
_SMALLEST_SCRATCH = 256


class TensorRtEngine:
    """Runs a detector through TensorRT; see ``DeviceEngine``.

    Without ``plans`` engines come from the cache of this machine and are built at the first use of a size, for 1 to
    ``batch`` pictures.
    """

    def __init__(
        self,
        model: OnnxModel,
        device: Device,
        *,
        precision: str = "fp16",
        batch: int = 1,
        plans: PlanSource | None = None,
        reason: str = "",
    ) -> None:
        version = require_tensorrt()
        if plans is None:
            from retinastream.engines.stored_plans import StoredPlans

            plans = StoredPlans(model, device, precision, batch=batch)
        self.model = model
        self.device = device
        self._plans = plans
        self._version = version
        self.input_dtype, self.output_dtype = plans.io.input_dtype, plans.io.output_dtype
        self.input_scale = plans.io.input_scale
        self.info = EngineInfo("tensorrt", version, device.label, device.name, precision, 0, 1, reason)
        self._lock = threading.Lock()
        self._scratch: weakref.WeakValueDictionary[int, Scratch] = weakref.WeakValueDictionary()
        self._is_closed = False

    def output_shapes(self, batch: int, height: int, width: int) -> tuple[tuple[int, ...], ...]:
        """Shapes of the outputs in the order of the model's layout."""
        return output_shapes(self.model.spec, batch, height, width)

    def bind(self, image: Any, outputs: Sequence[Any], stream: Stream) -> TensorRtSlot:
        """Bind a context to arrays and a stream, run it once; see ``DeviceEngine``."""
        self._check_bind(image, outputs, stream)
        batch, _, height, width = image.shape
        # TensorRT asks for contexts and shapes to be set by one thread at a time.
        with self._lock:
            plan = self._plans.plan_for(batch, height, width)
            actual = network_io(plan, self.model, self.input_scale)
            if actual != self._plans.io:
                raise PlanRejectedError(f"the engine computes with {actual}, expected {self._plans.io}; build it again")
            scratch_size = self._scratch_size(plan, image.shape)
            context = plan.create_context()
            scratch = self._scratch_for(stream, scratch_size)
            return TensorRtSlot(self.model, plan, context, image, tuple(outputs), stream, scratch)

    def capture(self, stream: Stream, queue: Callable[[], None]) -> Callable[[], None]:
        """Record slots as a CUDA graph. Every slot has run once by then, as TensorRT demands."""
        mark = RING.mark()
        try:
            return self.device.capture(stream, queue)
        except EngineError as error:
            raise CaptureError(f"TensorRT's work cannot be captured: {error}") from error
        except CaptureError as error:
            lines = RING.complaints(mark)
            raise CaptureError(failure_text(str(error), lines) if lines else str(error)) from error

    def close(self) -> None:
        """Release the plans; no slot is used afterwards."""
        self._is_closed = True
        self._plans.close()

    def _check_bind(self, image: Any, outputs: Sequence[Any], stream: Stream) -> None:
        if self._is_closed:
            raise UsageError("the engine is closed; create a new one")
        if stream.handle in _DEFAULT_STREAMS:
            raise UsageError(
                "a default stream was given, on which TensorRT waits for the whole device; create a stream for it"
            )
        shape = tuple(image.shape)
        if len(shape) != 4 or shape[1] != 3 or image.dtype != self.input_dtype:
            raise UsageError(
                f"the input is {image.dtype} {shape}; the engine takes {self.input_dtype} (batch, 3, height, width)"
            )
        expected = self.output_shapes(shape[0], shape[2], shape[3])
        given = tuple(tuple(output.shape) for output in outputs)
        if given != expected or any(output.dtype != self.output_dtype for output in outputs):
            kinds = ", ".join(sorted({str(output.dtype) for output in outputs}))
            raise UsageError(f"the outputs are {kinds} {given}; the engine writes {self.output_dtype} {expected}")
        for array in (image, *outputs):
            if self.device.device_of(array) != self.device.index:
                raise UsageError(f"an array that is not in the memory of {self.device.label} was given to its engine")

    def _scratch_size(self, plan: LoadedPlan, shape: Sequence[int]) -> int:
        profile = tensor_of(plan, self.model.input_name).profile_of(shape) or 0
        return max(_SMALLEST_SCRATCH, plan.scratch_sizes[profile] if plan.scratch_sizes else 0)

    def _scratch_for(self, stream: Stream, size: int) -> Scratch:
        """Return the stream's block, or a larger one; slots that are bound to the former keep it."""
        found = self._scratch.get(stream.handle)
        if found is None or found.size < size:
            found = Scratch(self.device.empty((size,), np.uint8, stream), size)
            self._scratch[stream.handle] = found
        return found
