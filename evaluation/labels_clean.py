"""What becomes of labels that cannot be right: boxes clipped or dropped, landmarks dropped, each one reported.

Nothing is guessed: a box is cut at the picture's border, or the face is left out; landmarks are never moved.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from retinastream.evaluation.labels_raw import Flags, Float64, LabelProblem, ProblemKind

Float32 = npt.NDArray[np.float32]
# Labels are often rounded, or count from 1: a border passed by one pixel is no mistake worth a line.
CLIP_TOLERANCE = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class FaceLabels:
    """The faces of one picture: boxes (N, 4) xyxy, landmarks (N, 5, 2), ignore (N,), scores (N,)."""

    boxes: Float32
    landmarks: Float32
    ignore: Flags
    scores: Float32


def clean_faces(
    picture: str,
    size: tuple[int | None, int | None],
    boxes: npt.NDArray[np.floating],
    landmarks: npt.NDArray[np.floating],
    ignore: Flags,
    scores: npt.NDArray[np.floating],
) -> tuple[FaceLabels, tuple[LabelProblem, ...]]:
    """Keep what is usable of the faces of ``picture``, and say what was not.

    ``size`` is (width, height) in pixels; where it is (None, None) boxes are not clipped. Order is kept.
    """
    problems: list[LabelProblem] = []
    given = np.asarray(boxes, np.float64)
    points = np.asarray(landmarks, np.float64).copy()
    kept = _with_area(picture, given, problems) & _with_score(picture, given, scores, problems)
    clipped = given
    if size[0] is not None and size[1] is not None:
        clipped = _clip(picture, given, (size[0], size[1]), kept, problems)
    known = np.isfinite(points).all(axis=(1, 2))
    partly = kept & ~known & ~np.isnan(points).all(axis=(1, 2))
    points[~known] = np.nan
    for box in given[partly]:
        _report(picture, "landmarks", box, "lacks some of its five landmarks; they are left out", problems)
    faces = FaceLabels(
        clipped[kept].astype(np.float32),
        points[kept].astype(np.float32),
        np.asarray(ignore, np.bool_)[kept],
        np.asarray(scores, np.float32)[kept],
    )
    return faces, tuple(problems)


def _report(picture: str, kind: ProblemKind, box: Float64, text: str, problems: list[LabelProblem]) -> None:
    problems.append(LabelProblem(picture, kind, f"face at [{', '.join(f'{v:g}' for v in box)}] {text}"))


def _with_area(picture: str, boxes: Float64, problems: list[LabelProblem]) -> Flags:
    finite = np.isfinite(boxes).all(axis=1)
    area = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    for box in boxes[~finite]:
        _report(picture, "box", box, "is not finite; it is left out", problems)
    for box in boxes[finite & ~area]:
        _report(picture, "box", box, "has no area; it is left out", problems)
    return np.asarray(finite & area)


def _with_score(picture: str, boxes: Float64, scores: npt.NDArray[np.floating], problems: list[LabelProblem]) -> Flags:
    usable = np.asarray((scores >= 0) & (scores <= 1))
    for box, score in zip(boxes[~usable], scores[~usable], strict=True):
        _report(picture, "score", box, f"has the score {score:g}, not one of 0..1; it is left out", problems)
    return usable


def _clip(picture: str, boxes: Float64, size: tuple[int, int], kept: Flags, problems: list[LabelProblem]) -> Float64:
    """Cut boxes at the border; clears the flag in ``kept`` of those with nothing inside."""
    clipped = np.clip(boxes, 0, np.array([*size, *size], np.float64))
    inside = (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])
    moved = np.abs(clipped - boxes).max(axis=1, initial=0) > CLIP_TOLERANCE
    where = f"outside the picture of {size[0]}x{size[1]}"
    for box in boxes[kept & ~inside]:
        _report(picture, "outside", box, f"lies {where}; it is left out", problems)
    for box in boxes[kept & inside & moved]:
        _report(picture, "clipped", box, f"reaches {where}; it is clipped", problems)
    kept &= inside
    return np.asarray(clipped)
