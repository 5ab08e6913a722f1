"""Shapes of a detector's outputs, from its spec alone."""

from __future__ import annotations

from retinastream.models.spec import DetectorSpec

_VALUES_PER_ANCHOR = 16
_CLASSIC_VALUES = (4, 2, 10)


def output_shapes(spec: DetectorSpec, batch: int, height: int, width: int) -> tuple[tuple[int, ...], ...]:
    """Shapes in the order of the layout, for an input (batch, 3, height, width).

    One map (batch, A * 16, rows, columns) per stride for "fused"; loc, conf and landms (batch, anchors, 4 | 2 | 10) for
    "classic".
    """
    if spec.output_layout == "classic":
        anchors = spec.anchor_count(height, width)
        return tuple((batch, anchors, values) for values in _CLASSIC_VALUES)
    return tuple(
        (batch, len(anchor_sizes) * _VALUES_PER_ANCHOR, rows, columns)
        for (rows, columns), anchor_sizes in zip(spec.feature_sizes(height, width), spec.anchor_sizes, strict=True)
    )
