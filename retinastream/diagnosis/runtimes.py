"""The runtimes that execute the network: loaded for real, and which of them a run would choose, and on what device."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any, NamedTuple

from retinastream.diagnosis.finding import Finding
from retinastream.diagnosis.packages import installed_version, load, outdated

_AREA = "runtimes"
_ONNXRUNTIME = "pip install 'retinastream[onnxruntime]'"


class _Runtime(NamedTuple):
    finding: Finding
    is_installed: bool
    works: bool


def check_runtimes() -> Iterator[Finding]:
    """Look at OpenVINO and ONNX Runtime, at the choice between them, and at the device that a run would take."""
    # In the order of preference of ``--runtime auto`` on the CPU.
    runtimes = [_openvino(), _onnxruntime()]
    yield from (runtime.finding for runtime in runtimes)
    yield _choice(runtimes)
    yield _device()


def _device() -> Finding:
    """Say what ``--device auto`` means here; where a driver works, this imports CuPy and the runtime for GPUs."""
    from retinastream.engines.gpu_readiness import Obstacle, examine_gpu

    found = examine_gpu(None)
    if not isinstance(found, Obstacle):
        return Finding(_AREA, "device", "ok", f"cuda:{found.index} ({found.name}) by {found.runtime}")
    if not found.is_surprise:
        return Finding(_AREA, "device", "ok", f"cpu: {found.brief or found.problem}")
    remedy = "do what is said there; --require gpu makes a run stop instead of taking the CPU"
    return Finding(_AREA, "device", "warning", f"cpu, although there seems to be a GPU: {found.problem}", remedy)


def _openvino() -> _Runtime:
    if not _is_installed("openvino"):
        return _absent("openvino", "not installed (the default runtime)", "pip install openvino")
    openvino: Any
    openvino, problem = load("openvino")
    if openvino is None:
        return _broken("openvino", f"does not load: {problem}")
    try:
        devices = openvino.Core().available_devices
    except Exception as error:  # noqa: BLE001 - the plugins raise their own types
        return _broken("openvino", f"does not start: {type(error).__name__}: {error}")
    version = str(openvino.__version__).split("-")[0]
    if "CPU" not in devices:
        return _broken("openvino", f"{version} has no CPU plugin (devices: {', '.join(devices) or 'none'})")
    return _working("openvino", f"{version} (devices: {', '.join(devices)})")


def _onnxruntime() -> _Runtime:
    if not _is_installed("onnxruntime"):
        detail = "not installed (optional, the reference runtime)"
        return _absent("onnxruntime", detail, f"{_ONNXRUNTIME}, if wanted")
    onnxruntime: Any
    onnxruntime, problem = load("onnxruntime")
    if onnxruntime is None:
        return _broken("onnxruntime", f"does not load: {problem}")
    providers = ", ".join(onnxruntime.get_available_providers())
    return _working("onnxruntime", f"{onnxruntime.__version__} ({providers})")


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # a module put in place by hand has no spec
        return True


def _absent(name: str, detail: str, remedy: str) -> _Runtime:
    return _Runtime(Finding(_AREA, name, "missing", detail, remedy), is_installed=False, works=False)


def _broken(name: str, detail: str) -> _Runtime:
    remedy = f"pip install --force-reinstall {name}"
    return _Runtime(Finding(_AREA, name, "warning", detail, remedy), is_installed=True, works=False)


def _working(name: str, detail: str) -> _Runtime:
    version = installed_version(name)
    lowest = outdated(name, version) if version else None
    if lowest is None:
        return _Runtime(Finding(_AREA, name, "ok", detail), is_installed=True, works=True)
    detail = f"{detail}; this package asks for {lowest} or newer"
    finding = Finding(_AREA, name, "warning", detail, f"pip install '{name}>={lowest}'")
    return _Runtime(finding, is_installed=True, works=True)


def _choice(runtimes: list[_Runtime]) -> Finding:
    """Say what ``--runtime auto`` means here; it does not fall back from a runtime that is installed but broken."""
    chosen = next((runtime for runtime in runtimes if runtime.is_installed), None)
    if chosen is None:
        remedy = f"pip install openvino (or {_ONNXRUNTIME})"
        return Finding(_AREA, "chosen", "error", "no runtime is installed: nothing can execute a network", remedy)
    name = chosen.finding.name
    if not chosen.works:
        working = next((runtime.finding.name for runtime in runtimes if runtime.works), None)
        remedy = chosen.finding.remedy + (f"; until then use --runtime {working}" if working else "")
        return Finding(_AREA, "chosen", "error", f"{name} would be chosen, and it does not work", remedy)
    if name != "openvino":
        remedy = "pip install openvino: it is the faster one on CPUs"
        return Finding(_AREA, "chosen", "warning", f"{name}, because openvino is not installed", remedy)
    return Finding(_AREA, "chosen", "ok", "openvino, the fastest runtime for CPUs that is installed")
