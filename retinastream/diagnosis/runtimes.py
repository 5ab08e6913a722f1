"""The runtimes that execute the network: loaded for real, and which of them a run would choose."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

from retinastream.diagnosis.finding import Finding
from retinastream.diagnosis.packages import installed_version, load, outdated

_AREA = "runtimes"
_ONNXRUNTIME = "pip install 'retinastream[onnxruntime]'"


def check_runtimes() -> Iterator[Finding]:
    """Look at OpenVINO and ONNX Runtime, and at the choice between them."""
    openvino, onnxruntime = _openvino(), _onnxruntime()
    yield openvino
    yield onnxruntime
    yield _choice({finding.name: finding for finding in (openvino, onnxruntime)})


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # half-imported modules have no spec
        return False


def _openvino() -> Finding:
    if not _is_installed("openvino"):
        return Finding(_AREA, "openvino", "missing", "not installed (the default runtime)", "pip install openvino")
    broken = "pip install --force-reinstall openvino"
    openvino: Any
    openvino, problem = load("openvino")
    if openvino is None:
        return Finding(_AREA, "openvino", "warning", f"does not load: {problem}", broken)
    try:
        devices = openvino.Core().available_devices
    except Exception as error:  # noqa: BLE001 - the plugins raise their own types
        return Finding(_AREA, "openvino", "warning", f"does not start: {error}", broken)
    version = str(openvino.__version__).split("-")[0]
    if "CPU" not in devices:
        return Finding(_AREA, "openvino", "warning", f"{version} has no CPU plugin (devices: {devices})", broken)
    return _with_age("openvino", f"{version} (devices: {', '.join(devices)})")


def _onnxruntime() -> Finding:
    if not _is_installed("onnxruntime"):
        detail = "not installed (optional, the reference runtime)"
        return Finding(_AREA, "onnxruntime", "missing", detail, f"{_ONNXRUNTIME}, if wanted")
    onnxruntime: Any
    onnxruntime, problem = load("onnxruntime")
    if onnxruntime is None:
        remedy = "pip install --force-reinstall onnxruntime"
        return Finding(_AREA, "onnxruntime", "warning", f"does not load: {problem}", remedy)
    providers = ", ".join(onnxruntime.get_available_providers())
    return _with_age("onnxruntime", f"{onnxruntime.__version__} ({providers})")


def _with_age(name: str, detail: str) -> Finding:
    lowest = outdated(name, installed_version(name) or detail)
    if lowest is not None:
        remedy = f"pip install '{name}>={lowest}'"
        return Finding(_AREA, name, "warning", f"{detail}; this package asks for {lowest} or newer", remedy)
    return Finding(_AREA, name, "ok", detail)


def _choice(runtimes: dict[str, Finding]) -> Finding:
    """Say what ``--runtime auto`` means here; it never falls back from a runtime that is installed but broken."""
    chosen = next((name for name, finding in runtimes.items() if _is_installed(name)), None)
    if chosen is None:
        remedy = f"pip install openvino (or {_ONNXRUNTIME})"
        return Finding(_AREA, "chosen", "error", "no runtime is installed: nothing can execute a network", remedy)
    if "does not" in runtimes[chosen].detail or "no CPU plugin" in runtimes[chosen].detail:
        others = [name for name, finding in runtimes.items() if finding.status == "ok"]
        meanwhile = f"; until then use --runtime {others[0]}" if others else ""
        detail = f"{chosen} would be chosen, and does not work"
        return Finding(_AREA, "chosen", "error", detail, f"{runtimes[chosen].remedy}{meanwhile}")
    if chosen != "openvino":
        detail = f"{chosen}, because openvino is not installed"
        return Finding(_AREA, "chosen", "warning", detail, "pip install openvino: it is the faster one on CPUs")
    return Finding(_AREA, "chosen", "ok", "openvino, the fastest runtime for CPUs that is installed")
