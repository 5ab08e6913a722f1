"""Importing the package brings in nothing that is not used."""

import subprocess
import sys

import pytest

import retinastream

HEAVY = ("numpy", "av", "cv2", "openvino", "onnxruntime", "onnx", "torch", "supervision", "pydantic", "typer", "rich")


def loaded_after(statement):
    """Which heavy packages a fresh interpreter has loaded after this statement."""
    code = f"{statement}\nimport sys\nprint(*[m for m in {HEAVY!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(result.stdout.split())


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        pytest.param("import retinastream", set(), id="the package itself"),
        pytest.param("import retinastream; dir(retinastream); retinastream.__version__", set(), id="looking at it"),
        pytest.param("from retinastream import RetinastreamError", set(), id="the errors"),
        pytest.param("from retinastream import DetectorSpec", set(), id="the spec"),
        pytest.param("from retinastream import Faces, Frame", {"numpy"}, id="the types"),
        pytest.param("import retinastream.kernels.nms", {"numpy"}, id="one kernel"),
        pytest.param("import retinastream.pipeline.stages", set(), id="the stages"),
        pytest.param(
            "from retinastream import Detector",
            {"numpy", "cv2", "pydantic"},
            id="the detector, before a runtime is chosen",
        ),
    ],
)
def test_an_import_brings_in_only_what_it_needs(statement, allowed):
    assert loaded_after(statement) <= allowed


def test_every_public_name_can_be_had():
    for name in retinastream.__all__:
        assert getattr(retinastream, name) is not None
    assert dir(retinastream) == sorted(retinastream.__all__)


def test_an_unknown_name_says_which_there_are():
    with pytest.raises(AttributeError, match=r"no attribute 'Detecter'; it has Detector, DetectorSpec"):
        _ = retinastream.Detecter


def test_the_version_is_that_of_the_installed_distribution():
    from importlib import metadata

    try:
        installed = metadata.version("retinastream")
    except metadata.PackageNotFoundError:
        pytest.skip("retinastream is not installed as a distribution")
    assert retinastream.__version__ == installed
