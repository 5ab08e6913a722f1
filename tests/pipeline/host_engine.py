"""A DeviceEngine for HostDevice: the real network, run by ONNX Runtime or OpenVINO as work that is queued on a stream.

engine = HostEngine(path, HostDevice())                       # float32 in and out
engine = HostEngine(path, HostDevice(), dtype=np.float16)     # half precision in and out, the network in single
detector = Detector.from_engine(engine, size="native")

With ``fail_at=n`` the n-th run fails when it runs (not when it is queued); with ``can_capture=False`` it refuses to be
part of a graph.
"""

import ctypes
import itertools
import threading

import numpy as np

from retinastream.engines.engine import EngineInfo
from retinastream.engines.onnxruntime_runtime import OnnxRuntimeEngine
from retinastream.engines.openvino_runtime import OpenVinoEngine
from retinastream.engines.output_shapes import output_shapes
from retinastream.errors import DeviceMemoryError, UsageError
from retinastream.kernels.device import CaptureError
from retinastream.models.onnx_file import OnnxModel, read_onnx

_RUNTIMES = {"onnxruntime": OnnxRuntimeEngine, "openvino": OpenVinoEngine}
_PRECISIONS = {"float32": "f32", "float16": "fp16", "int8": "int8"}


class EngineFailure(RuntimeError):  # noqa: N818
    """What a run raises that was told to fail."""


class HostEngine:
    """See the module. ``bound``, ``runs`` and ``captures`` count; ``most_items`` bounds what fits into a batch."""

    def __init__(
        self,
        model,
        device,
        *,
        dtype=np.float32,
        input_scale=None,
        output_dtype=None,
        runtime="onnxruntime",
        fail_at=None,
        can_capture=True,
        most_items=None,
    ):
        self.model = model if isinstance(model, OnnxModel) else read_onnx(model)
        self.device = device
        self.input_dtype = np.dtype(dtype)
        self.input_scale = input_scale
        self.output_dtype = np.dtype(output_dtype or (np.float32 if dtype == np.int8 else dtype))
        self.fail_at = fail_at
        self.can_capture = can_capture
        self.most_items = most_items
        # ONNX Runtime's input is normalised already, as it is on a device.
        self.runtime = _RUNTIMES[runtime](self.model, threads=1)
        precision = _PRECISIONS[self.input_dtype.name]
        self.info = EngineInfo(f"host {runtime}", "1", device.label, device.name, precision, 0, 1, "a test")
        self.bound = self.captures = self.runs = 0
        self.open_slots = 0
        self.is_closed = False
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def output_shapes(self, batch, height, width):
        return output_shapes(self.model.spec, batch, height, width)

    def bind(self, image, outputs, stream):
        if self.is_closed:
            raise UsageError("the engine is closed")
        if self.most_items is not None and len(image) > self.most_items:
            raise DeviceMemoryError(f"{len(image)} items were asked for, and room for {self.most_items} is free")
        fixed = self.model.input_shape
        if any(f not in (None, s) for f, s in zip(fixed, image.shape, strict=True)):
            raise UsageError(f"the engine takes {fixed}, not {image.shape}")
        expected = self.output_shapes(len(image), *image.shape[2:])
        assert tuple(v.shape for v in outputs) == expected
        assert image.dtype == self.input_dtype
        assert all(v.dtype == self.output_dtype for v in outputs)
        self.bound += 1
        return HostEngineSlot(self, image, outputs, stream)

    def capture(self, stream, queue):
        if not self.can_capture:
            raise CaptureError("this engine refuses")
        self.captures += 1
        return self.device.capture(stream, queue)

    def close(self):
        assert self.open_slots == 0, "slots are open"
        self.is_closed = True
        self.runtime.close()

    def infer(self, image):
        """The outputs of the network for (batch, 3, height, width) float32, normalised."""
        number = next(self._numbers)
        self.runs = number
        if number == self.fail_at:
            raise EngineFailure(f"run {number} was told to fail")
        with self._lock:
            batch, _, height, width = image.shape
            slot = self.runtime.slot(batch, height, width)
            if slot.input.dtype == np.uint8:
                spec = self.model.spec
                picture = image.transpose(0, 2, 3, 1) / spec.scale + np.array(spec.mean)
                picture = picture if spec.channel_order == "bgr" else picture[..., ::-1]
                slot.input[...] = np.clip(np.rint(picture), 0, 255)
            else:
                slot.input[...] = image
            return slot.run()


class HostEngineSlot:
    def __init__(self, engine, image, outputs, stream):
        self._engine, self._stream = engine, stream
        self._arrays = (image, *outputs)
        engine.open_slots += 1

    def run(self):
        engine = self._engine
        image, *outputs = (_Place(v) for v in self._arrays)

        def work():
            values = image.array().astype(np.float32) * np.float32(engine.input_scale or 1)
            for place, value in zip(outputs, engine.infer(values), strict=True):
                place.array()[...] = value

        engine.device.call(self._stream, work, *self._arrays, name="network")

    def close(self):
        assert self._arrays is not None, "closed twice"
        self._arrays = None
        self._engine.open_slots -= 1


class _Place:
    """Where an array lies, without keeping it alive: as a queued kernel knows it."""

    def __init__(self, array):
        self.address, self.shape, self.dtype, self.nbytes = array.ctypes.data, array.shape, array.dtype, array.nbytes

    def array(self):
        raw = (ctypes.c_uint8 * self.nbytes).from_address(self.address)
        return np.frombuffer(raw, np.uint8).view(self.dtype).reshape(self.shape)
