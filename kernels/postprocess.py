"""From head maps of a batch to final faces: decode, map back, merge passes, NMS, clip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from retinastream.kernels.decode import Candidates, decode_classic, decode_fused, merge, to_source
from retinastream.kernels.nms import nms
from retinastream.kernels.sizing import Placement
from retinastream.models.spec import DetectorSpec
from retinastream.types import Faces

# As the lineage does before NMS (reference: top 5000, IoU 0.4, 750 kept).
PRE_NMS_LIMIT = 5000


def candidates(
    outputs: Sequence[npt.NDArray[Any]],
    item: int,
    placement: Placement,
    spec: DetectorSpec,
    threshold: float,
    limit: int = PRE_NMS_LIMIT,
) -> Candidates:
    """Decode item ``item`` of a batch's outputs, in either layout, to candidates in source pixels."""
    height, width = placement.padded_height, placement.padded_width
    one = [tensor[item] for tensor in outputs]
    if spec.output_layout == "fused":
        found = decode_fused(one, spec, height, width, threshold, limit)
    else:
        found = decode_classic(one[0], one[1], one[2], spec, height, width, threshold, limit)
    return to_source(found, placement)


def final_faces(
    passes: Sequence[Candidates],
    *,
    width: int,
    height: int,
    iou: float,
    max_faces: int,
    plus_one: bool = False,
    clip: bool = True,
    limit: int = PRE_NMS_LIMIT,
) -> Faces:
    """Merge the passes of one picture and keep its faces, best first, boxes clipped to the picture if ``clip``.

    NMS compares unclipped boxes. A box that has no area left after clipping lies in the padding: it is dropped before
    NMS, so that it neither suppresses a face nor counts against a limit of faces. ``overflow`` is set when a limit cut
    off candidates or faces. A candidate with a NaN among its values is dropped too; ``not_a_number`` counts these and
    the scores that are NaN.
    """
    joined = merge(passes, limit)
    is_number = _is_number(joined)
    clipped = np.clip(joined.boxes, 0, np.array([width, height, width, height], np.float32)).astype(np.float32)
    has_area = (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])
    inside = np.flatnonzero(has_area if is_number is None else has_area & is_number)
    # one more than wanted, so that reaching the limit can be told from exceeding it
    found = inside[nms(joined.boxes[inside], iou, limit=max_faces + 1, plus_one=plus_one)]
    keep = found[:max_faces]
    return Faces(
        boxes=(clipped if clip else joined.boxes)[keep],
        scores=joined.scores[keep],
        landmarks=joined.landmarks[keep],
        width=width,
        height=height,
        overflow=joined.overflow or len(found) > max_faces,
        not_a_number=joined.not_a_number + (0 if is_number is None else int(np.count_nonzero(~is_number))),
    )


def _is_number(found: Candidates) -> npt.NDArray[np.bool_] | None:
    """Return which candidates have no NaN among their values; None when all have none."""
    # a maximum is NaN where any value is, and takes a tenth of the time of looking at each
    if not len(found) or not (math.isnan(found.boxes.max()) or math.isnan(found.landmarks.max())):
        return None
    lost = np.isnan(found.boxes).any(axis=1) | np.isnan(found.landmarks).any(axis=(1, 2))
    return np.logical_not(lost)
