"""Which runtimes there are, where each of them runs, and in which precisions."""

from __future__ import annotations

from typing import Literal, get_args

from retinastream.errors import UsageError

Runtime = Literal["auto", "openvino", "onnxruntime", "torch", "tensorrt"]
Precision = Literal["f32", "bf16", "fp16", "int8"]
DeviceKind = Literal["cpu", "cuda"]

RUNTIMES: tuple[str, ...] = get_args(Runtime)
# In the order of preference of "auto" on each kind of device; torch on a CPU is there to compare with, never chosen.
CPU_RUNTIMES = ("openvino", "onnxruntime", "torch")
GPU_RUNTIMES = ("tensorrt", "torch")

_PRECISIONS: dict[tuple[str, str], tuple[str, ...]] = {
    ("openvino", "cpu"): ("f32", "bf16"),
    ("onnxruntime", "cpu"): ("f32",),
    ("torch", "cpu"): ("f32",),
    ("tensorrt", "cuda"): ("f32", "fp16", "int8"),
    ("torch", "cuda"): ("f32", "bf16", "fp16"),
}


def check_runtime(runtime: str, kind: DeviceKind | None = None) -> None:
    """Refuse a runtime that is unknown, or that does not run on this kind of device, with UsageError."""
    if runtime not in RUNTIMES:
        raise UsageError(f"runtime {runtime!r} is not known; allowed are {', '.join(RUNTIMES)}")
    if runtime == "auto" or kind is None or (runtime, kind) in _PRECISIONS:
        return
    place = "a GPU" if kind == "cuda" else "the CPU"
    raise UsageError(
        f"runtime {runtime!r} does not run on {place}; {', '.join(CPU_RUNTIMES)} run on the CPU (--device cpu), "
        f"{' and '.join(GPU_RUNTIMES)} on a GPU (--device cuda)"
    )


def runs_on(runtime: str) -> tuple[DeviceKind, ...]:
    """Return the kinds of device that a runtime runs on; "auto" runs on all."""
    kinds: tuple[DeviceKind, ...] = get_args(DeviceKind)
    return tuple(kind for kind in kinds if runtime == "auto" or (runtime, kind) in _PRECISIONS)


def check_precision(precision: str | None, runtime: str, kind: DeviceKind) -> str:
    """Return the precision to use, fp16 on a GPU and f32 on the CPU where None was given.

    Raises UsageError for a precision that the runtime does not have there.
    """
    allowed = _PRECISIONS[runtime, kind]
    if precision is None:
        return "fp16" if kind == "cuda" else "f32"
    if precision not in allowed:
        place = "a GPU" if kind == "cuda" else "the CPU"
        listed = f"allowed is {allowed[0]}" if len(allowed) == 1 else f"allowed are {' and '.join(allowed)}"
        raise UsageError(
            f"precision {precision!r} is not available on {runtime} on {place}; {listed}{_elsewhere(precision)}"
        )
    return precision


def _elsewhere(precision: str) -> str:
    """Say where a precision is to be had."""
    places = [
        f"{runtime} on {'a GPU' if kind == 'cuda' else 'the CPU'}"
        for (runtime, kind), precisions in _PRECISIONS.items()
        if precision in precisions
    ]
    return f" ({precision} is what {' and '.join(places)} can do)" if places else ""
