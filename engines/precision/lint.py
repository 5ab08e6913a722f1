"""What TensorRT would refuse about a quantised graph, or run slowly, found before it is asked.

The rules are those of its ONNX importer and of its documentation on explicit quantisation; see docs/engines.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from retinastream.engines.precision.lint_graph import LintGraph
from retinastream.engines.precision.model_files import LOWEST_OPSET, import_onnx
from retinastream.errors import ModelError
from retinastream.models.onnx_graph import read_graph

Severity = Literal["error", "warning"]
_HALF_MAX = 65504.0
_WEIGHT_AXES = {"Conv": 0, "ConvTranspose": 1}
_ACTIVATIONS = {"Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "BatchNormalization"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about one node: what is wrong, and what to do about it. Errors are refused, warnings cost speed."""

    severity: Severity
    rule: str
    node: str
    message: str
    remedy: str

    def __str__(self) -> str:
        """Write it as one line."""
        return f"{self.severity}: {self.node}: {self.message}; {self.remedy} [{self.rule}]"

    def to_dict(self) -> dict[str, str]:
        """Plain values, for JSON."""
        return asdict(self)


def lint(path: str | Path) -> list[Finding]:
    """Return what is wrong with the quantisation of the ONNX graph at ``path``, errors first; [] where nothing is.

    A graph without quantisation has nothing to find. Raises ModelError for a file that cannot be read as ONNX.
    """
    path = Path(path)
    read_graph(path)  # says what is wrong with a file that is none
    onnx = import_onnx()
    try:
        model = onnx.load(str(path))
    except Exception as error:
        raise ModelError(f"{path} cannot be read: {error}; are all files of its weights beside it?") from error
    return lint_graph(model)


def lint_graph(model: Any) -> list[Finding]:
    """Return what is wrong with the quantisation of a graph in memory; see ``lint``."""
    graph = LintGraph(model)
    rules: tuple[Callable[[LintGraph], Iterator[Finding]], ...] = (
        *(_opset, _zero_points, _scales, _types, _axes, _biases, _per_channel_activations),
        *(_additions, _before_activations),
    )
    found = [finding for rule in rules for finding in rule(graph)]
    return sorted(found, key=lambda finding: finding.severity != "error")


def _opset(graph: LintGraph) -> Iterator[Finding]:
    if graph.opset >= LOWEST_OPSET:
        return
    for node in graph.pairs:
        scale = graph.constant(node.input[1])
        if scale is not None and scale.dtype == np.float16:
            yield _error(
                "opset",
                node,
                f"its scale is float16 in a graph of opset {graph.opset}",
                f"export with opset {LOWEST_OPSET} or newer, which allows it",
            )


def _zero_points(graph: LintGraph) -> Iterator[Finding]:
    for node in graph.pairs:
        if len(node.input) < 3 or not node.input[2]:
            if node.op_type == "QuantizeLinear" and not graph.has_output_type(node):
                yield _error("zero-point", node, "it has no zero point, and so makes uint8", "add one of int8 zeros")
            elif node.op_type == "DequantizeLinear":
                yield _warning(
                    "zero-point", node, "it has no zero point", "add one of zeros, as older versions need it"
                )
            continue
        values = graph.constant(node.input[2])
        if values is None:
            yield _error("zero-point", node, "its zero point is computed", "make it a constant of int8 zeros")
        elif values.dtype.kind in "iu" and values.any():
            yield _error(
                "zero-point",
                node,
                f"its zero point is {values.ravel()[values.ravel() != 0][0]}; only symmetric quantisation is taken",
                "quantise symmetrically, with zero points of 0",
            )


def _scales(graph: LintGraph) -> Iterator[Finding]:
    for node in graph.pairs:
        scale = graph.constant(node.input[1])
        if scale is None:
            yield _error("scale", node, "its scale is computed", "make it a constant (fold constants)")
            continue
        if len(node.input) > 2 and node.input[2]:
            zero = graph.constant(node.input[2])
            if zero is not None and zero.size != scale.size:
                yield _error(
                    "scale", node, f"it has {scale.size} scales and {zero.size} zero points", "give as many of each"
                )
        problem = _bad_scale(scale)
        if problem:
            yield _error("scale", node, *problem)


def _bad_scale(scale: npt.NDArray[Any]) -> tuple[str, str] | None:
    values = scale.astype(np.float64).ravel()
    if not np.isfinite(values).all():
        return "a scale is not finite", "calibrate again"
    if (values <= 0).any():
        count = int((values <= 0).sum())
        return (
            f"{count} of its {values.size} scales are not positive, as of channels whose weights are all 0",
            "use a tiny positive scale there, such as 1e-6",
        )
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if (half <= 0).any():
        return f"the scale {values.min():g} becomes 0 in half precision", "use at least 1e-6"
    if not np.isfinite(half).all():
        return (
            f"the scale {values.max():g} is above {_HALF_MAX:g}, the most that half precision holds",
            "calibrate again",
        )
    return None


