"""The layers of a detector as torch has them: convolutions, pooling, normalisation, activations, resampling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from retinastream.models.torch_call import Call, Site


def convolution(site: Site) -> Call:
    """Translate Conv."""
    weight, padding = site.value(1), _padding(site, site.value(1).tensor.shape[2:])
    if weight.tensor.ndim != 4:
        raise site.refuse(f"has {weight.tensor.ndim - 2} spatial axes instead of 2")
    options = {
        "stride": site.attribute("strides", [1, 1]),
        "dilation": site.attribute("dilations", [1, 1]),
        "groups": site.attribute("group", 1),
    }
    return Call(convolve, (site.value(0), weight, site.optional(2), padding), options)


def convolve(image: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int], **options: Any) -> Tensor:
    """Convolve in the precision of the weight; ``padding`` is top, left, bottom, right."""
    image, padding = _pad(image.to(weight.dtype), padding, 0.0)
    return functional.conv2d(image, weight, bias, padding=padding, **options)


def transposed_convolution(site: Site) -> Call:
    """Translate ConvTranspose."""
    weight = site.value(1)
    top, left, bottom, right = site.attribute("pads", [0, 0, 0, 0])
    if (
        (top, left) != (bottom, right)
        or site.attribute("auto_pad", "NOTSET") != "NOTSET"
        or "output_shape" in site.node.attributes
    ):
        raise site.refuse("pads unevenly")
    options = {
        "stride": site.attribute("strides", [1, 1]),
        "padding": [top, left],
        "output_padding": site.attribute("output_padding", [0, 0]),
        "groups": site.attribute("group", 1),
        "dilation": site.attribute("dilations", [1, 1]),
    }
    return Call(functional.conv_transpose2d, (site.value(0), weight, site.optional(2)), options)


def _padding(site: Site, kernel: Sequence[int]) -> list[int]:
    """Return top, left, bottom, right, computed where the file leaves it to the runtime."""
    kind = site.attribute("auto_pad", "NOTSET")
    if kind == "NOTSET":
        return list(site.attribute("pads", [0, 0, 0, 0]))
    if kind == "VALID":
        return [0, 0, 0, 0]
    strides, dilations = site.attribute("strides", [1, 1]), site.attribute("dilations", [1, 1])
    missing = [
        max((math.ceil(size / stride) - 1) * stride + (taps - 1) * dilation + 1 - size, 0)
        for size, stride, dilation, taps in zip(site.value(0).tensor.shape[2:], strides, dilations, kernel, strict=True)
    ]
    less, more = [m // 2 for m in missing], [m - m // 2 for m in missing]
    return [*less, *more] if kind == "SAME_UPPER" else [*more, *less]


def _pad(image: Tensor, padding: Sequence[int], filling: float) -> tuple[Tensor, list[int]]:
    """Pad what a layer cannot pad itself; returns the padding that is left to the layer."""
    top, left, bottom, right = padding
    if (top, left) == (bottom, right):
        return image, [top, left]
    return functional.pad(image, [left, right, top, bottom], value=filling), [0, 0]


def max_pool(site: Site) -> Call:
    """Translate MaxPool."""
    kernel = site.attribute("kernel_shape")
    options = {
        "stride": site.attribute("strides", [1, 1]),
        "dilation": site.attribute("dilations", [1, 1]),
        "ceil_mode": bool(site.attribute("ceil_mode", 0)),
    }
    return Call(pool_largest, (site.value(0), kernel, _padding(site, kernel)), options)


def pool_largest(image: Tensor, kernel: Sequence[int], padding: Any, **options: Any) -> Tensor:
    """Take the largest value under each window; ``padding`` is top, left, bottom, right."""
    image, padding = _pad(image, padding, -math.inf)
    pooled: Tensor = functional.max_pool2d(image, list(kernel), padding=padding, **options)
    return pooled


def average_pool(site: Site) -> Call:
    """Translate AveragePool."""
    top, left, bottom, right = _padding(site, site.attribute("kernel_shape"))
    if (top, left) != (bottom, right):
        raise site.refuse("pads unevenly")
    options = {
        "stride": site.attribute("strides", [1, 1]),
        "padding": [top, left],
        "ceil_mode": bool(site.attribute("ceil_mode", 0)),
        "count_include_pad": bool(site.attribute("count_include_pad", 0)),
    }
    return Call(functional.avg_pool2d, (site.value(0), site.attribute("kernel_shape")), options)


def batch_normalisation(site: Site) -> Call:
    """Translate BatchNormalization, with the statistics of training."""
    scale, shift, mean, variance = (site.value(index) for index in range(1, 5))
    options = {"training": False, "eps": site.attribute("epsilon", 1e-5)}
    return Call(functional.batch_norm, (site.value(0), mean, variance, scale, shift), options)


def leaky_relu(site: Site) -> Call:
    """Translate LeakyRelu."""
    slope = site.attribute("alpha", 0.01)
    return Call(functional.leaky_relu, (site.value(0), slope), {"inplace": site.may_overwrite})


def relu(site: Site) -> Call:
    """Translate Relu."""
    return Call(functional.relu, (site.value(0),), {"inplace": site.may_overwrite})


def prelu(site: Site) -> Call:
    """Translate PRelu."""
    return Call(rectify, (site.value(0), site.value(1)))


def rectify(image: Tensor, slope: Tensor) -> Tensor:
    """Multiply what is negative by a slope per channel, whose axes beside the channels are 1."""
    return functional.prelu(image, slope.flatten().to(image.dtype))


def clip(site: Site) -> Call:
    """Translate Clip, whose bounds are constants."""
    low, high = (
        site.numbers(index)[0] if site.optional(index) is not None else site.attribute(name)
        for index, name in ((1, "min"), (2, "max"))
    )
    return Call(torch.clamp, (site.value(0), low, high))


def softmax(site: Site) -> Call:
    """Translate Softmax."""
    axes = site.value(0).tensor.ndim
    axis = site.attribute("axis", -1 if site.opset >= 13 else 1) % axes
    if site.opset < 13 and axis != axes - 1:
        raise site.refuse("joins several axes, as files before opset 13 do")
    return Call(torch.softmax, (site.value(0), axis))


def resize(site: Site) -> Call:
    """Translate Resize and Upsample: to the nearest pixel, or linear."""
    image = site.value(0)
    if image.tensor.ndim != 4:
        raise site.refuse(f"has {image.tensor.ndim - 2} spatial axes instead of 2")
    size, factors = _resized(site, list(image.tensor.shape))
    mode = site.attribute("mode", "nearest")
    place = site.attribute("coordinate_transformation_mode", "half_pixel" if site.opset >= 11 else "asymmetric")
    if site.node.kind == "Upsample":
        place = "asymmetric"
    if mode == "nearest":
        return Call(functional.interpolate, (image, size), {"mode": _nearest(site, place, factors)})
    if mode == "linear" and place in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        return Call(
            functional.interpolate, (image, size), {"mode": "bilinear", "align_corners": place == "align_corners"}
        )
    raise site.refuse(f"resizes with mode {mode!r} and coordinates {place!r}")


def _resized(site: Site, shape: list[int]) -> tuple[list[int], list[float]]:
    """Return the new height and width, and by what each is larger."""
    if site.optional(3) is not None:
        size = [int(number) for number in site.numbers(3)][-2:]
        return size, [new / old for new, old in zip(size, shape[2:], strict=True)]
    index = 2 if site.node.kind == "Resize" and site.opset >= 11 else 1
    scales = site.attribute("scales") or site.numbers(index)
    if len(scales) != 4 or list(scales[:2]) != [1, 1]:
        raise site.refuse(f"resizes by {scales}")
    return [math.floor(old * factor) for old, factor in zip(shape[2:], scales[2:], strict=True)], list(scales[2:])


def _nearest(site: Site, place: str, factors: list[float]) -> str:
    """Name torch's way to look up the nearest pixel; for whole factors most of ONNX's ways are the same."""
    rounding = site.attribute("nearest_mode", "round_prefer_floor" if site.opset >= 11 else "floor")
    is_whole = all(factor >= 1 and factor == int(factor) for factor in factors)
    if place == "asymmetric" and (
        rounding == "floor" or (is_whole and max(factors) <= 2 and "prefer_floor" in rounding)
    ):
        return "nearest"
    if place in ("half_pixel", "pytorch_half_pixel") and rounding in ("round_prefer_floor", "round_prefer_ceil"):
        return "nearest" if is_whole else "nearest-exact"
    raise site.refuse(f"resizes to the nearest pixel with coordinates {place!r} and rounding {rounding!r}")


def grid_sample(site: Site) -> Call:
    """Translate GridSample."""
    mode = {"linear": "bilinear"}.get(site.attribute("mode", "bilinear"), site.attribute("mode", "bilinear"))
    options = {
        "mode": mode,
        "padding_mode": site.attribute("padding_mode", "zeros"),
        "align_corners": bool(site.attribute("align_corners", 0)),
    }
    return Call(sample, (site.value(0), site.value(1)), options)


def sample(image: Tensor, grid: Tensor, **options: Any) -> Tensor:
    """Look up places between pixels, in single precision: a half is too coarse for places in a wide picture."""
    return functional.grid_sample(image.float(), grid.float(), **options).to(image.dtype)
