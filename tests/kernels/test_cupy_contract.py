"""What we ask of CuPy is there in the real CuPy, as far as that can be told without a GPU.

The wheel is fetched into an environment of its own: CuPy is an extra, and not among what dev installs. It is given the
compiler of this environment. RETINASTREAM_TEST_CUPY names another distribution, "cupy-cuda12x==14.0.1" for example.
"""

import ast
import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECKS = Path(__file__).resolve().parent / "cupy_without_gpu.py"
WANTED = os.environ.get("RETINASTREAM_TEST_CUPY") or "cupy-cuda13x>=14.0"
# Roots under which our sources know CuPy's module: the module itself, or what they keep it as.
ROOTS = {"cupy": "", "self._cupy": "", "self._runtime": "cuda.runtime.", "runtime": "cuda.runtime."}


def dotted(node):
    if isinstance(node, ast.Name):
        return node.id
    before = dotted(node.value) if isinstance(node, ast.Attribute) else None
    return f"{before}.{node.attr}" if before else None


def names_of_cupy(text):
    """Dotted names within cupy that a source uses, "cuda.Stream" for example."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        name = dotted(node) if isinstance(node, ast.Attribute) else None
        for root, prefix in ROOTS.items():
            if name and name.startswith(f"{root}."):
                found.add(prefix + name.removeprefix(f"{root}."))
    return found


def names_in_our_sources():
    sources = [path for room in ("kernels", "engines", "pipeline") for path in (ROOT / room).rglob("*.py")]
    texts = [path.read_text() for path in sources]
    return set().union(*(names_of_cupy(text) for text in texts if re.search(r"\bcupy\b", text)))


def test_names_are_collected_wherever_the_module_is_kept():
    text = """
import cupy
def a(self, cupy):
    cupy.cuda.Stream(non_blocking=True).record(1)
    self._cupy.empty(3)
    self._runtime.memcpyAsync(1)
    numpy.zeros(3)
"""
    expected = {"cuda", "cuda.Stream", "empty", "cuda.runtime.memcpyAsync"}
    assert names_of_cupy(text) == expected


def test_our_sources_use_what_this_test_is_about():
    expected = {"RawModule", "ndarray", "empty", "cuda.Event", "cuda.Stream", "cuda.Device", "cuda.runtime.memcpyAsync"}
    assert names_in_our_sources() >= expected


def install(folder, *requirements):
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--retries", "1", "--timeout", "15", "--only-binary", ":all:", "--target", str(folder), *requirements]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"NOT TESTED: {' '.join(requirements)} did not arrive within 180 s")
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        pytest.skip(f"NOT TESTED: {' '.join(requirements)} cannot be had: {said[-1] if said else done.returncode}")


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """An interpreter with CuPy, its compiler, and what this environment has."""
    folder = tmp_path_factory.mktemp("cupy")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
    packages = next(folder.glob("lib/python*/site-packages"))
    install(packages, WANTED, "cuda-pathfinder>=1.3.4,<2")
    ours = [path for path in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")} if path]
    compiler = next((path for path in (Path(place, "nvidia", "cu13") for place in ours) if path.is_dir()), None)
    if "12x" in WANTED:
        install(packages, "nvidia-cuda-nvrtc-cu12", "nvidia-cuda-runtime-cu12")
    elif compiler is None:
        install(packages, "nvidia-cuda-nvrtc>=13.0", "nvidia-cuda-runtime>=13.0")
    else:
        # CuPy looks for it in the folders of its own environment only
        (packages / "nvidia").mkdir(exist_ok=True)
        (packages / "nvidia" / "cu13").symlink_to(compiler)
    (packages / "ours.pth").write_text("import site; " + "; ".join(f"site.addsitedir({path!r})" for path in ours))
    return folder / "bin" / "python"


def run(python, *arguments, **environment):
    hidden = {"CUDA_VISIBLE_DEVICES": "", "CUPY_CACHE_IN_MEMORY": "1", **environment}
    unset = {"CUDA_PATH", "CUDA_HOME", "PYTHONPATH", "CUPY_CACHE_DIR"}
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run(
        [str(python), *arguments], env=kept | hidden, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def results(python):
    return json.loads(run(python, str(CHECKS), json.dumps(sorted(names_in_our_sources()))).splitlines()[-1])


@pytest.mark.slow
def test_every_name_of_cupy_in_our_sources_exists(results):
    assert results["missing"] == []


@pytest.mark.slow
@pytest.mark.parametrize("check", re.findall(r"^def (check_\w+)", CHECKS.read_text(), re.MULTILINE))
def test_the_real_cupy_passes(results, check):
    assert results[check] == "", f"CuPy {results['version']}:\n{results[check]}"


LOAD = """
import sys
{before}
from retinastream.errors import SetupError
from retinastream.kernels.cupy_package import load_cupy
try:
    load_cupy((13, 0))
    print("loaded")
except SetupError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "distribution", "expected"),
    [
        pytest.param("", None, "loaded", id="as it is"),
        pytest.param("", "cupy-cuda11x", "2 distributions of CuPy are installed", id="a second one over it"),
        pytest.param("sys.modules['cuda'] = None", None, "does not load: ModuleNotFoundError", id="a part is missing"),
    ],
)
def test_the_real_cupy_is_judged_as_it_is_installed(python, tmp_path, before, distribution, expected):
    if distribution:
        info = tmp_path / f"{distribution.replace('-', '_')}-13.6.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 13.6.0\n")
    said = run(python, "-c", LOAD.format(before=before), PYTHONPATH=str(tmp_path))
    assert expected in said
    if distribution:
        assert f"pip uninstall -y {WANTED.split('>')[0].split('=')[0]} {distribution}" in said


DEVICE = """
from retinastream.errors import RetinastreamError
from retinastream.kernels.cupy_device import open_device
for text in ("cuda", "cuda:5"):
    try:
        open_device(text)
    except RetinastreamError as error:
        print(type(error).__name__, error)
"""


@pytest.mark.slow
def test_a_driver_that_cupy_cannot_use_is_a_sentence(python, tmp_path):
    from test_cuda_driver import DRIVER, build

    build(tmp_path, DRIVER % "_v2")
    unusable, absent = run(python, "-c", DEVICE, LD_LIBRARY_PATH=str(tmp_path)).splitlines()
    assert re.match(r"SetupError cuda:0 \(NVIDIA .\) cannot be used: cudaError\w+.*--device cpu", unusable)
    assert re.match(r"UsageError cuda:5 does not exist; this process sees cuda:0 .* cuda:1 .*VISIBLE_DEVICES", absent)