def _types(graph: LintGraph) -> Iterator[Finding]:
    for node in graph.pairs:
        kind = graph.quantised_type(node)
        # int32 is told by the rule on biases, and what a missing zero point means by that on these.
        told = node.op_type == "QuantizeLinear" and len(node.input) < 3
        if told or kind in (None, "INT8", "INT32") or kind.startswith("FLOAT8"):
            continue
        hint = "quantise to int8, symmetrically"
        yield _error("type", node, f"it quantises to {kind.lower()}; int8 (and float8) is taken", hint)


def _axes(graph: LintGraph) -> Iterator[Finding]:
    for node in graph.pairs:
        scale = graph.constant(node.input[1])
        shape = graph.shape(node.input[0])
        if scale is None or scale.size == 1 or shape is None:
            continue
        axis = graph.axis(node)
        if not -len(shape) <= axis < len(shape):
            yield _error("axis", node, f"its axis is {axis} for a tensor of {len(shape)} dimensions", "correct it")
            continue
        length = shape[axis]
        if length is not None and length != scale.size:
            yield _error(
                "axis", node, f"it has {scale.size} scales for an axis of {length}", "give one scale per output channel"
            )
        for user in graph.users_of_pair(node):
            wanted = _weight_axis(user, len(shape))
            if wanted is not None and graph.is_weight_of(node, user) and axis % len(shape) != wanted:
                yield _error(
                    "axis",
                    node,
                    f"it scales along axis {axis} the weight of {user.name} ({user.op_type}), whose outputs lie along "
                    f"axis {wanted}",
                    f"quantise the weight per channel along axis {wanted}",
                )


def _weight_axis(node: Any, dimensions: int) -> int | None:
    if node.op_type == "Gemm":
        return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    if node.op_type == "MatMul":
        return dimensions - 1
    return _WEIGHT_AXES.get(node.op_type)


def _biases(graph: LintGraph) -> Iterator[Finding]:
    for node in graph.nodes:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm") or len(node.input) < 3:
            continue
        maker = graph.maker.get(node.input[2])
        if maker is not None and maker.op_type == "DequantizeLinear":
            yield _error(
                "bias", node, f"its bias is quantised ({maker.name})", "leave biases as they are: fp16, without a pair"
            )
    biased = {node.input[2] for node in graph.nodes if len(node.input) > 2}
    for node in graph.pairs:
        if graph.quantised_type(node) == "INT32" and not biased & set(node.output):
            yield _error("bias", node, "it dequantises int32, which is no type of quantisation", "leave it as float")


def _per_channel_activations(graph: LintGraph) -> Iterator[Finding]:
    for node in graph.pairs:
        scale = graph.constant(node.input[1])
        if (
            node.op_type == "QuantizeLinear"
            and scale is not None
            and scale.size > 1
            and not graph.is_constant(node.input[0])
        ):
            yield _error(
                "per-tensor", node, f"an activation has {scale.size} scales", "give activations one scale, weights many"
            )


def _additions(graph: LintGraph) -> Iterator[Finding]:
    for node in graph.nodes:
        if node.op_type != "Add" or len(node.input) != 2:
            continue
        sources = [graph.quantised_source(name) for name in node.input]
        if None in sources:
            continue
        layers = [
            graph.maker[name].name for name in sources if name in graph.maker and graph.is_layer(graph.maker[name])
        ]
        if layers:
            yield _warning(
                "addition",
                node,
                f"both of its branches are quantised, so that {layers[0]} and this addition are not fused",
                "quantise only the branch that does not come straight out of a convolution",
            )


def _before_activations(graph: LintGraph) -> Iterator[Finding]:
    for node in graph.pairs:
        maker = graph.maker.get(node.input[0])
        if node.op_type != "QuantizeLinear" or maker is None or not graph.is_layer(maker):
            continue
        after = [user for user in graph.users_of_pair(node) if user.op_type in _ACTIVATIONS]
        if after:
            yield _warning(
                "activation",
                node,
                f"it stands between {maker.name} and its activation {after[0].name}, which then are not fused",
                "quantise what comes out of the activation",
            )


def _error(rule: str, node: Any, message: str, remedy: str) -> Finding:
    return Finding("error", rule, node.name or node.output[0], message, remedy)


def _warning(rule: str, node: Any, message: str, remedy: str) -> Finding:
    return Finding("warning", rule, node.name or node.output[0], message, remedy)
