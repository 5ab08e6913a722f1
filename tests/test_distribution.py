"""What is in the wheel and in the source distribution, and that the wheel works on its own."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from package_index import run_with_packages

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A source distribution of this checkout, and the wheel built from it (not from the checkout)."""
    pytest.importorskip("build", reason="build is not installed")
    target = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--outdir", str(target), str(ROOT)]
    run_with_packages(command, what="what the build needs")
    return {path.suffix: path for path in target.iterdir()}


def test_wheel_holds_every_room_and_nothing_loose(built):
    names = zipfile.ZipFile(built[".whl"]).namelist()
    roots = {name.split("/")[0] for name in names}
    assert roots == {"retinastream", next(r for r in roots if r.endswith(".dist-info"))}
    held = {name.removeprefix("retinastream/") for name in names if name.startswith("retinastream/")}
    for folder in ("models", "kernels", "engines", "pipeline", "evaluation", "training", "configs"):
        for path in (ROOT / folder).rglob("*.py"):
            assert f"{folder}/{path.relative_to(ROOT / folder)}" in held
    for path in (ROOT / "retinastream").rglob("*.py"):
        assert str(path.relative_to(ROOT / "retinastream")) in held
    assert {"py.typed", "configs/zoo.yaml"} <= held
    sources = {f"kernels/{p.relative_to(ROOT / 'kernels')}" for p in (ROOT / "kernels").rglob("*.cu*")}
    assert sources <= held


def test_source_distribution_can_be_tested(built):
    with tarfile.open(built[".gz"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("pyproject.toml", "README.md", "LICENSE", "configs/zoo.yaml", "Makefile", "tests/conftest.py"):
        assert name in names


def test_wheel_brings_nothing_of_torch_onnx_or_cuda(built):
    wheel = zipfile.ZipFile(built[".whl"])
    metadata = wheel.read(next(n for n in wheel.namelist() if n.endswith("METADATA"))).decode()
    base = [
        line.split()[1] for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line
    ]
    assert base
    assert not [name for name in base if any(word in name for word in ("torch", "onnx", "cuda", "cupy", "tensorrt"))]


def test_installed_wheel_runs_away_from_the_checkout(built, tmp_path):
    """The wheel is unpacked, not installed anew: the dependencies are those of this environment."""
    site = tmp_path / "site"
    with zipfile.ZipFile(built[".whl"]) as wheel:
        wheel.extractall(site)
    program = (
        "import retinastream, retinastream.models.zoo_entries as z; print(retinastream.__file__); print(len(z.zoo()))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {[str(site), *sys.path]!r}; {program}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    place, count = done.stdout.split()
    assert Path(place).is_relative_to(site)
    assert int(count) >= 8
