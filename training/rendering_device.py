"""From plans to pixels with torch: a whole batch at once, where the pictures lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from retinastream.training.cache import PictureCache
from retinastream.training.output_plan import OutputPlan
from retinastream.training.rendering import Fill, tile_source

# Each output pixel takes about 150 bytes of temporaries: 4 million of them 0.6 GB.
PIXELS_AT_ONCE = 1 << 22


def render_on_device(plans: Sequence[OutputPlan], cache: PictureCache, flat: Tensor, *, fill: Fill) -> Tensor:
    """Draw plans of one size from ``flat``, the tensor of ``cache.to(device)``: (B, size, size, 3) uint8, BGR.

    Pixels are defined as in ``rendering.render``.
    """
    size = plans[0].size
    step = max(1, PIXELS_AT_ONCE // (size * size))
    return torch.cat([_render(plans[i : i + step], cache, flat, fill) for i in range(0, len(plans), step)])


def network_input_on_device(
    images: Tensor,
    *,
    mean: tuple[float, float, float],
    channel_order: Literal["bgr", "rgb"] = "bgr",
    scale: float = 1.0,
    channels_last: bool = False,
) -> Tensor:
    """Do with tensors what ``rendering.network_input`` does with arrays."""
    ordered = images if channel_order == "bgr" else images.flip(3)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    level = torch.tensor(mean, dtype=torch.float32, device=images.device)[:, None, None]
    return ordered.permute(0, 3, 1, 2).to(torch.float32, memory_format=layout).sub_(level).mul_(scale)


@torch.no_grad()
def _render(plans: Sequence[OutputPlan], cache: PictureCache, flat: Tensor, fill: Fill) -> Tensor:
    size, device = plans[0].size, flat.device
    maps, places = _tile_tables(plans, cache, device)
    row = torch.arange(size, dtype=torch.float32, device=device)[:, None]
    column = torch.arange(size, dtype=torch.float32, device=device)
    tiles = _tile_map(plans, row, column)
    x = maps[:, 0][tiles] * column + maps[:, 1][tiles] * row + maps[:, 2][tiles]
    y = maps[:, 3][tiles] * column + maps[:, 4][tiles] * row + maps[:, 5][tiles]
    inside = (x >= -0.5) & (x <= maps[:, 6][tiles]) & (y >= -0.5) & (y <= maps[:, 7][tiles])

    start, width, height = places[:, 0][tiles], places[:, 1][tiles], places[:, 2][tiles]
    samples = _bilinear(flat, x, y, start, width, height).round_()
    colours = torch.from_numpy(np.stack([one.colour for one in plans])).to(device)
    recoloured = torch.baddbmm(
        colours[:, None, :, 3], samples.reshape(len(plans), -1, 3), colours[:, :, :3].transpose(1, 2)
    )
    images = recoloured.round_().clamp_(0, 255).reshape(samples.shape)
    empty = torch.tensor(np.rint(fill), dtype=torch.float32, device=device)
    return torch.where(inside[..., None], images, empty).to(torch.uint8)


def _tile_tables(plans: Sequence[OutputPlan], cache: PictureCache, device: torch.device) -> tuple[Tensor, Tensor]:
    """List what every tile needs: maps and limits (T, 8) float32; start and size of its level (T, 3) int64."""
    real: list[list[float]] = []
    whole: list[list[int]] = []
    for one in plans:
        for tile in one.tiles:
            source = tile_source(cache, tile, one.blur)
            height, width = cache.level(source.picture, source.level).shape[:2]
            real.append([*source.matrix.ravel(), *source.limit])
            whole.append([cache.offset(source.picture, source.level), width, height])
    return torch.tensor(real, dtype=torch.float32).to(device), torch.tensor(whole).to(device)


def _tile_map(plans: Sequence[OutputPlan], row: Tensor, column: Tensor) -> Tensor:
    """Which tile every pixel belongs to: (B, S, S) int64, or (B, 1, 1) where every plan has one."""
    counts = [len(one.tiles) for one in plans]
    first = torch.tensor([0, *counts[:-1]]).cumsum(0).to(row.device)[:, None, None]
    if max(counts) == 1:
        return first
    rectangles = torch.zeros(len(plans), max(counts), 4, 1, 1)
    for i, one in enumerate(plans):
        for t, tile in enumerate(one.tiles):
            rectangles[i, t, :, 0, 0] = torch.tensor(tile.rectangle)
    bounds = rectangles.to(row.device)
    tiles = first.expand(-1, len(row), len(row)).clone()
    for t in range(1, max(counts)):
        left, top, right, bottom = bounds[:, t].unbind(1)
        tiles += t * ((column >= left) & (column < right) & (row >= top) & (row < bottom))
    return tiles


def _bilinear(flat: Tensor, x: Tensor, y: Tensor, start: Tensor, width: Tensor, height: Tensor) -> Tensor:
    """Sample (B, S, S, 3) float32 at fractional indices; edges continue outward."""
    left, top = x.floor(), y.floor()
    across, down = (x - left)[..., None], (y - top)[..., None]
    # Every index reads three samples: the view has one row per byte of the buffer, and rows overlap.
    pixels = flat.as_strided((flat.numel() - 2, 3), (1, 1))
    zero = torch.zeros_like(width)
    columns = [torch.clamp(left.long() + i, zero, width - 1) for i in (0, 1)]
    rows = [torch.clamp(top.long() + i, zero, height - 1) for i in (0, 1)]

    def tap(row: Tensor, column: Tensor) -> Tensor:
        return pixels[start + 3 * (row * width + column)].float()

    upper = torch.lerp(tap(rows[0], columns[0]), tap(rows[0], columns[1]), across)
    lower = torch.lerp(tap(rows[1], columns[0]), tap(rows[1], columns[1]), across)
    return torch.lerp(upper, lower, down)
