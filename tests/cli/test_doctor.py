"""The doctor on this machine as it is, and on machines that lack one thing."""
# ruff: noqa: N802 (the functions of a pretended driver are called as in cuda.h)

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
from typer.testing import CliRunner

from retinastream.diagnosis import Diagnosis, Finding, diagnose, gpu, nvidia_driver, packages, storage
from retinastream.kernels import cuda_driver

STATUSES = {"ok", "missing", "warning", "error"}
AREAS = ["packages", "processor", "runtimes", "codecs", "gpu", "models", "disk", "settings"]


class Answer(NamedTuple):
    code: int
    output: str
    findings: dict[str, dict[str, str]]
    summary: str


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Settings and models of whoever runs the tests must not matter."""
    for name in list(storage.os.environ):
        if name.startswith("RETINASTREAM_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("RETINASTREAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def run(*arguments: str) -> Any:
    from retinastream.cli.doctor import doctor

    app = typer.Typer()
    app.command("doctor")(doctor)
    return CliRunner().invoke(app, list(arguments))


def ask() -> Answer:
    result = run("--json")
    content = json.loads(result.stdout)
    assert content["ready"] == (result.exit_code == 0)
    findings = {f"{f['area']}/{f['name']}": f for f in content["findings"]}
    assert len(findings) == len(content["findings"]), "two findings of one name"
    return Answer(result.exit_code, result.stdout, findings, content["summary"])


def test_this_machine_can_run_the_tests_and_so_the_doctor_calls_it_ready() -> None:
    answer = ask()
    assert answer.code == 0
    assert answer.summary.startswith("ready")
    assert list(dict.fromkeys(name.split("/")[0] for name in answer.findings)) == AREAS
    assert not [f for f in answer.findings.values() if f["status"] == "error" or f["status"] not in STATUSES]
    assert all(f["detail"] for f in answer.findings.values())
    assert all(f["remedy"] for f in answer.findings.values() if f["status"] == "warning")


def test_versions_are_those_of_the_packages_that_are_loaded() -> None:
    import av
    import cv2
    import numpy as np

    findings = ask().findings
    assert findings["packages/numpy"]["detail"] == np.__version__
    assert av.__version__ in findings["packages/av"]["detail"]
    assert av.ffmpeg_version_info in findings["packages/av"]["detail"]
    assert cv2.__version__ in findings["packages/opencv"]["detail"]


def test_plain_output_has_one_line_per_finding_then_remedies_then_the_summary() -> None:
    result = run()
    diagnosis = diagnose()
    lines = result.stdout.splitlines()
    remedies = [f for f in diagnosis.findings if f.remedy]
    assert len(lines) == len(diagnosis.findings) + len(remedies) + 1
    assert lines[-1] == diagnosis.summary
    assert all(line.split()[0] in STATUSES for line in lines[: len(diagnosis.findings)])
    assert all(line.startswith("remedy") for line in lines[len(diagnosis.findings) : -1])


def test_table_on_a_terminal_shows_brackets_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    from retinastream.cli.doctor import _print_table

    finding = Finding("packages", "torch", "missing", "[red]not here[/red]", "pip install 'retinastream[export]'")
    _print_table(Diagnosis((finding, Finding("disk", "cache", "ok", "1 GB"))))
    shown = capsys.readouterr().out
    assert "[red]not here[/red]" in shown
    assert "packages/torch: pip install 'retinastream[export]'" in shown


def test_importing_the_command_loads_nothing_heavy() -> None:
    code = (
        "import sys, retinastream.cli.doctor, retinastream.diagnosis;"
        "print([m for m in ('numpy', 'av', 'cv2', 'openvino', 'onnxruntime', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def hide(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)


@pytest.mark.parametrize(
    ("hidden", "finding", "remedy"),
    [
        pytest.param(("openvino", "onnxruntime"), "runtimes/chosen", "pip install openvino", id="no runtime at all"),
        pytest.param(("av",), "codecs/ffmpeg", "pip install av", id="nothing that decodes"),
        pytest.param(("numpy",), "packages/numpy", "numpy", id="a required package does not load"),
        pytest.param(("cv2",), "packages/opencv", "opencv", id="no OpenCV"),
    ],
)
def test_what_is_essential_and_missing_ends_with_exit_code_3(
    monkeypatch: pytest.MonkeyPatch, hidden: tuple[str, ...], finding: str, remedy: str
) -> None:
    hide(monkeypatch, *hidden)
    answer = ask()
    assert answer.code == 3
    assert answer.findings[finding]["status"] == "error"
    assert remedy in answer.findings[finding]["remedy"]
    assert finding in answer.summary


@pytest.mark.parametrize(
    ("hidden", "chosen"),
    [
        pytest.param((), "openvino", id="both installed"),
        pytest.param(("onnxruntime",), "openvino", id="openvino alone"),
        pytest.param(("openvino",), "onnxruntime", id="onnxruntime alone works, slower"),
    ],
)
def test_the_runtime_named_is_the_one_that_a_run_chooses(
    monkeypatch: pytest.MonkeyPatch, hidden: tuple[str, ...], chosen: str
) -> None:
    from retinastream.engines import select

    pytest.importorskip("onnxruntime", reason="the extra onnxruntime is not installed")
    hide(monkeypatch, *hidden)
    answer = ask()
    assert answer.code == 0
    assert answer.findings["runtimes/chosen"]["detail"].startswith(chosen)
    assert answer.findings["runtimes/chosen"]["status"] == ("ok" if chosen == "openvino" else "warning")
    assert select._choose("auto")[0] == chosen


def test_openvino_that_is_installed_but_broken_is_an_error_although_onnxruntime_works(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime", reason="the extra onnxruntime is not installed")
    (tmp_path / "openvino").mkdir()
    (tmp_path / "openvino" / "__init__.py").write_text("raise OSError('libopenvino.so: cannot open')\n")
    for name in [name for name in sys.modules if name.partition(".")[0] == "openvino"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    answer = ask()
    assert answer.code == 3
    assert "libopenvino.so: cannot open" in answer.findings["runtimes/openvino"]["detail"]
    assert "--runtime onnxruntime" in answer.findings["runtimes/chosen"]["remedy"]


def pretend_installed(folder: Path, distribution: str, version: str) -> None:
    info = folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")


def test_two_opencv_distributions_are_a_warning_that_says_how_to_keep_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend_installed(tmp_path, "opencv-python", "4.10.0.84")
    pretend_installed(tmp_path, "opencv-contrib-python", "4.10.0.84")
    monkeypatch.syspath_prepend(str(tmp_path))
    answer = ask()
    finding = answer.findings["packages/opencv"]
    assert answer.code == 0
    assert finding["status"] == "warning"
    assert "opencv-python 4.10.0.84" in finding["detail"]
    assert "pip uninstall -y" in finding["remedy"]
    assert "--force-reinstall" in finding["remedy"]


def test_opencv_that_lacks_the_window_system_is_told_to_become_headless(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(packages, "_OPENCV", ("opencv-contrib-python",))
    monkeypatch.setattr(packages, "load", lambda _: (None, "ImportError: libGL.so.1: cannot open shared object file"))
    pretend_installed(tmp_path, "opencv-contrib-python", "4.10.0.84")
    monkeypatch.syspath_prepend(str(tmp_path))
    finding = packages._opencv()
    assert finding.status == "error"
    assert "pip install opencv-python-headless" in finding.remedy


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        pytest.param("16.1.0", "17.0", id="a lower major number is too old"),
        pytest.param("17.0", None, id="the lowest allowed is allowed"),
        pytest.param("100.0.1", None, id="numbers are compared as numbers"),
    ],
)
def test_versions_below_what_the_package_asks_for(
    monkeypatch: pytest.MonkeyPatch, version: str, expected: str | None
) -> None:
    monkeypatch.setattr(packages, "_lowest_versions", lambda: {"av": "17.0"})
    assert packages.outdated("av", version) == expected


def no_library(name: str) -> Any:
    raise OSError(f"{name}: cannot open shared object file: No such file or directory")


@pytest.mark.parametrize("in_container", [False, True], ids=["on a plain machine", "in a container"])
def test_a_machine_without_driver_is_ready_and_told_how_a_gpu_is_given_to_a_container(
    monkeypatch: pytest.MonkeyPatch, in_container: bool
) -> None:
    monkeypatch.setattr(cuda_driver, "load_library", no_library)
    monkeypatch.setattr(gpu, "is_container", lambda: in_container)
    answer = ask()
    assert answer.code == 0
    assert [name for name in answer.findings if name.startswith("gpu/")] == ["gpu/driver"]
    finding = answer.findings["gpu/driver"]
    assert finding["status"] == "missing"
    assert ("NVIDIA_DRIVER_CAPABILITIES=compute,video,utility" in finding["remedy"]) == in_container


class FakeCuda:
    """The calls of the CUDA driver API that the doctor makes, for one GPU."""

    def __init__(self, code: int = 0, gpus: int = 1) -> None:
        self.code, self.gpus = code, gpus

    def cuDriverGetVersion(self, out: Any) -> int:
        out._obj.value = 12080
        return 0

    def cuInit(self, flags: int) -> int:
        return self.code

    def cuGetErrorName(self, code: int, out: Any) -> int:
        out._obj.value = b"CUDA_ERROR_FAKE"
        return 0

    def cuDeviceGetCount(self, out: Any) -> int:
        out._obj.value = self.gpus
        return 0

    def cuDeviceGet(self, out: Any, index: int) -> int:
        out._obj.value = index.value
        return 0

    def cuDeviceGetName(self, out: Any, length: int, device: Any) -> int:
        out.value = b"NVIDIA Fake 9000"
        return 0

    def cuDeviceGetAttribute(self, out: Any, attribute: int, device: Any) -> int:
        out._obj.value = {75: 9, 76: 0, 16: 132}[attribute.value]
        return 0

    def cuDeviceGetUuid(self, out: Any, device: Any) -> int:
        return 0

    def cuDeviceTotalMem_v2(self, out: Any, device: Any) -> int:
        out._obj.value = 80 * 2**30
        return 0


def install(monkeypatch: pytest.MonkeyPatch, libraries: dict[str, Any]) -> None:
    def load(name: str) -> Any:
        return libraries[name] if name in libraries else no_library(name)

    monkeypatch.setattr(cuda_driver, "load_library", load)
    monkeypatch.setattr(nvidia_driver, "driver_version", lambda: "570.124.06")


def test_a_gpu_is_described_and_a_missing_video_library_gets_the_hint_for_containers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch, {"libcuda.so.1": FakeCuda(), "libnvidia-encode.so.1": object()})
    hide(monkeypatch, "cupy")
    monkeypatch.setattr(gpu, "is_container", lambda: True)
    findings = ask().findings
    assert findings["gpu/driver"]["detail"] == "version 570.124.06, serves CUDA up to 12.8"
    assert findings["gpu/cuda:0"]["detail"].startswith("NVIDIA Fake 9000, compute capability 9.0, 80.0 GiB")
    assert findings["gpu/cupy"]["status"] == "missing"
    assert "retinastream[gpu-cu12]" in findings["gpu/cupy"]["remedy"]
    assert findings["gpu/nvdec"]["status"] == "missing"
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,video,utility" in findings["gpu/nvdec"]["remedy"]
    assert findings["gpu/nvenc"]["status"] == "ok"


@pytest.mark.parametrize(
    ("cuda", "detail", "remedy"),
    [
        pytest.param(FakeCuda(code=803), "error 803 (CUDA_ERROR_FAKE)", "restart", id="library and module differ"),
        pytest.param(FakeCuda(code=100), "error 100", "--gpus all", id="no device is visible"),
        pytest.param(FakeCuda(code=12345), "error 12345", "nvidia-smi", id="a code that nobody has heard of"),
        pytest.param(FakeCuda(gpus=0), "counts no GPU", "nvidia-smi", id="a driver that counts none"),
        pytest.param(object(), "is no NVIDIA driver", "reinstall", id="a library that is no driver"),
    ],
)
def test_a_driver_that_fails_is_a_warning_and_never_a_crash(
    monkeypatch: pytest.MonkeyPatch, cuda: Any, detail: str, remedy: str
) -> None:
    install(monkeypatch, {"libcuda.so.1": cuda})
    answer = ask()
    finding = answer.findings["gpu/driver"]
    assert answer.code == 0
    assert finding["status"] == "warning"
    assert detail in finding["detail"]
    assert remedy in finding["remedy"]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15\n", id="closed"),
        pytest.param("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.183.01  Release Build\n", id="open"),
    ],
)
def test_the_driver_version_is_read_from_the_kernel_module(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    (tmp_path / "version").write_text(text + "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n")
    monkeypatch.setattr(nvidia_driver, "_MODULE_VERSION", tmp_path / "version")
    assert nvidia_driver.driver_version() == "535.183.01"


@pytest.mark.parametrize(
    ("script", "version"),
    [
        pytest.param("echo 550.54.15", "550.54.15", id="it answers"),
        pytest.param("echo 'NVIDIA-SMI has failed'; exit 9", None, id="it fails"),
    ],
)
def test_without_the_module_nvidia_smi_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, version: str | None
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(nvidia_driver, "_MODULE_VERSION", tmp_path / "absent")
    assert nvidia_driver.driver_version() == version


def test_a_cache_that_cannot_be_made_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("RETINASTREAM_CACHE", str(tmp_path / "file" / "below"))
    answer = ask()
    finding = answer.findings["models/cache"]
    assert answer.code == 0
    assert finding["status"] == "warning"
    assert "is not a folder" in finding["detail"]
    assert "RETINASTREAM_CACHE" in finding["remedy"]


def test_a_protected_cache_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.os, "access", lambda path, mode: False)  # permissions mean nothing to root
    finding = ask().findings["models/cache"]
    assert finding["status"] == "warning"
    assert "protected" in finding["detail"]


def test_models_of_the_package_and_in_the_cache_are_listed_with_their_size(tmp_path: Path) -> None:
    answer = ask()
    assert answer.findings["models/detectors"]["status"] == "ok"
    own = answer.findings["models/detectors"]["detail"]
    assert re.fullmatch(r"mnet025 \(\d\.\d MB\)", own)
    assert "no model" not in answer.summary
    folder = tmp_path / "cache" / "models"
    folder.mkdir(parents=True)
    (folder / "uniface-mnet025.onnx").write_bytes(bytes(1_500_000))
    assert set(ask().findings["models/detectors"]["detail"].split(", ")) == {own, "uniface-mnet025 (1.5 MB)"}


def test_a_package_without_its_model_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("retinastream.models.zoo.path_of", lambda entry: tmp_path / "nowhere")
    answer = ask()
    assert answer.findings["models/detectors"]["status"] == "missing"
    assert "no model is on this machine yet" in answer.summary


def test_little_room_on_the_disk_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda path: usage._replace(free=5_000_000))
    findings = ask().findings
    assert findings["disk/cache"]["status"] == findings["disk/working directory"]["status"] == "warning"
    assert findings["disk/cache"]["detail"].startswith("5.0 MB free")


def test_settings_of_the_environment_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETINASTREAM_THRESHOLD", "0.7")
    answer = ask()
    assert answer.code == 0
    assert answer.findings["settings/RETINASTREAM_THRESHOLD"]["detail"] == "0.7"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        pytest.param("RETINASTREAM_TRESHOLD", "0.7", id="a name that is no setting"),
        pytest.param("RETINASTREAM_THRESHOLD", "7", id="a value that is not allowed"),
    ],
)
def test_settings_that_every_run_would_refuse_are_errors(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    answer = ask()
    assert answer.code == 3
    assert "threshold" in answer.findings["settings/environment"]["detail"]


def test_a_check_that_dies_costs_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Any:
        raise RuntimeError("the disk answers nonsense")

    monkeypatch.setattr(storage.shutil, "disk_usage", fail)
    answer = ask()
    assert answer.code == 0
    assert answer.findings["disk/check"]["detail"] == "could not be looked at: RuntimeError: the disk answers nonsense"
    assert "settings/environment" in answer.findings or "settings/RETINASTREAM_CACHE" in answer.findings
