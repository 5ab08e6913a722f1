"""What a wrong answer costs: classification, boxes and landmarks in one sum, with hard negatives chosen by loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from retinastream.errors import UsageError
from retinastream.models.spec import DetectorSpec
from retinastream.training.matching import BACKGROUND, FACE, Matches, Truths

_CHANNELS = (2, 4, 10)


@dataclass(frozen=True, slots=True)
class LossRecipe:
    """Weights of the three parts, and how many background anchors a picture brings for each of its face anchors.

    ``least_negatives`` is the number of background anchors that a picture brings at the least, so that pictures
    without faces teach something too; 0, as in both published recipes, lets them count for nothing.
    Raises UsageError on a negative number.
    """

    box_weight: float
    landmark_weight: float
    class_weight: float
    negatives_per_positive: int
    least_negatives: int = 0

    def __post_init__(self) -> None:
        """Refuse negative numbers."""
        for name in self.__dataclass_fields__:
            if getattr(self, name) < 0:
                raise UsageError(f"{name} {getattr(self, name)} of the loss must not be negative")


# arXiv 1905.00641 section 3.1 (without the dense branch); and the light PyTorch lineage.
PAPER_LOSS = LossRecipe(box_weight=0.25, landmark_weight=0.1, class_weight=1.0, negatives_per_positive=3)
LIGHT_LOSS = LossRecipe(box_weight=2.0, landmark_weight=1.0, class_weight=1.0, negatives_per_positive=7)


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """Raw output in the classic order of anchors: logits (B, N, 2), boxes (B, N, 4), landmarks (B, N, 10).

    Boxes and landmarks are encoded offsets. Any floating type.
    """

    logits: Tensor
    boxes: Tensor
    landmarks: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Losses:
    """The total and its parts before their weights, float32 scalars; and the counts behind them, int64 scalars.

    ``positives`` are face anchors, ``negatives`` the background anchors that were chosen, ``landmarked`` the face
    anchors whose face has landmarks; all over the whole batch.
    """

    total: Tensor
    classification: Tensor
    box: Tensor
    landmark: Tensor
    positives: Tensor
    negatives: Tensor
    landmarked: Tensor

    def parts(self) -> dict[str, Tensor]:
        """Total and parts by name, detached, still on their device: reading a value is what waits for it."""
        return {name: getattr(self, name).detach() for name in ("total", "classification", "box", "landmark")}


def predictions_from_fused(maps: Sequence[Tensor], spec: DetectorSpec) -> Predictions:
    """Reorder fused maps, one (B, A * 16, rows, columns) per level, into ``Predictions``; gradients pass through.

    Raises UsageError where levels or channels are not those of ``spec``.
    """
    if len(maps) != len(spec.anchor_sizes):
        raise UsageError(f"{len(maps)} maps were given and the spec has {len(spec.anchor_sizes)} levels")
    levels = []
    for stride, sizes, fused in zip(spec.strides, spec.anchor_sizes, maps, strict=True):
        count = len(sizes)
        if fused.ndim != 4 or fused.shape[1] != count * sum(_CHANNELS):
            raise UsageError(
                f"the map of stride {stride} has shape {tuple(fused.shape)}; "
                f"expected (batch, {count * sum(_CHANNELS)}, rows, columns): {count} anchors per cell, 16 values each"
            )
        split = torch.split(fused, [count * c for c in _CHANNELS], dim=1)
        levels.append([p.permute(0, 2, 3, 1).reshape(len(p), -1, c) for p, c in zip(split, _CHANNELS, strict=True)])
    logits, boxes, landmarks = (torch.cat(part, dim=1) for part in zip(*levels, strict=True))
    return Predictions(logits, boxes, landmarks)


def encode(boxes: Tensor, landmarks: Tensor, anchors: Tensor, variances: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Turn xyxy boxes (K, 4) and landmarks (K, 5, 2) into offsets (K, 4) and (K, 10) against anchors (K, 4).

    Anchors are those of ``anchors_of``; the result is what ``kernels.decode.decode_offsets`` inverts.
    """
    centre, size = anchors[:, :2], anchors[:, 2:]
    near = size * variances[0]
    middle, extent = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    box = torch.cat([(middle - centre) / near, torch.log(extent / size) / variances[1]], dim=1)
    return box, ((landmarks - centre[:, None]) / near[:, None]).flatten(1)


