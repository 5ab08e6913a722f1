"""The light RetinaFace network (arXiv 1905.00641): backbone, feature pyramid, context modules, heads.

Input is (B, 3, H, W) float32 with the mean of the spec already subtracted; H and W are multiples of 32. Two layouts
of the output exist, "fused" and "classic"; ``retinastream.models.spec`` says what each holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from retinastream.errors import ModelError
from retinastream.models.network_backbones import MobileNetV1, ResNet, convolution, initialise, slope_for
from retinastream.models.spec import OutputLayout

Part = Literal["class", "box", "landmark"]
PART_CHANNELS: dict[Part, int] = {"class": 2, "box": 4, "landmark": 10}
PARTS: tuple[Part, ...] = ("class", "box", "landmark")


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
    """SSH context: a 3x3 branch of half the channels, 5x5 and 7x7 branches of a quarter each out of stacked 3x3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        slope = slope_for(channels)
        half, quarter = channels // 2, channels // 4
        # The mixed spelling of these names is that of the public checkpoints.
        self.conv3X3 = convolution(channels, half)
        self.conv5X5_1 = convolution(channels, quarter, slope=slope)
        self.conv5X5_2 = convolution(quarter, quarter)
        self.conv7X7_2 = convolution(quarter, quarter, slope=slope)
        self.conv7x7_3 = convolution(quarter, quarter)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape that sees a 7x7 neighbourhood."""
        shared = self.conv5X5_1(x)
        branches = [self.conv3X3(x), self.conv5X5_2(shared), self.conv7x7_3(self.conv7X7_2(shared))]
        return functional.relu(torch.cat(branches, dim=1))


class _Head(nn.Module):
    """One 1x1 convolution, under the name that the public checkpoints give it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1x1 = nn.Conv2d(inputs, outputs, 1)


class RetinaFace(nn.Module):
    """The whole detector; ``layout`` chooses what ``forward`` returns and may be changed at any time."""

    def __init__(
        self,
        architecture: str = "mobilenetv1-x0.25",
        *,
        anchors_per_cell: int = 2,
        pyramid_channels: int | None = None,
        layout: OutputLayout = "fused",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if architecture not in ARCHITECTURES:
            raise ModelError(f"unknown architecture {architecture!r}; known are {', '.join(ARCHITECTURES)}")
        plan = ARCHITECTURES[architecture]
        channels = pyramid_channels or plan.pyramid_channels
        self.architecture = architecture
        self.anchors_per_cell = anchors_per_cell
        self.layout: OutputLayout = layout
        self.body = plan.backbone()
        widths: tuple[int, int, int] = self.body.out_channels  # type: ignore[assignment]
        self.fpn = FeaturePyramid(widths, channels)
        self.ssh1, self.ssh2, self.ssh3 = (ContextModule(channels) for _ in range(3))
        self.ClassHead, self.BboxHead, self.LandmarkHead = (
            nn.ModuleList(_Head(channels, anchors_per_cell * PART_CHANNELS[part]) for _ in range(3)) for part in PARTS
        )
        initialise(self, seed)

    def features(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the heads see: three maps (B, C, H / stride, W / stride) for strides 8, 16 and 32."""
        bottom, centre, top = self.fpn(*self.body(images))
        return self.ssh1(bottom), self.ssh2(centre), self.ssh3(top)

    def head(self, part: Part, level: int) -> tuple[Tensor, Tensor]:
        """Weight (channels, C, 1, 1) and bias of one head of one level."""
        heads = {"class": self.ClassHead, "box": self.BboxHead, "landmark": self.LandmarkHead}[part]
        convolution_: nn.Conv2d = heads[level].conv1x1  # type: ignore[assignment]
        assert convolution_.bias is not None
        return convolution_.weight, convolution_.bias

    def fused_head(self, level: int) -> tuple[Tensor, Tensor]:
        """Weight (A * 16, C, 1, 1) and bias of the three heads of one level as one convolution."""
        weights, biases = zip(*(self.head(part, level) for part in PARTS), strict=True)
        return torch.cat(weights), torch.cat(biases)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run the detector on ``images`` (B, 3, H, W).

        Returns, for "fused", the maps (B, A * 16, H / s, W / s) of strides 8, 16 and 32, logits and offsets; for
        "classic", loc (B, N, 4), conf (B, N, 2) as probabilities and landms (B, N, 10).
        """
        fused = [functional.conv2d(f, *self.fused_head(level)) for level, f in enumerate(self.features(images))]
        if self.layout == "fused":
            return fused[0], fused[1], fused[2]
        return classic_from_fused(fused, self.anchors_per_cell)


def classic_from_fused(maps: Sequence[Tensor], anchors_per_cell: int) -> tuple[Tensor, Tensor, Tensor]:
    """Turn fused maps into loc (B, N, 4), conf (B, N, 2) and landms (B, N, 10), anchors in the classic order."""
    sizes = [anchors_per_cell * PART_CHANNELS[part] for part in PARTS]
    levels = [torch.split(m, sizes, dim=1) for m in maps]
    scores, boxes, landmarks = (
        torch.cat(
            [level[i].permute(0, 2, 3, 1).reshape(level[i].shape[0], -1, PART_CHANNELS[part]) for level in levels], 1
        )
        for i, part in enumerate(PARTS)
    )
    return boxes, torch.softmax(scores, dim=-1), landmarks
