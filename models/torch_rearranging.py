"""What moves the numbers of a tensor without computing with them: reshaping, cutting, joining, padding."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from retinastream.models.torch_call import Call, Site, Value


def reshape(site: Site) -> Call:
    """Translate Reshape."""
    given = list(site.value(0).tensor.shape)
    wanted = [int(number) for number in site.numbers(1)]
    if not site.attribute("allowzero", 0):
        wanted = [given[axis] if number == 0 else number for axis, number in enumerate(wanted)]
    return Call(torch.reshape, (site.value(0), wanted))


def flatten(site: Site) -> Call:
    """Translate Flatten."""
    shape = list(site.value(0).tensor.shape)
    axis = site.attribute("axis", 1)
    return Call(torch.reshape, (site.value(0), [math.prod(shape[:axis]), math.prod(shape[axis:])]))


def transpose(site: Site) -> Call:
    """Translate Transpose."""
    axes = list(range(site.value(0).tensor.ndim))
    return Call(torch.permute, (site.value(0), site.attribute("perm", axes[::-1])))


def concatenation(site: Site) -> Call:
    """Translate Concat."""
    return Call(torch.cat, ([site.value(index) for index in range(len(site.values))], site.attribute("axis")))


def split(site: Site) -> Call:
    """Translate Split."""
    axis = site.attribute("axis", 0)
    sizes = site.listed("split", 1)
    if sizes is None:
        size, parts = site.value(0).tensor.shape[axis], len(site.node.outputs)
        sizes = [min(math.ceil(size / parts), size - start) for start in range(0, size, math.ceil(size / parts))]
    return Call(torch.split, (site.value(0), sizes, axis))


def cut(site: Site) -> Call:
    """Translate Slice, with steps forwards."""
    starts, ends = site.listed("starts", 1), site.listed("ends", 2)
    if starts is None or ends is None:
        raise site.refuse("does not say what to take")
    axes = site.listed("axes", 3) or list(range(len(starts)))
    steps = site.listed("steps", 4) or [1] * len(starts)
    if min(steps) < 1:
        raise site.refuse(f"takes steps of {min(steps)}")
    taken = [slice(None)] * site.value(0).tensor.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        taken[axis] = slice(start, end, step)
    return Call(take, (site.value(0), tuple(taken)))


def take(image: Tensor, places: tuple[slice, ...]) -> Tensor:
    """Cut a part out."""
    return image[places]


def gather(site: Site) -> Call:
    """Translate Gather with one place, or a list of them."""
    source, axis = site.value(0), site.attribute("axis", 0)
    shape = site.value(1).tensor.shape
    size = source.tensor.shape[axis]
    places = [int(place) % size for place in site.numbers(1)]
    if not shape:
        return Call(torch.select, (source, axis, places[0]))
    if len(shape) != 1:
        raise site.refuse(f"takes places of shape {list(shape)}")
    return Call(torch.index_select, (source, axis, Value(torch.tensor(places))))


def squeeze(site: Site) -> Call:
    """Translate Squeeze."""
    axes = site.listed("axes", 1)
    shape = site.value(0).tensor.shape
    gone = (
        [axis % len(shape) for axis in axes] if axes is not None else [a for a, size in enumerate(shape) if size == 1]
    )
    return Call(torch.reshape, (site.value(0), [size for axis, size in enumerate(shape) if axis not in gone]))


def unsqueeze(site: Site) -> Call:
    """Translate Unsqueeze."""
    axes = site.listed("axes", 1) or []
    shape = list(site.value(0).tensor.shape)
    for axis in sorted(axis % (len(shape) + len(axes)) for axis in axes):
        shape.insert(axis, 1)
    return Call(torch.reshape, (site.value(0), shape))


def expand(site: Site) -> Call:
    """Translate Expand."""
    shape = [int(number) for number in site.numbers(1)]
    wanted = list(np.broadcast_shapes(tuple(site.value(0).tensor.shape), tuple(shape)))
    return Call(torch.Tensor.expand, (site.value(0), wanted))


def pad(site: Site) -> Call:
    """Translate Pad, with a constant."""
    pads = site.listed("pads", 1)
    if pads is None or site.attribute("mode", "constant") != "constant" or site.optional(3) is not None:
        raise site.refuse("pads otherwise than with a constant on every axis")
    filling = site.numbers(2)[0] if site.optional(2) is not None else site.attribute("value", 0.0)
    half = len(pads) // 2
    turned = [number for axis in reversed(range(half)) for number in (pads[axis], pads[half + axis])]
    return Call(functional.pad, (site.value(0), turned), {"value": filling})
