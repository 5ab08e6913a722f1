"""Writing quantise/dequantise pairs into a graph: symmetric, zero points of 0, weights per output channel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from retinastream.engines.precision.model_files import import_onnx
from retinastream.engines.precision.placement import GraphLinks, Placement
from retinastream.errors import ModelError

Float64 = npt.NDArray[np.float64]

_LEVELS = 127
# A scale must be positive after its cast to half precision. Below this it would have fewer than five bits there; a
# channel of such weights (all below 1.3e-4), or of zeros, loses nothing by it.
SMALLEST_SCALE = 2.0**-20
_LARGEST_SCALE = 65504.0


def insert_pairs(model: Any, placement: Placement, limits: Mapping[str, float]) -> Any:
    """Return a copy of the float32 graph with pairs at the inputs of what ``placement`` names.

    ``limits`` holds the range of each tensor of ``placement.tensors``. A tensor is quantised once, whoever takes it
    quantised. Scales are float32 whose values half precision holds exactly, so that a later cast changes none.
    """
    onnx = import_onnx()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _Inserting(copy, limits).apply(placement)
    return copy


def half_scale(limit: npt.ArrayLike) -> Float64:
    """Return the scale for magnitudes up to ``limit``: rounded up to half precision, so that nothing is cut by it."""
    wanted = np.clip(np.asarray(limit, np.float64) / _LEVELS, SMALLEST_SCALE, _LARGEST_SCALE)
    rounded = wanted.astype(np.float16)
    with np.errstate(over="ignore"):
        up = np.nextafter(rounded, np.float16(np.inf))
    return np.asarray(np.where(rounded.astype(np.float64) < wanted, up, rounded), np.float64)


class _Inserting:
    def __init__(self, model: Any, limits: Mapping[str, float]) -> None:
        self._onnx = import_onnx()
        self._model = model
        self._limits = limits
        self._links = GraphLinks(model)
        self._pairs: dict[str, tuple[list[Any], str]] = {}
        self._before: dict[str, list[Any]] = {}

    def apply(self, placement: Placement) -> None:
        for name in placement.layers:
            node = self._links.by_name[name]
            node.input[0], added = self._activation(node.input[0])
            node.input[1], more = self._weight(node)
            self._before[name] = [*added, *more]
        for name, position in placement.skips:
            node = self._links.by_name[name]
            node.input[position], added = self._activation(node.input[position])
            self._before.setdefault(name, []).extend(added)
        nodes = [entry for node in self._model.graph.node for entry in (*self._before.get(node.name, ()), node)]
        # A pair made for a later layer may be taken by an earlier node, such as an addition: put it where it is made.
        del self._model.graph.node[:]
        self._model.graph.node.extend(_sorted(nodes, self._model))

    def _activation(self, tensor: str) -> tuple[str, list[Any]]:
        if tensor not in self._pairs:
            if tensor not in self._limits:
                raise ModelError(f"the range of {tensor!r} is not known; calibrate the model with this placement")
            scale = half_scale(self._limits[tensor]).astype(np.float32)
            self._pairs[tensor] = self._pair(tensor, scale, np.zeros((), np.int8))
            return self._pairs[tensor][1], self._pairs[tensor][0]
        return self._pairs[tensor][1], []

    def _weight(self, node: Any) -> tuple[str, list[Any]]:
        name = node.input[1]
        values = self._onnx.numpy_helper.to_array(self._links.initialisers[name])
        axis = _output_axis(node, values.ndim)
        others = tuple(i for i in range(values.ndim) if i != axis)
        scales = half_scale(np.abs(values).max(axis=others)).astype(np.float32)
        if name in self._pairs:
            return self._pairs[name][1], []
        self._pairs[name] = self._pair(name, scales, np.zeros(scales.shape, np.int8), axis)
        return self._pairs[name][1], self._pairs[name][0]

    def _pair(
        self, tensor: str, scale: npt.NDArray[np.float32], zero: npt.NDArray[np.int8], axis: int | None = None
    ) -> tuple[list[Any], str]:
        onnx = self._onnx
        names = {part: f"{tensor}_{part}" for part in ("scale", "zero_point", "quantised", "dequantised")}
        for part, values in (("scale", scale), ("zero_point", zero)):
            self._model.graph.initializer.append(onnx.numpy_helper.from_array(values, names[part]))
        constants = [names["scale"], names["zero_point"]]
        attributes = {} if axis is None else {"axis": axis}
        make = onnx.helper.make_node
        nodes = [
            make("QuantizeLinear", [tensor, *constants], [names["quantised"]], f"{tensor}_quantise", **attributes),
            make(
                "DequantizeLinear",
                [names["quantised"], *constants],
                [names["dequantised"]],
                f"{tensor}_dequantise",
                **attributes,
            ),
        ]
        return nodes, names["dequantised"]


def _output_axis(node: Any, dimensions: int) -> int:
    """Return the axis of a weight that counts the outputs: the first of a convolution's."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        return 0 if transposed else 1
    return dimensions - 1


def _sorted(nodes: list[Any], model: Any) -> list[Any]:
    """Order nodes so that each comes after those that make its inputs, and otherwise as they were."""
    there = {tensor.name for tensor in (*model.graph.input, *model.graph.initializer)} | {""}
    waiting, done = list(nodes), []
    while waiting:
        later = []
        for node in waiting:
            if there.issuperset(node.input):
                there.update(node.output)
                done.append(node)
            else:
                later.append(node)
        if len(later) == len(waiting):
            raise ModelError(f"the inputs of {later[0].name} are made nowhere; the model is broken")
        waiting = later
    return done
