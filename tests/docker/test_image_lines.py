"""The RUN lines of the CPU and builder images, executed here: what they install works together, and on its own.

No image is built: the folders of an image become folders of the test, the base image's Python one of this machine.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from fnmatch import fnmatch

import pytest
from dockerfile import ROOT, build_arguments, pins, read_dockerfile

from package_index import run_with_packages

# Packages are fetched into the fixtures of the first test.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

_, STAGES = read_dockerfile()
FOLDERS = ("/opt/retinastream", "/wheels", "/build", "/project", "/builder", "/src")
SITE = "lib/python{}.{}/site-packages".format(*sys.version_info)


def context(target):
    """Copy what .dockerignore admits."""
    lines = [x for x in (ROOT / ".dockerignore").read_text().splitlines() if x and not x.startswith("#")]
    without = [line.removeprefix("**/") for line in lines if line.startswith("**/")]

    def left_out(_, names):
        return [name for name in names if any(fnmatch(name, pattern) for pattern in without)]

    target.mkdir()
    for name in (line[1:] for line in lines if line.startswith("!")):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=left_out)
        else:
            shutil.copy(source, target / name)
    return target


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """Run a stage's RUN lines; returns a function, and the folder that stands for the image's root."""
    root = tmp_path_factory.mktemp("image")
    source = context(root / "src")
    (root / "build").mkdir()
    for name in ("requirements.txt", "requirements-builder.txt"):
        shutil.copy(source / "docker" / name, root / "build")
    python = root / "python"
    subprocess.run([sys.executable, "-m", "venv", str(python)], check=True)

    def run(stage):
        for line in STAGES[stage].all("RUN"):
            moved = re.sub(rf"(?<![\w.])(?=(?:{'|'.join(FOLDERS)})(?=[/\s\"]|$))", str(root), line)
            run_with_packages(
                ["bash", "-euo", "pipefail", "-c", moved],
                what="what the images hold",
                cwd=source,
                environment={
                    **os.environ,
                    **build_arguments(STAGES[stage]),
                    "PATH": f"{python}/bin:{os.environ['PATH']}",
                    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
                },
            )
        return root

    return run


@pytest.fixture(scope="module")
def cpu(image):
    """What the CPU image holds in /opt/retinastream."""
    image("wheel")
    image("cpu-packages")
    root = image("cpu-project")
    shutil.copytree(root / "project", root / "opt/retinastream", dirs_exist_ok=True)
    return root / "opt/retinastream"


def ask(cpu, *command, **environment):
    done = subprocess.run(
        [str(cpu / "bin" / command[0]), *command[1:]],
        capture_output=True,
        text=True,
        cwd=cpu.parent,
        env={"PATH": f"{cpu}/bin:/usr/bin:/bin", "HOME": str(cpu.parent), **environment},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_of_the_context_has_kernels_weights_and_settings(cpu):
    (wheel,) = (cpu.parents[1] / "wheels").glob("retinastream-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {f"retinastream/kernels/cuda/{path.name}" for path in (ROOT / "kernels/cuda").glob("*.cu*")}
    assert sources
    assert sources | {"retinastream/models/weights/mnet025.onnx", "retinastream/configs/zoo.yaml"} <= names


def test_the_image_finds_faces(cpu, tmp_path):
    video = ROOT / "tests/media/sample_4k.mp4"
    cache = {"RETINASTREAM_CACHE": str(tmp_path / "cache")}
    out = tmp_path / "out"
    ask(cpu, "retinastream", "detect", str(video), "--max-frames", "2", "--output", str(out), **cache)
    (result,) = out.glob("*.jsonl")
    frames = [row for row in map(json.loads, result.read_text().splitlines()) if row["type"] == "frame"]
    assert len(frames) == 2
    assert all(frame["faces"] for frame in frames)
    assert '"ready": true' in ask(cpu, "retinastream", "doctor", "--json", **cache)


def test_the_program_runs_in_the_environment_of_the_image(cpu):
    first = (cpu / "bin/retinastream").read_text().splitlines()[0]
    assert first == f"#!{cpu}/bin/python"
    where = ask(cpu, "python", "-c", "import retinastream; print(retinastream.__file__)").strip()
    assert where == str(cpu / SITE / "retinastream/__init__.py")


def test_the_image_has_exactly_the_packages_that_are_listed(cpu):
    found = {path.name.split("-")[0].lower().replace("_", "-") for path in (cpu / SITE).glob("*.dist-info")}
    assert found == {*pins(ROOT / "docker/requirements.txt"), "retinastream"}


def test_nothing_that_is_installed_needs_a_library_that_the_base_images_lack(cpu):
    """Both bases bring glibc, libstdc++, libgcc and zlib; everything else has to come with the packages."""
    if shutil.which("readelf") is None:
        pytest.skip("readelf is not installed")
    brought = {path.name for path in cpu.rglob("*.so*")}
    base = re.compile(
        r"(ld-linux-x86-64|libc|libm|libmvec|libdl|librt|libpthread|libutil|libgcc_s|libstdc\+\+|libz)\.so\.\d+"
    )
    missing = set()
    for path in cpu.rglob("*.so*"):
        listed = subprocess.run(["readelf", "-d", str(path)], capture_output=True, text=True, check=False).stdout
        for needed in re.findall(r"\(NEEDED\).*\[(.+)\]", listed):
            if needed not in brought and not base.fullmatch(needed):
                missing.add(f"{needed} of {path.relative_to(cpu / SITE)}")
    # A plug-in of OpenVINO for other hardware, which is not loaded on a CPU.
    missing = {text for text in missing if not re.search(r"openvino_intel_(gpu|npu)|libOpenCL|libze_loader", text)}
    assert not missing


def test_the_builder_has_the_tools_and_no_torch(cpu, image):
    root = image("builder-packages")
    names = {path.name.split("-")[0] for path in (root / "builder" / SITE).glob("*.dist-info")}
    assert {"onnx", "onnxruntime"} <= names
    assert "torch" not in names
    code = "import onnx, onnxruntime, onnxconverter_common; print('tools')"
    assert ask(cpu, "python", "-c", code, PYTHONPATH=str(root / "builder" / SITE)).strip() == "tools"
