"""A plan bound to buffers and a stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from retinastream.engines.tensorrt.device_array import DeviceArray, address_of
from retinastream.engines.tensorrt.loaded_plan import LoadedPlan, shape_of
from retinastream.engines.tensorrt.log import RING
from retinastream.engines.tensorrt.messages import failure_text
from retinastream.engines.tensorrt.plan_source import tensor_of
from retinastream.errors import EngineError, UsageError
from retinastream.kernels.device import Stream
from retinastream.models.onnx_file import OnnxModel

if TYPE_CHECKING:
    import tensorrt as trt


class Scratch:
    """Memory for what lies between the layers of all contexts of one stream."""

    def __init__(self, array: DeviceArray, size: int) -> None:
        self.array = array
        self.size = size


class TensorRtSlot:
    """A context with its shapes, addresses and scratch memory set; see ``DeviceEngineSlot``.

    It holds its arrays: TensorRT knows addresses only.
    """

    def __init__(
        self,
        model: OnnxModel,
        plan: LoadedPlan,
        context: trt.IExecutionContext,
        image: DeviceArray,
        outputs: tuple[DeviceArray, ...],
        stream: Stream,
        scratch: Scratch,
    ) -> None:
        self._began = RING.mark()
        self._context: trt.IExecutionContext | None = context
        self._held: tuple[object, ...] = (plan, image, outputs, scratch)
        self._stream = stream
        self._name = f"{model.name} {'x'.join(map(str, image.shape))}"
        named = dict(zip(model.output_names, outputs, strict=True))
        self._set_profile(context, plan, model.input_name, image.shape)
        self._set_shapes(context, model.input_name, image.shape, named)
        context.set_device_memory(address_of(scratch.array), scratch.size)
        for name, array in {model.input_name: image, **named}.items():
            self._check(context.set_tensor_address(name, address_of(array)), f"set the address of {name!r}")
        # The first run after a change of profile or shape finishes what TensorRT had put off, and cannot be captured.
        self.run()
        stream.synchronize()

    def run(self) -> None:
        """Queue the network."""
        context = self._context
        if context is None:
            raise UsageError("the slot is closed; bind a new one")
        mark = RING.mark()
        if not context.execute_async_v3(self._stream.handle):
            raise EngineError(failure_text(f"TensorRT did not queue {self._name}", RING.since(mark)))

    def close(self) -> None:
        """Let the context and the arrays go."""
        self._context = None
        self._held = ()

    def _set_profile(self, context: trt.IExecutionContext, plan: LoadedPlan, name: str, shape: Sequence[int]) -> None:
        profile = tensor_of(plan, name).profile_of(shape)
        if profile is None:
            return
        is_set = context.set_optimization_profile_async(profile, self._stream.handle)
        self._check(is_set, f"choose profile {profile}")
        self._stream.synchronize()

    def _set_shapes(
        self, context: trt.IExecutionContext, name: str, shape: Sequence[int], outputs: dict[str, DeviceArray]
    ) -> None:
        import tensorrt as trt

        is_set = context.set_input_shape(name, trt.Dims(list(shape)))
        self._check(is_set, f"set the shape of {name!r} to {tuple(shape)}")
        mark = RING.mark()
        try:
            missing = context.infer_shapes()
        except RuntimeError as error:
            raise EngineError(failure_text(f"TensorRT cannot infer the shapes: {error}", RING.since(mark))) from error
        if missing:
            raise EngineError(f"TensorRT lacks the shapes of {', '.join(missing)}; the engine is not one of a detector")
        for output, array in outputs.items():
            actual = shape_of(context.get_tensor_shape(output))
            if actual != tuple(array.shape):
                raise EngineError(
                    f"the engine's output {output!r} is {actual} for an input {tuple(shape)}, and {tuple(array.shape)} "
                    "was expected: the engine is of another model; build it again"
                )

    def _check(self, answer: bool, what: str) -> None:
        if not answer:
            raise EngineError(failure_text(f"TensorRT refused to {what} for {self._name}", RING.since(self._began)))