@torch.no_grad()
def hard_negatives(logits: Tensor, labels: Tensor, recipe: LossRecipe) -> Tensor:
    """Choose the background anchors that cost most, picture by picture: (B, N) bool.

    Each picture brings ``negatives_per_positive`` for each of its face anchors, ``least_negatives`` at the least, and
    no more than it has. Among equal losses the lower index is chosen.
    """
    background = labels == BACKGROUND
    # The loss of a background anchor is softplus of this difference, so both rank alike, and this does not saturate.
    margin = (logits[..., 1].float() - logits[..., 0].float()).masked_fill(~background, -torch.inf)
    order = torch.argsort(margin, dim=1, descending=True, stable=True)
    wanted = (labels == FACE).sum(dim=1, keepdim=True) * recipe.negatives_per_positive
    wanted = wanted.clamp(min=recipe.least_negatives)
    within = torch.arange(labels.shape[1], device=labels.device) < wanted
    return torch.zeros_like(background).scatter_(1, order, within) & background


def multi_task_loss(
    predictions: Predictions,
    truths: Truths,
    matches: Matches,
    anchors: Tensor,
    recipe: LossRecipe,
    variances: tuple[float, float] = (0.1, 0.2),
) -> Losses:
    """Compare the output for a batch with its labels; everything is computed in float32.

    Sums over the whole batch, not over its pictures one by one, each divided by a count that is at least 1:

    - classification: softmax cross-entropy of all face anchors and the chosen background anchors, divided by the
      number of face anchors. Where ``least_negatives`` brought more than r = ``negatives_per_positive`` per face
      anchor, by (face + chosen anchors) / (1 + r) instead: otherwise a batch of empty pictures would weigh a
      hundred times the usual.
    - box: smooth L1 (bend at 1) of four offsets, divided by the number of face anchors.
    - landmark: smooth L1 of ten offsets over face anchors whose face has landmarks, divided by their number.

    Without face anchors box and landmark are 0, and so is classification unless ``least_negatives`` asks for some;
    ``total.backward()`` works all the same and gives zeros.
    """
    _check_shapes(predictions, matches, anchors)
    face = matches.labels == FACE
    chosen = hard_negatives(predictions.logits, matches.labels, recipe)
    # Selecting before computing keeps ignored anchors out of the graph: not even an infinity there can reach a weight.
    told, wanted = predictions.logits[face | chosen].float(), face[face | chosen].long()
    classification = functional.cross_entropy(told, wanted, reduction="sum")

    picture, anchor = torch.nonzero(face, as_tuple=True)
    truth = matches.truth[picture, anchor]
    known = truths.has_landmarks[picture, truth]
    box_target, landmark_target = encode(
        truths.boxes[picture, truth].float(), truths.landmarks[picture, truth].float(), anchors[anchor], variances
    )
    box = functional.smooth_l1_loss(predictions.boxes[picture, anchor].float(), box_target, reduction="sum")
    landmark = functional.smooth_l1_loss(
        predictions.landmarks[picture[known], anchor[known]].float(), landmark_target[known], reduction="sum"
    )

    positives, negatives, landmarked = face.sum(), chosen.sum(), known.sum()
    balanced = (positives + negatives) / (1 + recipe.negatives_per_positive)
    classification = classification / torch.maximum(positives, balanced).clamp(min=1)
    box = box / positives.clamp(min=1)
    landmark = landmark / landmarked.clamp(min=1)
    total = recipe.class_weight * classification + recipe.box_weight * box + recipe.landmark_weight * landmark
    return Losses(total, classification, box, landmark, positives, negatives, landmarked)


def _check_shapes(predictions: Predictions, matches: Matches, anchors: Tensor) -> None:
    pictures, count = matches.labels.shape
    expected = {"logits": 2, "boxes": 4, "landmarks": 10}
    for name, values in expected.items():
        shape = tuple(getattr(predictions, name).shape)
        if shape != (pictures, count, values) or count != len(anchors):
            raise UsageError(
                f"{name} have shape {shape}; expected {(pictures, len(anchors), values)} "
                f"for {len(anchors)} anchors and labels of shape {(pictures, count)}"
            )
