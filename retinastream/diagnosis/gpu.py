"""The GPU: driver, devices and video engines. This version detects on the CPU; only the encoder of video uses a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from retinastream.diagnosis.finding import Finding
from retinastream.diagnosis.nvidia_driver import (
    CUDA_LIBRARY,
    DECODE_LIBRARY,
    ENCODE_LIBRARY,
    DriverReport,
    Gpu,
    read_driver,
)

_AREA = "gpu"
_CONTAINER_MARKS = (Path("/.dockerenv"), Path("/run/.containerenv"))
_CAPABILITIES = "NVIDIA_DRIVER_CAPABILITIES=compute,video,utility"

# CUresult codes whose cause and cure differ.
_REMEDIES = {
    35: "install a newer NVIDIA driver",
    100: "no GPU is visible to this process: check CUDA_VISIBLE_DEVICES, and in a container --gpus all",
    802: "the GPUs are still starting up, or the NVIDIA fabric manager is not running: start it, or wait",
    803: "the driver's library and its kernel module differ in version: restart after a driver update",
    804: "the CUDA compatibility package does not serve this GPU: remove it from the library path",
    999: "restart the machine, or load the module nvidia_uvm (a suspend and resume can leave it unusable)",
}


def check_gpu() -> Iterator[Finding]:
    """Look at the NVIDIA driver, its GPUs and its libraries for decoding and encoding video."""
    report = read_driver()
    if not report.has_cuda:
        yield _no_driver(report)
        return
    yield _driver(report)
    yield from (_device(gpu) for gpu in report.gpus)
    if report.gpus:
        yield _library("nvdec", DECODE_LIBRARY, report.has_decode, "video decoding on the GPU")
        yield _library("nvenc", ENCODE_LIBRARY, report.has_encode, "video encoding on the GPU")


def is_container() -> bool:
    """Whether this process seems to run in a Docker or Podman container, or in a pod of Kubernetes."""
    return any(mark.exists() for mark in _CONTAINER_MARKS) or "KUBERNETES_SERVICE_HOST" in os.environ


def _no_driver(report: DriverReport) -> Finding:
    remedy = "nothing to do: this version detects on the CPU; for a GPU install the NVIDIA driver"
    if is_container():
        remedy += f", and start the container with --gpus all and -e {_CAPABILITIES}"
    detail = f"none usable: {CUDA_LIBRARY} does not load"
    if report.version is not None:
        detail += f", although the kernel module {report.version} is there"
    return Finding(_AREA, "driver", "missing", detail, remedy)


def _driver(report: DriverReport) -> Finding:
    known = [f"version {report.version}"] if report.version else []
    known += [f"serves CUDA up to {report.cuda[0]}.{report.cuda[1]}"] if report.cuda else []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    known += [f"CUDA_VISIBLE_DEVICES={visible}"] if visible is not None else []
    if report.problem:
        remedy = _REMEDIES.get(report.code, "see whether nvidia-smi lists a GPU; reinstall the driver if it does not")
        detail = "; ".join([report.problem, *known])
        return Finding(_AREA, "driver", "warning", detail, f"{remedy} (detection on the CPU is not affected)")
    return Finding(_AREA, "driver", "ok", ", ".join(known) or "loads")


def _device(gpu: Gpu) -> Finding:
    detail = f"{gpu.name}, compute capability {gpu.capability[0]}.{gpu.capability[1]}, {gpu.memory / 2**30:.1f} GiB"
    return Finding(_AREA, f"cuda:{gpu.index}", "ok", f"{detail} (not used for detection by this version)")


def _library(name: str, library: str, is_there: bool, purpose: str) -> Finding:
    if is_there:
        # Only opening a session proves that the GPU has the engine: some have none for encoding.
        return Finding(_AREA, name, "ok", f"{library} loads ({purpose}, where the GPU has an engine for it)")
    remedy = f"start the container with -e {_CAPABILITIES}" if is_container() else "install the whole NVIDIA driver"
    return Finding(_AREA, name, "missing", f"{library} does not load (needed for {purpose})", remedy)
