"""Deformable convolution (arXiv 1703.06211): each tap of the kernel looks where a second convolution sends it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def deform_convolution(x: Tensor, offsets: Tensor, weight: Tensor, padding: int) -> Tensor:
    """Convolve ``x`` (B, C, H, W) with ``weight`` (O, C, K, K), stride 1, each tap moved by its own offset.

    ``offsets`` (B, 2 * K * K, H, W) are in pixels of ``x``: for each tap, in reading order, dy and then dx. Between
    pixels values are interpolated bilinearly; outside the map they are 0. ``padding`` is (K - 1) / 2, so that the
    result (B, O, H, W) is as large as the input. It holds K * K copies of ``x`` while it runs.
    """
    batch, _, height, width = x.shape
    kernel = weight.shape[-1]
    tap = torch.arange(kernel, dtype=x.dtype, device=x.device) - padding
    moves = offsets.reshape(batch, kernel, kernel, 2, height, width)
    row = torch.arange(height, dtype=x.dtype, device=x.device)[:, None]
    column = torch.arange(width, dtype=x.dtype, device=x.device)
    y = moves[:, :, :, 0] + tap[:, None, None, None] + row
    x_ = moves[:, :, :, 1] + tap[:, None, None] + column
    # grid_sample counts from the outer edge of the first pixel, -1, to that of the last, 1.
    grid = torch.stack([(2 * x_ + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    grid = grid.reshape(batch, kernel * kernel, height * width, 2)
    taken = functional.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    # (B, C, taps, pixels) is what the weight (O, C, taps) is laid out for.
    result = torch.einsum("bckp,ock->bop", taken, weight.flatten(2))
    return result.reshape(batch, -1, height, width)


class DeformableConvolution(nn.Conv2d):
    """A 3x3 convolution of stride 1 without bias whose taps move; with no offsets it is the ordinary one.

    ``offsets`` is the convolution that predicts the moves. It starts at zero and has to be set back to zero by whoever
    initialises all convolutions of a network alike (``still``).
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=False)
        self.offsets = nn.Conv2d(inputs, 2 * 3 * 3, 3, padding=1)
        self.still()

    def still(self) -> None:
        """Set all moves to zero."""
        nn.init.zeros_(self.offsets.weight)
        assert self.offsets.bias is not None
        nn.init.zeros_(self.offsets.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Return a map of the same height and width."""
        return deform_convolution(input, self.offsets(input), self.weight, padding=1)


def deformable_convolution(inputs: int, outputs: int, *, slope: float | None = None) -> nn.Sequential:
    """Deformable counterpart of ``network_backbones.convolution``: 3x3, normalised, activated where asked."""
    layers: list[nn.Module] = [DeformableConvolution(inputs, outputs), nn.BatchNorm2d(outputs)]
    if slope is not None:
        layers.append(nn.LeakyReLU(slope))
    return nn.Sequential(*layers)
