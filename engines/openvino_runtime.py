"""OpenVINO on the CPU: the default runtime of a machine without a GPU.

Input buffers are uint8, so that a 4K frame waits as 25 MB and not as 100 MB of floats. There are two ways from there:

- One network that takes every size, compiled once. It transposes, converts and subtracts the mean inside the graph,
  and the plugin then puts the channels back where they were: 13 of 78 ms at 1920x1088, f32, one thread.
- For sizes that come again and again, as the frames of a video do, a network compiled for just that size (0.1 s). With
  static shapes the plugin cancels the two transpositions; the mean is subtracted on the way into a float buffer of the
  calling thread, 2 ms. Measured with two streams on two cores, f32: 45 against 50 ms at 1920x1088, 18 against 21 ms
  at 1280x736.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from retinastream.engines.cpu import cpu_count, cpu_name, has_fast_bf16
from retinastream.engines.engine import EngineInfo, InputKind, input_shape
from retinastream.engines.openvino_core import openvino_core
from retinastream.errors import MissingPackageError, ModelError, UsageError
from retinastream.kernels.preprocess import normalise
from retinastream.models.onnx_file import OnnxModel
from retinastream.models.spec import DetectorSpec

# Networks compiled for one size that are kept: a video has one size, or two with a pyramid.
_KEPT_SIZES = 3


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
        self._ov = ov
        threads = threads or cpu_count()
        self._options = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": streams,
            "INFERENCE_PRECISION_HINT": precision,
            # Pinned threads would share one core with the decoder while another core idles.
            "ENABLE_CPU_PINNING": False,
        }
        self._any_size: Any = _compile(ov, model, self._options, None)
        self._lock = threading.Lock()
        self._one_size: OrderedDict[tuple[int, int, int], Any] = OrderedDict()
        self._staging = threading.local()
        self.info = EngineInfo(
            "openvino", ov.__version__.split("-")[0], "cpu", cpu_name(), precision, threads, streams, reason
        )

    def slot(self, batch: int, height: int, width: int, *, steady: bool = False) -> OpenVinoSlot:
        """Create an inference request with an input buffer of this size."""
        if self._any_size is None:
            raise UsageError("the detector is closed; create a new one")
        compiled = self._compiled_for((batch, height, width)) if steady else self._any_size
        buffer = np.empty(input_shape(self.input_kind, batch, height, width), np.uint8)
        outputs = [compiled.output(name) for name in self.model.output_names]
        return OpenVinoSlot(compiled.create_infer_request(), buffer, outputs, self.stage if steady else self._wrap)

    def close(self) -> None:
        """Release the compiled networks."""
        self._any_size = None
        self._one_size.clear()

    def stage(self, pictures: npt.NDArray[np.uint8]) -> Any:
        """Normalise a batch into the float buffer of this thread, which its next call overwrites."""
        if getattr(self._staging, "shape", None) != pictures.shape:
            self._staging.shape = pictures.shape
            self._staging.values = np.empty(pictures.shape, np.float32)
            self._staging.tensor = self._ov.Tensor(self._staging.values, shared_memory=True)
        normalise(pictures, self.model.spec, self._staging.values)
        return self._staging.tensor

    def _wrap(self, pictures: npt.NDArray[np.uint8]) -> Any:
        return self._ov.Tensor(pictures, shared_memory=True)

    def _compiled_for(self, size: tuple[int, int, int]) -> Any:
        with self._lock:
            if size not in self._one_size:
                self._one_size[size] = _compile(self._ov, self.model, self._options, size)
            self._one_size.move_to_end(size)
            while len(self._one_size) > _KEPT_SIZES:
                self._one_size.popitem(last=False)
            return self._one_size[size]


class OpenVinoSlot:
    """One inference request and its buffers; ``feed`` makes the tensor that the network is given."""

    def __init__(
        self,
        request: Any,
        buffer: npt.NDArray[np.uint8],
        outputs: list[Any],
        feed: Callable[[npt.NDArray[np.uint8]], Any],
    ) -> None:
        self._request = request
        self._outputs = outputs
        self._feed = feed
        self.input: npt.NDArray[Any] = buffer

    def run(self) -> tuple[npt.NDArray[Any], ...]:
        """Execute the network; see ``EngineSlot.run``."""
        self._request.set_input_tensor(self._feed(self.input))
        self._request.infer()
        return tuple(self._request.get_tensor(port).data for port in self._outputs)


def _check_precision(precision: str) -> None:
    if precision not in ("f32", "bf16"):
        raise UsageError(f"precision {precision!r} is not available on openvino; allowed are f32 and bf16")
    if precision == "bf16" and not has_fast_bf16():
        raise UsageError(
            "precision 'bf16' was asked for, but this CPU has neither AVX512-BF16 nor AMX; use --precision f32"
        )


def _compile(ov: Any, model: OnnxModel, options: dict[str, Any], size: tuple[int, int, int] | None) -> Any:
    """Compile for one (batch, height, width) of normalised floats, or, without, for any size of uint8 BGR."""
    core = openvino_core(ov)
    try:
        network = core.read_model(str(model.path))
        steps = ov.preprocess.PrePostProcessor(network)
        source = steps.input()
        source.model().set_layout(ov.Layout("NCHW"))
        if size is None:
            source.tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
            _normalise_inside(ov, source.preprocess(), model.spec)
            network = steps.build()
        else:
            source.tensor().set_layout(ov.Layout("NHWC"))
            network = steps.build()
            network.reshape([*size, 3])
        return core.compile_model(network, "CPU", options)
    except RuntimeError as error:
        raise ModelError(f"{model.path}: OpenVINO cannot use this model: {_last_line(error)}") from error


def _normalise_inside(ov: Any, steps: Any, spec: DetectorSpec) -> None:
    steps.convert_element_type(ov.Type.f32)
    if spec.channel_order == "rgb":
        steps.reverse_channels()
    steps.mean(list(spec.mean))
    if spec.scale != 1.0:
        steps.scale(1.0 / spec.scale)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
