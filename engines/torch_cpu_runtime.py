"""torch on the CPU: slower than the other runtimes, and the same graph that runs on a GPU, to compare with."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from retinastream.engines.cpu import cpu_count, cpu_name
from retinastream.engines.engine import EngineInfo, InputKind, input_shape
from retinastream.engines.runtime_table import check_precision
from retinastream.engines.torch_package import load_network, load_torch
from retinastream.errors import UsageError
from retinastream.models.onnx_file import OnnxModel


class TorchCpuEngine:
    """Runs an ONNX model through torch on the CPU, as float32.

    ``threads`` is how many torch uses in the whole process, which is torch's way.
    """

    input_kind: InputKind = "float-nchw"

    def __init__(
        self, model: OnnxModel, *, precision: str | None = None, threads: int = 0, streams: int = 1, reason: str = ""
    ) -> None:
        torch = load_torch()
        precision = check_precision(precision, "torch", "cpu")
        self.model = model
        threads = threads or cpu_count()
        torch.set_num_threads(threads)
        self._network: Any = load_network(model, torch.float32)
        self.info = EngineInfo("torch", torch.__version__, "cpu", cpu_name(), precision, threads, streams, reason)

    def slot(self, batch: int, height: int, width: int, *, steady: bool = False) -> TorchCpuSlot:  # noqa: ARG002
        """Create an input buffer of this size; the graph for it is written once, whether it is steady or not."""
        if self._network is None:
            raise UsageError("the detector is closed; create a new one")
        shape = input_shape(self.input_kind, batch, height, width)
        return TorchCpuSlot(self._network.for_shape(shape), np.empty(shape, np.float32))

    def close(self) -> None:
        """Release the network."""
        self._network = None


class TorchCpuSlot:
    """An input buffer and the graph for its shape."""

    def __init__(self, network: Any, buffer: npt.NDArray[np.float32]) -> None:
        self._torch = load_torch()
        self._network = network
        self.input: npt.NDArray[Any] = buffer
        self._image = self._torch.from_numpy(buffer)

    def run(self) -> tuple[npt.NDArray[Any], ...]:
        """Execute the network; see ``EngineSlot.run``."""
        with self._torch.inference_mode():
            image = self._image.contiguous(memory_format=self._torch.channels_last)
            return tuple(output.contiguous().numpy() for output in self._network(image))
