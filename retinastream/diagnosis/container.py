"""What a container was given of the host's NVIDIA driver: its libraries are mounted by capability, and one may lack."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from retinastream.diagnosis.finding import Finding
from retinastream.diagnosis.gpu import is_container
from retinastream.diagnosis.nvidia_driver import DECODE_LIBRARY
from retinastream.kernels import cuda_driver

CAPABILITIES = "NVIDIA_DRIVER_CAPABILITIES"
_WANTED = "compute,video,utility"
# A library that the container toolkit mounts for each, and what does not work without.
_MOUNTED = {
    "compute": (cuda_driver.CUDA_LIBRARY, "nothing runs on the GPU"),
    "video": (DECODE_LIBRARY, "video is decoded on the CPU"),
    "utility": ("libnvidia-ml.so.1", "nvidia-smi tells nothing"),
}
_DEVICES = Path("/dev")


def check_container() -> Iterator[Finding]:
    """Say which capabilities of the driver a container lacks; nothing outside containers and without a GPU."""
    if not is_container() or not _has_gpu():
        return
    lacking = {name: harm for name, (library, harm) in _MOUNTED.items() if not _loads(library)}
    given = os.environ.get(CAPABILITIES)
    setting = f"{CAPABILITIES}={given}" if given is not None else f"{CAPABILITIES} is not set"
    if not lacking:
        yield Finding(
            "gpu", "container", "ok", f"the container has compute, video and utility of the driver ({setting})"
        )
        return
    names = " and ".join(lacking)
    detail = f"the container lacks the driver's {names} ({setting}): {'; '.join(lacking.values())}"
    remedy = f"start it with -e {CAPABILITIES}={_WANTED} (in Kubernetes: as env of the container)"
    if _covers(given, set(lacking)):
        remedy = "the host's driver was installed without these libraries: install the whole driver there"
    yield Finding("gpu", "container", "warning", detail, remedy)


def _has_gpu() -> bool:
    """Whether the container was given a GPU: by its device files, or by libraries (WSL has no such files)."""
    return any(_DEVICES.glob("nvidia[0-9]*")) or _loads(cuda_driver.CUDA_LIBRARY)


def _covers(given: str | None, names: set[str]) -> bool:
    asked = set((given or "").replace(" ", "").split(","))
    return "all" in asked or names <= asked


def _loads(library: str) -> bool:
    try:
        cuda_driver.load_library(library)
    except OSError:
        return False
    return True
