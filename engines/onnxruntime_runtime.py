"""ONNX Runtime on the CPU: the reference that other runtimes are held against.

Graphs of half precision and quantised ones are what their accuracy is measured with where there is no GPU. This runtime
by itself would compute them in float32 and leave the rounding out, so they are simulated (see ``precision.simulate``),
for which the package onnx is needed; without it they run as they are, and ``info.reason`` says so.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import numpy.typing as npt

from retinastream.engines.cpu import cpu_count, cpu_name
from retinastream.engines.engine import EngineInfo, InputKind, input_shape
from retinastream.errors import MissingPackageError, ModelError, UsageError
from retinastream.models.onnx_file import OnnxModel


class OnnxRuntimeEngine:
    """Runs an ONNX model through ONNX Runtime's CPU provider, in the precision that its graph says."""

    input_kind: InputKind = "float-nchw"

    def __init__(
        self, model: OnnxModel, *, precision: str | None = None, threads: int = 0, streams: int = 1, reason: str = ""
    ) -> None:
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise MissingPackageError(
                "the runtime onnxruntime is not installed: pip install 'retinastream[onnxruntime]'"
            ) from error
        if precision not in (None, model.precision):
            raise UsageError(
                f"precision {precision!r} is not available on onnxruntime for {model.path}; allowed is "
                f"{model.precision}, as it is part of the file (see `retinastream engine quantize`)"
            )
        self.model = model
        threads = threads or cpu_count()
        options = ort.SessionOptions()
        # Several requests share one pool in ONNX Runtime, so a stream is simply a request in flight.
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if model.precision == "int8":
            # What is quantised in the file is quantised as it says, and not fused into something similar.
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        source: str | bytes = str(model.path)
        if model.precision != "f32":
            source, how = _as_on_a_gpu(model)
            reason = f"{reason}; {how}" if reason else how
        try:
            self._session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime raises a dozen unrelated types here
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelError(f"{model.path}: ONNX Runtime cannot load this model: {first}") from error
        self.info = EngineInfo(
            "onnxruntime", ort.__version__, "cpu", cpu_name(), model.precision, threads, streams, reason
        )

    def slot(self, batch: int, height: int, width: int, *, steady: bool = False) -> OnnxRuntimeSlot:  # noqa: ARG002
        """Create an input buffer of this size; there is nothing to prepare for a steady one."""
        if self._session is None:
            raise UsageError("the detector is closed; create a new one")
        buffer = np.empty(input_shape(self.input_kind, batch, height, width), np.float32)
        return OnnxRuntimeSlot(self._session, buffer, self.model)

    def close(self) -> None:
        """Release the session."""
        self._session = None


class OnnxRuntimeSlot:
    """An input buffer bound to a session."""

    def __init__(self, session: Any, buffer: npt.NDArray[np.float32], model: OnnxModel) -> None:
        self._session = session
        self._model = model
        self._half = session.get_inputs()[0].type == "tensor(float16)"
        self.input: npt.NDArray[Any] = buffer

    def run(self) -> tuple[npt.NDArray[Any], ...]:
        """Execute the network; see ``EngineSlot.run``."""
        image = self.input.astype(np.float16) if self._half else self.input
        return tuple(self._session.run(list(self._model.output_names), {self._model.input_name: image}))


def _as_on_a_gpu(model: OnnxModel) -> tuple[str | bytes, str]:
    """Return what to load for a file of lower precision, and a clause that says how it is computed."""
    if importlib.util.find_spec("onnx") is None:
        return str(model.path), "computed in float32 where this CPU has no other way, as onnx is not installed"
    from retinastream.engines.precision.simulate import load_simulated

    return load_simulated(model.path), "results rounded as the file says"
