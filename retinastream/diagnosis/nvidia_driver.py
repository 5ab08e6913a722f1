"""What the NVIDIA driver says about itself and its GPUs, asked through ctypes: no CUDA package is needed.

No context is created on a GPU, so that asking disturbs nobody who computes there. Function names and codes are those of
the CUDA driver API (cuda.h).
"""

from __future__ import annotations

import ctypes
import logging
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

CUDA_LIBRARY = "libcuda.so.1"
DECODE_LIBRARY = "libnvcuvid.so.1"
ENCODE_LIBRARY = "libnvidia-encode.so.1"

_MODULE_VERSION = Path("/proc/driver/nvidia/version")
_CAPABILITY_MAJOR = 75
_CAPABILITY_MINOR = 76


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as CUDA numbers them in this process; ``memory`` in bytes."""

    index: int
    name: str
    capability: tuple[int, int]
    memory: int


@dataclass(frozen=True, slots=True)
class DriverReport:
    """What was found; ``problem`` says why ``gpus`` is empty.

    ``cuda`` is the newest CUDA version that the driver serves. ``code`` is the CUresult of the call that failed, 0 if
    none did.
    """

    has_cuda: bool
    has_decode: bool
    has_encode: bool
    version: str | None
    cuda: tuple[int, int] | None = None
    gpus: tuple[Gpu, ...] = ()
    problem: str = ""
    code: int = 0


class _CudaError(Exception):
    def __init__(self, function: str, code: int, name: str) -> None:
        super().__init__(f"{function} failed with error {code}{f' ({name})' if name else ''}")
        self.code = code


def load_library(name: str) -> Any:
    """Load a shared library by its name; raises OSError where it is not to be found."""
    return ctypes.CDLL(name)


def read_driver() -> DriverReport:
    """Ask the driver; where there is none, the report says so."""
    cuda, problem = _open(CUDA_LIBRARY)
    has_decode, has_encode = (_open(name)[0] is not None for name in (DECODE_LIBRARY, ENCODE_LIBRARY))
    version = driver_version()
    if cuda is None:
        return DriverReport(False, has_decode, has_encode, version, problem=problem)
    newest = None
    try:
        newest = _cuda_version(cuda)
        _call(cuda, "cuInit", 0)
        gpus = tuple(_gpu(cuda, index) for index in range(_count(cuda)))
    except _CudaError as error:
        return DriverReport(True, has_decode, has_encode, version, newest, problem=str(error), code=error.code)
    except AttributeError as error:
        return DriverReport(True, has_decode, has_encode, version, newest, problem=f"a function is missing: {error}")
    problem = "" if gpus else "the driver sees no GPU"
    return DriverReport(True, has_decode, has_encode, version, newest, gpus, problem)


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


def _open(name: str) -> tuple[Any | None, str]:
    try:
        return load_library(name), ""
    except OSError as error:
        return None, str(error)


def _call(cuda: Any, function: str, *arguments: Any) -> None:
    code = int(getattr(cuda, function)(*arguments))
    if code:
        raise _CudaError(function, code, _error_name(cuda, code))


def _error_name(cuda: Any, code: int) -> str:
    name = ctypes.c_char_p()
    try:
        known = cuda.cuGetErrorName(code, ctypes.byref(name)) == 0
    except AttributeError:
        return ""
    return name.value.decode() if known and name.value else ""


def _cuda_version(cuda: Any) -> tuple[int, int]:
    number = ctypes.c_int()
    _call(cuda, "cuDriverGetVersion", ctypes.byref(number))
    return number.value // 1000, number.value % 1000 // 10


def _count(cuda: Any) -> int:
    count = ctypes.c_int()
    _call(cuda, "cuDeviceGetCount", ctypes.byref(count))
    return count.value


def _gpu(cuda: Any, index: int) -> Gpu:
    device, memory, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(256)
    _call(cuda, "cuDeviceGet", ctypes.byref(device), index)
    _call(cuda, "cuDeviceGetName", name, len(name), device)
    _call(cuda, "cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    capability = (_attribute(cuda, _CAPABILITY_MAJOR, device), _attribute(cuda, _CAPABILITY_MINOR, device))
    return Gpu(index, name.value.decode(errors="replace"), capability, memory.value)


def _attribute(cuda: Any, attribute: int, device: ctypes.c_int) -> int:
    value = ctypes.c_int()
    _call(cuda, "cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
    return value.value
