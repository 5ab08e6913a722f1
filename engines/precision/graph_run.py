"""Running a graph that is in memory, to see what its tensors hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from retinastream.engines.precision.model_files import import_onnx
from retinastream.errors import MissingPackageError, ModelError, UsageError

Picture = npt.NDArray[np.float32]
"""Network input, (batch, 3, height, width) float32, normalised."""


class GraphRun:
    """A float32 graph on ONNX Runtime's CPU, with the tensors ``watched`` as further outputs.

    Quantisation is computed as the graph says, without being fused. Raises ModelError where the graph cannot be run.
    """

    def __init__(self, model: Any, watched: Sequence[str] = (), *, threads: int = 0) -> None:
        onnx = import_onnx()
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise MissingPackageError(
                "calibration runs the model on ONNX Runtime: pip install 'retinastream[onnxruntime]'"
            ) from error
        own = [output.name for output in model.graph.output]
        self.outputs = tuple(own)
        self._input = model.graph.input[0].name
        self._names = [*own, *(name for name in watched if name not in own)]
        extended = onnx.ModelProto()
        extended.CopyFrom(model)
        inferred = onnx.shape_inference.infer_shapes(model)
        types = {info.name: info for info in inferred.graph.value_info}
        for name in self._names[len(own) :]:
            if name != self._input:
                extended.graph.output.append(types.get(name) or onnx.helper.make_empty_tensor_value_info(name))
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        try:
            self._session = ort.InferenceSession(
                extended.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the runtime raises a dozen unrelated types here
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelError(f"ONNX Runtime cannot run this model: {first}") from error

    def __call__(self, picture: Picture) -> dict[str, npt.NDArray[Any]]:
        """Run one batch; returns the model's outputs and what is watched, by name."""
        if picture.ndim != 4 or picture.shape[1] != 3 or picture.dtype != np.float32:
            raise UsageError(
                f"a picture was given as {picture.dtype} {picture.shape}; expected float32 (batch, 3, height, width)"
            )
        names = [name for name in self._names if name != self._input]
        values = dict(zip(names, self._session.run(names, {self._input: picture}), strict=True))
        if self._input in self._names:
            values[self._input] = picture
        return values
