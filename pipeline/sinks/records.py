"""The numbers of one frame, rounded once, so that every text format says the same."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from retinastream.types import Faces

logger = logging.getLogger(__name__)

SCORE_DECIMALS = 4
COORDINATE_DECIMALS = 2


@dataclass(frozen=True, slots=True)
class FaceValues:
    """The faces of one frame as plain numbers: boxes x1, y1, x2, y2, scores, landmarks as five x, y pairs, in pixels.

    ``dropped`` counts faces that were left out because a number of theirs was not finite.
    """

    boxes: list[list[float]]
    scores: list[float]
    landmarks: list[list[list[float]]]
    track_ids: list[int] | None
    dropped: int = 0


def face_values(faces: Faces, decimals: int = COORDINATE_DECIMALS) -> FaceValues:
    """Round coordinates to ``decimals`` and scores to four digits; leave out faces that contain NaN or infinity."""
    boxes, scores, landmarks, ids = faces.boxes, faces.scores, faces.landmarks, faces.track_ids
    dropped = 0
    # One sum sees any NaN or infinity in three small arrays; the exact search runs only when it did.
    if not np.isfinite(boxes.sum(dtype=float) + scores.sum(dtype=float) + landmarks.sum(dtype=float)):
        finite = np.isfinite(boxes).all(1) & np.isfinite(scores) & np.isfinite(landmarks).all((1, 2))
        dropped = int(len(finite) - finite.sum())
        logger.warning(
            "%s, frame %d: %d faces with values that are not finite were left out", faces.source, faces.index, dropped
        )
        boxes, scores, landmarks = boxes[finite], scores[finite], landmarks[finite]
        ids = None if ids is None else ids[finite]
    return FaceValues(
        # float64 before rounding: 12.34 then prints as 12.34, not as the nearest float32. Adding 0.0 turns -0.0 to 0.0.
        (np.round(boxes.astype(np.float64), decimals) + 0.0).tolist(),
        (np.round(scores.astype(np.float64), SCORE_DECIMALS) + 0.0).tolist(),
        (np.round(landmarks.astype(np.float64), decimals) + 0.0).tolist(),
        None if ids is None else ids.tolist(),
        dropped,
    )


def xywh(box: list[float], decimals: int = COORDINATE_DECIMALS) -> list[float]:
    """Turn x1, y1, x2, y2 into x, y, width, height of the same rounded numbers."""
    x1, y1, x2, y2 = box
    return [x1, y1, round(x2 - x1, decimals), round(y2 - y1, decimals)]
