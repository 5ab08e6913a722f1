"""Where a graph is quantised: at the inputs of convolutions, so that what follows them stays fused with them.

TensorRT computes a convolution in int8 when its picture and its weight come out of a quantise/dequantise pair, and
fuses with it the activation that follows and an addition whose other branch is quantised as well. So outputs of
convolutions are never quantised before their activation; of a residual addition only the branch is that does not come
straight out of a convolution; and concatenations, resizing and additions of a feature pyramid are left as they are,
for the pair behind them moves through them to where it is cheapest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from retinastream.engines.precision.node_patterns import matching_nodes
from retinastream.errors import ModelError, UsageError

Part = Literal["first", "last", "depthwise"]
PARTS: tuple[str, ...] = get_args(Part)
_QUANTISED = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True)
class Placement:
    """What is quantised: layers by node name, and branches of residual additions as (node, input)."""

    layers: tuple[str, ...]
    skips: tuple[tuple[str, int], ...]

    def without(self, model: Any, names: Sequence[str]) -> Placement:
        """Return the placement with the layers ``names`` left out, and the additions that no layer fuses with then."""
        layers = tuple(name for name in self.layers if name not in set(names))
        return Placement(layers, _skips(GraphLinks(model), set(layers)))

    def tensors(self, model: Any) -> tuple[str, ...]:
        """Names of the tensors whose range has to be known, each once."""
        links = GraphLinks(model)
        names = [links.by_name[layer].input[0] for layer in self.layers]
        names += [links.by_name[node].input[position] for node, position in self.skips]
        return tuple(dict.fromkeys(names))


class GraphLinks:
    """Who makes a tensor and who takes it."""

    def __init__(self, model: Any) -> None:
        self.nodes: list[Any] = list(model.graph.node)
        self.by_name: dict[str, Any] = {node.name: node for node in self.nodes}
        self.maker: dict[str, Any] = {name: node for node in self.nodes for name in node.output}
        self.takers: dict[str, list[Any]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.takers[name].append(node)
        self.outputs = {output.name for output in model.graph.output}
        self.initialisers = {tensor.name: tensor for tensor in model.graph.initializer}

    def fused_layer(self, tensor: str, layers: set[str]) -> Any | None:
        """Return the layer that ``tensor`` comes straight out of, if nothing else takes it."""
        node = self.maker.get(tensor)
        alone = len(self.takers[tensor]) == 1 and tensor not in self.outputs
        return node if node is not None and node.name in layers and alone else None


def place(model: Any, *, leave: Sequence[str] = (), leave_parts: Sequence[str] = ()) -> Placement:
    """Choose what to quantise of a float32 graph: every convolution and matrix product with constant weights.

    ``leave`` names layers that stay in half precision, with ``*`` as a wildcard; ``leave_parts`` kinds of them: "first"
    (those that see the picture), "last" (the heads: those that no other one follows), "depthwise". Raises UsageError
    for names and parts that there are not, ModelError where nothing is left to quantise.
    """
    unknown = [part for part in leave_parts if part not in PARTS]
    if unknown:
        raise UsageError(f"there is no part {unknown[0]!r} of a network; allowed are {', '.join(PARTS)}")
    links = GraphLinks(model)
    left = matching_nodes(model, leave)
    found = [node for node in links.nodes if _has_weight(node, links)]
    if not found:
        raise ModelError("the model has no convolution with constant weights; there is nothing to quantise")
    for part in leave_parts:
        left |= {node.name for node in found if _is_part(part, node, links)}
    layers = tuple(node.name for node in found if node.name not in left)
    if not layers:
        raise ModelError(f"all {len(found)} layers of the model are to be left out; there is nothing to quantise")
    return Placement(layers, _skips(links, set(layers)))


def _has_weight(node: Any, links: GraphLinks) -> bool:
    if node.op_type not in _QUANTISED or len(node.input) < 2 or node.input[0] in links.initialisers:
        return False
    weight = links.initialisers.get(node.input[1])
    return weight is not None and len(weight.dims) >= 2


def _is_part(part: str, node: Any, links: GraphLinks) -> bool:
    if part == "depthwise":
        return node.op_type == "Conv" and _groups(node) > 1
    if part == "first":
        return not _reaches_layer(node.input[0], links, forwards=False)
    return not any(_reaches_layer(name, links, forwards=True) for name in node.output)


def _groups(node: Any) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "group"), 1)


def _reaches_layer(tensor: str, links: GraphLinks, *, forwards: bool) -> bool:
    """Whether there is a layer with weights anywhere behind (or before) a tensor."""
    seen: set[str] = set()
    waiting = [tensor]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        nodes = links.takers[name] if forwards else [links.maker[name]] if name in links.maker else []
        if any(_has_weight(node, links) for node in nodes):
            return True
        waiting += [other for node in nodes for other in (node.output if forwards else node.input)]
    return False


def _skips(links: GraphLinks, layers: set[str]) -> tuple[tuple[str, int], ...]:
    """Return the branches of residual additions that are to be quantised.

    An addition fuses with the layer before it. Where both branches come out of one, the smaller kernel is the shortcut.
    """
    found = []
    for node in links.nodes:
        if node.op_type != "Add" or len(node.input) != 2 or set(node.input) & set(links.initialisers):
            continue
        fused = [links.fused_layer(name, layers) for name in node.input]
        if fused[0] is None and fused[1] is None:
            continue
        if fused[0] is not None and fused[1] is not None:
            areas = [_kernel_area(layer, links) for layer in fused]
            skip = 0 if areas[0] < areas[1] else 1
        else:
            skip = 0 if fused[0] is None else 1
        found.append((node.name, skip))
    return tuple(found)


def _kernel_area(node: Any, links: GraphLinks) -> int:
    area = 1
    for size in links.initialisers[node.input[1]].dims[2:]:
        area *= int(size)
    return area
