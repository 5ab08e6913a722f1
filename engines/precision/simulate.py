"""What a GPU computes from a graph of lower precision, as a float32 graph that a CPU runs.

ONNX Runtime has few kernels of half precision for CPUs. It runs such a graph in float32 and leaves out the casts in
between, so that neither rounding nor overflow would show: a check of fp16 on it would check the weights only. Here
every result that the graph says is float16 is rounded to it and back, explicitly, and what exceeds 65504 becomes
infinite. Sums within an operator stay float32. Quantised operands are left as they are, for an int8 convolution takes
them without a detour through half precision.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from retinastream.engines.precision.model_files import import_onnx
from retinastream.errors import ModelError

_EXACT = {
    "DequantizeLinear",
    "Relu",
    "MaxPool",
    "Concat",
    "Transpose",
    "Reshape",
    "Identity",
    "Flatten",
    "Slice",
    "Split",
}


def load_simulated(path: str | Path) -> bytes:
    """Return a float32 model that computes what the fp16 or int8 model at ``path`` does on a GPU, as bytes.

    Raises ModelError for a file that cannot be read.
    """
    onnx = import_onnx()
    try:
        return bytes(simulate_graph(onnx.load(str(path))).SerializeToString())
    except Exception as error:
        raise ModelError(f"{path} cannot be simulated on the CPU: {error}") from error


def simulate_graph(model: Any) -> Any:
    """Return a float32 copy of a graph, with results rounded where the graph has float16; see above."""
    onnx = import_onnx()
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    halves = {v.name for v in (*inferred.value_info, *inferred.output) if v.type.tensor_type.elem_type == half}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    del graph.value_info[:]
    for index, tensor in enumerate(graph.initializer):
        if tensor.data_type == half:
            values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            graph.initializer[index].CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for declared in (*graph.input, *graph.output):
        if declared.type.tensor_type.elem_type == half:
            declared.type.tensor_type.elem_type = single
    nodes = []
    taken: dict[str, str] = {}
    for image in model.graph.input:
        if image.type.tensor_type.elem_type == half:
            taken[image.name] = f"{image.name}_given"
            nodes += _pair(onnx, image.name, taken[image.name])
    for node in list(graph.node):
        for position, name in enumerate(node.input):
            node.input[position] = taken.get(name, name)
        nodes.append(node)
        for position, name in enumerate(node.output):
            if name in halves and node.op_type not in _EXACT:
                node.output[position] = f"{name}_unrounded"
                nodes += _pair(onnx, node.output[position], name)
    del graph.node[:]
    graph.node.extend(nodes)
    return copy


def _pair(onnx: Any, source: str, target: str) -> list[Any]:
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    return [
        onnx.helper.make_node("Cast", [source], [f"{target}_rounded"], f"{target}_round", to=half),
        onnx.helper.make_node("Cast", [f"{target}_rounded"], [target], f"{target}_back", to=single),
    ]
