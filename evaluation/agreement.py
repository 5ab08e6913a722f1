"""How far two detectors agree where nothing is labelled: what one finds is the truth that the other is judged by.

Meant for questions such as: of the faces of 32 pixels and more that the reference finds in this clip, how many does the
other find, and what else does it report? Frames of a video are much alike, so there are no intervals here: they would
promise more than there is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from retinastream.errors import UsageError
from retinastream.evaluation.average_precision import box_iou, finders
from retinastream.evaluation.labelled_set import LabelledPicture
from retinastream.evaluation.landmark_error import LandmarkError, landmark_distances
from retinastream.evaluation.measures import finite
from retinastream.evaluation.ranked_hits import match
from retinastream.types import Faces

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Sighting:
    """A face that only one of the two reports: where, its score, and its box as x1, y1, x2, y2 in pixels."""

    source: str
    index: int
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Rules:
    """Which faces count.

    Those of the reference from a score of ``reference_score`` and a height of ``min_height`` pixels on are to be found.
    Its lower ones, and those with scores from ``doubtful`` on, may be found or not. The judged detector is taken at
    its scores from ``score`` on. A face is found at an overlap of ``iou``.
    """

    score: float = 0.5
    reference_score: float = 0.5
    doubtful: float | None = None
    min_height: float = 0.0
    iou: float = 0.5

    def __post_init__(self) -> None:
        """Refuse values that no question has."""
        for name in ("score", "reference_score", "doubtful"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise UsageError(f"{name} is {value}; expected a score from 0 to 1")
        if self.doubtful is not None and self.doubtful > self.reference_score:
            raise UsageError(
                f"doubtful is {self.doubtful} and reference_score {self.reference_score}; expected doubtful scores "
                "below those that count"
            )
        if not 0.0 < self.iou <= 1.0:
            raise UsageError(f"iou is {self.iou}; expected a value above 0 and at most 1")
        if not 0.0 <= self.min_height < math.inf:
            raise UsageError(f"min_height is {self.min_height}; expected a height in pixels, 0 or more")


@dataclass(frozen=True, slots=True)
class Agreement:
    """How the judged detector does by the reference.

    ``faces`` of the reference were to be found, of which ``found`` were; ``wrong`` are the reports of the judged one
    that the reference has not, each in ``wrong_faces``, best score first; ``missed_faces`` likewise are the reference's
    that were not found. ``overlap`` is the mean IoU of what was found, ``landmarks`` how far the five points lie apart
    there, as a part of sqrt(area of the reference's box). NaN where there was nothing to measure.
    """

    rules: Rules
    pictures: int
    faces: int
    found: int
    wrong: int
    overlap: float
    landmarks: LandmarkError
    wrong_faces: tuple[Sighting, ...]
    missed_faces: tuple[Sighting, ...]

    @property
    def recall(self) -> float:
        """Part of the reference's faces that the judged one found."""
        return self.found / self.faces if self.faces else math.nan

    @property
    def precision(self) -> float:
        """Part of what the judged one reports that the reference has, too."""
        return self.found / (self.found + self.wrong) if self.found + self.wrong else math.nan

    def to_dict(self) -> dict[str, Any]:
        """All numbers as JSON can hold them: NaN becomes None."""
        plain: dict[str, Any] = finite({**asdict(self), "recall": self.recall, "precision": self.precision})
        return plain


def agreement(reference: Sequence[Faces], judged: Sequence[Faces], rules: Rules | None = None) -> Agreement:
    """Judge the detections ``judged`` by ``reference``, picture by picture, in the same order.

    A report that meets none of the reference's faces counts as wrong only from ``min_height`` on, as a face a pixel
    above the limit may be one of a pixel below it. Raises UsageError where the two are not of the same pictures.
    """
    rules = rules or Rules()
    _check_same_pictures(reference, judged)
    truths = [_as_truth(faces, rules) for faces in reference]
    taken = [faces.above(rules.score) for faces in judged]
    overlaps = [np.zeros(0)]
    wrong_faces: list[Sighting] = []
    missed_faces: list[Sighting] = []
    for faces, truth, original in zip(taken, truths, reference, strict=True):
        finder = finders((faces.boxes, faces.scores), truth.boxes, rules.iou, ignore=truth.ignore)
        hit = finder >= 0
        overlaps.append(np.diagonal(box_iou(faces.boxes[finder[hit]], truth.boxes[hit])))
        wrong_faces += _sightings(faces, _wrong(faces, truth, rules), original)
        missed_faces += _sightings(truth, ~hit & ~truth.ignore, original)
    together = np.concatenate(overlaps)
    return Agreement(
        rules=rules,
        pictures=len(truths),
        faces=sum(int(np.count_nonzero(~truth.ignore)) for truth in truths),
        found=len(together),
        wrong=len(wrong_faces),
        overlap=float(together.mean()) if len(together) else math.nan,
        landmarks=landmark_distances(taken, truths, rules.iou).error(),
        wrong_faces=_best_first(wrong_faces),
        missed_faces=_best_first(missed_faces),
    )


def _as_truth(faces: Faces, rules: Rules) -> LabelledPicture:
    """Take detections for labels; what does not count is to be ignored."""
    lowest = rules.reference_score if rules.doubtful is None else rules.doubtful
    kept = faces.above(lowest)
    return LabelledPicture(
        name=f"{faces.source}#{faces.index}",
        path=Path(faces.source),
        width=None,
        height=None,
        boxes=kept.boxes,
        landmarks=kept.landmarks,
        ignore=(kept.scores < rules.reference_score) | (_heights(kept) < rules.min_height),
        scores=kept.scores,
    )


def _wrong(faces: Faces, truth: LabelledPicture, rules: Rules) -> Flags:
    """Return which of the judged faces are wrong: they found nothing, lie on nothing ignored, and are tall enough."""
    matched = match(faces.boxes, faces.scores, truth.boxes, truth.ignore, (rules.iou,))
    order = np.argsort(-faces.scores.astype(np.float64), kind="stable")
    wrong = np.zeros(len(faces), np.bool_)
    wrong[order] = matched.counted[0] & ~matched.right[0]
    return np.asarray(wrong & (_heights(faces) >= rules.min_height), np.bool_)


def _heights(faces: Faces | LabelledPicture) -> npt.NDArray[np.float32]:
    return faces.boxes[:, 3] - faces.boxes[:, 1]


def _sightings(faces: Faces | LabelledPicture, chosen: Flags, picture: Faces) -> list[Sighting]:
    rows = zip(faces.scores[chosen].tolist(), faces.boxes[chosen].tolist(), strict=True)
    return [Sighting(picture.source, picture.index, score, (x1, y1, x2, y2)) for score, (x1, y1, x2, y2) in rows]


def _best_first(sightings: list[Sighting]) -> tuple[Sighting, ...]:
    return tuple(sorted(sightings, key=lambda sighting: -sighting.score))


def _check_same_pictures(reference: Sequence[Faces], judged: Sequence[Faces]) -> None:
    if len(reference) != len(judged):
        raise UsageError(
            f"the reference has {len(reference)} pictures, the judged detections {len(judged)}; expected detections of "
            "the same pictures"
        )
    for one, other in zip(reference, judged, strict=True):
        if one.index != other.index or (one.width and other.width and one.width != other.width):
            raise UsageError(
                f"the reference has picture {one.index} of {one.width}x{one.height} where the judged detections have "
                f"picture {other.index} of {other.width}x{other.height}; expected detections of the same pictures"
            )
