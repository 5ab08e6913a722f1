"""The graph of an ONNX file while it is being written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from onnx import helper, numpy_helper


class Emitter:
    """Collects the nodes and constants of a graph."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}

    def node(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Append one operator and return the name of its output."""
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def constant(self, name: str, values: npt.NDArray[Any]) -> str:
        """Add a constant tensor and return its name."""
        self.constants[name] = numpy_helper.from_array(values, name)
        return name

    def convolution(
        self,
        source: str,
        output: str,
        weight: npt.NDArray[np.float32],
        bias: npt.NDArray[np.float32],
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
    ) -> str:
        """Append a convolution with square kernel, stride and padding."""
        inputs = [source, self.constant(f"{output}.weight", weight), self.constant(f"{output}.bias", bias)]
        size = list(weight.shape[2:])
        return self.node(
            "Conv", inputs, output, kernel_shape=size, strides=[stride] * 2, pads=[padding] * 4, group=groups
        )


def to_array(tensor: torch.Tensor) -> npt.NDArray[np.float32]:
    """Return the values of a parameter in single precision."""
    return tensor.detach().cpu().float().contiguous().numpy()
