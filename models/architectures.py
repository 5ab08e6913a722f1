"""All detectors by name, light and of the paper: which network a name builds, and which spec it is trained with."""

from __future__ import annotations

from retinastream.errors import ModelError
from retinastream.models.network import ARCHITECTURES, RetinaFace
from retinastream.models.network_heads import DetectorNetwork
from retinastream.models.network_paper import PAPER_ARCHITECTURES, PaperRetinaFace
from retinastream.models.spec import DetectorSpec, OutputLayout
from retinastream.models.spec_registry import DEFAULT_SPEC, SPECS

ALL_ARCHITECTURES = (*ARCHITECTURES, *PAPER_ARCHITECTURES)


def create_network(
    architecture: str,
    *,
    anchors_per_cell: int | None = None,
    pyramid_channels: int | None = None,
    deformable: bool = False,
    face_prior: float | None = None,
    layout: OutputLayout = "fused",
    seed: int = 0,
) -> DetectorNetwork:
    """Build the network of this name with random weights, the same ones for the same ``seed``.

    What is None has the value of the architecture. ``face_prior`` is the score that every anchor starts with, about
    0.01 for training. Raises ModelError for a name that is unknown, and for ``deformable`` with a light network.
    """
    if architecture in PAPER_ARCHITECTURES:
        return PaperRetinaFace(
            architecture,
            anchors_per_cell=anchors_per_cell or 3,
            pyramid_channels=pyramid_channels,
            deformable=deformable,
            face_prior=face_prior,
            layout=layout,
            seed=seed,
        )
    if architecture not in ARCHITECTURES:
        raise ModelError(f"unknown architecture {architecture!r}; known are {', '.join(ALL_ARCHITECTURES)}")
    if deformable:
        raise ModelError(
            f"{architecture} has no deformable convolutions; leave deformable out, or choose one of "
            f"{', '.join(PAPER_ARCHITECTURES)}"
        )
    return RetinaFace(
        architecture,
        anchors_per_cell=anchors_per_cell or 2,
        pyramid_channels=pyramid_channels,
        face_prior=face_prior,
        layout=layout,
        seed=seed,
    )


def spec_of(architecture: str) -> DetectorSpec:
    """Return the spec that a network of this name is trained with unless another is chosen; ModelError if unknown."""
    if architecture not in ALL_ARCHITECTURES:
        raise ModelError(f"unknown architecture {architecture!r}; known are {', '.join(ALL_ARCHITECTURES)}")
    return SPECS["retinaface-paper" if architecture in PAPER_ARCHITECTURES else DEFAULT_SPEC]
