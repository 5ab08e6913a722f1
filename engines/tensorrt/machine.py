"""What an engine is bound to on this machine: GPU, TensorRT, CUDA."""

from __future__ import annotations

import importlib.metadata

from retinastream.engines.cache.key import Machine
from retinastream.engines.tensorrt.load import require_tensorrt
from retinastream.errors import SetupError
from retinastream.kernels import cuda_driver
from retinastream.kernels.device import Device


def machine_of(device: Device) -> tuple[Machine, str]:
    """Describe a device as engines are bound to it, and return its UUID; SetupError where the driver lacks it."""
    version = require_tensorrt()
    state = cuda_driver.probe()
    facts = next((each for each in state.devices if each.index == device.index), None)
    if facts is None or state.version is None:
        raise SetupError(f"the driver knows no {device.label}; see CUDA_VISIBLE_DEVICES")
    major = _cuda_major(state.version[0])
    return Machine.of(facts, driver_cuda=state.version, tensorrt=version, cuda_major=major), facts.uuid


def _cuda_major(driver: int) -> int:
    """Return the CUDA version that the installed TensorRT is made for: part of its package's name."""
    for major in (13, 12):
        try:
            importlib.metadata.distribution(f"tensorrt-cu{major}-bindings")
        except importlib.metadata.PackageNotFoundError:
            continue
        return major
    return driver
