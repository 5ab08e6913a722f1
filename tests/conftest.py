"""What all tests share: where the data lies, models to run, and which tests this machine can run."""

import ctypes
import gc
import os
import signal
import sys
from pathlib import Path

import pytest

# OpenMP's threads spin while they wait, and on a busy machine take the time of those that they wait for: the tests of
# the runtimes took 14 s of CPU instead of 7. It is read when torch is loaded, and by processes that tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

TESTS = Path(__file__).resolve().parent
sys.path.insert(0, str(TESTS))
# host_device and host_engine are used by tests of every room.
sys.path[:0] = [str(TESTS / "kernels"), str(TESTS / "pipeline")]

# Weights, pictures and videos that may not be redistributed; a public clone does not have them.
DATA = Path(os.environ.get("RETINASTREAM_TEST_DATA") or TESTS.parent.parent / "shared" / "data")


def _cuda_devices():
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            driver = ctypes.CDLL(name)
        except OSError:
            continue
        count = ctypes.c_int(0)
        if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0:
            return count.value
    return 0


def pytest_configure():
    # A shell's background jobs ignore Ctrl-C, and so would every process that a test starts and interrupts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish():
    # Modules and tests are there to the end; without them each of the many collections is several times as fast.
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items):
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and _cuda_devices() == 0:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="NOT TESTED: this needs a CUDA GPU and there is none here"))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Keep the models of the person who runs the tests out of them, and theirs out of the cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETINASTREAM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def data():
    """The folder of weights, pictures and videos."""
    if not DATA.is_dir():
        pytest.skip(f"the test data is not at {DATA}; set RETINASTREAM_TEST_DATA to its folder")
    return DATA


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A mobilenetv1-x0.25 with random weights as {"fused": path, "classic": path}."""
    for package in ("torch", "onnx"):
        pytest.importorskip(package, reason=f"{package} is not installed, and a model is exported with it")
    from retinastream.models.export import export_network
    from retinastream.models.network import RetinaFace
    from retinastream.models.spec import DetectorSpec

    folder = tmp_path_factory.mktemp("tiny_model")
    network = RetinaFace("mobilenetv1-x0.25", seed=1)
    return {
        layout: export_network(network, DetectorSpec(), folder / f"tiny-{layout}.onnx", layout)
        for layout in ("fused", "classic")
    }


@pytest.fixture(scope="session")
def real_model(data, tmp_path_factory):
    """The published mobilenet0.25 checkpoint, exported in the fused layout: a path."""
    for package in ("torch", "onnx"):
        pytest.importorskip(package, reason=f"{package} is not installed, and a model is exported with it")
    checkpoint = data / "weights" / "mobilenet0.25_Final.pth"
    if not checkpoint.is_file():
        pytest.skip(f"{checkpoint} is absent")
    from retinastream.models.export import export_onnx

    return export_onnx(checkpoint, tmp_path_factory.mktemp("real_model") / "mnet025.onnx")
