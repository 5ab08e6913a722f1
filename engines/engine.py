"""What every runtime looks like to the detector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy.typing as npt

from retinastream.models.onnx_file import OnnxModel

InputKind = Literal["bgr-u8-nhwc", "float-nchw"]


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What executes the network, and how: reported at start, in results and in metrics."""

    runtime: str
    runtime_version: str
    device: str
    device_name: str
    precision: str
    threads: int
    streams: int
    reason: str = ""


class EngineSlot(Protocol):
    """Fixed buffers for one batch in flight; not to be used by two threads at once."""

    @property
    def input(self) -> npt.NDArray[Any]:
        """The buffer that preprocessing fills.

        (batch, height, width, 3) uint8 BGR when the engine's ``input_kind`` is "bgr-u8-nhwc", else
        (batch, 3, height, width) float32, normalised.
        """
        ...

    def run(self) -> tuple[npt.NDArray[Any], ...]:
        """Execute the network on ``input``; blocks, without holding the interpreter's lock.

        Returns the outputs in the order of the model's layout, each with the batch as first axis. They are views into
        the slot's buffers and hold until its next run.
        """
        ...


class Engine(Protocol):
    """A network, ready to run: knows its model, its device and the input it wants."""

    model: OnnxModel
    info: EngineInfo
    input_kind: InputKind

    def slot(self, batch: int, height: int, width: int, *, steady: bool = False) -> EngineSlot:
        """Create buffers for inputs of this size; height and width are multiples of the largest stride.

        ``steady`` says that many inputs of this size will come: worth preparing for, at some cost now.
        """
        ...

    def close(self) -> None:
        """Release the network and its memory."""
        ...


def input_shape(kind: InputKind, batch: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Return the shape of the input buffer for a kind of input."""
    return (batch, height, width, 3) if kind == "bgr-u8-nhwc" else (batch, 3, height, width)
