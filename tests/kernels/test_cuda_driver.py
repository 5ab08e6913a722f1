"""The probe of the NVIDIA driver, against a driver compiled here whose answers the tests choose."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import pytest

from retinastream.kernels.cuda_driver import DeviceFacts, DriverState, probe

# Arguments are checked as cuda.h declares them, so that a wrong type on our side shows.
DRIVER = r"""
#include <stdlib.h>
#include <string.h>
static int answer(const char *name, int otherwise) { const char *v = getenv(name); return v ? atoi(v) : otherwise; }
int cuInit(unsigned flags) { return flags ? 1 : answer("FAKE_INIT", 0); }
int cuDriverGetVersion(int *v) { *v = answer("FAKE_VERSION", 13000); return 0; }
int cuGetErrorName(int e, const char **s) { *s = e == 999 ? "CUDA_ERROR_UNKNOWN" : 0; return e == 999 ? 0 : 1; }
int cuDeviceGetCount(int *n) { *n = answer("FAKE_COUNT", 2); return answer("FAKE_COUNT_ERROR", 0); }
int cuDeviceGet(int *d, int i) { *d = 40 + i; return i < 0 || i > 1; }
int cuDeviceGetName(char *s, int n, int d) {
  if (n < 32) return 1;
  strncpy(s, d == 41 ? "NVIDIA H200 MIG 1g.18gb" : "NVIDIA \xe9", n);
  return d < 40;
}
int cuDeviceGetUuid%s(unsigned char *u, int d) { for (int i = 0; i < 16; ++i) u[i] = 16 * (d - 40) + i; return d < 40; }
int cuDeviceGetAttribute(int *v, int a, int d) {
  *v = a == 75 ? 9 : a == 76 ? d - 40 : a == 16 ? 132 : -1;
  return d < 40;
}
int cuDeviceTotalMem_v2(size_t *b, int d) { *b = (size_t)d << 32; return d < 40; }
"""


def build(folder, text, name="libcuda.so.1"):
    compiler = next((c for c in ("cc", "gcc", "g++") if shutil.which(c)), None)
    if compiler is None:
        pytest.skip("no C compiler to build a driver with")
    source, library = folder / f"{name}.c", folder / name
    source.write_text(text)
    subprocess.run([compiler, "-x", "c", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return str(library)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """A driver with two GPUs, obeying FAKE_INIT, FAKE_VERSION, FAKE_COUNT and FAKE_COUNT_ERROR."""
    return build(tmp_path_factory.mktemp("driver"), DRIVER % "_v2")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    for name in ("CUDA_VISIBLE_DEVICES", "FAKE_INIT", "FAKE_VERSION", "FAKE_COUNT", "FAKE_COUNT_ERROR"):
        monkeypatch.delenv(name, raising=False)


UUIDS = ("00010203-0405-0607-0809-0a0b0c0d0e0f", "10111213-1415-1617-1819-1a1b1c1d1e1f")


def test_all_devices_are_described_as_the_driver_numbers_them(driver):
    state = probe(driver)
    assert state.error is None
    assert state.version == (13, 0)
    assert state.devices == (
        DeviceFacts(0, "NVIDIA \ufffd", f"GPU-{UUIDS[0]}", (9, 0), 40 << 32, 132),
        DeviceFacts(1, "NVIDIA H200 MIG 1g.18gb", f"MIG-{UUIDS[1]}", (9, 1), 41 << 32, 132),
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        state.error = ""


def test_a_driver_of_before_partitioned_gpus_is_asked_in_the_old_way(tmp_path):
    state = probe(build(tmp_path, DRIVER % ""))
    assert state.error is None
    assert [d.uuid[4:] for d in state.devices] == list(UUIDS)


def test_the_minor_version_is_read_too(driver, monkeypatch):
    monkeypatch.setenv("FAKE_VERSION", "12040")
    assert probe(driver).version == (12, 4)


@pytest.mark.parametrize(
    ("code", "problem", "remedy"),
    [
        pytest.param(2, "too little memory", "end other processes", id="out of memory"),
        pytest.param(3, "forked", "spawn", id="forked after CUDA had started"),
        pytest.param(34, "stub", "LD_LIBRARY_PATH", id="the toolkit's stub"),
        pytest.param(35, "too old", "newer NVIDIA driver", id="insufficient driver"),
        pytest.param(46, "taken", "exclusive mode", id="devices unavailable"),
        pytest.param(100, "no GPU is visible", "--gpus all", id="no device"),
        pytest.param(101, "number is not valid", "CUDA_VISIBLE_DEVICES", id="invalid device"),
        pytest.param(304, "operating system", "/dev/nvidia", id="no rights"),
        pytest.param(802, "fabric manager", "nvidia-fabricmanager", id="not ready"),
        pytest.param(803, "kernel module differ", "restart the machine", id="driver mismatch"),
        pytest.param(804, "compatibility package", "remove it", id="compatibility package"),
        pytest.param(805, "MPS", "nvidia-cuda-mps-control", id="MPS"),
        pytest.param(999, "(CUDA_ERROR_UNKNOWN)", "nvidia_uvm", id="unknown"),
        pytest.param(4711, "error 4711", "nvidia-smi", id="a code nobody has heard of"),
    ],
)
def test_every_failure_has_a_cause_and_a_remedy(driver, monkeypatch, code, problem, remedy):
    monkeypatch.setenv("FAKE_INIT", str(code))
    state = probe(driver)
    assert state.code == code
    assert state.devices == ()
    assert state.version == (13, 0)  # known although nothing else works
    assert state.is_installed
    assert f"cuInit failed with error {code}" in state.problem
    assert problem in state.problem
    assert remedy in state.remedy
    assert state.error == f"{state.problem}; {state.remedy}"


@pytest.mark.parametrize(
    ("visible", "problem", "remedy"),
    [
        pytest.param("", "CUDA_VISIBLE_DEVICES='' hides every GPU", "unset CUDA_VISIBLE_DEVICES", id="empty"),
        pytest.param("-1", "CUDA_VISIBLE_DEVICES='-1' hides every GPU", "unset CUDA_VISIBLE_DEVICES", id="-1"),
        pytest.param("7", "CUDA_VISIBLE_DEVICES='7' leaves none", "nvidia-smi -L", id="a GPU that is not there"),
    ],
)
@pytest.mark.parametrize("answer", ["cuInit", "count"])
def test_hidden_gpus_are_told_from_absent_ones(driver, monkeypatch, visible, problem, remedy, answer):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setenv(*{"cuInit": ("FAKE_INIT", "100"), "count": ("FAKE_COUNT", "0")}[answer])
    state = probe(driver)
    assert problem in state.problem
    assert remedy in state.remedy


def test_a_failure_after_the_start_is_told_with_its_function(driver, monkeypatch):
    monkeypatch.setenv("FAKE_COUNT_ERROR", "999")
    assert probe(driver).error.startswith("cuDeviceGetCount failed with error 999 (CUDA_ERROR_UNKNOWN)")


def test_without_a_driver_the_remedy_names_driver_and_container(tmp_path):
    state = probe(str(tmp_path / "libcuda.so.1"))
    assert not state.is_installed
    assert (state.version, state.devices, state.code) == (None, (), 0)
    assert "does not load" in state.problem
    assert "install the NVIDIA driver" in state.remedy
    assert "--gpus all" in state.remedy


def test_an_empty_file_as_containers_without_gpus_have_it_is_no_driver(tmp_path):
    (tmp_path / "libcuda.so.1").touch()
    state = probe(str(tmp_path / "libcuda.so.1"))
    assert not state.is_installed
    assert "file too short" in state.problem


def test_a_library_that_is_no_driver_is_not_called(tmp_path):
    state = probe(build(tmp_path, "int nothing(void) { return 0; }"))
    assert "is no NVIDIA driver" in state.error
    assert "reinstall" in state.error


def test_this_machine_is_probed_by_the_systems_library_without_cupy_or_numpy(driver, tmp_path):
    (tmp_path / "libcuda.so.1").symlink_to(driver)
    code = (
        "import sys, json; from retinastream.kernels.cuda_driver import probe; state = probe();"
        "print(json.dumps([state.error, len(state.devices), [m for m in ('cupy', 'numpy') if m in sys.modules]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert json.loads(done.stdout) == [None, 2, []]


def test_a_state_can_be_made_of_its_first_three_fields():
    assert DriverState("no GPU; buy one", None, ()).error == "no GPU; buy one"


@pytest.mark.gpu
def test_the_real_driver_tells_plausible_facts():
    state = probe()
    assert state.error is None
    assert state.version >= (11, 0)
    for index, facts in enumerate(state.devices):
        assert facts.index == index
        assert facts.name
        assert facts.uuid[:4] in ("GPU-", "MIG-")
        assert len(facts.uuid) == 40
        assert (3, 0) <= facts.compute_capability < (20, 0)
        assert facts.total_memory > 1 << 30
        assert facts.multiprocessors > 0
