"""Learning from a teacher's answers instead of from labels: soft scores for every anchor, boxes where it sees a face.

A teacher's soft score says more than a label: how sure it is, about every anchor, on every picture however it was
augmented. What it gets wrong the student learns as well, so labels can have a share in the sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import ConfigDict
from torch import Tensor
from torch.nn import functional

from retinastream.errors import UsageError
from retinastream.training.loss import Predictions
from retinastream.training.matching import FACE, IGNORED, Matches

DISTILLATION_PARTS = ("total", "classification", "box", "landmark", "margin", "offsets")


@dataclass(frozen=True, slots=True)
class DistillationRecipe:
    """Which anchors are compared with the teacher's, and how much each part weighs.

    ``share`` is that of distillation in the sum with the loss of the labels: 1 learns from the teacher alone.
    ``low`` is the score above which, the teacher's or the student's own, an anchor counts as hard; the others count
    ``easy_weight`` all together. ``positive`` is the teacher's score above which an anchor is counted as a face, and
    ``hard_per_positive`` how many hard anchors per face weigh fully. ``regress_above`` is the teacher's score above
    which its box and landmarks are learned. ``temperature`` softens both scores before they are compared.
    ``margin_everywhere`` and ``offsets_everywhere`` are the weights of comparing raw numbers at every anchor,
    background or not (Ba and Caruana, arXiv 1312.6184, match logits for the same reason): 0.001 and 0.00001 are as
    good as equal, but what made the teacher tell them apart is worth copying. They suit a student built like it.

    Raises UsageError for numbers out of range.
    """

    # Pydantic ignores unknown keys of a dataclass unless it is told not to.
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    share: float = 1.0
    class_weight: float = 1.0
    box_weight: float = 2.0
    landmark_weight: float = 1.0
    easy_weight: float = 1.0
    temperature: float = 1.0
    low: float = 0.02
    positive: float = 0.5
    regress_above: float = 0.3
    hard_per_positive: int = 7
    margin_everywhere: float = 0.0
    offsets_everywhere: float = 0.0

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        for name in ("share", "low", "positive", "regress_above"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UsageError(f"{name} {getattr(self, name)} of the distillation is out of range; allowed is 0 to 1")
        weights = ("class_weight", "box_weight", "landmark_weight", "easy_weight", "hard_per_positive")
        for name in (*weights, "margin_everywhere", "offsets_everywhere"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"{name} {getattr(self, name)} of the distillation must be a number, 0 or more")
        if not self.temperature > 0:
            raise UsageError(f"temperature {self.temperature} of the distillation must be above 0; 1 changes nothing")


@dataclass(frozen=True, slots=True, eq=False)
class DistillationLosses:
    """The total and its parts before their weights, float32 scalars; and the counts behind them, int64 scalars.

    ``margin`` and ``offsets`` are those of every anchor, 0 where their weight is. ``positives`` are the anchors that
    the teacher takes for faces, ``hard`` those above ``low`` in either's eyes.
    """

    total: Tensor
    classification: Tensor
    box: Tensor
    landmark: Tensor
    margin: Tensor
    offsets: Tensor
    positives: Tensor
    hard: Tensor

    def parts(self) -> dict[str, Tensor]:
        """Total and parts by name, detached, still on their device: reading a value is what waits for it."""
        return {name: getattr(self, name).detach() for name in DISTILLATION_PARTS}


def distillation_loss(
    student: Predictions, teacher: Predictions, recipe: DistillationRecipe, *, ignore: Tensor | None = None
) -> DistillationLosses:
    """Compare the output for a batch with the teacher's, anchor by anchor; gradients go to the student only.

    Anchors marked in ``ignore`` (B, N) bool take no part at all: not in sums, not in counts. Computed in float32
    (float64 where the student's output is that), over the whole batch:

    - classification: binary cross-entropy of the student's face probability against the teacher's, both at
      ``temperature`` T and times T squared, so that gradients keep their size. Summed over hard anchors and divided by
      max(1, positives, hard / (1 + hard_per_positive)); plus ``easy_weight`` times the mean over all others. The last
      bound is for the first steps, when a fresh network takes every anchor for half a face: without it the loss would
      start above a thousand. The least possible value is the entropy of the teacher's scores, not 0.
    - box and landmark: smooth L1 (bend at 1) summed over the four or ten offsets, weighted by the teacher's score where
      that is above ``regress_above``, and divided by the sum of the weights or 1, whichever is more.
    - margin: smooth L1 between the differences of the two logits; offsets: between the 14 offsets. Both are means over
      all anchors that take part.

    Raises UsageError where shapes differ.
    """
    _check_shapes(student, teacher, ignore)
    known = torch.ones_like(teacher.logits[..., 0], dtype=torch.bool) if ignore is None else ~ignore
    # An infinity at an anchor that takes no part must not reach a weight, so it is replaced before anything else.
    own = face_margin(student).masked_fill(~known, 0.0)
    aim = face_margin(teacher).detach().to(own.dtype).masked_fill(~known, 0.0)
    score = torch.sigmoid(aim)
    positives = ((score > recipe.positive) & known).sum()
    hard = ((score > recipe.low) | (torch.sigmoid(own.detach()) > recipe.low)) & known

    classification = _classification(own, aim, hard, known & ~hard, positives, recipe)
    box, landmark = _regression(student, teacher, score.masked_fill(~known, 0.0), recipe)
    margin, offsets = _everywhere(student, teacher, own, aim, known, recipe)
    total = recipe.class_weight * classification + recipe.box_weight * box + recipe.landmark_weight * landmark
    total = total + recipe.margin_everywhere * margin + recipe.offsets_everywhere * offsets
    return DistillationLosses(total, classification, box, landmark, margin, offsets, positives, hard.sum())


def mixed_loss(labels: Tensor, distillation: Tensor, recipe: DistillationRecipe) -> Tensor:
    """Sum the totals of both losses by ``share``; one whose share is 0 is left out, even where it is infinite."""
    if recipe.share == 0.0:
        return labels
    if recipe.share == 1.0:
        return distillation
    return (1.0 - recipe.share) * labels + recipe.share * distillation


def left_to_labels(
    matches: Matches, teacher: Predictions, recipe: DistillationRecipe, *, ignored_too: bool = False
) -> Tensor:
    """Choose the anchors (B, N) that distillation should ignore where labels have a share: faces the teacher missed.

    There both losses would pull in opposite directions and settle in between, at a score that is neither. Anchors that
    the labels ignore are the opposite case: the labels say nothing there and the teacher does, so they are distilled.
    With ``ignored_too`` they are not; that is for regions where the picture itself is of no use, such as faces made too
    small or cut by augmentation.
    """
    score = torch.sigmoid(face_margin(teacher).detach())
    missed = (matches.labels == FACE) & (score <= recipe.regress_above)
    return missed | (matches.labels == IGNORED) if ignored_too else missed


def face_margin(predictions: Predictions) -> Tensor:
    """Face logit minus background logit (B, N), float32 or wider; its sigmoid is the softmax probability of a face."""
    logits = _wide(predictions.logits)
    return logits[..., 1] - logits[..., 0]


def _classification(
    own: Tensor, aim: Tensor, hard: Tensor, easy: Tensor, positives: Tensor, recipe: DistillationRecipe
) -> Tensor:
    heat = recipe.temperature
    each = functional.binary_cross_entropy_with_logits(own / heat, torch.sigmoid(aim / heat), reduction="none")
    each = each * heat**2
    balanced = hard.sum() / (1 + recipe.hard_per_positive)
    of_hard = (each * hard).sum() / torch.maximum(positives, balanced).clamp(min=1)
    return of_hard + recipe.easy_weight * (each * easy).sum() / easy.sum().clamp(min=1)


def _regression(
    student: Predictions, teacher: Predictions, score: Tensor, recipe: DistillationRecipe
) -> tuple[Tensor, Tensor]:
    picture, anchor = torch.nonzero(score > recipe.regress_above, as_tuple=True)
    weight = score[picture, anchor]
    enough = weight.sum().clamp(min=1)

    def compare(told: Tensor, wanted: Tensor) -> Tensor:
        told, wanted = _wide(told[picture, anchor]), wanted[picture, anchor].detach()
        each = functional.smooth_l1_loss(told, wanted.to(told.dtype), reduction="none").sum(dim=1)
        return (each * weight).sum() / enough

    return compare(student.boxes, teacher.boxes), compare(student.landmarks, teacher.landmarks)


def _everywhere(
    student: Predictions, teacher: Predictions, own: Tensor, aim: Tensor, known: Tensor, recipe: DistillationRecipe
) -> tuple[Tensor, Tensor]:
    margin = offsets = own.new_zeros(())
    count = known.sum().clamp(min=1)
    if recipe.margin_everywhere:
        # Where an anchor takes no part both are 0 already.
        margin = functional.smooth_l1_loss(own, aim, reduction="sum") / count
    if recipe.offsets_everywhere:
        told, wanted = (torch.cat([_wide(p.boxes), _wide(p.landmarks)], dim=-1)[known] for p in (student, teacher))
        offsets = functional.smooth_l1_loss(told, wanted.detach().to(told.dtype), reduction="sum") / (14 * count)
    return margin, offsets


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _check_shapes(student: Predictions, teacher: Predictions, ignore: Tensor | None) -> None:
    for name in ("logits", "boxes", "landmarks"):
        ours, theirs = tuple(getattr(student, name).shape), tuple(getattr(teacher, name).shape)
        if ours != theirs:
            raise UsageError(f"{name} of the student have shape {ours} and the teacher's {theirs}; they must be equal")
    expected = tuple(student.logits.shape[:2])
    if ignore is not None and (tuple(ignore.shape) != expected or ignore.dtype != torch.bool):
        raise UsageError(f"ignore is {ignore.dtype} of shape {tuple(ignore.shape)}; expected bool of shape {expected}")
