"""What the doctor says of a container's capabilities and of packages made for another CUDA, on pretended machines."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from retinastream.diagnosis import container, cuda_wheels
from retinastream.diagnosis.container import CAPABILITIES, check_container
from retinastream.diagnosis.cuda_wheels import check_cuda_wheels
from retinastream.diagnosis.diagnose import CHECKS
from retinastream.kernels import cuda_driver
from retinastream.kernels.cuda_driver import DriverState

COMPUTE, VIDEO, UTILITY = "libcuda.so.1", "libnvcuvid.so.1", "libnvidia-ml.so.1"


@pytest.fixture
def in_container(monkeypatch, tmp_path):
    """Pretend a container with these libraries and device files."""
    monkeypatch.delenv(CAPABILITIES, raising=False)
    monkeypatch.setattr(container, "_DEVICES", tmp_path)

    def pretend(*libraries, devices=(), inside=True):
        def load(name):
            if name not in libraries:
                raise OSError(f"{name}: cannot open shared object file")

        for name in devices:
            (tmp_path / name).touch()
        monkeypatch.setattr(cuda_driver, "load_library", load)
        monkeypatch.setattr(container, "is_container", lambda: inside)
        return list(check_container())

    return pretend


def test_both_checks_are_among_those_of_the_doctor():
    assert {check_container, check_cuda_wheels} <= {check for _, check in CHECKS}


def test_outside_a_container_nothing_is_said(in_container):
    assert in_container(COMPUTE, devices=["nvidia0"], inside=False) == []


def test_a_container_without_a_gpu_is_not_blamed(in_container):
    assert in_container(devices=["nvidiactl", "nvidia-uvm"]) == []


def test_a_container_with_everything_is_ok(in_container, monkeypatch):
    monkeypatch.setenv(CAPABILITIES, "compute,video,utility")
    (finding,) = in_container(COMPUTE, VIDEO, UTILITY, devices=["nvidia0"])
    assert (finding.status, finding.name) == ("ok", "container")
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,video,utility" in finding.detail


@pytest.mark.parametrize(
    ("libraries", "lacking", "harm"),
    [
        pytest.param((COMPUTE, UTILITY), "video", "video is decoded on the CPU", id="video"),
        pytest.param((VIDEO, UTILITY), "compute", "nothing runs on the GPU", id="compute"),
        pytest.param((COMPUTE,), "video and utility", "nvidia-smi tells nothing", id="two"),
    ],
)
def test_what_lacks_is_named_with_its_consequence_and_the_flag(in_container, monkeypatch, libraries, lacking, harm):
    monkeypatch.setenv(CAPABILITIES, "graphics")
    (finding,) = in_container(*libraries, devices=["nvidia0"])
    assert finding.status == "warning"
    assert f"lacks the driver's {lacking} (NVIDIA_DRIVER_CAPABILITIES=graphics)" in finding.detail
    assert harm in finding.detail
    assert "-e NVIDIA_DRIVER_CAPABILITIES=compute,video,utility" in finding.remedy


def test_a_variable_that_is_not_set_is_said(in_container):
    (finding,) = in_container(COMPUTE, UTILITY)
    assert "NVIDIA_DRIVER_CAPABILITIES is not set" in finding.detail


@pytest.mark.parametrize("given", ["all", "compute, video", "compute,utility,video"])
def test_a_capability_that_was_asked_for_and_lacks_is_the_hosts_fault(in_container, monkeypatch, given):
    monkeypatch.setenv(CAPABILITIES, given)
    (finding,) = in_container(COMPUTE, UTILITY, devices=["nvidia0"])
    assert "the host's driver was installed without these libraries" in finding.remedy


@pytest.fixture
def installed(monkeypatch):
    """Pretend a driver and installed distributions."""

    def pretend(driver, requires=(), **distributions):
        versions = {name.replace("_", "-"): version for name, version in distributions.items()}
        monkeypatch.setattr(cuda_wheels, "installed_version", versions.get)
        monkeypatch.setattr(metadata, "requires", lambda _: list(requires))
        monkeypatch.setattr(cuda_driver, "probe", lambda: DriverState(None, driver, ()))
        return list(check_cuda_wheels())

    return pretend


def test_without_tensorrt_nothing_is_said(installed):
    assert installed((13, 0), cupy_cuda13x="14.2.0") == []


@pytest.mark.parametrize("driver", [(13, 0), (13, 2), (14, 0), None])
def test_a_wheel_that_the_driver_serves_is_ok(installed, driver):
    (finding,) = installed(driver, tensorrt_cu13="11.4.0.106", cupy_cuda13x="14.2.0")
    assert (finding.status, finding.remedy) == ("ok", "")
    assert finding.detail.startswith("tensorrt-cu13 11.4.0.106 is made for CUDA 13")


def test_a_wheel_for_a_newer_cuda_than_the_driver_serves_is_a_warning(installed):
    (finding,) = installed((12, 8), tensorrt_cu13="11.4.0.106")
    assert finding.status == "warning"
    assert finding.detail == "tensorrt-cu13 11.4.0.106 is made for CUDA 13, and the driver serves CUDA up to 12.8"
    assert "a driver of the 580 series or newer" in finding.remedy
    assert "retinastream[tensorrt-cu12]" in finding.remedy


def test_two_cuda_versions_in_one_environment_are_a_warning(installed):
    (finding,) = installed((13, 0), tensorrt_cu13="11.4.0.106", cupy_cuda12x="14.2.0")
    assert finding.status == "warning"
    assert "two CUDA runtimes in one process" in finding.detail
    assert "retinastream[tensorrt-cu12]" in finding.remedy


@pytest.mark.parametrize(("driver", "extra"), [((12, 4), "tensorrt-cu12"), ((13, 0), "tensorrt-cu13"), (None, "cu13")])
def test_two_tensorrts_over_each_other_are_a_warning_that_says_which_one_to_keep(installed, driver, extra):
    (finding,) = installed(driver, tensorrt_cu13="11.4.0.106", tensorrt_cu12="10.16.1.11")
    assert "overwrite each other's files" in finding.detail
    assert finding.remedy.startswith("pip uninstall -y tensorrt tensorrt-cu13 tensorrt-cu12")
    assert f"{extra}]'" in finding.remedy


@pytest.mark.parametrize("requirement", ["tensorrt_cu13==11.4.0.106", "tensorrt-cu13 ==11.4.0.106"])
def test_the_bare_name_says_in_its_requirements_what_it_is_made_for(installed, requirement):
    (finding,) = installed((12, 8), [requirement], tensorrt="11.4.0.106")
    assert finding.status == "warning"
    assert "tensorrt 11.4.0.106 is made for CUDA 13" in finding.detail


def test_nothing_heavy_is_imported():
    source = Path(cuda_wheels.__file__).read_text() + Path(container.__file__).read_text()
    assert "import tensorrt" not in source
    assert "import cupy" not in source
