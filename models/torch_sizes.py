"""Constants, types, and the arithmetic by which files compute the sizes of their maps from that of the picture."""

from __future__ import annotations

import torch
from torch import Tensor

from retinastream.models.torch_call import Call, Site, Value

DTYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    16: torch.bfloat16,
}


def cast(site: Site) -> Call:
    """Translate Cast; between kinds of fractions nothing is done, as the precision is that of the weights."""
    kind, value = site.attribute("to"), site.value(0)
    if kind not in DTYPES:
        raise site.refuse(f"converts to type {kind}")
    if not value.is_constant and value.tensor.is_floating_point() and DTYPES[kind].is_floating_point:
        return Call(same, (value,))  # the precision is chosen when the network is run
    return Call(torch.Tensor.to, (value, DTYPES[kind]))


def same(image: Tensor) -> Tensor:
    """Return what was given."""
    return image


def identity(site: Site) -> Call:
    """Translate what does nothing here: Identity, Dropout."""
    return Call(same, (site.value(0),))


def shape_of(site: Site) -> Call:
    """Translate Shape."""
    shape = list(site.value(0).tensor.shape)
    return Call(torch.tensor, (shape[site.attribute("start", 0) : site.attribute("end")],))


def constant(site: Site) -> Call:
    """Translate Constant."""
    for name, dtype in (("value_float", torch.float32), ("value_int", torch.int64)):
        for found in (name, f"{name}s"):
            if found in site.node.attributes:
                return Call(torch.tensor, (site.attribute(found),), {"dtype": dtype})
    if "value" not in site.node.attributes:
        raise site.refuse("holds a constant of an unknown kind")
    return Call(same, (Value(torch.tensor(site.attribute("value"))),))


def constant_of_shape(site: Site) -> Call:
    """Translate ConstantOfShape."""
    filling = torch.tensor(site.attribute("value", [0.0])).flatten()
    return Call(torch.full, ([int(n) for n in site.numbers(0)], filling[0].item()), {"dtype": filling.dtype})


def number_range(site: Site) -> Call:
    """Translate Range."""
    start, limit, step = (site.numbers(index)[0] for index in range(3))
    return Call(torch.arange, (start, limit, step), {"dtype": site.value(0).tensor.dtype})


def divide(one: Tensor, other: Tensor) -> Tensor:
    """Divide; whole numbers towards zero."""
    is_whole = not (one.is_floating_point() or other.is_floating_point())
    return torch.div(one, other, rounding_mode="trunc" if is_whole else None)


def modulo(site: Site) -> Call:
    """Translate Mod."""
    return Call(torch.fmod if site.attribute("fmod", 0) else torch.remainder, (site.value(0), site.value(1)))


def product_of_sizes(site: Site) -> Call:
    """Translate ReduceProd of a shape."""
    if not site.value(0).is_constant:
        raise site.refuse("is done for shapes alone")
    axes, keep = site.listed("axes", 1), bool(site.attribute("keepdims", 1))
    if axes is not None and len(axes) != site.value(0).tensor.ndim:
        raise site.refuse("multiplies over some axes and not all")
    return Call(multiply_all, (site.value(0), keep))


def multiply_all(numbers: Tensor, keep: bool) -> Tensor:
    """Multiply all numbers; ``keep`` the axes, as axes of size 1."""
    product = torch.prod(numbers)
    return product.reshape([1] * numbers.ndim) if keep else product


def mean_over(site: Site) -> Call:
    """Translate ReduceMean."""
    axes = site.listed("axes", 1) or list(range(site.value(0).tensor.ndim))
    return Call(torch.mean, (site.value(0), axes), {"keepdim": bool(site.attribute("keepdims", 1))})


def global_average(site: Site) -> Call:
    """Translate GlobalAveragePool."""
    return Call(torch.mean, (site.value(0), [2, 3]), {"keepdim": True})
