"""The GPU: driver, devices, CuPy and the engines for video."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from retinastream.diagnosis.finding import Finding, Status
from retinastream.diagnosis.nvidia_driver import DECODE_LIBRARY, ENCODE_LIBRARY, DriverReport, read_driver
from retinastream.errors import MissingPackageError, SetupError
from retinastream.kernels.cuda_driver import DeviceFacts, DriverState
from retinastream.kernels.cupy_package import load_cupy

_AREA = "gpu"
_CONTAINER_MARKS = (Path("/.dockerenv"), Path("/run/.containerenv"))
_CAPABILITIES = "NVIDIA_DRIVER_CAPABILITIES=compute,video,utility"


def check_gpu() -> Iterator[Finding]:
    """Look at the NVIDIA driver, its GPUs, CuPy, and the libraries for decoding and encoding video."""
    report = read_driver()
    if not report.state.is_installed:
        yield _no_driver(report)
        return
    yield _driver(report)
    if not report.state.devices:
        return
    yield from (_device(facts) for facts in report.state.devices)
    yield _cupy(report.state)
    yield _library("nvdec", DECODE_LIBRARY, report.has_decode, "video decoding on the GPU")
    yield _library("nvenc", ENCODE_LIBRARY, report.has_encode, "video encoding on the GPU")


def is_container() -> bool:
    """Whether this process seems to run in a Docker or Podman container, or in a pod of Kubernetes."""
    return any(mark.exists() for mark in _CONTAINER_MARKS) or "KUBERNETES_SERVICE_HOST" in os.environ


def _no_driver(report: DriverReport) -> Finding:
    remedy = "nothing to do for detection on the CPU; for a GPU install the NVIDIA driver"
    if is_container():
        remedy += f", and start the container with --gpus all and -e {_CAPABILITIES}"
    detail = report.state.problem
    if report.release is not None:
        detail += f", although the kernel module {report.release} is there"
    return Finding(_AREA, "driver", "missing", detail, remedy)


def _driver(report: DriverReport) -> Finding:
    state = report.state
    known = [f"version {report.release}"] if report.release else []
    known += [f"serves CUDA up to {state.version[0]}.{state.version[1]}"] if state.version else []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    known += [f"CUDA_VISIBLE_DEVICES={visible}"] if visible is not None else []
    if state.error is not None:
        detail = "; ".join([state.problem, *known])
        return Finding(_AREA, "driver", "warning", detail, f"{state.remedy} (detection on the CPU is not affected)")
    return Finding(_AREA, "driver", "ok", ", ".join(known) or "loads")


def _device(facts: DeviceFacts) -> Finding:
    capability = ".".join(map(str, facts.compute_capability))
    detail = f"{facts.name}, compute capability {capability}, {facts.total_memory / 2**30:.1f} GiB"
    return Finding(_AREA, f"cuda:{facts.index}", "ok", f"{detail}, {facts.multiprocessors} multiprocessors")


def _cupy(state: DriverState) -> Finding:
    try:
        cupy = load_cupy(state.version)
    except SetupError as error:
        problem, _, remedy = str(error).partition("; ")
        status: Status = "missing" if isinstance(error, MissingPackageError) else "warning"
        return Finding(_AREA, "cupy", status, f"{problem} (needed for detection on the GPU)", remedy)
    return Finding(_AREA, "cupy", "ok", f"{cupy.__version__} loads and goes with the driver")


def _library(name: str, library: str, is_there: bool, purpose: str) -> Finding:
    if is_there:
        # Only opening a session proves that the GPU has the engine: some have none for encoding.
        return Finding(_AREA, name, "ok", f"{library} loads ({purpose}, where the GPU has an engine for it)")
    remedy = f"start the container with -e {_CAPABILITIES}" if is_container() else "install the whole NVIDIA driver"
    return Finding(_AREA, name, "missing", f"{library} does not load (needed for {purpose})", remedy)
