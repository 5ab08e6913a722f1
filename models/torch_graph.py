"""An ONNX file as a torch module.

The module holds the weights. For each shape of the input it writes a graph of torch calls once, in which everything
that depends on the shape alone is already computed: no tensor of sizes reaches the device, nothing has to be read back
from it, and the graph can be compiled or recorded. The precision is that of the weights: ``module.half()``.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from retinastream.errors import ModelError
from retinastream.models.onnx_file import OnnxModel
from retinastream.models.onnx_program import Node, OnnxProgram, read_program
from retinastream.models.torch_call import Call, Site, Value
from retinastream.models.torch_operators import call_for

# Results that nobody else can see, so that the activation behind may write over them.
_FRESH = {"Add", "BatchNormalization", "Conv", "ConvTranspose"}


def load_torch_graph(model: OnnxModel) -> TorchGraph:
    """Read a model's file into a module that returns its outputs in the order of its layout. Raises ModelError."""
    return TorchGraph(read_program(model.path), model.output_names)


class TorchGraph(nn.Module):
    """The network of an ONNX file: images (batch, 3, height, width) to a tuple of its outputs.

    Raises ModelError for outputs that the file does not have and, once a shape is known, for operators that have no
    translation.
    """

    def __init__(self, program: OnnxProgram, outputs: Sequence[str]) -> None:
        super().__init__()
        missing = set(outputs) - {name for node in program.nodes for name in node.outputs}
        if missing:
            raise ModelError(
                f"{program.path} has no output {sorted(missing)[0]!r}; it has {', '.join(program.outputs)}"
            )
        self.program = program
        self.output_names = tuple(outputs)
        self._nodes = _needed(program.nodes, self.output_names)
        self._weights: dict[str, str] = {}
        self._on_host: dict[str, Tensor] = {}
        self._constants: dict[str, Tensor] = {}
        self._specialised: dict[tuple[int, ...], fx.GraphModule] = {}
        # Says where the weights are and what they are, for files without any.
        self.sample: Tensor
        self.register_buffer("sample", torch.zeros(()), persistent=False)
        used = {name for node in self._nodes for name in node.inputs}
        for name, array in program.constants.items():
            if name in used:
                self._keep(name, torch.from_numpy(np.array(array)))

    def _keep(self, name: str, tensor: Tensor) -> None:
        if not tensor.is_floating_point():
            self._constants[name] = tensor
            return
        self._weights[name] = f"weight_{len(self._weights)}"
        self._on_host[name] = tensor.float()
        self.register_parameter(self._weights[name], nn.Parameter(self._on_host[name], requires_grad=False))

    def _apply(self, fn: Any, recurse: bool = True) -> TorchGraph:
        self._specialised.clear()  # written for weights of the precision and device so far
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Run the network; the first images of a shape cost some milliseconds more."""
        outputs: tuple[Tensor, ...] = self.for_shape(tuple(images.shape))(images)
        return outputs

    def for_shape(self, shape: tuple[int, ...]) -> fx.GraphModule:
        """Return the module for images of one shape, which shares its weights with all others."""
        if shape not in self._specialised:
            self._specialised[shape] = _Writer(self, shape).write()
        return self._specialised[shape]

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        return self.sample.dtype


def _needed(nodes: Sequence[Node], outputs: Sequence[str]) -> list[Node]:
    """Leave out what no output depends on."""
    wanted = set(outputs)
    kept = []
    for node in reversed(nodes):
        if wanted & set(node.outputs):
            kept.append(node)
            wanted |= set(node.inputs)
    return kept[::-1]


class _Writer:
    """Writes the graph of one shape: known values are computed at once, the rest becomes calls."""

    def __init__(self, network: TorchGraph, shape: tuple[int, ...]) -> None:
        self._network = network
        self._graph = fx.Graph()
        self._attributes: dict[str, Tensor] = {}
        self._named: dict[Value, tuple[str, Tensor]] = {}
        self._values: dict[str, Value] = {}
        self._uses = Counter(name for node in network._nodes for name in node.inputs)
        self._uses.update(network.output_names)
        self._makers = {name: node.kind for node in network._nodes for name in node.outputs}
        for name, parameter in network._weights.items():
            weight: Tensor = getattr(network, parameter)
            # Computed with on the host; the graph itself uses the parameter.
            self._values[name] = Value(network._on_host[name], None, True)
            self._named[self._values[name]] = (parameter, weight)
        self._values |= {name: Value(tensor) for name, tensor in network._constants.items()}
        (images,) = network.program.inputs
        self._values[images] = Value(
            torch.empty(shape, dtype=network.dtype, device="meta"), self._graph.placeholder("images")
        )

    def write(self) -> fx.GraphModule:
        for node in self._network._nodes:
            self._add(node)
        outputs = tuple(self._place(self._values[name]) for name in self._network.output_names)
        self._graph.output(outputs)
        return fx.GraphModule(self._attributes, self._graph, "SpecialisedGraph")

    def _add(self, node: Node) -> None:
        try:
            values = [self._values[name] if name else None for name in node.inputs]
        except KeyError as error:
            raise ModelError(
                f"{self._network.program.path}: the node {node.name!r} takes {error}, which nobody makes"
            ) from error
        site = Site(node, values, self._network.program.opset, self._may_overwrite(node))
        call = call_for(site)
        try:
            results = self._run(call)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            # torch refuses what does not fit together; the file, or its size, is at fault.
            first = str(error).strip().partition("\n")[0]
            raise site.refuse(f"cannot take its inputs ({first})") from error
        named = zip(node.outputs, results, strict=False)
        self._values |= {name: value for name, value in named if name}

    def _may_overwrite(self, node: Node) -> bool:
        source = node.inputs[0] if node.inputs else ""
        return self._uses[source] == 1 and self._makers.get(source) in _FRESH

    def _run(self, call: Call) -> list[Value]:
        values = [value for value in _flat(call.arguments) if isinstance(value, Value)]
        if all(value.is_constant for value in values):
            result = call.function(*_swapped(call.arguments, lambda value: value.tensor), **call.options)
            is_weight = bool(values) and all(value.is_weight for value in values)
            return [Value(part, None, is_weight) for part in (result if isinstance(result, tuple) else (result,))]
        result = call.function(*_swapped(call.arguments, self._described), **call.options)
        place = self._graph.call_function(call.function, tuple(_swapped(call.arguments, self._place)), call.options)
        if not isinstance(result, tuple):
            return [Value(result, place)]
        return [
            Value(part, self._graph.call_function(operator.getitem, (place, index)))
            for index, part in enumerate(result)
        ]

    def _described(self, value: Value) -> Tensor:
        """Return a value without its numbers, as it will be on the device."""
        if not value.is_constant:
            return value.tensor
        return torch.empty_like(self._kept(value)[1], device="meta")

    def _place(self, value: Value) -> fx.Node:
        if not value.is_constant:
            found: fx.Node = value.place
            return found
        name, tensor = self._kept(value)
        self._attributes[name] = tensor
        # Its own node for each use: each is a reference, and costs nothing when the graph is run.
        return self._graph.create_node("get_attr", name)

    def _kept(self, value: Value) -> tuple[str, Tensor]:
        """Return the name and the tensor by which the graph knows a constant."""
        if value not in self._named:
            # What follows from sizes alone stays in single precision: half cannot count the pixels of a wide picture.
            dtype = self._network.dtype if value.is_weight else value.tensor.dtype
            tensor = value.tensor.to(self._network.sample.device, dtype)
            self._named[value] = (f"constant_{len(self._named)}", tensor)
        return self._named[value]


def _flat(arguments: Any) -> list[Any]:
    if isinstance(arguments, list | tuple):
        return [item for argument in arguments for item in _flat(argument)]
    return [arguments]


def _swapped(arguments: Any, replace: Any) -> Any:
    """Replace the values in nested arguments."""
    if isinstance(arguments, Value):
        return replace(arguments)
    if isinstance(arguments, list):
        return [_swapped(argument, replace) for argument in arguments]
    if isinstance(arguments, tuple):
        return tuple(_swapped(argument, replace) for argument in arguments)
    return arguments
