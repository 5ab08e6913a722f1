"""Making the channels of a tensor equally large before it is quantised, without changing what the network computes.

A tensor has one scale, so its largest channel takes the resolution from all others. Where a convolution is followed by
nothing but a rectifier and another convolution, a channel can be divided by any positive factor behind the first and
multiplied by it inside the second: a rectifier passes factors through. The weights of both have scales per channel and
hardly notice (Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, here
with the ranges seen in calibration). Depthwise convolutions gain most. Signal to noise of the raw outputs with all
layers in int8: 20.6 -> 24.8 dB (mnet025), 13.8 -> 16.6 dB (public mobilenet0.25).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from retinastream.engines.precision.graph_run import GraphRun, Picture
from retinastream.engines.precision.model_files import import_onnx
from retinastream.engines.precision.placement import GraphLinks
from retinastream.errors import InputError

Float64 = npt.NDArray[np.float64]

_RECTIFIERS = {"Relu", "LeakyRelu"}
# Beyond this a factor moves weights towards the limits of half precision, and gains nothing more.
_LARGEST_FACTOR = 64.0


@dataclass(frozen=True, slots=True)
class Pair:
    """Two convolutions with only a rectifier in between; ``tensor`` is what comes out of that."""

    before: str
    after: str
    tensor: str
    depthwise: bool


def equalise(model: Any, pictures: Iterable[Picture], *, threads: int = 0) -> tuple[Pair, ...]:
    """Equalise a float32 graph in place with the ranges that its channels have on ``pictures``; returns the pairs.

    The outputs stay the same but for rounding.
    """
    pairs = find_pairs(model)
    ranges = channel_ranges(model, [pair.tensor for pair in pairs], pictures, threads=threads)
    # Equalising one pair changes the range of its own tensor only: what follows the second convolution stays as it was.
    for pair in pairs:
        _apply(model, pair, ranges[pair.tensor])
    return pairs


def find_pairs(model: Any) -> tuple[Pair, ...]:
    """Return all pairs of convolutions of a graph that channels can be scaled between, in its order."""
    links = GraphLinks(model)
    found = []
    for after in links.nodes:
        rectifier = links.maker.get(after.input[0]) if after.op_type == "Conv" else None
        if rectifier is None or rectifier.op_type not in _RECTIFIERS:
            continue
        before = links.maker.get(rectifier.input[0])
        alone = all(
            len(links.takers[name]) == 1 and name not in links.outputs for name in (after.input[0], rectifier.input[0])
        )
        if before is not None and before.op_type == "Conv" and alone and _are_own(links, before, after):
            groups = next((int(a.i) for a in after.attribute if a.name == "group"), 1)
            channels = int(links.initialisers[before.input[1]].dims[0])
            if groups in (1, channels):
                found.append(Pair(before.name, after.name, after.input[0], groups > 1))
    return tuple(found)


def channel_ranges(
    model: Any, tensors: list[str], pictures: Iterable[Picture], *, threads: int = 0
) -> dict[str, Float64]:
    """Return for each tensor the range of every channel: the sum over the pictures of its largest magnitudes.

    Raises InputError where there is no picture.
    """
    run = GraphRun(model, tensors, threads=threads)
    sums: dict[str, Float64] = {}
    for picture in pictures:
        values = run(picture)
        for name in tensors:
            largest = np.abs(values[name]).max(axis=(0, 2, 3)).astype(np.float64)
            sums[name] = sums.get(name, 0.0) + largest
    if tensors and not sums:
        raise InputError("there is no picture to calibrate with; give pictures, a folder of them, or a video")
    return sums


def _are_own(links: GraphLinks, *nodes: Any) -> bool:
    """Whether nobody else uses the weights of these nodes."""
    names = [name for node in nodes for name in list(node.input)[1:]]
    return all(name in links.initialisers and len(links.takers[name]) == 1 for name in names)


def _apply(model: Any, pair: Pair, ranges: Float64) -> None:
    onnx = import_onnx()
    links = GraphLinks(model)
    before, after = links.by_name[pair.before], links.by_name[pair.after]
    tensors = {
        name: onnx.numpy_helper.to_array(links.initialisers[name]) for name in (*before.input[1:], *after.input[1:2])
    }
    weight = tensors[after.input[1]]
    factors = _factors(ranges, weight, depthwise=pair.depthwise)
    for name in before.input[1:]:
        shape = (-1,) + (1,) * (tensors[name].ndim - 1)
        tensors[name] = tensors[name] / factors.reshape(shape)
    shape = (-1, 1, 1, 1) if pair.depthwise else (1, -1, 1, 1)
    tensors[after.input[1]] = weight * factors.reshape(shape)
    for name, values in tensors.items():
        links.initialisers[name].CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), name))


def _factors(ranges: Float64, weight: npt.NDArray[np.float32], *, depthwise: bool) -> Float64:
    """Return what each channel is divided by.

    Before a depthwise convolution, whose weights have a scale for each of these channels, that is the channel's range.
    Before any other, a channel that becomes smaller makes its column of the weight larger than the others: the
    square root shares the trouble between the two.
    """
    known = ranges > ranges.max(initial=0.0) * 1e-4
    factors = np.ones_like(ranges)
    if not known.any():
        return factors
    wanted = ranges[known]
    if not depthwise:
        columns = np.abs(weight).max(axis=(0, 2, 3)).astype(np.float64)[known]
        wanted = np.sqrt(wanted / np.maximum(columns, columns.max(initial=0.0) * 1e-4 + 1e-30))
    middle = np.exp(np.log(wanted).mean())
    factors[known] = np.clip(wanted / middle, 1 / _LARGEST_FACTOR, _LARGEST_FACTOR)
    return factors
