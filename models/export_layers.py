"""The layers of a traced network as ONNX operators.

``torch.fx`` lists what the network does, and its few kinds of layers are written out one by one. That needs neither an
exporter of torch nor the packages it would bring, and folds every batch normalisation into its convolution.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn
from torch.nn import functional

from retinastream.errors import ModelError
from retinastream.models.export_deformable import emit_deformable
from retinastream.models.export_emitter import Emitter, to_array
from retinastream.models.network_deformable import DeformableConvolution
from retinastream.models.network_heads import DetectorNetwork


class _Tracer(fx.Tracer):
    """Lists a deformable convolution as one layer, which it is here, instead of by what it computes."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a module is written out as a whole."""
        return isinstance(m, DeformableConvolution) or super().is_leaf_module(m, module_qualified_name)


class _Features(nn.Module):
    """The part of a network that is traced: everything below the heads."""

    def __init__(self, network: DetectorNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the maps that the heads see."""
        return self.network.features(images)


def emit_features(network: DetectorNetwork, emitter: Emitter) -> list[str]:
    """Write out the traced layers and return the names of the maps that the heads see."""
    traced = _Features(network)
    modules = dict(traced.named_modules())
    names: dict[fx.Node, str] = {}
    for node in _Tracer().trace(traced).nodes:
        if node.op == "placeholder":
            names[node] = "images"
        elif node.op == "output":
            return [names[source] for source in node.args[0]]
        elif node.op == "call_module":
            _emit_module(node, modules, names, emitter)
        else:
            _emit_function(node, names, emitter)
    raise AssertionError("a traced network always has an output")


def _emit_module(node: fx.Node, modules: Mapping[str, nn.Module], names: dict[fx.Node, str], emitter: Emitter) -> None:
    layer = modules[str(node.target)]
    source = names[node.all_input_nodes[0]]
    name = str(node.target).removeprefix("network.") if isinstance(layer, nn.Conv2d) else node.name
    match layer:
        case DeformableConvolution():
            folded = _folded(layer, _normalisation_after(node, modules))
            names[node] = emit_deformable(layer, *folded, source, name, emitter)
        case nn.Conv2d():
            weight, bias = _folded(layer, _normalisation_after(node, modules))
            names[node] = emitter.convolution(
                source,
                name,
                weight,
                bias,
                stride=_square(layer.stride),
                padding=_square(layer.padding),
                groups=layer.groups,
            )
        case nn.BatchNorm2d():
            # Its numbers went into the convolution before it, see _normalisation_after.
            names[node] = source
        case nn.LeakyReLU() if layer.negative_slope:
            names[node] = emitter.node("LeakyRelu", [source], name, alpha=float(layer.negative_slope))
        case nn.ReLU() | nn.LeakyReLU():
            names[node] = emitter.node("Relu", [source], name)
        case nn.MaxPool2d():
            size, stride, padding = (_square(v) for v in (layer.kernel_size, layer.stride, layer.padding))
            names[node] = emitter.node(
                "MaxPool", [source], name, kernel_shape=[size] * 2, strides=[stride] * 2, pads=[padding] * 4
            )
        case _:
            raise ModelError(f"the layer {node.target} ({type(layer).__name__}) has no ONNX form in this exporter")


def _emit_function(node: fx.Node, names: dict[fx.Node, str], emitter: Emitter) -> None:
    sources = [names[source] for source in node.all_input_nodes]
    functions: dict[Any, Callable[[], str]] = {
        operator.add: lambda: emitter.node("Add", sources, node.name),
        torch.cat: lambda: emitter.node("Concat", sources, node.name, axis=1),
        functional.relu: lambda: emitter.node("Relu", sources, node.name),
        functional.interpolate: lambda: _emit_doubling(sources[0], node.name, emitter),
    }
    if node.target not in functions:
        raise ModelError(f"the operation {node.target} has no ONNX form in this exporter")
    names[node] = functions[node.target]()


def _emit_doubling(source: str, name: str, emitter: Emitter) -> str:
    """Nearest-neighbour upsampling by two; a constant factor keeps every size symbolic."""
    scales = emitter.constant("doubling", np.array([1, 1, 2, 2], np.float32))
    return emitter.node(
        "Resize",
        [source, "", scales],
        name,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def _normalisation_after(node: fx.Node, modules: Mapping[str, nn.Module]) -> nn.BatchNorm2d | None:
    users = list(node.users)
    follower = modules.get(str(users[0].target)) if len(users) == 1 else None
    return follower if isinstance(follower, nn.BatchNorm2d) else None


def _folded(layer: nn.Conv2d, norm: nn.BatchNorm2d | None) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Weight and bias of a convolution with the normalisation after it multiplied in, in double precision."""
    weight = layer.weight.detach().double()
    bias = torch.zeros(len(weight), dtype=torch.float64) if layer.bias is None else layer.bias.detach().double()
    if norm is not None:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        factor = norm.weight.detach().double() / torch.sqrt(norm.running_var.double() + norm.eps)
        weight = weight * factor[:, None, None, None]
        bias = (bias - norm.running_mean.double()) * factor + norm.bias.detach().double()
    return to_array(weight), to_array(bias)


def _square(value: Any) -> int:
    """Return the one number of a setting that torch allows to differ between the axes."""
    return int(value[0] if isinstance(value, tuple) else value)
