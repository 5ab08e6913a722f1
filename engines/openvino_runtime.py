"""OpenVINO on the CPU: the default runtime of a machine without a GPU.

The mean is subtracted inside the graph, from uint8 NHWC input, so that a 4K frame enters as 25 MB and not as 100 MB of
floats. The network stays dynamic in its size: compiled once, it takes every picture size.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt

from retinastream.engines.cpu import cpu_count, cpu_name, has_fast_bf16
from retinastream.engines.engine import EngineInfo, InputKind, input_shape
from retinastream.errors import MissingPackageError, ModelError, UsageError
from retinastream.models.onnx_file import OnnxModel

logger = logging.getLogger(__name__)


class OpenVinoEngine:
    """Runs an ONNX model through OpenVINO's CPU plugin."""

    input_kind: InputKind = "bgr-u8-nhwc"

    def __init__(
        self, model: OnnxModel, *, precision: str | None = None, threads: int = 0, streams: int = 1, reason: str = ""
    ) -> None:
        try:
            import openvino as ov
        except ImportError as error:
            raise MissingPackageError("the runtime openvino is not installed: pip install openvino") from error
        precision = precision or "f32"
        _check_precision(precision)
        self.model = model
        threads = threads or cpu_count()
        self._ov = ov
        self._compiled = _compile(ov, model, precision, threads, streams)
        self._outputs = [_port(self._compiled, name) for name in model.output_names]
        self.info = EngineInfo(
            "openvino", ov.__version__.split("-")[0], "cpu", cpu_name(), precision, threads, streams, reason
        )

    def slot(self, batch: int, height: int, width: int) -> OpenVinoSlot:
        """Create an inference request with an input buffer of this size."""
        if self._compiled is None:
            raise UsageError("the detector is closed; create a new one")
        buffer = np.empty(input_shape(self.input_kind, batch, height, width), np.uint8)
        return OpenVinoSlot(self._compiled.create_infer_request(), buffer, self._outputs, self._ov)

    def close(self) -> None:
        """Release the compiled network."""
        self._compiled = None


class OpenVinoSlot:
    """One inference request and its buffers."""

    def __init__(self, request: Any, buffer: npt.NDArray[np.uint8], outputs: list[Any], ov: Any) -> None:
        self._request = request
        self._outputs = outputs
        self.input: npt.NDArray[Any] = buffer
        request.set_input_tensor(ov.Tensor(buffer, shared_memory=True))

    def run(self) -> tuple[npt.NDArray[Any], ...]:
        """Execute the network; see ``EngineSlot.run``."""
        self._request.infer()
        return tuple(self._request.get_tensor(port).data for port in self._outputs)


def _check_precision(precision: str) -> None:
    if precision not in ("f32", "bf16"):
        raise UsageError(f"precision {precision!r} is not available on openvino; allowed are f32 and bf16")
    if precision == "bf16" and not has_fast_bf16():
        raise UsageError(
            "precision 'bf16' was asked for, but this CPU has neither AVX512-BF16 nor AMX; use --precision f32"
        )


def _compile(ov: Any, model: OnnxModel, precision: str, threads: int, streams: int) -> Any:
    core = ov.Core()
    try:
        network = core.read_model(str(model.path))
    except RuntimeError as error:
        raise ModelError(f"{model.path}: OpenVINO cannot read this model: {_first_line(error)}") from error
    spec = model.spec
    steps = ov.preprocess.PrePostProcessor(network)
    source = steps.input()
    source.tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    source.model().set_layout(ov.Layout("NCHW"))
    source.preprocess().convert_element_type(ov.Type.f32)
    if spec.channel_order == "rgb":
        source.preprocess().reverse_channels()
    source.preprocess().mean(list(spec.mean))
    if spec.scale != 1.0:
        source.preprocess().scale(1.0 / spec.scale)
    try:
        return core.compile_model(
            steps.build(),
            "CPU",
            {
                "INFERENCE_NUM_THREADS": threads,
                "NUM_STREAMS": streams,
                "INFERENCE_PRECISION_HINT": precision,
                # Without this the plugin may shrink the number of threads to what it thinks is best for one request.
                "ENABLE_CPU_PINNING": False,
            },
        )
    except RuntimeError as error:
        raise ModelError(f"{model.path}: OpenVINO cannot compile this model: {_first_line(error)}") from error


def _port(compiled: Any, name: str) -> Any:
    return compiled.output(name)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
