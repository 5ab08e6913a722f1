"""The RetinaFace of the paper (arXiv 1905.00641, section 3): five levels, P2 to P6, and three anchors per cell.

P2 to P5 come from the backbone's maps at strides 4 to 32, merged from the top down; P6 is a 3x3 convolution of stride 2
on the coarsest of them. Each level has a context module of its own. Optionally the 3x3 convolutions of the lateral
connections and of the context modules are deformable, as in the paper's best model.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from retinastream.errors import ModelError
from retinastream.models.network import Architecture, ContextModule
from retinastream.models.network_backbones import Layer, MobileNetV1, ResNet, convolution, initialise, slope_for
from retinastream.models.network_deformable import DeformableConvolution, deformable_convolution
from retinastream.models.network_heads import DetectorNetwork
from retinastream.models.spec import OutputLayout

STRIDES = (4, 8, 16, 32, 64)

PAPER_ARCHITECTURES: dict[str, Architecture] = {
    # Not of the paper: its five levels in a size that trains and runs on a CPU.
    "paper-mobilenetv1-x0.25": Architecture(lambda: MobileNetV1(8), 64),
    "paper-resnet50": Architecture(lambda: ResNet((3, 4, 6, 3), bottleneck=True), 256),
    "paper-resnet101": Architecture(lambda: ResNet((3, 4, 23, 3), bottleneck=True), 256),
    "paper-resnet152": Architecture(lambda: ResNet((3, 8, 36, 3), bottleneck=True), 256),
}


class PaperFeaturePyramid(nn.Module):
    """Five levels out of four maps: lateral 1x1, nearest-neighbour upsampling, 3x3 merge; P6 from the coarsest map."""

    def __init__(self, inputs: Sequence[int], channels: int, layer: Layer = convolution) -> None:
        super().__init__()
        slope = slope_for(channels)
        self.lateral = nn.ModuleList(convolution(width, channels, kernel=1, slope=slope) for width in inputs)
        self.merge = nn.ModuleList(layer(channels, channels, slope=slope) for _ in inputs[1:])
        self.coarsest = convolution(inputs[-1], channels, stride=2, slope=slope)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return P2 to P6, finest first, of the backbone's maps at strides 4, 8, 16 and 32."""
        levels = [self.lateral[-1](maps[-1])]
        for number in range(len(self.merge) - 1, -1, -1):
            above = functional.interpolate(levels[0], scale_factor=2.0, mode="nearest")
            levels.insert(0, self.merge[number](self.lateral[number](maps[number]) + above))
        return *levels, self.coarsest(maps[-1])


class PaperRetinaFace(DetectorNetwork):
    """The whole detector of the paper, at strides 4, 8, 16, 32 and 64; its spec is ``retinaface-paper``.

    ``seed`` makes its random weights; with ``face_prior`` every anchor starts with about that score. ``deformable``
    needs a multiple of the memory and time, most of it at stride 4.
    """

    def __init__(
        self,
        architecture: str = "paper-resnet50",
        *,
        anchors_per_cell: int = 3,
        pyramid_channels: int | None = None,
        deformable: bool = False,
        face_prior: float | None = None,
        layout: OutputLayout = "fused",
        seed: int = 0,
    ) -> None:
        if architecture not in PAPER_ARCHITECTURES:
            raise ModelError(f"unknown architecture {architecture!r}; known are {', '.join(PAPER_ARCHITECTURES)}")
        super().__init__(architecture, strides=STRIDES, anchors_per_cell=anchors_per_cell, layout=layout)
        plan = PAPER_ARCHITECTURES[architecture]
        channels = pyramid_channels or plan.pyramid_channels
        layer: Layer = deformable_convolution if deformable else convolution
        self.body = plan.backbone()
        widths: tuple[int, ...] = self.body.level_channels  # type: ignore[assignment]
        self.fpn = PaperFeaturePyramid(widths, channels, layer)
        self.context = nn.ModuleList(ContextModule(channels, layer) for _ in STRIDES)
        self._add_heads(channels)
        initialise(self, seed)
        for module in self.modules():
            if isinstance(module, DeformableConvolution):
                module.still()
        if face_prior is not None:
            self.set_face_prior(face_prior)

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return what the heads see: five maps (B, C, H / stride, W / stride), finest first."""
        levels = self.fpn(self.body.levels(images))  # type: ignore[operator]
        return tuple(context(level) for context, level in zip(self.context, levels, strict=True))
