"""What the torch runtime uses of ``torch.cuda``: arrays without a copy, streams of others, graphs, memory.

torch and CuPy share the primary context of the GPU, so that addresses and streams of one are valid for the other. Each
keeps a pool of memory of its own: when one runs out, both are emptied.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from retinastream.engines.torch_package import load_torch
from retinastream.errors import DeviceMemoryError, SetupError
from retinastream.kernels.device import CaptureError

logger = logging.getLogger(__name__)

# torch's settings of cuDNN are of the process and it records one graph at a time, so that its work is queued under one
# lock. Held for the milliseconds that queueing takes, not for the work itself.
_LOCK = threading.RLock()
# Graphs whose recording failed: torch's allocator may still ask them what belongs to them.
_FAILED_GRAPHS: list[Any] = []

_REMEDY = "take a smaller batch, fewer streams or a smaller size, or end what else uses this GPU (nvidia-smi)"


class TorchCuda:
    """The GPU ``index`` through torch. Raises SetupError where torch cannot use it."""

    def __init__(self, index: int) -> None:
        self._torch = load_torch()
        torch = self._torch
        if torch.version.cuda is None:
            raise SetupError(f"torch {torch.__version__} is a build for CPUs: install one with CUDA, see pytorch.org")
        if not torch.cuda.is_available() or index >= torch.cuda.device_count():
            raise SetupError(
                f"torch {torch.__version__} (CUDA {torch.version.cuda}) does not see cuda:{index}: install one for "
                "this driver, and see CUDA_VISIBLE_DEVICES"
            )
        self.device = torch.device("cuda", index)

    @property
    def has_bfloat16(self) -> bool:
        """Whether the GPU computes with bfloat16 in hardware."""
        with self._torch.cuda.device(self.device):
            return bool(self._torch.cuda.is_bf16_supported(including_emulation=False))

    def tensor(self, array: Any) -> Any:
        """View a device array as a tensor: the same memory, which the tensor keeps alive."""
        tensor = self._torch.as_tensor(array, device=self.device)
        address = int(array.__cuda_array_interface__["data"][0])
        if tensor.data_ptr() != address:
            raise SetupError(
                f"torch {self._torch.__version__} copied an array instead of viewing it ({address:#x} became "
                f"{tensor.data_ptr():#x}); install the newest torch, or use --runtime tensorrt"
            )
        return tensor

    @contextmanager
    def queueing(self, handle: int) -> Iterator[None]:
        """Let torch queue its work on a stream, with the settings of cuDNN that suit fixed shapes, for a while.

        cuDNN measures its ways to convolve at the first use of a shape. In single precision it computes exactly:
        TF32, torch's default, keeps 10 bits of 23. Settings of the process are put back.
        """
        torch = self._torch
        exact = torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=False)
        with _LOCK, exact, torch.inference_mode(), torch.cuda.stream(self._stream(handle)):
            yield

    def capture(self, handle: int, queue: Callable[[], None]) -> Callable[[], None]:
        """Record what ``queue`` puts on a stream, by torch and by others, as a CUDA graph; returns what launches it.

        torch gives it a pool of memory of its own, so that nobody else gets the addresses in it. CaptureError where it
        cannot be recorded; the stream is usable then.
        """
        torch = self._torch
        stream, graph = self._stream(handle), torch.cuda.CUDAGraph()
        # Of this thread alone: what others allocate must neither be forbidden nor end the recording.
        recording = torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local")
        try:
            # The outer context puts torch's current stream back where the inner one fails to end.
            with self.queueing(handle), recording:
                queue()
        except BaseException as error:
            _FAILED_GRAPHS.append(graph)
            if self._lacks_memory(error):
                raise self._memory_error(error) from error
            if not isinstance(error, RuntimeError):
                raise
            raise CaptureError(f"what was queued cannot be captured as a CUDA graph: {_first_line(error)}") from error

        def launch() -> None:
            with torch.cuda.stream(stream):
                graph.replay()

        return launch

    def synchronize(self, handle: int) -> None:
        """Wait for a stream."""
        self._stream(handle).synchronize()

    @contextmanager
    def memory_errors(self) -> Iterator[None]:
        """Turn a lack of device memory into DeviceMemoryError, after emptying the pools of torch and CuPy."""
        torch = self._torch
        try:
            yield
        except torch.cuda.OutOfMemoryError as error:
            if torch.cuda.is_current_stream_capturing():
                raise  # nothing may be freed now; ``capture`` does it when the recording has ended
            raise self._memory_error(error) from error

    def _memory_error(self, error: BaseException) -> DeviceMemoryError:
        self.release_memory()
        free, total = self._torch.cuda.mem_get_info(self.device)
        return DeviceMemoryError(
            f"{self.device} has too little memory for the network: {_first_line(error)}; {free / 1e6:,.0f} of "
            f"{total / 1e6:,.0f} MB are free now; {_REMEDY}"
        )

    def _lacks_memory(self, error: BaseException | None) -> bool:
        """Whether an error, or one that it covers up, is a lack of memory."""
        while error is not None:
            if isinstance(error, self._torch.cuda.OutOfMemoryError):
                return True
            error = error.__cause__ or error.__context__
        return False

    def release_memory(self) -> None:
        """Give back what torch and CuPy keep for later.

        torch before 2.8 refuses while it records a graph, which the lock excludes here, and some versions for ever
        after a recording that failed: what could not be given back is no error by itself.
        """
        try:
            with _LOCK:
                self._torch.cuda.empty_cache()
        except RuntimeError as error:
            logger.info("torch keeps the memory that it does not use: %s", _first_line(error))
        cupy: Any = sys.modules.get("cupy")
        if cupy is not None:
            cupy.get_default_memory_pool().free_all_blocks()

    def _stream(self, handle: int) -> Any:
        return self._torch.cuda.ExternalStream(handle, device=self.device)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
