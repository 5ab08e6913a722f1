"""A graph as a linter asks about it: pairs of quantisation, constants, and who makes and takes a tensor."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from retinastream.engines.precision.model_files import import_onnx, opset_of

_PAIR = ("QuantizeLinear", "DequantizeLinear")
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Constants stay constant through these.
_PASSING = ("Identity", "Cast", "Reshape", "Transpose", "Squeeze", "Unsqueeze", *_PAIR)


class LintGraph:
    """Nodes of a graph with their links; nothing about it has to be valid."""

    def __init__(self, model: Any) -> None:
        self._onnx = import_onnx()
        self.opset = opset_of(model)
        self.nodes: list[Any] = list(model.graph.node)
        self.pairs = [node for node in self.nodes if node.op_type in _PAIR and len(node.input) > 1]
        self.maker: dict[str, Any] = {name: node for node in self.nodes for name in node.output}
        self.takers: dict[str, list[Any]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.takers[name].append(node)
        self._initialisers = {tensor.name: tensor for tensor in model.graph.initializer}
        self._types, self._shapes = self._infer(model)

    def constant(self, name: str) -> npt.NDArray[Any] | None:
        """Return the values of a tensor that stands in the file, None where it is computed or there is none."""
        onnx = self._onnx
        if name in self._initialisers:
            return np.asarray(onnx.numpy_helper.to_array(self._initialisers[name]))
        node = self.maker.get(name)
        if node is not None and node.op_type == "Identity":
            return self.constant(node.input[0])
        if node is None or node.op_type != "Constant":
            return None
        value = onnx.helper.get_attribute_value(node.attribute[0])
        is_tensor = isinstance(value, onnx.TensorProto)
        return np.asarray(onnx.numpy_helper.to_array(value) if is_tensor else value)

    def is_constant(self, name: str) -> bool:
        """Whether a tensor depends on no input of the graph."""
        while True:
            if name in self._initialisers:
                return True
            node = self.maker.get(name)
            if node is None or node.op_type not in (*_PASSING, "Constant"):
                return False
            if node.op_type == "Constant":
                return True
            name = node.input[0]

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """Return the sizes of a tensor as far as they are known; None where not even their number is."""
        if name in self._initialisers:
            return tuple(self._initialisers[name].dims)
        return self._shapes.get(name)

    def quantised_type(self, node: Any) -> str | None:
        """Return the ONNX name of the type on the quantised side of a pair's node, None where it is not known."""
        kinds = self._onnx.TensorProto.DataType
        quantised = node.output[0] if node.op_type == "QuantizeLinear" else node.input[0]
        for name in (node.input[2] if len(node.input) > 2 else "", quantised):
            if name in self._initialisers:
                return str(kinds.Name(self._initialisers[name].data_type))
            if self._types.get(name):
                return str(kinds.Name(self._types[name]))
        return None

    def has_output_type(self, node: Any) -> bool:
        """Whether a quantising node says its type by an attribute, as newer opsets allow."""
        return any(attribute.name == "output_dtype" and attribute.i for attribute in node.attribute)

    def axis(self, node: Any) -> int:
        """Return the axis that a pair's scales lie along; 1 where none is given, by ONNX."""
        return next((int(attribute.i) for attribute in node.attribute if attribute.name == "axis"), 1)

    def is_layer(self, node: Any) -> bool:
        """Whether a node is a convolution or a matrix product."""
        return node.op_type in _LAYERS

    def users_of_pair(self, node: Any) -> Iterator[Any]:
        """Yield who takes the dequantised values of the pair that ``node`` belongs to."""
        if node.op_type == "DequantizeLinear":
            yield from self.takers[node.output[0]]
            return
        for other in self.takers[node.output[0]]:
            if other.op_type == "DequantizeLinear":
                yield from self.takers[other.output[0]]

    def is_weight_of(self, node: Any, user: Any) -> bool:
        """Whether what ``node`` quantises is the second input of ``user``: its weight."""
        ends = set(node.output) | {name for other in self.takers[node.output[0]] for name in other.output}
        return len(user.input) > 1 and user.input[1] in ends

    def quantised_source(self, name: str) -> str | None:
        """Return the tensor that was quantised and dequantised to give this one; None where it was not."""
        after = self.maker.get(name)
        before = self.maker.get(after.input[0]) if after is not None and after.op_type == "DequantizeLinear" else None
        return str(before.input[0]) if before is not None and before.op_type == "QuantizeLinear" else None

    def _infer(self, model: Any) -> tuple[dict[str, int], dict[str, tuple[int | None, ...]]]:
        try:
            graph = self._onnx.shape_inference.infer_shapes(model).graph
        except Exception:  # noqa: BLE001 - what cannot be inferred is simply not known
            graph = model.graph
        types: dict[str, int] = {}
        shapes: dict[str, tuple[int | None, ...]] = {}
        for declared in (*graph.input, *graph.value_info, *graph.output):
            tensor = declared.type.tensor_type
            types[declared.name] = int(tensor.elem_type)
            if tensor.HasField("shape"):
                shapes[declared.name] = tuple(
                    int(d.dim_value) if d.HasField("dim_value") else None for d in tensor.shape.dim
                )
        return types, shapes
