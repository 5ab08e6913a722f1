"""Pictures to calibrate a network with: taken evenly out of files, folders and videos, as the network is given them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from retinastream.errors import InputError, UsageError
from retinastream.kernels.preprocess import preprocess
from retinastream.kernels.sizing import SizePolicy
from retinastream.models.onnx_file import OnnxModel
from retinastream.pipeline.discover import Input, discover
from retinastream.pipeline.model_fit import fixed_size
from retinastream.pipeline.source import Source

logger = logging.getLogger(__name__)

DEFAULT_COUNT = 256


class CalibrationFrames:
    """Up to ``count`` pictures out of ``sources``, sampled over the length of each; every ``iter()`` reads them anew.

    ``sources`` are pictures, folders with what is below them, patterns and videos. A picture comes as network input of
    ``model`` at the size policy ``size``: (1, 3, height, width) float32. After a pass ``delivered`` says how many
    pictures there were and ``unreadable`` names what could not be read, which is logged and left out. ``progress`` is
    told how many of a pass have been used, and how many there are.

    Raises UsageError for values that are not allowed; InputError for sources that do not exist and, while reading,
    where nothing could be read.
    """

    def __init__(
        self,
        sources: Sequence[str | Path],
        model: OnnxModel,
        *,
        size: str = "fit:1280",
        count: int = DEFAULT_COUNT,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        if not sources:
            raise UsageError("there is nothing to calibrate with; give pictures, a folder of them, or a video")
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise UsageError(f"count was given as {count!r}; expected how many pictures to take, 1 or more")
        self._policy = SizePolicy.parse(size)
        self._model = model
        self._fixed = fixed_size(model)
        found = discover(list(sources), recursive=True)
        if found.failures:
            raise found.failures[0][1]
        self._inputs = found.inputs
        self._count = count
        self._progress = progress or (lambda _done, _total: None)
        self.delivered = 0
        self._wanted = 0
        self.unreadable: list[str] = []

    def __iter__(self) -> Iterator[npt.NDArray[np.float32]]:
        """Read the pictures from the first one on."""
        self.delivered, self.unreadable = 0, []
        lengths = [_length(item) for item in self._inputs]
        given = shares(lengths, self._count)
        self._wanted = sum(given)
        for item, length, share in zip(self._inputs, lengths, given, strict=True):
            if share:
                yield from self._of(item, max(1, length // share), share)
        if not self.delivered:
            raise InputError(
                f"none of the {len(self.unreadable)} calibration pictures could be read, such as "
                f"{self.unreadable[0] if self.unreadable else self._inputs[0].name}; give others"
            )

    def _of(self, item: Input, stride: int, share: int) -> Iterator[npt.NDArray[np.float32]]:
        with item.open(stride=stride) as source:
            # Not by max_frames: damaged pictures are replaced by those that follow, as far as there are any.
            yield from self._prepared(source, share)
            for name, error in source.failures:
                logger.warning("%s is left out of the calibration: %s", name, error)
                self.unreadable.append(name)

    def _prepared(self, source: Source, share: int) -> Iterator[npt.NDArray[np.float32]]:
        spec = self._model.spec
        for frame in islice(source, share):
            width, height = frame.upright_size
            for placement in self._policy.placements(width, height, spec.max_stride, self._fixed):
                picture = np.empty((1, 3, placement.padded_height, placement.padded_width), np.float32)
                preprocess([frame], [placement], spec, picture)
                yield picture
            self.delivered += 1
            self._progress(self.delivered, self._wanted)


def shares(lengths: Sequence[int], count: int) -> list[int]:
    """Divide ``count`` among inputs of these lengths: evenly, and what short ones cannot give goes to the others."""
    given = [0] * len(lengths)
    left = min(count, sum(lengths))
    while left:
        open_ones = [i for i, length in enumerate(lengths) if given[i] < length]
        each = max(1, left // len(open_ones))
        for i in open_ones:
            taken = min(each, lengths[i] - given[i], left)
            given[i] += taken
            left -= taken
    return given


def _length(item: Input) -> int:
    """Return how many pictures an input has; of a video what its container says, and 1 where it says nothing."""
    if item.kind == "images":
        return len(item.paths)
    with item.open() as source:
        info = source.info
    return max(1, info.promised_frames or round((info.duration or 0.0) * (info.fps or 0.0)))
