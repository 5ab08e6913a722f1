"""What every RetinaFace here ends in: three heads on each level, and the two layouts of their output.

Input is (B, 3, H, W) float32 with the mean of the spec already subtracted; H and W are multiples of 32. Two layouts
of the output exist, "fused" and "classic"; ``retinastream.models.spec`` says what each holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from retinastream.errors import UsageError
from retinastream.models.spec import OutputLayout

Part = Literal["class", "box", "landmark"]
PART_CHANNELS: dict[Part, int] = {"class": 2, "box": 4, "landmark": 10}
PARTS: tuple[Part, ...] = ("class", "box", "landmark")

# With a prior the class heads start almost constant, so that it is the bias which speaks.
PRIOR_WEIGHT_SPREAD = 0.01


class _Head(nn.Module):
    """One 1x1 convolution, under the name that the public checkpoints give it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1x1 = nn.Conv2d(inputs, outputs, 1)


class DetectorNetwork(nn.Module):
    """A detector without its maps: a subclass makes them in ``features`` and calls ``_add_heads`` last.

    ``strides`` has one entry per level, finest first. ``layout`` chooses what ``forward`` returns and may be changed at
    any time.
    """

    ClassHead: nn.ModuleList
    BboxHead: nn.ModuleList
    LandmarkHead: nn.ModuleList

    def __init__(
        self, architecture: str, *, strides: tuple[int, ...], anchors_per_cell: int, layout: OutputLayout
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.strides = strides
        self.anchors_per_cell = anchors_per_cell
        self.layout: OutputLayout = layout

    def _add_heads(self, channels: int) -> None:
        self.ClassHead, self.BboxHead, self.LandmarkHead = (
            nn.ModuleList(_Head(channels, self.anchors_per_cell * PART_CHANNELS[part]) for _ in self.strides)
            for part in PARTS
        )

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return what the heads see: one map (B, C, H / stride, W / stride) per stride."""
        raise NotImplementedError

    def head(self, part: Part, level: int) -> tuple[Tensor, Tensor]:
        """Weight (channels, C, 1, 1) and bias of one head of one level."""
        heads = {"class": self.ClassHead, "box": self.BboxHead, "landmark": self.LandmarkHead}[part]
        convolution: nn.Conv2d = heads[level].conv1x1  # type: ignore[assignment]
        assert convolution.bias is not None
        return convolution.weight, convolution.bias

    def fused_head(self, level: int) -> tuple[Tensor, Tensor]:
        """Weight (A * 16, C, 1, 1) and bias of the three heads of one level as one convolution."""
        weights, biases = zip(*(self.head(part, level) for part in PARTS), strict=True)
        return torch.cat(weights), torch.cat(biases)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Run the detector on ``images`` (B, 3, H, W).

        Returns, for "fused", one map (B, A * 16, H / s, W / s) per stride s, logits and offsets; for "classic", loc
        (B, N, 4), conf (B, N, 2) as probabilities and landms (B, N, 10).
        """
        fused = tuple(functional.conv2d(f, *self.fused_head(level)) for level, f in enumerate(self.features(images)))
        return fused if self.layout == "fused" else classic_from_fused(fused, self.anchors_per_cell)

    @torch.no_grad()
    def set_face_prior(self, prior: float) -> None:
        """Let every anchor start with about this score, so that the first steps are not spent on the background.

        Raises UsageError unless 0 < prior < 1. Source: the initialisation of arXiv 1708.02002, section 4.1.
        """
        if not 0.0 < prior < 1.0:
            raise UsageError(f"face prior {prior} must lie between 0 and 1, both excluded; 0.01 is usual")
        for level in range(len(self.strides)):
            weight, bias = self.head("class", level)
            weight.mul_(PRIOR_WEIGHT_SPREAD / weight.std())
            # Of each anchor's two logits, background and face, only the difference counts.
            bias[0::2] = 0.0
            bias[1::2] = math.log(prior / (1.0 - prior))


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
