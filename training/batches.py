"""Which pictures every step sees, in any order of asking: rendered, with their labels, ready for the network."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from retinastream.errors import UsageError
from retinastream.training.augmentation import AugmentationSettings, plan
from retinastream.training.cache import PictureCache
from retinastream.training.epochs import Epochs
from retinastream.training.matching import Truths, pad_truths
from retinastream.training.output_plan import Labels, OutputPlan
from retinastream.training.rendering import network_input, render
from retinastream.training.rendering_device import network_input_on_device, render_on_device

if TYPE_CHECKING:
    from retinastream.evaluation.labelled_set import LabelledPicture

logger = logging.getLogger(__name__)

# One ready beside the one in use; more would only hold memory.
READY = 2
SMALLEST = 32


@dataclass(frozen=True, slots=True, eq=False)
class TrainingBatch:
    """What one step sees.

    ``images`` (B, 3, S, S) float32 in the channel order of the network, mean subtracted; ``truths`` in output pixels,
    landmarks NaN or -1 where a face has none; ``scores`` (B, M) float32 of the padded truths, 0 on padding;
    ``pictures`` the indices that were asked for (a mosaic shows three more).
    """

    step: int
    images: Tensor
    truths: Truths
    scores: Tensor
    pictures: tuple[int, ...]


class _Input(TypedDict):
    mean: tuple[float, float, float]
    channel_order: Literal["bgr", "rgb"]
    scale: float
    channels_last: bool


class Batches:
    """Batches of augmented pictures, each a function of (seed, step, rank).

    An epoch shows every picture once, in an order drawn from (seed, epoch); with ``weights`` (one per picture) a
    picture appears that many times per epoch on average, and the epoch is as long as the sum of the weights.

    ``size`` is one side, or several that take turns by step: whole numbers, of which the first has ``batch`` pictures
    and the others as many as make the same number of pixels; or explicit (side, batch) pairs. ``rank`` of ``world``
    processes sees its own part of every step; ``batch`` counts the pictures of one process.

    On a CUDA device the decoded pictures are moved there if they fit and rendered there; otherwise they are rendered
    on the CPU and copied: ``rendering`` says which. Rendering uses the thread's current stream.
    Raises UsageError on values that are not allowed.
    """

    def __init__(
        self,
        pictures: Sequence[LabelledPicture],
        cache: PictureCache,
        settings: AugmentationSettings,
        *,
        batch: int,
        size: int | Sequence[int | tuple[int, int]],
        seed: int,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        mean: tuple[float, float, float] = (104.0, 117.0, 123.0),
        channel_order: Literal["bgr", "rgb"] = "bgr",
        scale: float = 1.0,
        channels_last: bool = False,
        weights: Sequence[float] | npt.NDArray[np.float64] | None = None,
    ) -> None:
        if len(pictures) != len(cache):
            raise UsageError(f"{len(pictures)} labelled pictures, but the cache holds {len(cache)}; make it from them")
        if not 0 <= rank < world:
            raise UsageError(f"rank {rank} of {world} processes; expected 0 to {world - 1}")
        self.shapes = _shapes(batch, size)
        self.settings, self.seed, self.rank, self.world = settings, seed, rank, world
        self.device = torch.device(device)
        self._labels = Labels.of(pictures, cache.sizes, weights)
        self._epochs = Epochs(np.ones(len(pictures)) if weights is None else np.asarray(weights, np.float64), seed)
        self._cache = cache
        self._input = _Input(mean=mean, channel_order=channel_order, scale=scale, channels_last=channels_last)
        self._fill = mean if channel_order == "bgr" else mean[::-1]
        self._flat = self._upload()
        self.rendering: Literal["cpu", "device"] = "cpu" if self._flat is None else "device"

    def _upload(self) -> Tensor | None:
        if self.device.type == "cpu":
            return None
        if not self._cache.fits(self.device):
            logger.warning(
                "%.1f GB of decoded pictures do not fit on %s; they are rendered on the CPU",
                self._cache.nbytes / 1e9,
                self.device,
            )
            return None
        return self._cache.to(self.device)

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every picture is seen once (by its weight), rounded."""
        per_cycle = sum(batch for _, batch in self.shapes) * self.world
        return max(1, round(self._epochs.length * len(self.shapes) / per_cycle))

    def size_at(self, step: int) -> tuple[int, int]:
        """(side, pictures) of a step."""
        return self.shapes[step % len(self.shapes)]

    def pictures_at(self, step: int) -> tuple[int, ...]:
        """Which pictures this process sees at a step."""
        first = self._first_item(step)
        return tuple(self._epochs.picture(first + i) for i in range(self.size_at(step)[1]))

    def plans_at(self, step: int) -> list[OutputPlan]:
        """Return the plans of a step, for looking at what a network would see."""
        size, batch = self.size_at(step)
        return plan(
            self.settings,
            self._labels,
            self.pictures_at(step),
            size=size,
            seed=self.seed,
            step=step,
            first_item=self.rank * batch,
        )

    def batch_at(self, step: int) -> TrainingBatch:
        """Render the batch of a step; steps may be asked for in any order."""
        if step < 0:
            raise UsageError(f"step {step} of the batches must not be negative")
        plans = self.plans_at(step)
        truths, scores = _pad(plans)
        return TrainingBatch(
            step,
            self._images(plans),
            self._send_truths(truths),
            self._send(scores),
            tuple(one.picture for one in plans),
        )

    def prefetch(self, first_step: int, last_step: int) -> Iterator[TrainingBatch]:
        """Render the steps first_step to last_step - 1 in order, one thread ahead of whoever iterates.

        The thread ends when the iterator is exhausted, closed or collected; its errors are raised here.
        """
        ahead = _Ahead(self, first_step, last_step)
        try:
            yield from ahead
        finally:
            ahead.close()

    def _first_item(self, step: int) -> int:
        cycle, rest = divmod(step, len(self.shapes))
        sizes = [batch for _, batch in self.shapes]
        return (cycle * sum(sizes) + sum(sizes[:rest])) * self.world + self.rank * sizes[rest]

    def _images(self, plans: list[OutputPlan]) -> Tensor:
        if self._flat is not None:
            return network_input_on_device(
                render_on_device(plans, self._cache, self._flat, fill=self._fill), **self._input
            )
        images = render(plans, self._cache, fill=self._fill)
        if self.device.type == "cpu":
            return torch.from_numpy(network_input(images, **self._input))
        # As 8 bits, which is a quarter of the bytes to copy.
        return network_input_on_device(self._send(torch.from_numpy(images)), **self._input)

    def _send(self, values: Tensor) -> Tensor:
        if self.device.type != "cuda":
            return values.to(self.device)
        return values.pin_memory().to(self.device, non_blocking=True)

    def _send_truths(self, truths: Truths) -> Truths:
        return Truths(*(self._send(t) for t in (truths.boxes, truths.landmarks, truths.ignore, truths.present)))


