"""Fixtures around the fake: to be imported by the test modules that want them."""

import sys

import numpy as np
import pytest
from host_device import HostDevice

from fake_tensorrt import FakeWorld
from retinastream.engines.tensorrt import log
from retinastream.kernels import cuda_driver

VERSIONS = ("10.16.1.11", "11.4.0.106")
GPU = cuda_driver.DeviceFacts(0, "NVIDIA H200", "GPU-0", (9, 0), 141 << 30, 132)


def install(monkeypatch, world):
    """Let the world's module be TensorRT, and let there be a driver."""
    monkeypatch.setitem(sys.modules, "tensorrt", world.module)
    state = cuda_driver.DriverState(None, (13, 1), (GPU,))
    monkeypatch.setattr(cuda_driver, "probe", lambda library=None: state)
    monkeypatch.setattr(log, "_loggers", {})
    return world


@pytest.fixture(params=VERSIONS, ids=lambda version: f"fake TensorRT {version}")
def world(request, monkeypatch):
    """The fake in both versions, on a HostDevice whose work runs as late as it may."""
    device = HostDevice()
    made = install(monkeypatch, FakeWorld(request.param, device))
    yield made
    device.check()
    assert made.faults == []


@pytest.fixture
def newest(monkeypatch):
    """The fake of TensorRT 11 only, for what does not depend on the version."""
    device = HostDevice()
    made = install(monkeypatch, FakeWorld(VERSIONS[-1], device))
    yield made
    device.check()
    assert made.faults == []


def run_onnx(path, image):
    """What ONNX Runtime makes of an input, by output name."""
    import onnxruntime as ort

    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: image}), strict=True))


def random_image(shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).normal(0, 50, shape).astype(dtype)
