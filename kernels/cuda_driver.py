"""What the NVIDIA driver says about itself and its GPUs, asked through ctypes: no CUDA package is needed.

No context is created on a GPU, so that asking disturbs nobody who computes there. Function names and codes are those of
the CUDA driver API (cuda.h).
"""

from __future__ import annotations

import ctypes
import os
import uuid
from dataclasses import dataclass
from typing import Any

CUDA_LIBRARY = "libcuda.so.1"

_NO_DEVICE = 100
_CAPABILITY_MAJOR, _CAPABILITY_MINOR, _MULTIPROCESSORS = 75, 76, 16

# CUresult codes whose cause and cure differ: what it means, what to do.
_KNOWN: dict[int, tuple[str, str]] = {
    2: ("the machine has too little memory left to start CUDA", "end other processes that use the GPU or memory"),
    3: (
        "CUDA had been started in the process that this one was forked from",
        "start processes with the spawn method",
    ),
    34: (
        "the library is the toolkit's stub and not the driver's",
        "remove the stubs folder from LD_LIBRARY_PATH and install the NVIDIA driver",
    ),
    35: ("the driver is too old", "install a newer NVIDIA driver"),
    46: (
        "the GPU is taken or cannot be used now",
        "look with nvidia-smi whether a process has it in exclusive mode or it needs a reset",
    ),
    100: ("no GPU is visible to this process", "see whether nvidia-smi lists one; start a container with --gpus all"),
    101: ("the GPU's number is not valid", "check CUDA_VISIBLE_DEVICES"),
    304: (
        "the operating system refused the driver",
        "check the rights of /dev/nvidia*, and in a container --gpus all",
    ),
    802: (
        "the GPUs are still starting up, or the NVIDIA fabric manager is not running",
        "start nvidia-fabricmanager, or wait",
    ),
    803: (
        "the driver's library and its kernel module differ in version",
        "restart the machine after a driver update; in a container use the host's libcuda, not one of the image",
    ),
    804: ("the CUDA compatibility package does not serve this GPU", "remove it from the library path"),
    805: ("the MPS server does not answer", "start nvidia-cuda-mps-control again, or unset CUDA_MPS_PIPE_DIRECTORY"),
    999: (
        "the driver does not know why",
        "load the kernel module nvidia_uvm or restart the machine (a suspend and resume can leave it unusable)",
    ),
}
_UNKNOWN = ("", "see whether nvidia-smi lists a GPU; reinstall the NVIDIA driver if it does not")


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """One GPU as CUDA numbers it in this process; ``total_memory`` in bytes, ``uuid`` as nvidia-smi writes it."""

    index: int
    name: str
    uuid: str
    compute_capability: tuple[int, int]
    total_memory: int
    multiprocessors: int


@dataclass(frozen=True, slots=True)
class DriverState:
    """What was found.

    ``error`` is a sentence with a remedy, None where a GPU can be used; ``problem`` and ``remedy`` are its two halves.
    ``version`` is the newest CUDA version that the driver serves, None where it did not say. ``code`` is the CUresult
    of the call that failed, 0 if none did. ``is_installed`` is whether the driver's library loads.
    """

    error: str | None
    version: tuple[int, int] | None
    devices: tuple[DeviceFacts, ...]
    problem: str = ""
    remedy: str = ""
    code: int = 0
    is_installed: bool = True


class _CudaError(Exception):
    def __init__(self, function: str, code: int, name: str) -> None:
        super().__init__(f"{function} failed with error {code}{f' ({name})' if name else ''}")
        self.code = code


