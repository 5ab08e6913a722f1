"""Which tensors of a graph can be half precision, by the definitions of its operators."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy.typing as npt

from retinastream.engines.precision.model_files import import_onnx, opset_of
from retinastream.errors import ModelError

# The largest and the smallest positive number of half precision; the latter is 2**-24, given as the usual round figure.
HALF_MAX = 65504.0
HALF_MIN = 6e-8
_HALF = "tensor(float16)"
# Their results are sizes, whatever the values of what they are given.
_SIZES_ONLY = {"Shape", "Size"}
# Those of weights depend on no picture, but what they give is computed with.
_PAIR = {"QuantizeLinear", "DequantizeLinear"}


class GraphTypes:
    """Types of all tensors of ``model``, and what of it depends on the picture's values.

    ``data`` are the tensors that do: everything computed from the graph's inputs other than through a shape. Raises
    ModelError where a type cannot be inferred.
    """

    def __init__(self, model: Any) -> None:
        self._onnx = import_onnx()
        self.model = model
        self.nodes: list[Any] = list(model.graph.node)
        self.initialisers = {tensor.name: tensor for tensor in model.graph.initializer}
        self._opset = opset_of(model)
        self._types = self._infer()
        self._taken = set(self._types) | {node.name for node in self.nodes}
        self._constants: dict[str, npt.NDArray[Any]] = {}
        self.data = {tensor.name for tensor in model.graph.input} - set(self.initialisers)
        for node in self.nodes:
            if node.op_type not in _SIZES_ONLY and self.data.intersection(node.input):
                self.data.update(name for name in node.output if name)

    def is_float(self, name: str) -> bool:
        """Whether a tensor was float32 before the conversion."""
        return bool(self._types.get(name) == self._onnx.TensorProto.FLOAT)

    def constant(self, name: str) -> npt.NDArray[Any]:
        """Return the values of an initialiser."""
        if name not in self._constants:
            self._constants[name] = self._onnx.numpy_helper.to_array(self.initialisers[name])
        return self._constants[name]

    def depends_on_picture(self, node: Any) -> bool:
        """Whether a node computes with the picture's values, or quantises; not with sizes or constants only."""
        if node.op_type in _PAIR:
            return True
        return node.op_type not in _SIZES_ONLY and bool(self.data.intersection(node.input))

    def new_name(self, wanted: str) -> str:
        """Return ``wanted``, or something like it that is not taken yet."""
        while wanted in self._taken:
            wanted += "_"
        self._taken.add(wanted)
        return wanted

    def halved_inputs(self, node: Any) -> Iterator[int]:
        """Yield the positions of the float32 inputs that the operator takes as float16, too."""
        if not self.depends_on_picture(node):
            return
        schema = self._schema(node)
        for position, name in enumerate(node.input):
            if name and self.is_float(name) and self._allows(schema, _formal(schema.inputs, position)):
                yield position

    def halved_outputs(self, node: Any) -> Iterator[int]:
        """Yield the positions of the float32 outputs that are float16 once the inputs are."""
        schema = self._schema(node)
        followed = {_formal(schema.inputs, position).type_str for position in self.halved_inputs(node)}
        for position, name in enumerate(node.output):
            formal = _formal(schema.outputs, position)
            bound = formal.type_str in followed or (node.op_type == "Cast" and self._allows(schema, formal))
            if name and self.is_float(name) and bound:
                yield position

    def _schema(self, node: Any) -> Any:
        return self._onnx.defs.get_schema(node.op_type, self._opset, "")

    @staticmethod
    def _allows(schema: Any, formal: Any) -> bool:
        allowed = {entry.type_param_str: entry.allowed_type_strs for entry in schema.type_constraints}
        return _HALF in allowed.get(formal.type_str, [formal.type_str])

    def _infer(self) -> dict[str, int]:
        onnx = self._onnx
        try:
            inferred = onnx.shape_inference.infer_shapes(self.model, check_type=True, strict_mode=True).graph
        except Exception as error:
            first = str(error).strip().splitlines()[0]
            raise ModelError(f"the types of this model cannot be inferred: {first}; export it again") from error
        types = {
            declared.name: int(declared.type.tensor_type.elem_type)
            for declared in (*inferred.input, *inferred.value_info, *inferred.output)
        }
        types |= {tensor.name: int(tensor.data_type) for tensor in inferred.initializer}
        for node in self.nodes:
            for name in node.output:
                if name and not types.get(name):
                    raise ModelError(
                        f"the type of {name!r}, which {node.name} ({node.op_type}) computes, cannot be inferred; its "
                        "precision cannot be changed"
                    )
        return types


def _formal(parameters: Any, position: int) -> Any:
    """Return the declaration of a parameter; the last one of a variadic operator stands for all that follow."""
    return parameters[min(position, len(parameters) - 1)]
