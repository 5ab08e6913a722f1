"""Deformable convolution as ONNX operators.

ONNX has DeformConv from opset 19, which OpenVINO 2026.4 cannot read (ONNX Runtime 1.31 can). GridSample is read by both
and by TensorRT, from opset 16; what is left is a convolution over the taps.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from retinastream.models.export_emitter import Emitter, to_array
from retinastream.models.network_deformable import DeformableConvolution


def emit_deformable(
    layer: DeformableConvolution,
    weight: npt.NDArray[np.float32],
    bias: npt.NDArray[np.float32],
    source: str,
    name: str,
    emitter: Emitter,
) -> str:
    """Write out ``layer`` with the weight and bias that its normalisation was folded into; return its output."""
    grid = _emit_grid(layer, source, name, emitter)
    # (batch, channels, taps, pixels): the kernel of the convolution that follows spans the taps.
    taken = emitter.node(
        "GridSample", [source, grid], f"{name}.taken", mode="bilinear", padding_mode="zeros", align_corners=0
    )
    flat = emitter.convolution(taken, f"{name}.flat", weight.reshape(*weight.shape[:2], -1, 1), bias)
    channels = emitter.constant(f"{name}.channels", np.array([0, len(weight)], np.int64))
    shape = emitter.node("Concat", [channels, f"{name}.size"], f"{name}.shape", axis=0)
    return emitter.node("Reshape", [flat, shape], name)


def _emit_grid(layer: DeformableConvolution, source: str, name: str, emitter: Emitter) -> str:
    """Where every tap of every pixel looks: (batch, taps, pixels, 2) as x, y in GridSample's -1 to 1."""
    taps = layer.weight.shape[2] * layer.weight.shape[3]
    moves = emitter.convolution(source, f"{name}.moves", *_offset_weights(layer), padding=1)
    split = emitter.constant(f"{name}.split", np.array([0, 2, taps, -1], np.int64))
    emitter.node("Reshape", [moves, split], f"{name}.apart")
    emitter.node("Transpose", [f"{name}.apart"], f"{name}.steps", perm=[0, 2, 3, 1])
    emitter.node("Add", [f"{name}.steps", _emit_pixels(source, name, emitter)], f"{name}.places")
    # From pixels to what torch's and ONNX's sampling call align_corners=False: (2 p + 1) / size - 1.
    two, one = (emitter.constant(f"number_{n}", np.array(n, np.float32)) for n in (2, 1))
    emitter.node("Mul", [f"{name}.places", two], f"{name}.doubled")
    emitter.node("Add", [f"{name}.doubled", one], f"{name}.centred")
    emitter.node("Div", [f"{name}.centred", f"{name}.width_height"], f"{name}.scaled")
    return emitter.node("Sub", [f"{name}.scaled", one], f"{name}.grid")


def _offset_weights(layer: DeformableConvolution) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Reorder the offsets from (tap, y x) to (x y, tap), and add to their bias where each tap lies without them."""
    assert layer.offsets.bias is not None
    weight, bias = to_array(layer.offsets.weight), to_array(layer.offsets.bias)
    row, column = np.indices(layer.weight.shape[2:]).reshape(2, -1) - 1
    order = np.arange(len(bias)).reshape(-1, 2)[:, ::-1].T.ravel()
    shifts = np.concatenate([column, row]).astype(np.float32)
    return np.ascontiguousarray(weight[order]), bias[order] + shifts


def _emit_pixels(source: str, name: str, emitter: Emitter) -> str:
    """Column and row of every pixel, (pixels, 2), of a map whose size is known only when the file is run."""

    def constant(value: int | list[int]) -> str:
        spelt = "_".join(map(str, value)) if isinstance(value, list) else value
        kind = "list" if isinstance(value, list) else "number"
        return emitter.constant(f"whole_{kind}_{spelt}", np.array(value, np.int64))

    emitter.node("Shape", [source], f"{name}.all_sizes")
    emitter.node("Slice", [f"{name}.all_sizes", constant([2]), constant([4])], f"{name}.size")
    emitter.node("Gather", [f"{name}.size", constant(1)], f"{name}.width")
    emitter.node("ReduceProd", [f"{name}.size"], f"{name}.pixels", keepdims=0)
    emitter.node("Range", [constant(0), f"{name}.pixels", constant(1)], f"{name}.numbers")
    emitter.node("Unsqueeze", [f"{name}.numbers", constant([1])], f"{name}.list")
    emitter.node("Mod", [f"{name}.list", f"{name}.width"], f"{name}.columns")
    emitter.node("Div", [f"{name}.list", f"{name}.width"], f"{name}.rows")
    emitter.node("Concat", [f"{name}.columns", f"{name}.rows"], f"{name}.whole_places", axis=1)
    emitter.node("Gather", [f"{name}.size", constant([1, 0])], f"{name}.whole_width_height")
    emitter.node("Cast", [f"{name}.whole_width_height"], f"{name}.width_height", to=1)
    return emitter.node("Cast", [f"{name}.whole_places"], f"{name}.pixel_places", to=1)
