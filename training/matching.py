"""Which anchor answers for which face: the matching of both RetinaFace recipes, for one picture or a padded batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from retinastream.errors import UsageError
from retinastream.models.spec import DetectorSpec

FACE, BACKGROUND, IGNORED = 1, 0, -1

# Anchors more than this far inside an ignored region say nothing about background.
IGNORED_COVER = 0.5

# 16 MB for each of the few float32 temporaries; 102,300 anchors against 500 faces at once would need 200 MB each.
PAIRS_AT_ONCE = 1 << 22


@dataclass(frozen=True, slots=True)
class MatchRecipe:
    """The overlaps at which an anchor is a face or background.

    An anchor is a face where its best IoU is above ``positive`` and background where it is below ``background``;
    between, the bounds included, it is ignored. Where both are equal nothing lies between, and the bound is a face.
    With ``claim_above`` every face also gets the anchor that overlaps it best, if their IoU is above that number;
    None turns claims off. Raises UsageError unless 0 <= background <= positive <= 1.
    """

    positive: float
    background: float
    claim_above: float | None = None

    def __post_init__(self) -> None:
        """Refuse bounds that contradict each other."""
        if not 0.0 <= self.background <= self.positive <= 1.0:
            raise UsageError(
                f"matching bounds: background {self.background}, positive {self.positive}; "
                "expected 0 <= background <= positive <= 1"
            )
        if self.claim_above is not None and not 0.0 <= self.claim_above < 1.0:
            raise UsageError(f"claim_above {self.claim_above} must be at least 0 and below 1, or None for no claims")


# arXiv 1905.00641 section 3; and the light PyTorch lineage, whose code leaves out faces below a best IoU of 0.2:
# ``replace(LIGHT, claim_above=0.2)`` does the same.
PAPER = MatchRecipe(positive=0.5, background=0.3)
LIGHT = MatchRecipe(positive=0.35, background=0.35, claim_above=0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Truths:
    """The labels of a batch, padded to the picture with most: coordinates are input pixels.

    ``boxes`` (B, M, 4) float32 xyxy; ``landmarks`` (B, M, 5, 2) float32, all negative or not finite where a face has
    none; ``ignore`` (B, M) bool marks regions that are neither face nor background; ``present`` (B, M) bool is False
    on padding.
    """

    boxes: Tensor
    landmarks: Tensor
    ignore: Tensor
    present: Tensor

    @property
    def has_landmarks(self) -> Tensor:
        """(B, M) bool. One negative coordinate is no sign of absence: points of a cut face lie outside the picture."""
        flat = self.landmarks.flatten(2)
        return flat.isfinite().all(2) & (flat >= 0).any(2) & self.present & ~self.ignore

    def to(self, device: torch.device | str) -> Truths:
        """Return the same labels on another device."""
        tensors = (self.boxes, self.landmarks, self.ignore, self.present)
        return Truths(*(t.to(device, non_blocking=True) for t in tensors))


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """What every anchor is: ``labels`` (..., N) int8 of FACE, BACKGROUND, IGNORED; ``truth`` (..., N) int64.

    ``truth`` is the index of the face that the anchor answers for, -1 where the label is not FACE.
    """

    labels: Tensor
    truth: Tensor


@dataclass(slots=True)
class _Overlaps:
    """The best of every anchor (B, N) and of every truth (B, M); IoU -1 where there is nothing to overlap."""

    face_iou: Tensor
    face: Tensor
    ignored_iou: Tensor
    ignored_cover: Tensor
    truth_iou: Tensor
    truth_anchor: Tensor


def pad_truths(pictures: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Truths:
    """Join (boxes (m, 4), landmarks (m, 5, 2), ignore (m,)) of several pictures into one padded batch."""
    if not pictures:
        raise UsageError("no pictures to pad; a batch has at least one, though its labels may be empty")
    most = max(len(boxes) for boxes, _, _ in pictures)
    device = pictures[0][0].device
    batch = Truths(
        torch.zeros(len(pictures), most, 4, device=device),
        torch.full((len(pictures), most, 5, 2), -1.0, device=device),
        torch.zeros(len(pictures), most, dtype=torch.bool, device=device),
        torch.zeros(len(pictures), most, dtype=torch.bool, device=device),
    )
    for i, (boxes, landmarks, ignore) in enumerate(pictures):
        count = len(boxes)
        batch.boxes[i, :count] = boxes
        batch.landmarks[i, :count] = landmarks
        batch.ignore[i, :count] = ignore
        batch.present[i, :count] = True
    return batch


def anchors_of(spec: DetectorSpec, height: int, width: int, *, device: torch.device | str = "cpu") -> Tensor:
    """All anchors of an input as (N, 4) float32: centre x, centre y, width, height in input pixels, classic order."""
    levels = []
    for stride, sizes, (rows, columns) in zip(
        spec.strides, spec.anchor_sizes, spec.feature_sizes(height, width), strict=True
    ):
        y = (torch.arange(rows, dtype=torch.float32) + 0.5) * stride
        x = (torch.arange(columns, dtype=torch.float32) + 0.5) * stride
        size = torch.tensor(sizes, dtype=torch.float32)
        grid_y, grid_x, grid_size = torch.meshgrid(y, x, size, indexing="ij")
        levels.append(torch.stack([grid_x, grid_y, grid_size, grid_size], dim=-1).reshape(-1, 4))
    return torch.cat(levels).to(device)


def match(boxes: Tensor, anchors: Tensor, recipe: MatchRecipe, *, ignore: Tensor | None = None) -> Matches:
    """Match one picture: ``boxes`` (M, 4) xyxy, ``anchors`` (N, 4) of ``anchors_of``, ``ignore`` (M,) bool.

    Returns labels and truth of shape (N,); the rules are those of ``match_batch``.
    """
    flags = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device) if ignore is None else ignore.bool()
    landmarks = boxes.new_full((len(boxes), 5, 2), -1.0)
    batch = match_batch(pad_truths([(boxes, landmarks, flags)]), anchors, recipe)
    return Matches(batch.labels[0], batch.truth[0])


@torch.no_grad()
def match_batch(truths: Truths, anchors: Tensor, recipe: MatchRecipe) -> Matches:
    """Match a batch on the device of its tensors; returns labels and truth of shape (B, N).

    An anchor is judged by the face of highest IoU, the lower index among equals. It is ignored instead

    - of being a face, where an ignored region overlaps it with a still higher IoU;
    - of being background, where an ignored region reaches the IoU of ``recipe.background``, or covers more than half
      of the anchor's own area (large regions never reach an IoU worth naming with the small anchors inside).

    A claim overrules all of that. Among faces that want the same anchor the highest IoU wins, then the lower index;
    the others claim their best anchor of those still free, until every face has one or overlaps no free anchor.
    Boxes without area or with coordinates that are not finite are left out.
    """
    boxes = truths.boxes.float()
    usable = truths.present & boxes.isfinite().all(2) & (boxes[..., 2:] > boxes[..., :2]).all(2)
    boxes = boxes.masked_fill(~usable[..., None], 0.0)
    corners = torch.cat([anchors[:, :2] - anchors[:, 2:] / 2, anchors[:, :2] + anchors[:, 2:] / 2], dim=1)
    best = _best_overlaps(boxes, usable & ~truths.ignore, usable & truths.ignore, corners)

    face, background = _judge(best, recipe)
    truth = best.face
    if recipe.claim_above is not None:
        owner = _claims(best, boxes, corners, recipe.claim_above)
        face |= owner >= 0
        truth = torch.where(owner >= 0, owner, truth)
    labels = torch.full(face.shape, IGNORED, dtype=torch.int8, device=face.device)
    labels[background] = BACKGROUND
    labels[face] = FACE
    return Matches(labels, truth.masked_fill(~face, -1))


def _judge(best: _Overlaps, recipe: MatchRecipe) -> tuple[Tensor, Tensor]:
    """Apply the bounds of the recipe: which anchors (B, N) are faces and which are background, before claims."""
    without_band = recipe.positive == recipe.background
    face = best.face_iou >= recipe.positive if without_band else best.face_iou > recipe.positive
    # A bound of 0 would otherwise take the anchors for faces that no face touches.
    face &= (best.face_iou > 0) & (best.face_iou >= best.ignored_iou)
    unclear = (best.ignored_iou >= recipe.background) & (best.ignored_iou > 0)
    unclear |= best.ignored_cover > IGNORED_COVER
    return face, (best.face_iou < recipe.background) & ~unclear


def _chunks(anchor_count: int, truth_count: int) -> Iterator[slice]:
    step = max(1, PAIRS_AT_ONCE // max(1, truth_count))
    return (slice(start, min(start + step, anchor_count)) for start in range(0, anchor_count, step))


def _intersection(boxes: Tensor, corners: Tensor) -> Tensor:
    """Common area (..., M, n) of boxes (..., M, 4) and anchors (n, 4), both xyxy."""
    low, high = boxes[..., None, :2], boxes[..., None, 2:]
    wide = torch.minimum(high[..., 0], corners[:, 2]) - torch.maximum(low[..., 0], corners[:, 0])
    tall = torch.minimum(high[..., 1], corners[:, 3]) - torch.maximum(low[..., 1], corners[:, 1])
    return wide.clamp_(min=0).mul_(tall.clamp_(min=0))


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _best_overlaps(boxes: Tensor, face: Tensor, ignored: Tensor, corners: Tensor) -> _Overlaps:
    """Scan all pairs, a slice of the anchors at a time, and keep only the best of each side."""
    pictures, count, total = boxes.shape[0], boxes.shape[1], corners.shape[0]
    found = _Overlaps(
        boxes.new_full((pictures, total), -1.0),
        torch.full((pictures, total), -1, dtype=torch.int64, device=boxes.device),
        boxes.new_full((pictures, total), -1.0),
        boxes.new_zeros(pictures, total),
        boxes.new_full((pictures, count), -1.0),
        torch.full((pictures, count), -1, dtype=torch.int64, device=boxes.device),
    )
    if count == 0:
        return found
    areas = _area(boxes)[..., None]
    for part in _chunks(total, pictures * count):
        common = _intersection(boxes, corners[part])
        own = _area(corners[part])
        iou = common / (own + areas - common)
        faces = iou.masked_fill(~face[..., None], -1.0)
        found.face_iou[:, part], found.face[:, part] = faces.max(dim=1)
        found.ignored_iou[:, part] = iou.masked_fill_(~ignored[..., None], -1.0).amax(dim=1)
        found.ignored_cover[:, part] = (common / own).masked_fill_(~ignored[..., None], 0.0).amax(dim=1)
        value, where = faces.max(dim=2)
        better = value > found.truth_iou
        found.truth_iou = torch.where(better, value, found.truth_iou)
        found.truth_anchor = torch.where(better, where + part.start, found.truth_anchor)
    return found


def _claims(best: _Overlaps, boxes: Tensor, corners: Tensor, above: float) -> Tensor:
    """Owner (B, N) int64 of every anchor: the face that claims it, or -1.

    Faces smaller than a stride share their best anchor all the time, so this goes in rounds; the rounds after the
    first see only the faces that lost.
    """
    pictures, total = best.face.shape
    owner = torch.full((pictures, total), -1, dtype=torch.int64, device=boxes.device)
    iou, anchor = best.truth_iou, best.truth_anchor
    picture, truth = torch.nonzero(iou > above, as_tuple=True)
    iou, anchor = iou[picture, truth], anchor[picture, truth]
    while len(picture):
        wins = _strongest(picture * total + anchor, iou)
        owner[picture[wins], anchor[wins]] = truth[wins]
        picture, truth = picture[~wins], truth[~wins]
        iou, anchor = _best_free(boxes[picture, truth], picture, owner, corners)
        left = iou > above
        picture, truth, iou, anchor = picture[left], truth[left], iou[left], anchor[left]
    return owner


def _strongest(slots: Tensor, iou: Tensor) -> Tensor:
    """Mark (L,) the highest IoU of every slot; among equals the one that comes first."""
    order = torch.argsort(iou, descending=True, stable=True)
    order = order[torch.argsort(slots[order], stable=True)]
    ordered = slots[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    wins = torch.zeros_like(first)
    wins[order[first]] = True
    return wins


def _best_free(boxes: Tensor, picture: Tensor, owner: Tensor, corners: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and index (L,) of the best anchor that nobody has claimed, for boxes (L, 4) of the pictures named."""
    best = boxes.new_full((len(boxes),), -1.0)
    anchor = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    areas = _area(boxes)[:, None]
    for part in _chunks(len(corners), len(boxes)):
        common = _intersection(boxes, corners[part])
        iou = common / (_area(corners[part]) + areas - common)
        value, where = iou.masked_fill_(owner[:, part][picture] >= 0, -1.0).max(dim=1)
        better = value > best
        best = torch.where(better, value, best)
        anchor = torch.where(better, where + part.start, anchor)
    return best, anchor
