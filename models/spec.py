"""What a detector is, independent of the runtime that executes it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from retinastream.errors import UsageError

OutputLayout = Literal["fused", "classic"]


@dataclass(frozen=True, slots=True)
class DetectorSpec:
    """Everything needed to turn pixels into network input and network output into faces.

    Anchors are square, centred at ((column + 0.5) * stride, (row + 0.5) * stride), and counted in the classic order:
    level, row, column, size. ``mean`` is subtracted per channel in ``channel_order`` from samples of 0..255, and the
    result is multiplied by ``scale``. ``variances`` are those of the box encoding: 0.1 for centres and landmarks, 0.2
    for the logarithm of sizes (arXiv 1905.00641, and the light PyTorch lineage).

    ``output_layout`` is "fused": one map per level, (batch, A * 16, rows, columns), whose channels are all scores
    first: for each anchor size the two class logits (background, face), then for each its four box offsets, then for
    each its ten landmark offsets. Or "classic": three tensors (batch, anchors, 4 | 2 | 10) where the two are
    probabilities.
    """

    strides: tuple[int, ...] = (8, 16, 32)
    anchor_sizes: tuple[tuple[float, ...], ...] = ((16.0, 32.0), (64.0, 128.0), (256.0, 512.0))
    variances: tuple[float, float] = (0.1, 0.2)
    channel_order: Literal["bgr", "rgb"] = "bgr"
    mean: tuple[float, float, float] = (104.0, 117.0, 123.0)
    scale: float = 1.0
    landmark_count: int = 5
    output_layout: OutputLayout = "fused"

    def __post_init__(self) -> None:
        """Refuse values that no detector has."""
        if len(self.strides) != len(self.anchor_sizes):
            raise UsageError(
                f"the spec has {len(self.strides)} strides and {len(self.anchor_sizes)} lists of anchor sizes; "
                "expected one list of sizes per stride"
            )
        if not self.strides or list(self.strides) != sorted(self.strides) or self.strides[0] < 1:
            raise UsageError(f"strides {self.strides} must be positive and ascending")
        if not all(sizes and min(sizes) > 0 for sizes in self.anchor_sizes):
            raise UsageError(f"anchor sizes {self.anchor_sizes} must be one or more positive numbers for every stride")
        if len(self.mean) != 3 or len(self.variances) != 2:
            raise UsageError(f"mean {self.mean} must be three numbers and variances {self.variances} two")
        if self.channel_order not in ("bgr", "rgb"):
            raise UsageError(f"channel order {self.channel_order!r} is unknown; allowed are bgr, rgb")
        if self.output_layout not in ("fused", "classic"):
            raise UsageError(f"output layout {self.output_layout!r} is unknown; allowed are fused, classic")
        if self.landmark_count != 5:
            raise UsageError(f"{self.landmark_count} landmarks are not supported; allowed are 5")

    @property
    def max_stride(self) -> int:
        """The multiple that input sizes are padded to."""
        return self.strides[-1]

    def feature_sizes(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of every level for an input of this size."""
        return tuple((-(-height // s), -(-width // s)) for s in self.strides)

    def anchor_count(self, height: int, width: int) -> int:
        """Anchors of an input of this size, all levels together: 340,320 at 3840x2160."""
        return sum(
            r * c * len(a) for (r, c), a in zip(self.feature_sizes(height, width), self.anchor_sizes, strict=True)
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and for ONNX metadata."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DetectorSpec:
        """Build a spec from plain values; unknown names are refused."""
        known = set(cls.__dataclass_fields__)
        unknown = sorted(set(values) - known)
        if unknown:
            raise UsageError(f"unknown spec field {unknown[0]!r}; known are {', '.join(sorted(known))}")
        plain = dict(values)
        for name in ("strides", "variances", "mean"):
            if name in plain:
                plain[name] = tuple(plain[name])
        if "anchor_sizes" in plain:
            plain["anchor_sizes"] = tuple(tuple(float(v) for v in level) for level in plain["anchor_sizes"])
        return cls(**plain)