class _Ahead:
    """One thread that renders ahead into a short queue."""

    def __init__(self, batches: Batches, first_step: int, last_step: int) -> None:
        self._ready: queue.Queue[TrainingBatch | BaseException | None] = queue.Queue(READY)
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._work, args=(batches, range(first_step, last_step)), name="training-batches", daemon=True
        )
        self._thread.start()

    def __iter__(self) -> Iterator[TrainingBatch]:
        while (item := self._ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def _work(self, batches: Batches, steps: range) -> None:
        try:
            for step in steps:
                if self._stop.is_set() or not self._put(batches.batch_at(step)):
                    return
            self._put(None)
        except BaseException as error:  # noqa: BLE001 - raised again where the batches are used
            self._put(error)

    def _put(self, item: TrainingBatch | BaseException | None) -> bool:
        while not self._stop.is_set():
            try:
                self._ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


def _shapes(batch: int, size: int | Sequence[int | tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """(side, pictures) of the steps of one cycle."""
    if batch < 1:
        raise UsageError(f"batch {batch} is not allowed; give the number of pictures of a step, 1 and more")
    given: Sequence[int | tuple[int, int]] = [size] if isinstance(size, int) else list(size)
    if not given:
        raise UsageError("no size for the batches; give a side in pixels, such as 320, or a list of them")
    first = given[0] if isinstance(given[0], int) else given[0][0]
    shapes = []
    for one in given:
        side, count = (one, max(1, round(batch * (first / max(1, one)) ** 2))) if isinstance(one, int) else one
        if side < SMALLEST or count < 1:
            raise UsageError(
                f"size {one} of the batches is not allowed; give sides of {SMALLEST} px and more, or (side, pictures)"
            )
        shapes.append((side, count))
    return tuple(shapes)


def _pad(plans: Sequence[OutputPlan]) -> tuple[Truths, Tensor]:
    truths = pad_truths(
        [(torch.from_numpy(one.boxes), torch.from_numpy(one.landmarks), torch.from_numpy(one.ignore)) for one in plans]
    )
    scores = torch.zeros(truths.present.shape)
    for i, one in enumerate(plans):
        scores[i, : len(one.scores)] = torch.from_numpy(one.scores)
    return truths, scores
