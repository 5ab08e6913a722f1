"""Where the plan for an input comes from, and whether it is one of the model's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from retinastream.engines.cache.errors import PlanRejectedError
from retinastream.engines.tensorrt.load import require_tensorrt
from retinastream.engines.tensorrt.loaded_plan import EngineTensor, LoadedPlan, load_plan
from retinastream.errors import UsageError
from retinastream.models.onnx_file import OnnxModel

# By TensorRT's own names: those that NumPy has, too.
_DTYPES: dict[str, npt.DTypeLike] = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
}
_INPUT_DTYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(np.int8))
_OUTPUT_DTYPES = (np.dtype(np.float32), np.dtype(np.float16))


@dataclass(frozen=True, slots=True)
class NetworkIo:
    """Types of a network's input and outputs; ``input_scale`` is what a step of 1 stands for in an int8 input."""

    input_dtype: np.dtype[Any]
    output_dtype: np.dtype[Any]
    input_scale: float | None = None


class PlanSource(Protocol):
    """Where the plan for an input comes from: one that was given, or a cache that builds what it does not have."""

    @property
    def io(self) -> NetworkIo:
        """Types of the network, known before any plan is there."""
        ...

    def plan_for(self, batch: int, height: int, width: int) -> LoadedPlan:
        """Return the plan to run an input of this shape with; may take minutes. UsageError where there is none."""
        ...

    def close(self) -> None:
        """Release all plans."""
        ...


class GivenPlan:
    """One plan, for the shapes that it was built for."""

    def __init__(
        self,
        model: OnnxModel,
        plan: bytes | memoryview,
        *,
        version_compatible: bool = False,
        input_scale: float | None = None,
    ) -> None:
        require_tensorrt()
        self._plan = load_plan(plan, version_compatible=version_compatible)
        self._model = model
        self.io = network_io(self._plan, model, input_scale)

    def plan_for(self, batch: int, height: int, width: int) -> LoadedPlan:
        """Return the plan; UsageError, with what it takes, for another shape."""
        image = tensor_of(self._plan, self._model.input_name)
        if image.profile_of((batch, 3, height, width)) is None and image.shape != (batch, 3, height, width):
            raise UsageError(
                f"the engine of {self._model.name} takes {image.allowed()} (batch, channels, height, width) and was "
                f"given {batch}x3x{height}x{width}; build one with `retinastream engine build --shape {width}x{height} "
                f"--batch {batch}`"
            )
        return self._plan

    def close(self) -> None:
        """Release the plan."""
        self._plan.close()


def network_io(plan: LoadedPlan, model: OnnxModel, input_scale: float | None = None) -> NetworkIo:
    """Read the types of a plan; PlanRejectedError where it is not an engine of this model or has other types."""
    names = {tensor.name for tensor in plan.tensors}
    wanted = {model.input_name, *model.output_names}
    if names != wanted:
        raise PlanRejectedError(
            f"the engine has the tensors {', '.join(sorted(names))}; {model.name} has {', '.join(sorted(wanted))}: it "
            "was built from another model"
        )
    if not all(tensor.on_device for tensor in plan.tensors):
        raise PlanRejectedError("the engine wants inputs or outputs in the host's memory; it is not one of a detector")
    image = _dtype_of(tensor_of(plan, model.input_name))
    kinds = {_dtype_of(tensor_of(plan, name)) for name in model.output_names}
    if image not in _INPUT_DTYPES or len(kinds) != 1 or not kinds <= set(_OUTPUT_DTYPES):
        raise PlanRejectedError(
            f"the engine takes {image} and returns {', '.join(sorted(map(str, kinds)))}; expected an input of float32, "
            "float16 or int8, and outputs of one type, float32 or float16"
        )
    if image == np.int8 and input_scale is None:
        raise PlanRejectedError(
            "the engine takes int8 and its model does not say by which scale; quantise the model again with "
            "`retinastream engine quantize`"
        )
    return NetworkIo(image, kinds.pop(), input_scale if image == np.int8 else None)


def _dtype_of(tensor: EngineTensor) -> np.dtype[Any]:
    if tensor.dtype not in _DTYPES:
        raise PlanRejectedError(
            f"the engine's {tensor.mode} {tensor.name!r} is {tensor.dtype}; expected one of {', '.join(_DTYPES)}"
        )
    return np.dtype(_DTYPES[tensor.dtype])


def tensor_of(plan: LoadedPlan, name: str) -> EngineTensor:
    """Return the tensor of this name; PlanRejectedError where there is none."""
    for tensor in plan.tensors:
        if tensor.name == name:
            return tensor
    raise PlanRejectedError(f"the engine has no tensor {name!r}; it was built from another model")
