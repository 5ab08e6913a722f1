"""ONNX operators as calls of torch functions.

Each entry of ``OPERATORS`` takes a node and its inputs and says which function to call with which arguments; nothing is
computed there. Everything that ONNX passes as a tensor and torch as a plain number (shapes, axes, sizes) must be
constant once the shape of the network's input is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from retinastream.models import torch_layers, torch_rearranging, torch_sizes
from retinastream.models.torch_call import Call, Site


def call_for(site: Site) -> Call:
    """Translate one node; raises ModelError, naming it, for what has no translation."""
    if site.node.kind not in OPERATORS:
        raise site.refuse("is an operator that is not known here")
    return OPERATORS[site.node.kind](site)


def _plain(function: Callable[..., Any], count: int) -> Callable[[Site], Call]:
    def translate(site: Site) -> Call:
        return Call(function, [site.value(index) for index in range(count)])

    return translate


OPERATORS: dict[str, Callable[[Site], Call]] = {
    "Add": _plain(torch.add, 2),
    "AveragePool": torch_layers.average_pool,
    "BatchNormalization": torch_layers.batch_normalisation,
    "Cast": torch_sizes.cast,
    "Ceil": _plain(torch.ceil, 1),
    "Clip": torch_layers.clip,
    "Concat": torch_rearranging.concatenation,
    "Constant": torch_sizes.constant,
    "ConstantOfShape": torch_sizes.constant_of_shape,
    "Conv": torch_layers.convolution,
    "ConvTranspose": torch_layers.transposed_convolution,
    "Div": _plain(torch_sizes.divide, 2),
    "Dropout": torch_sizes.identity,
    "Equal": _plain(torch.eq, 2),
    "Exp": _plain(torch.exp, 1),
    "Expand": torch_rearranging.expand,
    "Flatten": torch_rearranging.flatten,
    "Floor": _plain(torch.floor, 1),
    "Gather": torch_rearranging.gather,
    "GlobalAveragePool": torch_sizes.global_average,
    "GridSample": torch_layers.grid_sample,
    "Identity": torch_sizes.identity,
    "LeakyRelu": torch_layers.leaky_relu,
    "MaxPool": torch_layers.max_pool,
    "Mod": torch_sizes.modulo,
    "Mul": _plain(torch.mul, 2),
    "PRelu": torch_layers.prelu,
    "Pad": torch_rearranging.pad,
    "Pow": _plain(torch.pow, 2),
    "Range": torch_sizes.number_range,
    "ReduceMean": torch_sizes.mean_over,
    "ReduceProd": torch_sizes.product_of_sizes,
    "Relu": torch_layers.relu,
    "Reshape": torch_rearranging.reshape,
    "Resize": torch_layers.resize,
    "Shape": torch_sizes.shape_of,
    "Sigmoid": _plain(torch.sigmoid, 1),
    "Slice": torch_rearranging.cut,
    "Softmax": torch_layers.softmax,
    "Split": torch_rearranging.split,
    "Sqrt": _plain(torch.sqrt, 1),
    "Squeeze": torch_rearranging.squeeze,
    "Sub": _plain(torch.sub, 2),
    "Tanh": _plain(torch.tanh, 1),
    "Transpose": torch_rearranging.transpose,
    "Unsqueeze": torch_rearranging.unsqueeze,
    "Upsample": torch_layers.resize,
    "Where": _plain(torch.where, 3),
}
