"""Measuring a network while it is trained: the torch network itself between the kernels of the detector."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from retinastream.evaluation.labelled_set import LabelledPicture
from retinastream.evaluation.measures import measure
from retinastream.kernels.postprocess import candidates, final_faces
from retinastream.kernels.preprocess import preprocess
from retinastream.kernels.sizing import SizePolicy
from retinastream.models.spec import DetectorSpec
from retinastream.pipeline.images import read_picture
from retinastream.training.config import EvaluationConfig
from retinastream.types import Faces, Frame

EVALUATION_VALUES = (
    "ap50",
    "ap",
    "precision",
    "recall",
    "landmark_error",
    *("recall_under_16", "recall_16_to_32", "recall_from_32"),
    *("pictures", "faces", "seconds"),
)
_MOST_FACES = 750
_HEIGHTS = (0.0, 16.0, 32.0, math.inf)


class NetworkDetector:
    """Finds faces with a torch network in the fused layout, float32, one picture at a time.

    The steps before and after the network are those of ``pipeline.detector``, so that what is measured here is what
    the exported file does.
    """

    def __init__(self, network: nn.Module, spec: DetectorSpec, config: EvaluationConfig) -> None:
        self.network, self.spec, self.config = network.eval(), spec, config
        self.size = SizePolicy.parse(config.size)
        self.device = next(network.parameters()).device

    def __call__(self, picture: npt.NDArray[np.uint8]) -> Faces:
        """Find the faces of a BGR picture (height, width, 3); boxes in its pixels."""
        height, width = picture.shape[:2]
        passes = []
        for placement in self.size.placements(width, height, self.spec.max_stride):
            images = np.empty((1, 3, placement.padded_height, placement.padded_width), np.float32)
            preprocess([Frame.from_bgr(picture)], [placement], self.spec, images)
            with torch.no_grad():
                maps = self.network(torch.from_numpy(images).to(self.device))
            outputs = [values.float().cpu().numpy() for values in maps]
            passes.append(candidates(outputs, 0, placement, self.spec, self.config.threshold))
        return final_faces(passes, width=width, height=height, iou=self.config.iou, max_faces=_MOST_FACES)


def evaluate_network(
    network: nn.Module, spec: DetectorSpec, pictures: Sequence[LabelledPicture], config: EvaluationConfig
) -> dict[str, float]:
    """Measure a network on labelled pictures; returns ``EVALUATION_VALUES``, NaN where there is nothing to measure.

    Precision and recall are those at a score of 0.5; recall by face height in pixels counts every prediction;
    ``landmark_error`` is the mean as a part of sqrt(box area). Raises InputError for a picture that cannot be read.
    """
    began = time.monotonic()
    was_training = network.training
    detector = NetworkDetector(network, spec, config)
    found = [detector(read_picture(picture.path)) for picture in pictures]
    network.train(was_training)
    measures = measure(found, pictures, height_edges=_HEIGHTS)
    recalls = measures.recall_by_height_any_score.recall.tolist()
    values = (
        *(measures.ap50, measures.ap, measures.at_score.precision, measures.at_score.recall, measures.landmarks.mean),
        *recalls,
        *(float(measures.counts.pictures), float(measures.counts.faces), time.monotonic() - began),
    )
    return dict(zip(EVALUATION_VALUES, values, strict=True))
