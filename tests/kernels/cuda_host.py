"""Compiles CUDA sources as host C++ and calls their kernels with NumPy arrays, plain or under a sanitizer.

kernels = load("decode.cu")
kernels.launch("find_candidates", grid=(4, 2), block=256, arguments=[structure, array, np.int32(3)])

in_sanitizer("asan", function, source="decode.cu", rows=3)   # function(kernels, rows=3) in a process of its own
"""

import ctypes
import functools
import hashlib
import importlib
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

CUDA_SOURCES = Path(__file__).resolve().parents[2] / "kernels" / "cuda"
COMPILER = os.environ.get("CXX") or "g++"
POISON = (0xA5, 0x5A)

_FLAGS = [
    *("-std=c++17", "-shared", "-fPIC", "-g1", "-pthread", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"),
    "-Wno-sign-compare",  # threadIdx.x < count is how kernels are written
    # no fused multiply-add unless a kernel asks for it; loads of another type through a pointer as nvcc allows them
    *("-ffp-contract=off", "-fno-strict-aliasing"),
    # each library has its own state, also where several are loaded
    *("-fvisibility=hidden", "-fno-gnu-unique"),
]
FLAVOURS = {
    "plain": ["-O2"],
    "ucontext": ["-O2", "-DCUDA_ON_HOST_UCONTEXT"],
    "asan": [
        "-O1",
        "-fno-omit-frame-pointer",
        "-fsanitize=address,undefined",
        "-fsanitize-sections=cuda_shared",
        "-fno-sanitize-recover=undefined",
    ],
    "tsan": ["-O1", "-fsanitize=thread", "-DCUDA_ON_HOST_THREADS"],
}
_RUNTIMES = {"asan": "libasan.so", "tsan": "libtsan.so"}


class LaunchError(Exception):
    """A kernel could not be launched, or waited for ever, trapped or misused a warp function."""


class KernelLibrary:
    """The kernels of one source, called as cuLaunchKernel calls them."""

    def __init__(self, path):
        self._library = ctypes.CDLL(str(path))
        self._library.cuda_on_host_failure.restype = ctypes.c_char_p

    def has(self, name):
        """Whether the source has this kernel."""
        return hasattr(self._library, f"{name}_launch")

    def check_arguments(self, name, values):
        """LaunchError unless these NumPy values have the sizes of the kernel's arguments, in their order."""
        sizes = (ctypes.c_size_t * 64)()
        expected = list(sizes[: self._library[f"{name}_arguments"](sizes)])
        if (given := [value.nbytes for value in values]) != expected:
            raise LaunchError(f"{name} takes arguments of {expected} bytes, not {given}")

    def launch(self, name, grid, block, arguments, *, shared=0, seed=0):
        """Run a kernel: arrays are passed as pointers, NumPy scalars (structures too) by value.

        ``grid`` and ``block`` are numbers or up to three of them. With a ``seed`` other than 0, blocks and threads
        start in a random order. LaunchError says what went wrong.
        """
        values = [_by_value(argument) for argument in arguments]
        self.check_arguments(name, values)
        addresses = (ctypes.c_void_p * (len(values) + 1))(*[value.ctypes.data for value in values])
        done = self._library[f"{name}_launch"](
            (ctypes.c_uint * 3)(*_three(grid)),
            (ctypes.c_uint * 3)(*_three(block)),
            ctypes.c_size_t(shared),
            addresses,
            ctypes.c_uint(seed),
        )
        if not done:
            raise LaunchError(f"{name}: {self._library.cuda_on_host_failure().decode()}")


def _three(size):
    size = (size,) if np.isscalar(size) else tuple(size)
    return [int(v) for v in (*size, 1, 1)][:3]


def _by_value(argument):
    if isinstance(argument, np.ndarray) and argument.ndim > 0:
        return np.array([address_of(argument)], np.uint64)
    if isinstance(argument, np.generic | np.ndarray):
        return np.array([argument])
    raise TypeError(f"{argument!r} has no size: pass a NumPy array or scalar")


def address_of(array):
    """The address of an array's first element, for a pointer within a structure; keep the array alive."""
    if not array.flags.c_contiguous:
        raise ValueError("a kernel gets C-contiguous arrays only; pass the base array and a pitch")
    return array.ctypes.data


@functools.cache
def load(source, flavour="plain"):
    """Compile a source of kernels/cuda, or any other path, and load it."""
    return KernelLibrary(compile_for_host(source, flavour))


def compile_for_host(source, flavour="plain"):
    """Compile one source, or find the result of before by a hash of all that it is made of; returns its path."""
    if shutil.which(COMPILER) is None:
        pytest.skip(f"{COMPILER} is not installed, and CUDA sources are compiled as host C++ with it")
    source = CUDA_SOURCES / source
    flags = [*_FLAGS, *FLAVOURS[flavour], f"-I{CUDA_SOURCES}"]
    digest = hashlib.sha256("\0".join([_version(), *flags, source.name]).encode())
    folders = {source.parent, CUDA_SOURCES}
    headers = {path for folder in folders for kind in ("*.cuh", "*.h") for path in folder.rglob(kind)}
    for part in [source, *sorted(headers)]:
        digest.update(part.read_bytes())
    folder = Path(tempfile.gettempdir()) / f"retinastream-cuda-on-host-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    built = folder / f"{source.stem}-{flavour}-{digest.hexdigest()[:16]}.so"
    if not built.is_file():
        part = built.with_suffix(f".{os.getpid()}")
        command = [COMPILER, *flags, "-x", "c++", str(source), "-o", str(part)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
        part.replace(built)
    return built


@functools.cache
def _version():
    return subprocess.run([COMPILER, "--version"], capture_output=True, text=True, check=True).stdout


@functools.cache
def _compilers_file(name):
    command = [COMPILER, f"-print-file-name={name}"]
    path = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    if not path.is_file():
        pytest.skip(f"{name} is not installed with {COMPILER}")
    return str(path.resolve())


class SanitizerReport(AssertionError):  # noqa: N818  (what the tools call it)
    """A sanitizer found a fault; its text."""


def in_sanitizer(flavour, function, source, **arguments):
    """Call ``function(kernels, **arguments)`` in a process under a sanitizer ("asan" with UBSan, or "tsan").

    The function is one of a module's top level; arguments and result are pickled. SanitizerReport if it reports.
    """
    library = compile_for_host(source, flavour)
    # libstdc++ too: the runtime looks for its __cxa_throw when it starts
    preloaded = [_compilers_file(name) for name in (_RUNTIMES[flavour], "libstdc++.so")]
    with tempfile.TemporaryDirectory() as folder:
        task, answer = Path(folder, "task"), Path(folder, "answer")
        task.write_bytes(pickle.dumps((str(library), function.__module__, function.__name__, arguments)))
        done = subprocess.run(
            [sys.executable, "-c", "import sys, cuda_host; cuda_host.child(*sys.argv[1:])", str(task), str(answer)],
            env=os.environ
            | {
                "LD_PRELOAD": " ".join(preloaded),
                "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *(p for p in sys.path if p)]),
                "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:exitcode=66",
                "UBSAN_OPTIONS": "print_stacktrace=1",
                "TSAN_OPTIONS": "halt_on_error=1:exitcode=66:report_signal_unsafe=0",
                "PYTHONMALLOC": "malloc",
                "OPENBLAS_NUM_THREADS": "1",
                "OMP_NUM_THREADS": "1",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise SanitizerReport(f"exit status {done.returncode}\n{done.stderr}")
        return pickle.loads(answer.read_bytes())


def child(task, answer):
    """Do what in_sanitizer asked for, in the process that it started."""
    library, module, name, arguments = pickle.loads(Path(task).read_bytes())
    function = getattr(importlib.import_module(module), name)
    Path(answer).write_bytes(pickle.dumps(function(KernelLibrary(library), **arguments)))


def check_all_written(launch, *outputs):
    """Call ``launch()`` twice over two patterns: a byte that differs was not written, or not always the same."""
    results = []
    for pattern in POISON:
        for output in outputs:
            output.view(np.uint8)[...] = pattern
        launch()
        results.append([output.view(np.uint8).copy() for output in outputs])
    for position, (first, second) in enumerate(zip(*results, strict=True)):
        missed = np.flatnonzero(first.reshape(-1) != second.reshape(-1))
        assert len(missed) == 0, f"output {position}: {len(missed)} bytes were not written, the first at {missed[0]}"
