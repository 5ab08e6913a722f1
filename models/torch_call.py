"""How an ONNX node becomes a call of a torch function: what goes in, and what comes out of the translation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from retinastream.errors import ModelError
from retinastream.models.onnx_program import Node


@dataclass(eq=False, slots=True)
class Value:
    """An edge of the network: a tensor that is known (a constant), or one on the device "meta" of which the shape is.

    ``place`` is where a graph that is being written has it, None for constants. ``is_weight`` says that a constant was
    made of trained numbers alone, so that it follows the precision of the network.
    """

    tensor: Tensor
    place: Any = None
    is_weight: bool = False

    @property
    def is_constant(self) -> bool:
        """Whether the numbers are known."""
        return self.place is None


@dataclass(slots=True)
class Call:
    """A function with its arguments, among which are values."""

    function: Callable[..., Any]
    arguments: Sequence[Any]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Site:
    """A node where it is used: its inputs, and whether it may write over its first one."""

    node: Node
    values: list[Value | None]
    opset: int
    may_overwrite: bool = False

    def value(self, index: int) -> Value:
        """Return an input that must be there."""
        found = self.optional(index)
        if found is None:
            raise self.refuse(f"lacks its input {index}")
        return found

    def optional(self, index: int) -> Value | None:
        """Return an input, None where it was left out."""
        return self.values[index] if index < len(self.values) else None

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return an attribute, ``default`` where it was left out."""
        return self.node.attributes.get(name, default)

    def numbers(self, index: int) -> list[Any]:
        """Return the numbers of a constant input, flat."""
        value = self.value(index)
        if not value.is_constant:
            raise self.refuse(f"has an input {self.node.inputs[index]!r} that depends on the picture, not on its size")
        return list(value.tensor.flatten().tolist())

    def listed(self, name: str, index: int) -> list[int] | None:
        """Return whole numbers that were an attribute in older files and are an input in newer ones."""
        if name in self.node.attributes:
            return [int(number) for number in self.node.attributes[name]]
        return None if self.optional(index) is None else [int(number) for number in self.numbers(index)]

    def refuse(self, what: str) -> ModelError:
        """Make the error for something that cannot be run."""
        return ModelError(
            f"the node {self.node.name!r} ({self.node.kind}) {what}; runtime torch cannot run that: use another "
            "runtime (onnxruntime, openvino or tensorrt), or export the network with `retinastream model export`"
        )
