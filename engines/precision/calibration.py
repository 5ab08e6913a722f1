"""Which range of a tensor's values eight bits are spread over: calibration.

One pass over the pictures counts magnitudes; each method then reads a limit off the counts, beyond which values are
cut. A wide range cuts nothing and resolves little, a narrow one the opposite:

max
    the largest value seen: nothing is cut;
percentile
    the limit that 99.99 % of the values lie within;
mse
    the limit with the least mean squared error of the quantised values;
entropy
    the limit whose quantised distribution differs least from the true one, by the Kullback-Leibler divergence (Migacz,
    "8-bit Inference with TensorRT", GTC 2017).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from retinastream.engines.precision.graph_run import GraphRun, Picture
from retinastream.engines.precision.histogram import BINS, Histogram
from retinastream.errors import InputError, UsageError
from retinastream.kernels.postprocess import candidates
from retinastream.kernels.sizing import Placement
from retinastream.models.onnx_file import OnnxModel

logger = logging.getLogger(__name__)

Method = Literal["max", "percentile", "mse", "entropy"]
METHODS: tuple[str, ...] = get_args(Method)
FEWEST_PICTURES = 32
DEFAULT_PERCENTILE = 99.99
# Levels of a magnitude in eight bits with sign.
_LEVELS = 127
# A picture counts as one with a face when the model sees one with at least this score.
_FACE_SCORE = 0.5
_MSE_STEPS = 128


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """What was seen of the pictures: a histogram per tensor, how many pictures, and how many with a face in them.

    ``sha256`` is that of the pictures as the network was given them.
    """

    histograms: dict[str, Histogram]
    pictures: int
    with_faces: int
    sha256: str

    def limits(self, method: str, percentile: float = DEFAULT_PERCENTILE) -> dict[str, float]:
        """Return the limit of every tensor by a method. Raises UsageError for an unknown one."""
        check_method(method, percentile)
        return {name: _limit(histogram, method, percentile) for name, histogram in self.histograms.items()}


def check_method(method: str, percentile: float = DEFAULT_PERCENTILE) -> None:
    """Raise UsageError for a method that there is not, or a percentile that is none."""
    if method not in METHODS:
        raise UsageError(f"calibration method {method!r} is not known; allowed are {', '.join(METHODS)}")
    if not 50.0 <= percentile <= 100.0:
        raise UsageError(f"percentile {percentile!r} is not allowed; expected 50 to 100, such as 99.99")


def calibrate(
    model: Any, found: OnnxModel, tensors: Sequence[str], pictures: Iterable[Picture], *, threads: int = 0
) -> Calibration:
    """Run the float32 graph ``model`` over ``pictures`` and count the values of ``tensors``.

    Raises InputError where there is no picture, ModelError where the graph cannot be run.
    """
    run = GraphRun(model, tensors, threads=threads)
    histograms = {name: Histogram() for name in tensors}
    digest = hashlib.sha256()
    count = faces = 0
    for picture in pictures:
        digest.update(np.ascontiguousarray(picture))
        values = run(picture)
        for name, histogram in histograms.items():
            histogram.add(values[name])
        outputs = tuple(values[name] for name in found.output_names)
        faces += sum(_has_face(outputs, item, picture, found) for item in range(len(picture)))
        count += len(picture)
    if not count:
        raise InputError("there is no picture to calibrate with; give pictures, a folder of them, or a video")
    return Calibration(histograms, count, faces, digest.hexdigest())


def check_enough(calibration: Calibration, *, force: bool) -> None:
    """Refuse pictures that say little about what the model will see. Raises InputError, unless ``force``."""
    problem = None
    if calibration.pictures < FEWEST_PICTURES:
        problem = f"too few pictures to calibrate with: {calibration.pictures}; expected at least {FEWEST_PICTURES}"
    elif not calibration.with_faces:
        problem = (
            f"the model sees no face in any of the {calibration.pictures} calibration pictures; expected pictures like "
            "those that it will be used on"
        )
    if problem and not force:
        raise InputError(f"{problem}. Add some, or pass --force (force=True)")
    if problem:
        logger.warning("%s", problem)
    elif calibration.with_faces * 2 < calibration.pictures:
        logger.warning(
            "the model sees a face in %d of the %d calibration pictures only",
            calibration.with_faces,
            calibration.pictures,
        )


def _has_face(outputs: tuple[npt.NDArray[Any], ...], item: int, picture: Picture, found: OnnxModel) -> bool:
    height, width = picture.shape[2:]
    whole = Placement(width, height, width, height, width, height)
    return len(candidates(outputs, item, whole, found.spec, _FACE_SCORE).scores) > 0


def _limit(histogram: Histogram, method: str, percentile: float) -> float:
    if not histogram.largest or method == "max":
        return histogram.largest
    ways = {"percentile": lambda h: _by_percentile(h, percentile), "mse": _by_error, "entropy": _by_divergence}
    return float(min(ways[method](histogram), histogram.largest))


def _by_percentile(histogram: Histogram, percentile: float) -> float:
    within = np.cumsum(histogram.counts)
    return float((np.searchsorted(within, within[-1] * percentile / 100.0) + 1) * histogram.width)


def _by_error(histogram: Histogram) -> float:
    sizes, counts = histogram.centres, histogram.counts.astype(np.float64)
    limits = histogram.largest * np.arange(1, _MSE_STEPS + 1) / _MSE_STEPS
    errors = np.empty(len(limits))
    for index, limit in enumerate(limits):
        step = limit / _LEVELS
        quantised = np.minimum(np.rint(sizes / step), _LEVELS) * step
        errors[index] = counts @ (quantised - sizes) ** 2
    return float(limits[errors.argmin()])


def _by_divergence(histogram: Histogram) -> float:
    counts = histogram.counts.astype(np.float64)
    # Exact zeros are represented exactly at any range, and padding and ReLU make so many that they hide all else.
    counts[0] = 0
    if not counts.any():
        return histogram.largest
    groups = _LEVELS + 1
    last = int(np.flatnonzero(counts)[-1]) + 1
    ends = np.unique(np.append(np.arange(groups, last, 8), min(max(last, groups), BINS)))
    divergences = [_divergence(counts, int(end), groups) for end in ends]
    return float(ends[int(np.argmin(divergences))] * histogram.width)


def _divergence(counts: npt.NDArray[np.float64], end: int, groups: int) -> float:
    """Divergence of the counts, cut at bin ``end``, from what ``groups`` levels make of them."""
    kept = counts[:end]
    true = kept.copy()
    true[-1] += counts[end:].sum()
    starts = (np.arange(groups) * end) // groups
    filled = kept > 0
    sums, members = np.add.reduceat(kept, starts), np.add.reduceat(filled.astype(np.float64), starts)
    sizes = np.diff(np.append(starts, end))
    with np.errstate(invalid="ignore"):
        level = np.where(members > 0, sums / members, 0.0)
    quantised = np.where(filled, np.repeat(level, sizes), 0.0)
    there = true > 0
    p, q = true[there] / true.sum(), quantised[there] / max(quantised.sum(), 1.0)
    # What was cut may have fallen into a bin that was empty; an infinite divergence would rule every such limit out.
    return float(np.sum(p * np.log(p / np.maximum(q, 1e-9))))
