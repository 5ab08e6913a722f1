"""A plan in the GPU's memory: its inputs and outputs, its profiles, and contexts to run it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from retinastream.engines.cache.errors import PlanRejectedError
from retinastream.engines.cache.plan_header import HEAD_BYTES, describe_plan
from retinastream.engines.tensorrt.load import create_runtime
from retinastream.engines.tensorrt.log import RING
from retinastream.engines.tensorrt.messages import failure_text
from retinastream.errors import DeviceMemoryError, EngineError

if TYPE_CHECKING:
    import tensorrt as trt

_MEMORY_WORDS = ("out of memory", "outofmemory", "could not be allocated")


@dataclass(frozen=True, slots=True)
class EngineTensor:
    """An input or output; -1 in ``shape`` is a free size. ``profiles``: smallest, best and largest shapes."""

    name: str
    mode: Literal["input", "output"]
    dtype: str
    shape: tuple[int, ...]
    on_device: bool
    profiles: tuple[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]], ...] = ()

    def profile_of(self, shape: Sequence[int]) -> int | None:
        """Return the number of the profile with the smallest largest batch that takes this shape, or None."""
        fitting = [
            (high[0], number)
            for number, (low, _, high) in enumerate(self.profiles)
            if len(shape) == len(low) and all(a <= v <= b for a, v, b in zip(low, shape, high, strict=True))
        ]
        return min(fitting)[1] if fitting else None

    def allowed(self) -> str:
        """What shapes it takes: ``1x3x736x1280..8x3x736x1280 or ...``."""
        ranges = []
        for low, _, high in self.profiles:
            first, last = ("x".join(map(str, shape)) for shape in (low, high))
            ranges.append(first if first == last else f"{first}..{last}")
        return " or ".join(sorted(set(ranges))) or "x".join(map(str, self.shape))


class LoadedPlan:
    """One deserialised plan; contexts share it. To be closed once no context of it is used any more."""

    def __init__(self, engine: trt.ICudaEngine) -> None:
        self._engine: trt.ICudaEngine | None = engine
        self._lock = threading.Lock()
        self.tensors = _read_tensors(engine)
        self.profile_count = int(engine.num_optimization_profiles)
        self.aux_streams = int(engine.num_aux_streams)
        self.scratch_sizes = tuple(
            int(engine.get_device_memory_size_for_profile_v2(number)) for number in range(self.profile_count)
        )

    @property
    def engine(self) -> trt.ICudaEngine:
        """TensorRT's object."""
        if self._engine is None:
            raise EngineError("the engine is closed; create a new one")
        return self._engine

    def create_context(self) -> trt.IExecutionContext:
        """Create a context without memory of its own; DeviceMemoryError where the GPU has no room for its rest."""
        import tensorrt as trt

        mark = RING.mark()
        with self._lock:
            context: trt.IExecutionContext | None = self.engine.create_execution_context(
                trt.ExecutionContextAllocationStrategy.USER_MANAGED
            )
        if context is None:
            lines = RING.since(mark)
            text = failure_text("TensorRT does not create an execution context", lines)
            raise DeviceMemoryError(text) if _is_about_memory(lines) else EngineError(text)
        return context

    def layers_json(self) -> str:
        """Return TensorRT's description of all layers; what it looks like depends on the version."""
        import tensorrt as trt

        inspector: trt.EngineInspector = self.engine.create_engine_inspector()
        text: str = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
        return text

    def close(self) -> None:
        """Release it, as far as no context holds it."""
        self._engine = None


def load_plan(plan: bytes | memoryview, *, version_compatible: bool = False) -> LoadedPlan:
    """Deserialise a plan for the current device.

    ``version_compatible`` says that the plan carries code of its own and may run it: only for plans that were built
    here. PlanRejectedError where TensorRT does not take the plan, DeviceMemoryError where it does not fit the GPU.
    """
    header = describe_plan(plan[:HEAD_BYTES])
    if header.is_no_plan:
        raise PlanRejectedError(f"the file {header}")
    runtime = create_runtime()
    if version_compatible:
        runtime.engine_host_code_allowed = True
    mark = RING.mark()
    engine: trt.ICudaEngine | None = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        lines = RING.since(mark)
        if _is_about_memory(lines):
            raise DeviceMemoryError(failure_text("the engine cannot be loaded", lines))
        raise PlanRejectedError(failure_text(f"TensorRT does not take the engine, which {header}", lines))
    return LoadedPlan(engine)


def _is_about_memory(lines: Sequence[str]) -> bool:
    text = " ".join(lines).lower()
    return any(word in text for word in _MEMORY_WORDS)


def _read_tensors(engine: trt.ICudaEngine) -> tuple[EngineTensor, ...]:
    import tensorrt as trt

    tensors = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        shape = shape_of(engine.get_tensor_shape(name))
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        tensors.append(
            EngineTensor(
                name=name,
                mode="input" if is_input else "output",
                dtype=engine.get_tensor_dtype(name).name,
                shape=shape,
                on_device=engine.get_tensor_location(name) == trt.TensorLocation.DEVICE,
                profiles=_profiles(engine, name, shape) if is_input else (),
            )
        )
    return tuple(tensors)


def _profiles(
    engine: trt.ICudaEngine, name: str, shape: tuple[int, ...]
) -> tuple[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]], ...]:
    if -1 not in shape:
        return ((shape, shape, shape),)
    found = []
    for number in range(engine.num_optimization_profiles):
        low, best, high = engine.get_tensor_profile_shape(name, number)
        found.append((shape_of(low), shape_of(best), shape_of(high)))
    return tuple(found)


def shape_of(dimensions: trt.Dims) -> tuple[int, ...]:
    """Return TensorRT's dimensions as whole numbers; -1 is a free size."""
    return tuple(int(dimensions[axis]) for axis in range(len(dimensions)))
