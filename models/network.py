"""The light RetinaFace network (arXiv 1905.00641): backbone, three-level pyramid, context modules, heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from retinastream.errors import ModelError
from retinastream.models.network_backbones import Layer, MobileNetV1, ResNet, convolution, initialise, slope_for
from retinastream.models.network_heads import PART_CHANNELS, PARTS, DetectorNetwork, classic_from_fused
from retinastream.models.spec import OutputLayout

__all__ = [
    "ARCHITECTURES",
    "PARTS",
    "PART_CHANNELS",
    "Architecture",
    "ContextModule",
    "FeaturePyramid",
    "RetinaFace",
    "classic_from_fused",
]


@dataclass(frozen=True, slots=True)
class Architecture:
    """How to build a backbone, and how many channels the pyramid that belongs to it has."""

    backbone: Callable[[], nn.Module]
    pyramid_channels: int


ARCHITECTURES: dict[str, Architecture] = {
    "mobilenetv1-x0.25": Architecture(lambda: MobileNetV1(8), 64),
    "mobilenetv1-x0.5": Architecture(lambda: MobileNetV1(16), 128),
    "mobilenetv1": Architecture(lambda: MobileNetV1(32), 256),
    "resnet18": Architecture(lambda: ResNet((2, 2, 2, 2), bottleneck=False), 128),
    "resnet34": Architecture(lambda: ResNet((3, 4, 6, 3), bottleneck=False), 128),
    "resnet50": Architecture(lambda: ResNet((3, 4, 6, 3), bottleneck=True), 256),
}


class FeaturePyramid(nn.Module):
    """Top-down pyramid over three levels: lateral 1x1, nearest-neighbour upsampling, 3x3 merge."""

    def __init__(self, inputs: Sequence[int], channels: int) -> None:
        super().__init__()
        slope = slope_for(channels)
        self.output1 = convolution(inputs[0], channels, kernel=1, slope=slope)
        self.output2 = convolution(inputs[1], channels, kernel=1, slope=slope)
        self.output3 = convolution(inputs[2], channels, kernel=1, slope=slope)
        self.merge1 = convolution(channels, channels, slope=slope)
        self.merge2 = convolution(channels, channels, slope=slope)

    def forward(self, fine: Tensor, middle: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the merged maps of the three levels, finest first."""
        top = self.output3(coarse)
        centre = self.merge2(self.output2(middle) + functional.interpolate(top, scale_factor=2.0, mode="nearest"))
        bottom = self.merge1(self.output1(fine) + functional.interpolate(centre, scale_factor=2.0, mode="nearest"))
        return bottom, centre, top


class ContextModule(nn.Module):
    """SSH context: a 3x3 branch of half the channels, 5x5 and 7x7 branches of a quarter each out of stacked 3x3.

    ``layer`` makes one 3x3 convolution with its normalisation and activation; it has the signature of ``convolution``.
    """

    def __init__(self, channels: int, layer: Layer = convolution) -> None:
        super().__init__()
        slope = slope_for(channels)
        half, quarter = channels // 2, channels // 4
        # The mixed spelling of these names is that of the public checkpoints.
        self.conv3X3 = layer(channels, half)
        self.conv5X5_1 = layer(channels, quarter, slope=slope)
        self.conv5X5_2 = layer(quarter, quarter)
        self.conv7X7_2 = layer(quarter, quarter, slope=slope)
        self.conv7x7_3 = layer(quarter, quarter)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape that sees a 7x7 neighbourhood."""
        shared = self.conv5X5_1(x)
        branches = [self.conv3X3(x), self.conv5X5_2(shared), self.conv7x7_3(self.conv7X7_2(shared))]
        return functional.relu(torch.cat(branches, dim=1))


class RetinaFace(DetectorNetwork):
    """The whole light detector, at strides 8, 16 and 32.

    ``seed`` makes its random weights; with ``face_prior`` every anchor starts with about that score.
    """

    def __init__(
        self,
        architecture: str = "mobilenetv1-x0.25",
        *,
        anchors_per_cell: int = 2,
        pyramid_channels: int | None = None,
        face_prior: float | None = None,
        layout: OutputLayout = "fused",
        seed: int = 0,
    ) -> None:
        if architecture not in ARCHITECTURES:
            raise ModelError(f"unknown architecture {architecture!r}; known are {', '.join(ARCHITECTURES)}")
        super().__init__(architecture, strides=(8, 16, 32), anchors_per_cell=anchors_per_cell, layout=layout)
        plan = ARCHITECTURES[architecture]
        channels = pyramid_channels or plan.pyramid_channels
        self.body = plan.backbone()
        widths: tuple[int, int, int] = self.body.out_channels  # type: ignore[assignment]
        self.fpn = FeaturePyramid(widths, channels)
        self.ssh1, self.ssh2, self.ssh3 = (ContextModule(channels) for _ in range(3))
        self._add_heads(channels)
        initialise(self, seed)
        if face_prior is not None:
            self.set_face_prior(face_prior)

    def features(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the heads see: three maps (B, C, H / stride, W / stride) for strides 8, 16 and 32."""
        bottom, centre, top = self.fpn(*self.body(images))
        return self.ssh1(bottom), self.ssh2(centre), self.ssh3(top)
