"""The GPU that a command of ``retinastream engine`` works on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from retinastream.errors import UsageError

if TYPE_CHECKING:
    from retinastream.kernels.device import Device


def open_gpu(text: str) -> Device:
    """Open "cuda" or "cuda:N" for TensorRT; SetupError says what is missing, UsageError refuses a CPU."""
    from retinastream.engines.device_selection import choose_device

    if text == "cpu":
        raise UsageError("TensorRT runs on a GPU only; give --device cuda or cuda:N")
    choice = choose_device(text, "gpu", runtime="tensorrt")
    from retinastream.kernels.cupy_device import open_device

    return open_device(choice.label)