def probe(library: str | None = None) -> DriverState:
    """Ask the driver of this machine (or the library at a path) for its version and GPUs; never raises.

    Starts CUDA in this process without a context: a process forked later cannot use CUDA any more.
    """
    try:
        cuda = load_library(library or CUDA_LIBRARY)
    except OSError as error:
        problem = f"the NVIDIA driver is not usable: {library or CUDA_LIBRARY} does not load ({error})"
        remedy = "install the NVIDIA driver; start a container with --gpus all"
        return _failed(problem, remedy, is_installed=False)
    version = None
    try:
        version = _version(cuda)
        _call(cuda, "cuInit", ctypes.c_uint(0))
        devices = tuple(_device(cuda, index) for index in range(_count(cuda)))
    except _CudaError as error:
        meaning, remedy = _explain(error.code)
        return _failed(f"{error}{f': {meaning}' if meaning else ''}", remedy, version=version, code=error.code)
    except AttributeError as error:
        problem = f"{library or CUDA_LIBRARY} is no NVIDIA driver, or one that is too old: {error}"
        return _failed(problem, "reinstall the NVIDIA driver", version=version)
    if not devices:
        meaning, remedy = _explain(_NO_DEVICE)
        return _failed(f"the NVIDIA driver counts no GPU: {meaning}", remedy, version=version)
    return DriverState(None, version, devices)


def load_library(name: str) -> Any:
    """Load a shared library by its name; raises OSError where it is not to be found."""
    return ctypes.CDLL(name)


def _failed(
    problem: str, remedy: str, *, version: tuple[int, int] | None = None, code: int = 0, is_installed: bool = True
) -> DriverState:
    return DriverState(f"{problem}; {remedy}", version, (), problem, remedy, code, is_installed)


def _explain(code: int) -> tuple[str, str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if code == _NO_DEVICE and visible is not None:
        if visible.strip() in ("", "-1", "none", "void", "NoDevFiles"):
            return f"CUDA_VISIBLE_DEVICES={visible!r} hides every GPU", "unset CUDA_VISIBLE_DEVICES"
        meaning = f"CUDA_VISIBLE_DEVICES={visible!r} leaves none of this machine's GPUs"
        return meaning, "unset it, or name GPUs that nvidia-smi -L lists; start a container with --gpus all"
    return _KNOWN.get(code, _UNKNOWN)


def _call(cuda: Any, function: str, *arguments: Any) -> None:
    code = int(getattr(cuda, function)(*arguments))
    if code:
        raise _CudaError(function, code, _error_name(cuda, code))


def _error_name(cuda: Any, code: int) -> str:
    name = ctypes.c_char_p()
    try:
        known = cuda.cuGetErrorName(ctypes.c_int(code), ctypes.byref(name)) == 0
    except AttributeError:
        return ""
    return name.value.decode(errors="replace") if known and name.value else ""


def _version(cuda: Any) -> tuple[int, int]:
    number = ctypes.c_int()
    _call(cuda, "cuDriverGetVersion", ctypes.byref(number))
    return number.value // 1000, number.value % 1000 // 10


def _count(cuda: Any) -> int:
    count = ctypes.c_int()
    _call(cuda, "cuDeviceGetCount", ctypes.byref(count))
    return count.value


def _device(cuda: Any, index: int) -> DeviceFacts:
    device, memory, text = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(256)
    _call(cuda, "cuDeviceGet", ctypes.byref(device), ctypes.c_int(index))
    _call(cuda, "cuDeviceGetName", text, ctypes.c_int(len(text)), device)
    _call(cuda, "cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    name = text.value.decode(errors="replace")
    capability = _attribute(cuda, _CAPABILITY_MAJOR, device), _attribute(cuda, _CAPABILITY_MINOR, device)
    processors = _attribute(cuda, _MULTIPROCESSORS, device)
    return DeviceFacts(index, name, _uuid(cuda, name, device), capability, memory.value, processors)


def _uuid(cuda: Any, name: str, device: ctypes.c_int) -> str:
    raw = ctypes.create_string_buffer(16)
    # Only the second version tells the parts of a partitioned GPU apart; drivers before 11.4 do not have it.
    function = "cuDeviceGetUuid_v2" if hasattr(cuda, "cuDeviceGetUuid_v2") else "cuDeviceGetUuid"
    _call(cuda, function, raw, device)
    return f"{'MIG' if ' MIG ' in name else 'GPU'}-{uuid.UUID(bytes=raw.raw)}"


def _attribute(cuda: Any, attribute: int, device: ctypes.c_int) -> int:
    value = ctypes.c_int()
    _call(cuda, "cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(attribute), device)
    return value.value
