"""Every CUDA source compiles for every supported architecture, by nvcc and by NVRTC, and no kernel spills registers."""

import ctypes
import functools
import importlib.util
import os
import re
import sys
from pathlib import Path

import pytest
from cuda_host import CUDA_SOURCES, load

from retinastream.kernels import cuda_launch
from retinastream.kernels.cuda_launch import KERNELS, digest, source_text

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


def _toolkits():
    """Folders with lib/ and include/ as CuPy would find them: of the wheels in dev, of a toolkit, or as set."""
    named = [Path(os.environ[name]) for name in ("RETINASTREAM_TEST_CUDA", "CUDA_PATH") if os.environ.get(name)]
    wheels = [folder for place in sys.path if place for folder in Path(place).glob("nvidia/cu1[3-9]")]
    nvcc = kernel_resources.find_nvcc()
    return [*named, *wheels, *([Path(nvcc).resolve().parents[1]] if nvcc else [])]


@functools.cache
def _nvrtc():
    found = [path for kit in _toolkits() for lib in ("lib", "lib64") for path in kit.glob(f"{lib}/libnvrtc.so.*[0-9]")]
    for candidate in [*map(str, found), "libnvrtc.so.13"]:
        try:
            return ctypes.CDLL(candidate)
        except OSError:
            continue
    return pytest.skip("NVRTC is not installed (pip install nvidia-cuda-nvrtc); NOT TESTED: that CuPy can compile")


def _cuda_headers():
    for kit in _toolkits():
        if (kit / "include" / "cuda_fp16.h").is_file():
            return kit / "include"
    return pytest.skip("cuda_fp16.h is not installed (pip install nvidia-cuda-runtime)")


def compile_by_nvrtc(nvrtc, text, options):
    """Do with a source what CuPy does: its binary, and what the compiler said, which an AssertionError says too."""
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernels.cu", 0, None, None) == 0
    try:
        done = nvrtc.nvrtcCompileProgram(
            program, len(options), (ctypes.c_char_p * len(options))(*[v.encode() for v in options])
        )
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        assert done == 0, log.value.decode()
        assert nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)) == 0
        binary = ctypes.create_string_buffer(size.value)
        assert nvrtc.nvrtcGetCUBIN(program, binary) == 0
        return binary.raw, log.value.decode()
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", kernel_resources.ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_nvrtc_compiles_for_every_architecture_without_spills(source, architecture):
    options = [
        *cuda_launch.OPTIONS,
        f"-I{_cuda_headers()}",
        *("-ftz=true", f"-arch=sm_{architecture}", "--device-as-default-execution-space"),  # as CuPy adds them
        "-Xptxas=-v",
    ]
    binary, log = compile_by_nvrtc(_nvrtc(), source_text(source.name), options)
    assert binary[:4] == b"\x7fELF"
    found = kernel_resources.parse_report(log, source.name)
    assert {r.architecture for r in found} == {architecture}
    assert {r.kernel for r in found} == set(KERNELS[source.name])
    spilling = [r for r in found if r.spills]
    assert not spilling, "\n".join(map(str, spilling))


@pytest.mark.slow
def test_what_the_compiler_refuses_fails_the_test_with_its_words():
    with pytest.raises(AssertionError, match="undefined_thing"):
        compile_by_nvrtc(_nvrtc(), "__global__ void k() { undefined_thing(); }", ["-arch=sm_90"])


@pytest.mark.slow
def test_too_few_registers_are_seen_as_spills():
    options = [*cuda_launch.OPTIONS, f"-I{_cuda_headers()}", "-arch=sm_90", "-Xptxas=-v", "-maxrregcount=24"]
    text = re.sub(r"__launch_bounds__\([^)]*\)", "", source_text("draw.cu"))
    _, log = compile_by_nvrtc(_nvrtc(), text, options)
    assert any(r.spills for r in kernel_resources.parse_report(log, "draw.cu"))
