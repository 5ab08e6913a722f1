"""torch on a GPU: the runtime that needs nothing built beforehand.

A precision of fp16 returns its maps as float16. The network's own arithmetic decides how exact they are: on six
photographs (2,069 anchors with scores of 0.02 and more, mnet025) its scores were off by 3.3e-3 at most and 2.2e-4 on
average from those of single precision, and rounding exact maps to float16 costs 8.9e-5 and 1.8e-5. bf16, with 8 bits
less, is off by 2.5e-2 at most, and returns float32.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from retinastream.engines.engine import EngineInfo
from retinastream.engines.output_shapes import output_shapes
from retinastream.engines.runtime_table import check_precision
from retinastream.engines.torch_cuda import TorchCuda
from retinastream.engines.torch_package import load_network, load_torch
from retinastream.errors import DeviceMemoryError, UsageError
from retinastream.kernels.device import Device, Stream
from retinastream.models.onnx_file import OnnxModel

_WARM_UPS = 2
# The legacy default stream, its handle by name, and the default stream of a thread.
_DEFAULT_STREAMS = (0, 1, 2)
# What the network computes in, takes and returns.
_TYPES = {
    "f32": ("float32", np.float32, np.float32),
    "bf16": ("bfloat16", np.float32, np.float32),
    "fp16": ("float16", np.float16, np.float16),
}


class TorchEngine:
    """Runs a detector through torch on a GPU; see ``DeviceEngine``.

    ``compiled`` lets torch write kernels of its own for the network, once for every shape. ``cuda`` stands for torch's
    side of the GPU; tests give another.

    Raises UsageError for a precision that the GPU does not have, ModelError for a model with operators that have no
    translation, SetupError where torch cannot use the GPU.
    """

    input_scale: float | None = None

    def __init__(
        self,
        model: OnnxModel,
        device: Device,
        *,
        precision: str | None = None,
        compiled: bool = False,
        reason: str = "",
        cuda: TorchCuda | None = None,
    ) -> None:
        torch = load_torch()
        precision = check_precision(precision, "torch", "cuda")
        self.model = model
        self.device = device
        self._cuda = cuda or TorchCuda(device.index)
        if precision == "bf16" and not self._cuda.has_bfloat16:
            raise UsageError(
                f"precision 'bf16' was given, and {device.label} ({device.name}) has no bfloat16 (compute capability "
                "8.0 and newer have); use fp16 or f32"
            )
        computes, takes, returns = _TYPES[precision]
        self.input_dtype: np.dtype[Any] = np.dtype(takes)
        self.output_dtype: np.dtype[Any] = np.dtype(returns)
        self._dtype = getattr(torch, computes)
        self._is_compiled = compiled
        self._network: Any = load_network(model, self._dtype)
        with self._cuda.memory_errors():
            self._network.to(self._cuda.device)
        self._ready: dict[tuple[int, ...], Any] = {}
        self._lock = threading.Lock()
        self._slots: weakref.WeakSet[TorchSlot] = weakref.WeakSet()
        self._warm = threading.local()
        runtime = f"{torch.__version__}, compiled" if compiled else torch.__version__
        self.info = EngineInfo("torch", runtime, device.label, device.name, precision, 0, 1, reason)

    def output_shapes(self, batch: int, height: int, width: int) -> tuple[tuple[int, ...], ...]:
        """Shapes of the outputs in the order of the model's layout."""
        return output_shapes(self.model.spec, batch, height, width)

    def bind(self, image: Any, outputs: Sequence[Any], stream: Stream) -> TorchSlot:
        """Bind the network to arrays and a stream, and run it twice; see ``DeviceEngine``."""
        self._check(image, outputs, stream)
        with self._lock:
            slot = TorchSlot(
                self._cuda, self._for_shape(tuple(image.shape)), self._dtype, image, tuple(outputs), stream
            )
            try:
                self._warm_up(slot)
            except DeviceMemoryError:
                # The pools are empty now, which may be enough.
                self._warm_up(slot)
            self._slots.add(slot)
        return slot

    def capture(self, stream: Stream, queue: Callable[[], None]) -> Callable[[], None]:
        """Record slots as a CUDA graph, by torch, which then keeps the memory between the layers for the graph."""
        self.device.prepare_kernels()
        # torch remembers for each thread apart how cuDNN convolves fastest, and finding out cannot be recorded.
        for slot in [slot for slot in self._slots if slot.stream.handle == stream.handle and slot.is_open]:
            if slot.shape not in self._warm_here():
                self._warm_up(slot)
        return self._cuda.capture(stream.handle, queue)

    def close(self) -> None:
        """Release the network; no slot is used afterwards."""
        if self._network is None:
            return
        self._network = None
        self._ready.clear()
        self._cuda.release_memory()

    def _for_shape(self, shape: tuple[int, ...]) -> Any:
        """Return the network for a shape, on whose first call torch compiles it where that was asked for."""
        if shape not in self._ready:
            torch = load_torch()
            network = self._network.for_shape(shape)
            self._ready[shape] = torch.compile(network, dynamic=False, fullgraph=True) if self._is_compiled else network
        return self._ready[shape]

    def _warm_up(self, slot: TorchSlot) -> None:
        for _ in range(_WARM_UPS):
            slot.run()
        self._cuda.synchronize(slot.stream.handle)
        self._warm_here().add(slot.shape)

    def _warm_here(self) -> set[tuple[int, ...]]:
        """Return the shapes that this thread has run."""
        found: set[tuple[int, ...]] = self._warm.__dict__.setdefault("shapes", set())
        return found

    def _check(self, image: Any, outputs: Sequence[Any], stream: Stream) -> None:
        if self._network is None:
            raise UsageError("the detector is closed; create a new one")
        if stream.handle in _DEFAULT_STREAMS:
            raise UsageError(
                "a default stream was given; create one for the network: a default stream cannot be recorded"
            )
        shape = tuple(image.shape)
        if len(shape) != 4 or shape[1] != 3 or image.dtype != self.input_dtype:
            raise UsageError(
                f"the input is {image.dtype} {shape}; the engine takes {self.input_dtype} (batch, 3, height, width)"
            )
        if any(fixed not in (None, size) for fixed, size in zip(self.model.input_shape, shape, strict=True)):
            wanted = ", ".join("any" if size is None else str(size) for size in self.model.input_shape)
            raise UsageError(f"the input is {shape}, and {self.model.name} takes ({wanted}) alone")
        expected = self.output_shapes(shape[0], shape[2], shape[3])
        given = tuple(tuple(output.shape) for output in outputs)
        if given != expected or any(output.dtype != self.output_dtype for output in outputs):
            kinds = ", ".join(sorted({str(output.dtype) for output in outputs}))
            raise UsageError(f"the outputs are {kinds} {given}; the engine writes {self.output_dtype} {expected}")


class TorchSlot:
    """A network of one shape between arrays of others."""

    def __init__(
        self, cuda: TorchCuda, network: Any, dtype: Any, image: Any, outputs: tuple[Any, ...], stream: Stream
    ) -> None:
        self._torch = load_torch()
        self._cuda, self._network, self._dtype, self.stream = cuda, network, dtype, stream
        self.shape: tuple[int, ...] = tuple(image.shape)
        self._image: Any = cuda.tensor(image)
        self._outputs: list[Any] = [cuda.tensor(output) for output in outputs]

    @property
    def is_open(self) -> bool:
        """Whether it still holds its arrays."""
        return self._network is not None

    def run(self) -> None:
        """Queue the network; see ``DeviceEngineSlot``."""
        with self._cuda.queueing(self.stream.handle), self._cuda.memory_errors():
            # One pass over three channels, after which every layer reads its channels side by side.
            image = self._image.to(dtype=self._dtype, memory_format=self._torch.channels_last)
            for target, output in zip(self._outputs, self._network(image), strict=True):
                target.copy_(output, non_blocking=True)

    def close(self) -> None:
        """Let go of the arrays."""
        self._network, self._image, self._outputs = None, None, []
