"""Which runtime on which device, chosen once and said aloud."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from retinastream.engines.device_selection import DEVICES, DeviceChoice, choose_device, parse_device
from retinastream.engines.engine import Engine
from retinastream.engines.runtime_table import RUNTIMES, Runtime, check_precision, check_runtime
from retinastream.engines.streams import auto_streams
from retinastream.errors import SetupError, UsageError
from retinastream.models.onnx_file import OnnxModel

if TYPE_CHECKING:
    from retinastream.engines.device_engine import DeviceEngine
    from retinastream.kernels.device import Device

# Precisions that one runtime of a GPU alone has.
_ONLY_RUNTIME = {"bf16": "torch", "int8": "tensorrt", "fp8": "tensorrt"}

__all__ = [
    "DEVICES",
    "RUNTIMES",
    "DeviceChoice",
    "Runtime",
    "check_device",
    "choose_device",
    "create_device_engine",
    "create_engine",
]


def create_engine(
    model: OnnxModel,
    *,
    runtime: str = "auto",
    device: str = "auto",
    precision: str | None = None,
    threads: int = 0,
    streams: int = 1,
    reason: str = "",
) -> Engine:
    """Build the engine for a model on the CPU of this machine.

    ``device`` is "auto" or "cpu"; ``runtime`` "auto", "openvino", "onnxruntime" or "torch"; ``precision`` None, "f32"
    or "bf16"; ``threads`` 0 means every processor this process may use, ``streams`` 0 as many as give the best
    throughput. The engine's ``info.reason`` says why it was chosen, after ``reason``, which says why the CPU was.
    Raises UsageError for a value that is not allowed and SetupError for what is not installed.
    """
    check_runtime(runtime)
    for name, value, low in (("threads", threads, 0), ("streams", streams, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise UsageError(f"{name} was given as {value!r}; expected a whole number, {low} or more")
    if parse_device(device)[0] == "cuda":
        raise SetupError(f"device {device!r}: this part runs the network on the CPU only; use --device cpu")
    check_runtime(runtime, "cpu")
    streams = streams or auto_streams(threads)
    if model.precision != "f32":
        return _engine_of_precision(model, runtime, precision, threads=threads, streams=streams)
    chosen, why = _choose(runtime)
    if chosen != "onnxruntime":  # which computes in what the file says
        check_precision(precision, chosen, "cpu")
    reason = f"{reason}; {why}" if reason else why
    if chosen == "openvino":
        from retinastream.engines.openvino_runtime import OpenVinoEngine

        return OpenVinoEngine(model, precision=precision, threads=threads, streams=streams, reason=reason)
    if chosen == "torch":
        from retinastream.engines.torch_cpu_runtime import TorchCpuEngine

        return TorchCpuEngine(model, precision=precision, threads=threads, streams=streams, reason=reason)
    from retinastream.engines.onnxruntime_runtime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(model, precision=precision, threads=threads, streams=streams, reason=reason)


def create_device_engine(
    model: OnnxModel,
    device: Device,
    *,
    runtime: str = "auto",
    precision: str | None = None,
    torch_compile: bool = False,
    batch: int = 1,
    reason: str = "",
) -> DeviceEngine:
    """Build the engine for a model on a GPU.

    ``runtime`` is "auto" (TensorRT where it is installed and works, else torch), "tensorrt" or "torch"; ``precision``
    None (what the file computes in where that is not f32, else fp16), "f32", "fp16", "bf16" (torch) or "int8"
    (TensorRT). ``torch_compile`` has torch write kernels of its
    own for the network, which takes minutes, and makes "auto" choose torch. ``batch`` is the largest that is expected,
    which an engine of TensorRT is built for. ``info.reason`` says why the runtime was chosen, after ``reason``, which
    says why the device was.

    Raises UsageError for values that are not allowed or do not go together and SetupError for what is not installed.
    """
    check_runtime(runtime, "cuda")
    if torch_compile and runtime == "tensorrt":
        raise UsageError("torch_compile was given with runtime 'tensorrt'; it is for runtime 'torch'")
    from retinastream.engines.gpu_readiness import usable_runtime

    if precision is None and model.precision != "f32":
        precision = model.precision  # which is part of the file
    narrowed, because = _narrow(runtime, precision, torch_compile=torch_compile)
    chosen, why = usable_runtime(narrowed)
    if chosen is None:
        asked = f"runtime {narrowed!r}{f' ({because})' if because else ''}"
        raise SetupError(f"{asked} cannot be used on {device.label}: {why}")
    why = because or why
    if precision != model.precision or chosen == "torch":
        precision = check_precision(precision, chosen, "cuda")
    reason = f"{reason}; {why}" if reason else why
    if chosen == "tensorrt":
        from retinastream.engines.tensorrt_runtime import TensorRtEngine

        return TensorRtEngine(model, device, precision=precision, batch=batch, reason=reason)
    from retinastream.engines.torch_runtime import TorchEngine

    return TorchEngine(model, device, precision=precision, compiled=torch_compile, reason=reason)


def _engine_of_precision(
    model: OnnxModel, runtime: str, precision: str | None, *, threads: int, streams: int
) -> Engine:
    """Build the engine for a file whose graph says its precision; ONNX Runtime alone computes it as it is written."""
    if runtime not in ("auto", "onnxruntime"):
        raise UsageError(
            f"{model.path} is {model.precision}, which runtime {runtime!r} does not run on the CPU; choose "
            "onnxruntime, or give the float32 model"
        )
    from retinastream.engines.onnxruntime_runtime import OnnxRuntimeEngine

    reason = f"the runtime for {model.precision} files on the CPU"
    return OnnxRuntimeEngine(model, precision=precision, threads=threads, streams=streams, reason=reason)


def check_device(device: str) -> None:
    """Refuse the text of a device that is not known, with UsageError."""
    parse_device(device)


def _narrow(runtime: str, precision: str | None, *, torch_compile: bool) -> tuple[str, str]:
    """Narrow "auto" on a GPU by what only one of its runtimes can do, and say by what."""
    if runtime == "auto" and torch_compile:
        return "torch", "the runtime with torch_compile"
    if runtime == "auto" and precision in _ONLY_RUNTIME:
        return _ONLY_RUNTIME[precision], f"the runtime with precision {precision}"
    return runtime, ""


def _choose(runtime: str) -> tuple[str, str]:
    if runtime != "auto":
        return runtime, f"runtime {runtime} was asked for"
    if importlib.util.find_spec("openvino") is not None:
        return "openvino", "the fastest runtime for CPUs that is installed"
    if importlib.util.find_spec("onnxruntime") is not None:
        return "onnxruntime", "openvino is not installed"
    raise SetupError("no runtime is installed: pip install openvino (or 'retinastream[onnxruntime]')")
