"""Which runtime on which device, chosen once and said aloud."""

from __future__ import annotations

import importlib.util
from typing import Literal, get_args

from retinastream.engines.engine import Engine
from retinastream.engines.streams import auto_streams
from retinastream.errors import SetupError, UsageError
from retinastream.models.onnx_file import OnnxModel

Runtime = Literal["auto", "openvino", "onnxruntime"]
RUNTIMES: tuple[str, ...] = get_args(Runtime)
DEVICES = ("auto", "cpu")


def create_engine(
    model: OnnxModel,
    *,
    runtime: str = "auto",
    device: str = "auto",
    precision: str | None = None,
    threads: int = 0,
    streams: int = 1,
) -> Engine:
    """Build the engine for a model on this machine.

    ``device`` is "auto" or "cpu"; ``runtime`` "auto", "openvino" or "onnxruntime"; ``precision`` None, "f32" or
    "bf16"; ``threads`` 0 means every processor this process may use, ``streams`` 0 as many as give the best throughput.
    The engine's ``info.reason`` says why it was chosen. Raises UsageError for a value that is not allowed and
    SetupError for a device this build cannot drive.
    """
    if runtime not in RUNTIMES:
        raise UsageError(f"runtime {runtime!r} is not known; allowed are {', '.join(RUNTIMES)}")
    for name, value, low in (("threads", threads, 0), ("streams", streams, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise UsageError(f"{name} was given as {value!r}; expected a whole number, {low} or more")
    check_device(device)
    streams = streams or auto_streams(threads)
    chosen, reason = _choose(runtime)
    if chosen == "openvino":
        from retinastream.engines.openvino_runtime import OpenVinoEngine

        return OpenVinoEngine(model, precision=precision, threads=threads, streams=streams, reason=reason)
    from retinastream.engines.onnxruntime_runtime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(model, precision=precision, threads=threads, streams=streams, reason=reason)


def check_device(device: str) -> None:
    """Refuse a device that is unknown, or that this version cannot drive yet; never fall back silently."""
    if device in DEVICES:
        return
    if not isinstance(device, str):
        raise UsageError(f"device was given as {device!r}; expected text: {', '.join(DEVICES)}")
    if device == "cuda" or device.startswith("cuda:"):
        raise SetupError(
            f"device {device!r}: this version runs the network on the CPU only; use --device cpu or --device auto"
        )
    raise UsageError(f"device {device!r} is not known; allowed are {', '.join(DEVICES)}")


def _choose(runtime: str) -> tuple[str, str]:
    if runtime != "auto":
        return runtime, "asked for"
    if importlib.util.find_spec("openvino") is not None:
        return "openvino", "the fastest runtime for CPUs that is installed"
    if importlib.util.find_spec("onnxruntime") is not None:
        return "onnxruntime", "openvino is not installed"
    raise SetupError("no runtime is installed: pip install openvino (or 'retinastream[onnxruntime]')")
