"""A CUDA GPU driven through CuPy: the ``Device`` that the pipeline and the engines use on real hardware."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from retinastream.errors import DeviceMemoryError, SetupError, UsageError
from retinastream.kernels.cuda_driver import DeviceFacts, DriverState, probe
from retinastream.kernels.cuda_launch import CudaKernels
from retinastream.kernels.cupy_package import load_cupy
from retinastream.kernels.cupy_streams import CuPyEvent, CuPyStream, own_stream, wrap_stream
from retinastream.kernels.device import Stream

OLDEST_CAPABILITY = (7, 5)

_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
_TOO_LITTLE = "take a smaller batch, fewer streams or a smaller size, or end what else uses this GPU (nvidia-smi)"


def open_device(text: str) -> CuPyDevice:
    """Open the device called "cuda" (the first) or "cuda:N"; UsageError for another text or a number that is not there.

    SetupError says what this machine lacks.
    """
    match = re.fullmatch(r"cuda(?::(\d{1,4}))?", text)
    if match is None:
        raise UsageError(f"device {text!r} was given; allowed here are cuda and cuda:N, as in cuda:0")
    return CuPyDevice(int(match[1] or 0))


class CuPyDevice:
    """One NVIDIA GPU. Arrays are CuPy's, from its memory pool.

    The pool gives the memory of a dropped array to the next one for the same stream at once, whatever is queued still:
    keep an array until the work that uses it on any other stream has finished.
    """

    def __init__(self, index: int = 0) -> None:
        state = probe()
        self.facts = _choose(state, index)
        self.index = index
        self.label = f"cuda:{index}"
        self.name = self.facts.name
        self._cupy = load_cupy(state.version)
        self._runtime = self._cupy.cuda.runtime
        try:
            with self.current():
                self._runtime.memGetInfo()  # the first call that needs a context
                self.kernels = CudaKernels(self._cupy)
        except RuntimeError as error:
            raise SetupError(
                f"{self.label} ({self.name}) cannot be used: {error}; look with nvidia-smi whether its memory is "
                "full or a process has it in exclusive mode, or run with --device cpu"
            ) from error

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the device current on this thread for a while; can be nested."""
        with self._cupy.cuda.Device(self.index):
            yield

    def stream(self) -> CuPyStream:
        """Create a non-blocking stream."""
        return CuPyStream(self._cupy, self._cupy.cuda.Stream(non_blocking=True))

    def foreign_stream(self, handle: int) -> CuPyStream:
        """Wrap a stream of somebody else, who keeps it alive.

        0 or 1 is the legacy default stream, 2 the per-thread one, which means that of the thread which queues.
        """
        return wrap_stream(self._cupy, handle)

    def event(self) -> CuPyEvent:
        """Create an event."""
        return CuPyEvent(self._cupy)

    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike, stream: Stream | None = None) -> Any:
        """Allocate an array, C-contiguous and 256-byte aligned, from what CuPy's pool keeps for ``stream``.

        Without one, from what it keeps for the current CuPy stream, whose queued work may still write to it.
        """
        with nullcontext() if stream is None else own_stream(stream).cupy:
            return self._empty(tuple(shape), dtype)

    def _empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Any:
        out_of_memory = self._cupy.cuda.memory.OutOfMemoryError
        try:
            return self._cupy.empty(shape, dtype)
        except out_of_memory:
            self.release_unused()
        try:
            return self._cupy.empty(shape, dtype)
        except out_of_memory as error:
            free, total = self.memory()
            asked = math.prod(shape) * np.dtype(dtype).itemsize
            raise DeviceMemoryError(
                f"{_megabytes(asked)} were asked for on {self.label} ({self.name}), and {_megabytes(free)} of "
                f"{_megabytes(total)} are free; {_TOO_LITTLE}"
            ) from error

    def release_unused(self) -> None:
        """Give back what CuPy keeps for later, also for streams that are no more, and torch, which has its own pool."""
        self._cupy.get_default_memory_pool().free_all_blocks()
        torch: Any = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            with suppress(RuntimeError):  # while another thread records a graph, it refuses
                torch.cuda.empty_cache()

    def empty_pinned(self, shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Allocate a page-locked array in host memory."""
        kind, count = np.dtype(dtype), math.prod(shape)
        size = max(1, count * kind.itemsize)
        try:
            memory = self._cupy.cuda.alloc_pinned_memory(size)
        except self._runtime.CUDARuntimeError as error:
            if error.status != _OUT_OF_MEMORY:
                raise
            raise DeviceMemoryError(
                f"{_megabytes(size)} of page-locked host memory were asked for and are not there: {error}; take a "
                "smaller batch or fewer streams, or give the process or container more memory"
            ) from error
        # CuPy rounds sizes up, so the buffer can be longer than the array.
        return np.frombuffer(memory, np.uint8, count * kind.itemsize).view(kind).reshape(tuple(shape))

    def copy_in(self, target: Any, source: npt.NDArray[Any], stream: Stream) -> None:
        """Queue a copy of a pinned array to the device."""
        _check_alike(target, source)
        if source.nbytes:
            kind = self._runtime.memcpyHostToDevice
            self._runtime.memcpyAsync(_address(target), source.ctypes.data, source.nbytes, kind, stream.handle)

    def copy_out(self, target: npt.NDArray[Any], source: Any, stream: Stream) -> None:
        """Queue a copy of a device array to a pinned one."""
        _check_alike(source, target)
        if target.nbytes:
            kind = self._runtime.memcpyDeviceToHost
            self._runtime.memcpyAsync(target.ctypes.data, _address(source), target.nbytes, kind, stream.handle)

    def clear(self, target: Any, stream: Stream) -> None:
        """Queue setting all bytes of a device array to zero."""
        if not target.flags.c_contiguous:
            raise UsageError(f"an array {target.shape} with gaps was given; only C-contiguous ones can be cleared")
        if target.nbytes:
            self._runtime.memsetAsync(_address(target), 0, target.nbytes, stream.handle)

    def launch(
        self,
        stream: Stream,
        name: str,
        grid: tuple[int, ...],
        block: int | tuple[int, ...],
        arguments: Sequence[Any],
        *,
        shared: int = 0,
    ) -> None:
        """Queue a kernel of ``kernels/cuda``; compiles it where that has not been done."""
        with own_stream(stream).cupy:
            self.kernels(name, grid, block, arguments, shared=shared)

    def prepare_kernels(self) -> None:
        """Compile all kernels, or load them from CuPy's cache on disk."""
        self.kernels.compile_all()

    def capture(self, stream: Stream, queue: Callable[[], None]) -> Callable[[], None]:
        """Record what ``queue`` puts on the stream as a CUDA graph; the arrays in it must outlive the graph.

        Other threads may go on using the device meanwhile. All kernels are compiled before, as that cannot be captured.
        """
        self.prepare_kernels()
        return own_stream(stream).capture(queue)

    def memory(self) -> tuple[int, int]:
        """Return free and total bytes of device memory; what CuPy's pool keeps unused counts as free."""
        with self.current():
            free, total = self._runtime.memGetInfo()
            return int(free) + int(self._cupy.get_default_memory_pool().free_bytes()), int(total)

    def device_of(self, array: Any) -> int:
        """Return the index of the device that holds an array's memory, -1 for host memory."""
        if isinstance(array, self._cupy.ndarray):
            return int(array.data.device_id)
        if getattr(array, "__cuda_array_interface__", None) is None:
            return -1
        found = self._runtime.pointerGetAttributes(_address(array))
        on_device = found.type in (self._runtime.memoryTypeDevice, self._runtime.memoryTypeManaged)
        return int(found.device) if on_device else -1


def _choose(state: DriverState, index: int) -> DeviceFacts:
    if state.error is not None:
        raise SetupError(f"{state.error}; or run with --device cpu")
    if not 0 <= index < len(state.devices):
        listed = ", ".join(f"cuda:{d.index} ({d.name})" for d in state.devices)
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        hidden = f"; CUDA_VISIBLE_DEVICES={visible!r} may hide others" if visible is not None else ""
        raise UsageError(f"cuda:{index} does not exist; this process sees {listed}{hidden}")
    facts = state.devices[index]
    if facts.compute_capability < OLDEST_CAPABILITY:
        has, needs = (f"{major}.{minor}" for major, minor in (facts.compute_capability, OLDEST_CAPABILITY))
        raise SetupError(
            f"cuda:{index} ({facts.name}) has compute capability {has}, and the kernels need {needs} or newer "
            "(Turing, 2018); choose another GPU, or run with --device cpu"
        )
    return facts


def _address(array: Any) -> int:
    memory: Any = getattr(array, "data", None)
    if hasattr(memory, "ptr"):
        return int(memory.ptr)  # CuPy's, without the detour through a dictionary
    return int(array.__cuda_array_interface__["data"][0])


def _check_alike(device: Any, host: npt.NDArray[Any]) -> None:
    if not isinstance(host, np.ndarray) or device.shape != host.shape or device.dtype != host.dtype:
        raise UsageError(
            f"a copy between {device.dtype} {device.shape} on the device and "
            f"{getattr(host, 'dtype', type(host).__name__)} {getattr(host, 'shape', '')} on the host was asked for; "
            "both must be alike"
        )
    if not (device.flags.c_contiguous and host.flags.c_contiguous):
        raise UsageError(f"a copy of an array {host.shape} with gaps was asked for; both must be C-contiguous")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
