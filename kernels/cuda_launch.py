"""The CUDA kernels on a GPU: compiled once by CuPy for the device at hand, and kept by it on disk.

CuPy's cache goes by the text that it is given and does not look into included headers, so that text carries a digest
of all sources: a new version of this package never runs the kernels of an old one.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from retinastream.errors import MissingPackageError, SetupError, UsageError

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
_SOURCE_OF = {kernel: source for source, kernels in KERNELS.items() for kernel in kernels}
_STANDARD = "-std=c++17"


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
    """The kernels on the current CUDA device, as a ``Launch``; queued on the current CuPy stream.

    CuPy arrays become pointers, NumPy scalars and arrays of one element (structures) go by value. SetupError where
    CuPy or its compiler is missing or the device cannot run the kernels.
    """

    def __init__(self) -> None:
        try:
            import cupy
        except ImportError as error:
            raise MissingPackageError(
                "CuPy is not installed, and the CUDA kernels run through it; "
                "pip install 'retinastream[gpu-cu13]', or [gpu-cu12] with a driver for CUDA 12"
            ) from error
        self._cupy = cupy
        self.options = (_STANDARD, f"-I{SOURCES}")
        self._modules: dict[str, Any] = {}
        self._functions: dict[str, Any] = {}
        try:
            self.architecture = f"sm_{cupy.cuda.Device().compute_capability}"
        except cupy.cuda.runtime.CUDARuntimeError as error:
            raise SetupError(f"there is no usable CUDA device: {error}; run with --device cpu") from error

    def __call__(
        self,
        name: str,
        grid: tuple[int, ...],
        block: int | tuple[int, ...],
        arguments: Sequence[Any],
        *,
        shared: int = 0,
    ) -> None:
        """Queue kernel ``name`` with ``shared`` bytes of dynamic shared memory."""
        if name not in self._functions:
            self._functions[name] = self._function(name)
        threads = (block,) if isinstance(block, int) else block
        self._functions[name](grid, threads, tuple(arguments), shared_mem=shared)

    def compile_all(self) -> None:
        """Compile every source now rather than at its first launch: a CUDA graph must not capture that."""
        for kernels in KERNELS.values():
            for name in kernels:
                self._functions.setdefault(name, self._function(name))

    def _function(self, name: str) -> Any:
        source = _SOURCE_OF.get(name)
        if source is None:
            raise UsageError(f"there is no CUDA kernel {name!r}; known are {', '.join(sorted(_SOURCE_OF))}")
        if source not in self._modules:
            logger.info("CUDA kernels of %s for %s, options %s", source, self.architecture, " ".join(self.options))
            module = self._cupy.RawModule(code=source_text(source), options=self.options, backend="nvrtc")
            try:
                module.compile()
            except self._cupy.cuda.compiler.CompileException as error:
                raise SetupError(
                    f"{source} does not compile for {self.architecture}: {error}; check that the CUDA major version of "
                    "CuPy is the driver's, and that its headers are there (pip install 'retinastream[gpu-cu13]')"
                ) from error
            self._modules[source] = module
        return self._modules[source].get_function(name)
