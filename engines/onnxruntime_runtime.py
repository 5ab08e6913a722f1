"""ONNX Runtime on the CPU: the reference that other runtimes are held against."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from retinastream.engines.cpu import cpu_count, cpu_name
from retinastream.engines.engine import EngineInfo, InputKind, input_shape
from retinastream.errors import MissingPackageError, ModelError, UsageError
from retinastream.models.onnx_file import OnnxModel


class OnnxRuntimeEngine:
    """Runs an ONNX model through ONNX Runtime's CPU provider, as float32."""

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
        if precision not in (None, "f32"):
            raise UsageError(f"precision {precision!r} is not available on onnxruntime; allowed is f32")
        self.model = model
        threads = threads or cpu_count()
        options = ort.SessionOptions()
        # Several requests share one pool in ONNX Runtime, so a stream is simply a request in flight.
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(str(model.path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime raises a dozen unrelated types here
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelError(f"{model.path}: ONNX Runtime cannot load this model: {first}") from error
        self.info = EngineInfo("onnxruntime", ort.__version__, "cpu", cpu_name(), "f32", threads, streams, reason)

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
        self.input: npt.NDArray[Any] = buffer

    def run(self) -> tuple[npt.NDArray[Any], ...]:
        """Execute the network; see ``EngineSlot.run``."""
        return tuple(self._session.run(list(self._model.output_names), {self._model.input_name: self.input}))
