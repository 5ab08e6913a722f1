"""What keeps a GPU from being used here: driver, device, CuPy, runtime, looked at in this order."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retinastream.engines.runtime_table import GPU_RUNTIMES
from retinastream.errors import SetupError
from retinastream.kernels import cuda_driver
from retinastream.kernels.cuda_driver import DriverState
from retinastream.kernels.cupy_device import OLDEST_CAPABILITY
from retinastream.kernels.cupy_package import load_cupy

logger = logging.getLogger(__name__)

_HIDDEN = ("", "-1", "none", "void", "NoDevFiles")
_KERNEL_MODULE = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True)
class Obstacle:
    """The first thing that is missing: a sentence without its full stop, with what to do about it.

    ``brief`` is for the line that every run begins with. ``is_surprise`` says that there seems to be a GPU, so that
    computing on the CPU instead is worth a warning.
    """

    problem: str
    brief: str = ""
    is_surprise: bool = True


@dataclass(frozen=True, slots=True)
class Ready:
    """A GPU that can be used, by its number and name, and the runtime that would run on it."""

    index: int
    name: str
    runtime: str


def examine_gpu(index: int | None, runtime: str = "auto") -> Ready | Obstacle:
    """Look whether a GPU, the first suitable one where ``index`` is None, can run a network by ``runtime``.

    Imports CuPy, and torch where that is the runtime, once the driver works; nothing heavy otherwise.
    """
    state = cuda_driver.probe()
    if state.error is not None:
        brief = state.problem if state.is_installed else "there is no NVIDIA driver"
        return Obstacle(state.error.rstrip("."), brief, is_surprise=_seems_to_have_gpu(state))
    number = _choose_index(state, index)
    if isinstance(number, Obstacle):
        return number
    problem = _cupy_problem(number, state)
    if problem:
        return Obstacle(problem)
    found, problem = usable_runtime(runtime)
    if found is None:
        return Obstacle(problem)
    return Ready(number, next(d.name for d in state.devices if d.index == number), found)


def usable_runtime(runtime: str) -> tuple[str | None, str]:
    """Return the GPU runtime to use and why, or None and what is missing.

    "auto" takes TensorRT where it is installed and works, else torch, and warns of a TensorRT that is installed and
    does not work.
    """
    if runtime != "auto":
        problem = _CHECKS[runtime]()
        return (None, problem) if problem else (runtime, f"runtime {runtime} was asked for")
    problems: dict[str, str] = {}
    for name in GPU_RUNTIMES:
        problem = _CHECKS[name]()
        if not problem:
            return name, _why(name, problems)
        problems[name] = problem
    return None, "no runtime for GPUs can be used: " + "; ".join(problems.values())


def _why(name: str, problems: dict[str, str]) -> str:
    if name == GPU_RUNTIMES[0]:
        return "the fastest runtime for GPUs that is installed"
    reason = "; ".join(problems.values())
    if _is_installed("tensorrt"):
        logger.warning("%s is used on the GPU instead of tensorrt: %s", name, reason)
    return reason


def _seems_to_have_gpu(state: DriverState) -> bool:
    """Whether there are signs of a GPU, and nobody hid it on purpose."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in _HIDDEN
    return not hidden and (state.is_installed or _KERNEL_MODULE.exists())


def _choose_index(state: DriverState, index: int | None) -> int | Obstacle:
    lowest = ".".join(map(str, OLDEST_CAPABILITY))
    if index is None:
        fit = [device.index for device in state.devices if device.compute_capability >= OLDEST_CAPABILITY]
        if fit:
            return fit[0]
        names = ", ".join(device.name for device in state.devices)
        return Obstacle(f"no GPU here ({names}) has compute capability {lowest} or higher, which the kernels need")
    known = {device.index: device for device in state.devices}
    if index not in known:
        listed = ", ".join(f"cuda:{device.index} ({device.name})" for device in state.devices)
        return Obstacle(f"there is no cuda:{index} here; there are {listed}; see CUDA_VISIBLE_DEVICES, too")
    device = known[index]
    if device.compute_capability < OLDEST_CAPABILITY:
        given = ".".join(map(str, device.compute_capability))
        return Obstacle(f"cuda:{index} ({device.name}) has compute capability {given}; the kernels need {lowest}")
    return index


def _cupy_problem(index: int, state: DriverState) -> str:
    try:
        cupy = load_cupy(state.version)
    except SetupError as error:
        return str(error)
    try:
        count = cupy.cuda.runtime.getDeviceCount()
        cupy.cuda.nvrtc.getVersion()
    except (RuntimeError, ImportError, OSError) as error:
        extra = "gpu-cu13" if state.version is None or state.version >= (13, 0) else "gpu-cu12"
        return f"CuPy {cupy.__version__} does not work ({_first_line(error)}): pip install 'retinastream[{extra}]'"
    if count <= index:
        return f"CuPy sees {count} GPUs and the driver {len(state.devices)}; see CUDA_VISIBLE_DEVICES"
    return ""


def _torch_problem() -> str:
    if not _is_installed("torch"):
        return "torch is not installed: pip install torch"
    try:
        torch: Any = importlib.import_module("torch")
        if torch.version.cuda is None:
            return f"torch {torch.__version__} is a build for CPUs: install one with CUDA, see pytorch.org"
        if not torch.cuda.is_available():
            return f"torch {torch.__version__} (CUDA {torch.version.cuda}) sees no GPU: install one for this driver"
    except Exception as error:  # noqa: BLE001 - broken packages raise anything at import
        return f"torch does not load ({_first_line(error)}): install it again"
    return ""


def _tensorrt_problem() -> str:
    from retinastream.engines.tensorrt.load import tensorrt_version

    if not _is_installed("tensorrt"):
        return "tensorrt is not installed: pip install 'retinastream[tensorrt-cu13]' or 'retinastream[tensorrt-cu12]'"
    try:
        tensorrt_version()
    except SetupError as error:
        return str(error)
    return ""


_CHECKS: dict[str, Callable[[], str]] = {"torch": _torch_problem, "tensorrt": _tensorrt_problem}


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # a module put in place by hand has no spec
        return True


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
