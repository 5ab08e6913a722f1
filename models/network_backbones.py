"""Backbones: MobileNetV1 of any width, and ResNet of any depth.

Each has four feature maps, at strides 4, 8, 16 and 32; the light RetinaFace uses the last three. Parameters carry the
names that public checkpoints of this lineage use, so that those load as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

# Where a layer is narrow the lineage leaks a tenth of the negative side; wide layers use a plain ReLU.
NARROW_CHANNELS = 64
NARROW_SLOPE = 0.1


class Layer(Protocol):
    """Makes one convolution with its normalisation and, where ``slope`` is given, its activation."""

    def __call__(self, inputs: int, outputs: int, *, slope: float | None = None) -> nn.Sequential:
        """Return the layer; its kernel is 3x3."""
        ...


def slope_for(channels: int) -> float:
    """Return the negative slope of the activations of a layer with so many output channels."""
    return NARROW_SLOPE if channels <= NARROW_CHANNELS else 0.0


def convolution(
    inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1, slope: float | None = None
) -> nn.Sequential:
    """Convolution without bias and its batch normalisation; an activation follows when ``slope`` is given."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    if slope is not None:
        layers.append(nn.LeakyReLU(slope))
    return nn.Sequential(*layers)


def _separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Depthwise 3x3 followed by pointwise 1x1, each normalised and activated."""
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.LeakyReLU(NARROW_SLOPE),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(NARROW_SLOPE),
    )


class MobileNetV1(nn.Module):
    """MobileNetV1 (arXiv 1704.04861) whose channels are ``stem`` times 1, 2, 4, 8, 16, 32; width 0.25 has stem 8."""

    def __init__(self, stem: int) -> None:
        super().__init__()
        c = [stem * 2**power for power in range(6)]
        self.stage1 = nn.Sequential(
            convolution(3, c[0], stride=2, slope=NARROW_SLOPE),
            _separable(c[0], c[1], 1),
            _separable(c[1], c[2], 2),
            _separable(c[2], c[2], 1),
            _separable(c[2], c[3], 2),
            _separable(c[3], c[3], 1),
        )
        self.stage2 = nn.Sequential(_separable(c[3], c[4], 2), *(_separable(c[4], c[4], 1) for _ in range(5)))
        self.stage3 = nn.Sequential(_separable(c[4], c[5], 2), _separable(c[5], c[5], 1))
        self.level_channels = (c[2], c[3], c[4], c[5])
        self.out_channels = (c[3], c[4], c[5])

    def levels(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the maps at strides 4, 8, 16 and 32 of ``images`` (B, 3, H, W)."""
        finest = images
        for layer in list(self.stage1)[:4]:
            finest = layer(finest)
        fine = finest
        for layer in list(self.stage1)[4:]:
            fine = layer(fine)
        middle = self.stage2(fine)
        return finest, fine, middle, self.stage3(middle)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the maps at strides 8, 16 and 32 of ``images`` (B, 3, H, W)."""
        return self.levels(images)[1:]


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (ResNet-18 and -34)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, downsample: nn.Sequential | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(residual(x) + shortcut(x))."""
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        shortcut = x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(y + shortcut)
        return out


class _Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 beside a shortcut; the 3x3 carries the stride (ResNet-50 as commonly trained)."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, downsample: nn.Sequential | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU()
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(residual(x) + shortcut(x))."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        shortcut = x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(y + shortcut)
        return out


class ResNet(nn.Module):
    """ResNet (arXiv 1512.03385) without its classifier; ``depths`` are the blocks of its four stages."""

    def __init__(self, depths: Sequence[int], *, bottleneck: bool) -> None:
        super().__init__()
        block = _Bottleneck if bottleneck else _BasicBlock
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        channels = 64
        stages: list[nn.Sequential] = []
        for number, depth in enumerate(depths):
            width = 64 * 2**number
            stages.append(_stage(block, channels, width, depth, stride=1 if number == 0 else 2))
            channels = width * block.expansion
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.level_channels = (channels // 8, channels // 4, channels // 2, channels)
        self.out_channels = (channels // 4, channels // 2, channels)

    def levels(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the maps at strides 4, 8, 16 and 32 of ``images`` (B, 3, H, W)."""
        finest = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(images)))))
        fine = self.layer2(finest)
        middle = self.layer3(fine)
        return finest, fine, middle, self.layer4(middle)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the maps at strides 8, 16 and 32 of ``images`` (B, 3, H, W)."""
        return self.levels(images)[1:]


def _stage(
    block: type[_BasicBlock] | type[_Bottleneck], inputs: int, width: int, depth: int, stride: int
) -> nn.Sequential:
    outputs = width * block.expansion
    downsample = None
    if stride != 1 or inputs != outputs:
        downsample = convolution(inputs, outputs, kernel=1, stride=stride)
    first = block(inputs, width, stride, downsample)
    return nn.Sequential(first, *(block(outputs, width, 1, None) for _ in range(depth - 1)))


def initialise(module: nn.Module, seed: int) -> None:
    """Give a network random weights that keep the size of its activations, the same ones for the same ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, a=NARROW_SLOPE, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.0, generator=generator)
            nn.init.normal_(layer.bias, 0.0, 0.1, generator=generator)
