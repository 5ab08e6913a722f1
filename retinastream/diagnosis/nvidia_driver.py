"""The NVIDIA driver on this machine: its release, its GPUs, and its libraries for decoding and encoding video."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from retinastream.kernels import cuda_driver
from retinastream.kernels.cuda_driver import DriverState

logger = logging.getLogger(__name__)

DECODE_LIBRARY = "libnvcuvid.so.1"
ENCODE_LIBRARY = "libnvidia-encode.so.1"

_MODULE_VERSION = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True)
class DriverReport:
    """What was found: ``release`` is the driver's own version, such as 580.65.06."""

    state: DriverState
    has_decode: bool
    has_encode: bool
    release: str | None


def read_driver() -> DriverReport:
    """Ask the driver; where there is none, the report says so."""
    has_decode, has_encode = (_loads(name) for name in (DECODE_LIBRARY, ENCODE_LIBRARY))
    return DriverReport(cuda_driver.probe(), has_decode, has_encode, driver_version())


def driver_version() -> str | None:
    """Return the version of the loaded kernel module, else what nvidia-smi says, else None."""
    try:
        found = re.search(r"Kernel Module\D.*?(\d{3,}\.\d+(?:\.\d+)?)", _MODULE_VERSION.read_text(encoding="utf-8"))
        if found:
            return found[1]
    except OSError:
        pass
    program = shutil.which("nvidia-smi")
    return _ask_nvidia_smi(program) if program else None


def _ask_nvidia_smi(program: str) -> str | None:
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=3, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        logger.debug("nvidia-smi did not answer: %s", error)
        return None
    found = re.match(r"\d+\.\d+(\.\d+)?", answer.stdout.strip())
    return found[0] if found else None


def _loads(name: str) -> bool:
    try:
        cuda_driver.load_library(name)
    except OSError:
        return False
    return True
