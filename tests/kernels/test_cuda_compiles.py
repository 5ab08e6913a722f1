"""Every CUDA source compiles for every supported architecture, by nvcc and by NVRTC, and no kernel spills registers."""

import ctypes
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_host import CUDA_SOURCES, load

from retinastream.errors import MissingPackageError
from retinastream.kernels import cuda_launch
from retinastream.kernels.cuda_launch import KERNELS, CudaKernels, digest, source_text

_SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "kernel_resources.py"
_SPEC = importlib.util.spec_from_file_location("kernel_resources", _SCRIPT)
kernel_resources = importlib.util.module_from_spec(_SPEC)
sys.modules["kernel_resources"] = kernel_resources
_SPEC.loader.exec_module(kernel_resources)

SOURCES = sorted(CUDA_SOURCES.glob("*.cu"))
REPORT = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'first' for 'sm_90a'
ptxas info    : Function properties for first
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 27264 bytes smem, 1340 bytes cmem[0]
ptxas info    : Compiling entry function 'second' for 'sm_75'
ptxas info    : Function properties for second
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 27 registers, used 0 barriers, 612 bytes cmem[0]
"""


def test_the_compilers_report_is_read():
    first, second = kernel_resources.parse_report(REPORT, "a.cu")
    assert first == kernel_resources.Resources("a.cu", "first", 90, 64, 27264, 16, 20)
    assert second == kernel_resources.Resources("a.cu", "second", 75, 27, 0, 0, 0)
    with pytest.raises(ValueError, match="did not tell the resources of second"):
        kernel_resources.parse_report(REPORT[: REPORT.index("Used 27")], "a.cu")


def test_the_table_has_a_row_per_kernel_and_replaces_the_one_before():
    table = kernel_resources.table(kernel_resources.parse_report(REPORT, "a.cu"))
    assert table.splitlines()[2:] == [
        "| `first` | `a.cu` | 27264 | - | 64 | 16 | 20 |",
        "| `second` | `a.cu` | 0 | 27 | - | 0 | 0 |",
    ]
    page = kernel_resources.replace_between_marks("# Kernels\n\nText.\n", table)
    assert page.startswith("# Kernels\n\nText.\n\n<!--")
    again = kernel_resources.replace_between_marks(page + "After.\n", "new")
    assert "first" not in again
    assert again.endswith("new\n<!-- kernel resources: end -->\nAfter.\n")


def test_every_source_is_known_to_the_launcher():
    assert sorted(KERNELS) == [path.name for path in SOURCES]
    names = [name for kernels in KERNELS.values() for name in kernels]
    assert len(names) == len(set(names))


def test_a_changed_header_changes_the_text_that_cupy_goes_by(tmp_path, monkeypatch):
    for path in [*CUDA_SOURCES.glob("*.cu"), *CUDA_SOURCES.glob("*.cuh")]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(cuda_launch, "SOURCES", tmp_path)
    digest.cache_clear()
    before = source_text("nms.cu")
    assert before.endswith((CUDA_SOURCES / "nms.cu").read_text())
    (tmp_path / "sort.cuh").write_text("// another")
    digest.cache_clear()
    assert source_text("nms.cu") != before
    digest.cache_clear()


def test_without_cupy_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(MissingPackageError, match=r"CuPy is not installed.*retinastream\[gpu-cu13\]"):
        CudaKernels()


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_nvcc_compiles_for_every_architecture_without_spills(source):
    nvcc = kernel_resources.find_nvcc()
    if nvcc is None:
        pytest.skip("nvcc is not installed; NOT TESTED: that the kernels compile for a GPU")
    found = kernel_resources.compile_source(nvcc, source)
    assert {r.architecture for r in found} == set(kernel_resources.ARCHITECTURES)
    kernels = {r.kernel for r in found}
    assert kernels == set(KERNELS[source.name])
    assert [name for name in kernels if not load(source.name).has(name)] == []  # each runs on the host too
    spilling = [r for r in found if r.spills]
    assert not spilling, "\n".join(map(str, spilling))


def _nvrtc():
    """NVRTC as CuPy would find it: of the wheel nvidia-cuda-nvrtc, of a toolkit, or named by the environment."""
    named = os.environ.get("RETINASTREAM_TEST_NVRTC")
    wheels = [Path(p).glob("nvidia/c*/lib/libnvrtc.so.*") for p in sys.path if p]
    for candidate in [named, *(str(path) for found in wheels for path in found), "libnvrtc.so.13", "libnvrtc.so.12"]:
        if candidate:
            try:
                return ctypes.CDLL(candidate)
            except OSError:
                continue
    return pytest.skip("NVRTC is not installed (pip install nvidia-cuda-nvrtc); NOT TESTED: that CuPy can compile")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", kernel_resources.ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_nvrtc_compiles_for_every_architecture(source, architecture):
    nvrtc = _nvrtc()
    headers = _cuda_headers()
    program = ctypes.c_void_p()
    text = source.read_bytes()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, source.name.encode(), 0, None, None) == 0
    options = [f"--gpu-architecture=sm_{architecture}", *kernel_resources.OPTIONS, f"-I{headers}"]
    values = (ctypes.c_char_p * len(options))(*[v.encode() for v in options])
    done = nvrtc.nvrtcCompileProgram(program, len(options), values)
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    assert done == 0, log.value.decode()
    assert nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)) == 0
    assert size.value > 1000
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _cuda_headers():
    folders = [folder for place in sys.path if place for folder in Path(place).glob("nvidia/c*/include")]
    if nvcc := kernel_resources.find_nvcc():
        plan = subprocess.run([nvcc, "--dryrun", "-c", str(SOURCES[0])], capture_output=True, text=True, check=False)
        folders += [Path(found) for found in re.findall(r'INCLUDES="-I([^"]+)"', plan.stderr)]
    for folder in folders:
        if (folder / "cuda_fp16.h").is_file():
            return folder
    return pytest.skip("cuda_fp16.h is not installed (pip install nvidia-cuda-runtime)")
