"""From a float32 graph to one in half precision, strongly typed: the types in the graph are those that it computes in.

The picture comes in as float16, which the preprocessing kernel writes directly, and the outputs leave as float32
through a ``Cast``. Every operator that takes float16 by its ONNX definition is given float16; those that do not, those
that were asked to stay, and whatever does not depend on the picture's values (sizes, anchors) stay float32. Unlike
common converters this one changes no weight silently: what half precision cannot hold is an error, with ways out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from retinastream.engines.precision.half_types import HALF_MAX, HALF_MIN, GraphTypes
from retinastream.engines.precision.model_files import check_out, import_onnx, load_float_model, write_model
from retinastream.engines.precision.node_patterns import matching_nodes
from retinastream.errors import ModelError, UsageError
from retinastream.models.spec import DetectorSpec

Outside = Literal["refuse", "fp32", "round"]

# A probability near 1 has 11 bits in half precision, so that the best faces would all have the same score.
_DELICATE = {"Softmax", "LogSoftmax"}
_NAMED = 3


@dataclass(frozen=True, slots=True)
class OutsideWeight:
    """A weight tensor of ``node`` that half precision cannot hold: how many values are too large, and too small.

    ``largest`` and ``smallest`` are magnitudes of the whole tensor, zeros left out.
    """

    tensor: str
    node: str
    too_large: int
    too_small: int
    largest: float
    smallest: float

    def __str__(self) -> str:
        """Write it as a clause of a message."""
        parts = []
        if self.too_large:
            parts.append(f"{self.too_large} values above {HALF_MAX:g} (up to {self.largest:g})")
        if self.too_small:
            parts.append(f"{self.too_small} values below {HALF_MIN:g} (down to {self.smallest:g})")
        return f"{self.node} ({self.tensor}): {' and '.join(parts)}"


@dataclass(frozen=True, slots=True)
class HalfModel:
    """What was written: ``fp32_nodes`` stayed in float32, ``outside`` were weights that half precision cannot hold."""

    path: Path
    nodes: int
    fp32_nodes: tuple[str, ...]
    outside: tuple[OutsideWeight, ...]


def to_fp16(
    path: str | Path,
    out: str | Path,
    *,
    keep: Sequence[str] = (),
    outside: Outside = "refuse",
    keep_input: bool = False,
    overwrite: bool = False,
    spec: DetectorSpec | None = None,
) -> HalfModel:
    """Write the float32 detector at ``path`` as a half-precision ONNX file to ``out``.

    ``keep`` names nodes that stay float32, with ``*`` as a wildcard; a softmax and what follows it always do.
    ``outside`` says what is done about weights above 65504 and below 6e-8: "refuse" the model, leave their nodes in
    "fp32", or "round" the small ones, which become 0 or the smallest number (large ones are refused then, too). With
    ``keep_input`` the picture stays float32 and is cast inside.

    Raises ModelError for models that cannot be converted, UsageError for values that are not allowed, OutputError.
    """
    if outside not in get_args(Outside):
        raise UsageError(f"outside is {outside!r}; allowed are {', '.join(get_args(Outside))}")
    target = check_out(path, out, overwrite=overwrite)
    found, model = load_float_model(path, spec=spec)
    kept = matching_nodes(model, keep) | delicate_nodes(model)
    refused = halve(model, kept, outside=outside, keep_input=keep_input, name=str(path))
    write_model(model, found, target, "fp16", {})
    return HalfModel(target, len(model.graph.node), tuple(sorted(kept)), refused)


def delicate_nodes(model: Any) -> set[str]:
    """Return the softmax nodes and everything computed from their results."""
    touched: set[str] = set()
    names: set[str] = set()
    for node in model.graph.node:
        if node.op_type in _DELICATE or touched.intersection(node.input):
            names.add(node.name)
            touched.update(node.output)
    return names


def halve(
    model: Any, kept: set[str], *, outside: Outside = "refuse", keep_input: bool = False, name: str = "the model"
) -> tuple[OutsideWeight, ...]:
    """Convert a graph in place; nodes named in ``kept`` stay float32, and with "fp32" more are added to it.

    Returns the weights that half precision cannot hold. Raises ModelError as ``to_fp16`` does.
    """
    types = GraphTypes(model)
    found = tuple(_outside_weights(types, kept))
    refused = [weight for weight in found if outside == "refuse" or (outside == "round" and weight.too_large)]
    if refused:
        raise ModelError(_refusal(name, refused))
    if outside == "fp32":
        kept |= {weight.node for weight in found}
    _Halving(types, kept, keep_input=keep_input).apply()
    return found


def _refusal(name: str, refused: list[OutsideWeight]) -> str:
    more = f"; and {len(refused) - _NAMED} more" if len(refused) > _NAMED else ""
    listed = "; ".join(map(str, refused[:_NAMED]))
    small = " or round small ones to what there is (outside='round')" if not any(w.too_large for w in refused) else ""
    return (
        f"{name} has weights that half precision cannot hold: {listed}{more}. Leave these nodes in float32 "
        f"(outside='fp32', or keep with their names){small}"
    )


def _outside_weights(types: GraphTypes, kept: set[str]) -> Iterator[OutsideWeight]:
    for node in types.nodes:
        if node.name in kept:
            continue
        for position in types.halved_inputs(node):
            name = node.input[position]
            if name not in types.initialisers:
                continue
            values = np.abs(types.constant(name))
            if not np.isfinite(values).all():
                raise ModelError(f"the weight {name!r} of {node.name} is not finite; the model is broken")
            sizes = values[values > 0]
            large, small = int((sizes > HALF_MAX).sum()), int((sizes < HALF_MIN).sum())
            if large or small:
                yield OutsideWeight(name, node.name, large, small, float(sizes.max()), float(sizes.min()))


class _Halving:
    """One pass over the nodes in their order: each gets its inputs in the type that it is to compute in."""

    def __init__(self, types: GraphTypes, kept: set[str], *, keep_input: bool) -> None:
        self._onnx = import_onnx()
        self._types = types
        self._kept = kept
        self._keep_input = keep_input
        self._nodes: list[Any] = []
        self._now: dict[str, int] = {}
        self._other_type: dict[tuple[str, int], str] = {}

    def apply(self) -> None:
        graph = self._types.model.graph
        half, single = self._onnx.TensorProto.FLOAT16, self._onnx.TensorProto.FLOAT
        for declared in graph.input:
            if declared.name in self._types.data and self._types.is_float(declared.name):
                self._now[declared.name] = single if self._keep_input else half
                declared.type.tensor_type.elem_type = self._now[declared.name]
        for node in self._types.nodes:
            self._convert(node)
        for declared in graph.output:
            self._restore_output(declared.name)
        del graph.node[:]
        graph.node.extend(self._nodes)
        del graph.value_info[:]
        used = {name for node in self._nodes for name in node.input}
        kept = [tensor for tensor in graph.initializer if tensor.name in used]
        del graph.initializer[:]
        graph.initializer.extend(kept)

    def _convert(self, node: Any) -> None:
        onnx = self._onnx
        half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
        stays = node.name in self._kept or not self._types.depends_on_picture(node)
        halved = set() if stays else set(self._types.halved_inputs(node))
        outputs = set() if stays else set(self._types.halved_outputs(node))
        for position, name in enumerate(node.input):
            if name and self._types.is_float(name):
                node.input[position] = self._as(name, half if position in halved else single)
        for position, name in enumerate(node.output):
            if name and self._types.is_float(name):
                self._now[name] = half if position in outputs else single
        if node.op_type == "Cast" and 0 in outputs:
            node.attribute[0].CopyFrom(onnx.helper.make_attribute("to", half))
        self._nodes.append(node)

    def _as(self, name: str, wanted: int) -> str:
        """Return the name of this tensor in the type ``wanted``; makes it where it is not there yet."""
        onnx = self._onnx
        if self._now.get(name, onnx.TensorProto.FLOAT) == wanted:
            return name
        key = (name, wanted)
        if key not in self._other_type:
            suffix = "fp16" if wanted == onnx.TensorProto.FLOAT16 else "fp32"
            self._other_type[key] = self._types.new_name(f"{name}_{suffix}")
            if name in self._types.initialisers:
                with np.errstate(over="ignore"):
                    values = self._types.constant(name).astype(np.float16)
                tensor = onnx.numpy_helper.from_array(values, self._other_type[key])
                self._types.model.graph.initializer.append(tensor)
            else:
                self._nodes.append(self._cast(name, self._other_type[key], wanted))
        return self._other_type[key]

    def _restore_output(self, name: str) -> None:
        """Let an output leave as float32 under its own name."""
        onnx = self._onnx
        if self._now.get(name, onnx.TensorProto.FLOAT) == onnx.TensorProto.FLOAT:
            return
        inner = self._types.new_name(f"{name}_fp16")
        for node in self._nodes:
            for names in (node.input, node.output):
                for position, given in enumerate(names):
                    if given == name:
                        names[position] = inner
        self._nodes.append(self._cast(inner, name, onnx.TensorProto.FLOAT))

    def _cast(self, source: str, target: str, wanted: int) -> Any:
        name = self._types.new_name(f"{target}_cast")
        return self._onnx.helper.make_node("Cast", [source], [target], name=name, to=wanted)
