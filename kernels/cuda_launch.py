"""The CUDA kernels on a GPU: compiled once by CuPy for the device at hand, and kept by it on disk.

CuPy's cache goes by the text that it is given and does not look into included headers, so that text carries a digest
of all sources: a new version of this package never runs the kernels of an old one.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from retinastream.errors import SetupError, UsageError

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).resolve().parent / "cuda"
KERNELS = {
    "preprocess.cu": ("preprocess_f32", "preprocess_f16", "preprocess_i8", "describe_layout"),
    "decode.cu": ("find_fused_float", "find_fused_half", "find_classic_float", "find_classic_half"),
    "nms.cu": ("faces_of_few", "order_candidates", "decode_candidates", "overlap_candidates", "faces_of_many"),
    "align.cu": ("align_u8", "align_f32", "align_f16"),
    "redact.cu": ("find_regions", "cell_means", "redact"),
    "draw.cu": ("find_marks", "draw"),
}
# What the package gives to the compiler; CuPy adds the include folders of CUDA, -ftz=true and the architecture.
OPTIONS = ("-std=c++17", f"-I{SOURCES}")
_SOURCE_OF = {kernel: source for source, kernels in KERNELS.items() for kernel in kernels}


@cache
def digest() -> str:
    """Return the SHA-256 of all CUDA sources and headers, in hexadecimal digits."""
    total = hashlib.sha256()
    for path in sorted([*SOURCES.glob("*.cu"), *SOURCES.glob("*.cuh")]):
        total.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()


def source_text(source: str) -> str:
    """Return the text of one source as it is given to CuPy."""
    return f"// all sources: {digest()}\n{(SOURCES / source).read_text()}"


class CudaKernels:
    """The kernels on the CUDA device that is current, as a ``Launch``; queued on the current CuPy stream.

    The device must be current at every call. SetupError where CuPy's compiler is missing or the device cannot run the
    kernels.
    """

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self.options = OPTIONS
        self.architecture = f"sm_{cupy.cuda.Device().compute_capability}"
        self._modules: dict[str, Any] = {}
        self._functions: dict[str, Any] = {}
        self._compiling = threading.Lock()

    def __call__(
        self,
        name: str,
        grid: tuple[int, ...],
        block: int | tuple[int, ...],
        arguments: Sequence[Any],
        *,
        shared: int = 0,
    ) -> None:
        """Queue kernel ``name`` with ``shared`` bytes of dynamic shared memory.

        Device arrays, C-contiguous, become pointers; NumPy scalars, structures and arrays without a dimension go by
        value. TypeError for anything else: a number of Python has no size that a kernel could count on.
        """
        function = self._functions.get(name) or self._function(name)
        threads = (block,) if isinstance(block, int) else block
        function(grid, threads, tuple(map(self._argument, arguments)), shared_mem=shared)

    def compile_all(self) -> None:
        """Compile every source now rather than at its first launch: a CUDA graph must not capture that."""
        for name in _SOURCE_OF:
            self._function(name)

    def _argument(self, value: Any) -> Any:
        if isinstance(value, self._cupy.ndarray):
            if not value.flags.c_contiguous:
                raise TypeError(f"a kernel was given an array {value.shape} with gaps; pass its base and a pitch")
            return value
        if isinstance(value, np.ndarray) and value.ndim:
            raise TypeError(f"a kernel was given an array {value.shape} in host memory; copy it to the device first")
        if isinstance(value, np.void):
            return np.asarray(value)
        if isinstance(value, np.generic | np.ndarray):
            return value
        interface = getattr(value, "__cuda_array_interface__", None)
        if interface is None:
            raise TypeError(f"a kernel was given {value!r}; expected a device array, NumPy scalar or structure")
        return np.uint64(interface["data"][0])

    def _function(self, name: str) -> Any:
        source = _SOURCE_OF.get(name)
        if source is None:
            raise UsageError(f"there is no CUDA kernel {name!r}; known are {', '.join(sorted(_SOURCE_OF))}")
        with self._compiling:
            if source not in self._modules:
                self._modules[source] = self._compile(source)
            if name not in self._functions:
                self._functions[name] = self._modules[source].get_function(name)
            return self._functions[name]

    def _compile(self, source: str) -> Any:
        logger.info("CUDA kernels of %s for %s, options %s", source, self.architecture, " ".join(self.options))
        module = self._cupy.RawModule(code=source_text(source), options=self.options, backend="nvrtc")
        try:
            module.compile()
        except (self._cupy.cuda.compiler.CompileException, RuntimeError) as error:
            raise SetupError(
                f"{source} does not compile for {self.architecture}: {str(error).strip()[:2000]}; check that CuPy came "
                "with its compiler and headers (pip install 'retinastream[gpu-cu13]', or [gpu-cu12] with a driver for "
                "CUDA 12), and that CUDA_PATH, if set, is of the same CUDA version"
            ) from error
        except OSError as error:
            raise SetupError(
                f"CuPy cannot keep the compiled kernels: {error}; set CUPY_CACHE_DIR to a folder that can be written, "
                "or CUPY_CACHE_IN_MEMORY=1"
            ) from error
        return module
