"""Which layers cost the most when they are quantised, and the fewest that have to stay as they are.

Judging a choice of layers by detections is dear, so it is done rarely. First every layer is quantised alone and the
change of the raw outputs measured on a few pictures, which is cheap and ranks the layers. Then the worst ones are left
out, twice as many each time until the judge is content, and the least number between is found by halving: for fifty
layers thirteen judgements or fewer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from retinastream.engines.precision.graph_run import GraphRun, Picture
from retinastream.engines.precision.quantise import Quantiser
from retinastream.errors import ModelError, UsageError

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with how many layers are done, and how many there are."""


@dataclass(frozen=True, slots=True)
class LayerCost:
    """What quantising one layer alone changes: power of the change of the raw outputs over their variance.

    ``noise`` is the mean over the outputs; 0.01 means that the change is a hundredth of the signal (20 dB).
    """

    layer: str
    noise: float

    @property
    def decibels(self) -> float:
        """The same as a ratio of signal to noise; infinite where nothing changes."""
        return float(-10 * np.log10(self.noise)) if self.noise else float("inf")


@dataclass(frozen=True, slots=True)
class Trial:
    """One judgement: how many of the worst layers were left out, and what was said: up to 1 is within the limits."""

    left: int
    verdict: float

    @property
    def passed(self) -> bool:
        """Whether it was within the limits."""
        return self.verdict <= 1.0


@dataclass(frozen=True, slots=True)
class Search:
    """What was found: the layers to leave in half precision, worst first, and the judgements on the way."""

    left: tuple[str, ...]
    trials: tuple[Trial, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"left": list(self.left), "trials": [{**asdict(t), "passed": t.passed} for t in self.trials]}


class OutputNoise:
    """Measures what a changed graph does to the raw outputs of a float32 one, on the same few pictures."""

    def __init__(self, model: Any, pictures: Iterable[Picture], *, threads: int = 0) -> None:
        self._threads = threads
        self._pictures = list(pictures)
        if not self._pictures:
            raise UsageError("there is no picture to measure the layers on; give at least one")
        run = GraphRun(model, threads=threads)
        self._wanted = [run(picture) for picture in self._pictures]
        names = run.outputs
        self._power = {n: float(np.mean([np.var(w[n], dtype=np.float64) for w in self._wanted])) for n in names}

    def __call__(self, model: Any) -> float:
        """Return the power of the change over the variance of the output, as the mean over the outputs."""
        run = GraphRun(model, threads=self._threads)
        changes: dict[str, list[float]] = {name: [] for name in self._power}
        for picture, wanted in zip(self._pictures, self._wanted, strict=True):
            given = run(picture)
            for name, seen in changes.items():
                seen.append(float(np.mean(np.square(given[name] - wanted[name], dtype=np.float64))))
        return float(np.mean([np.mean(seen) / (self._power[n] or 1.0) for n, seen in changes.items()]))


def rank_layers(
    quantiser: Quantiser, method: str, noise: OutputNoise, progress: Progress | None = None
) -> list[LayerCost]:
    """Quantise every layer alone and return what that costs, the worst first."""
    layers = quantiser.layers
    costs = []
    for index, layer in enumerate(layers):
        others = [name for name in layers if name != layer]
        costs.append(LayerCost(layer, noise(quantiser.simulated(method, others))))
        if progress is not None:
            progress(index + 1, len(layers))
    return sorted(costs, key=lambda cost: -cost.noise)


def fewest_left(ranked: Sequence[str], judge: Callable[[Sequence[str]], float]) -> Search:
    """Return the fewest of the ``ranked`` layers, taken from the front, that have to be left out.

    ``judge`` gets the layers that are left out and says how much of what is allowed is used: up to 1.0 is content. That
    more layers left out are no worse is taken for granted. Raises ModelError where even leaving out all but the last
    one is not enough.
    """
    trials: list[Trial] = []

    def passes(count: int) -> bool:
        trials.append(Trial(count, judge(ranked[:count])))
        logger.info("%d of %d layers left in half precision: %.2f of what is allowed", *_told(trials[-1], ranked))
        return trials[-1].passed

    if passes(0):
        return Search((), tuple(trials))
    failed, most = 0, len(ranked) - 1
    passed = min(1, most)
    while passed and not passes(passed):
        failed, passed = passed, min(2 * passed, most)
        if failed == most:
            passed = 0
    if not passed:
        best = min(trial.verdict for trial in trials)
        raise ModelError(
            f"even with {most} of {len(ranked)} layers in half precision the loss is {best:.2f} times what it may be; "
            "int8 is not for this model, use fp16, or calibrate with other pictures"
        )
    while passed - failed > 1:
        middle = (passed + failed) // 2
        if passes(middle):
            passed = middle
        else:
            failed = middle
    return Search(tuple(ranked[:passed]), tuple(trials))


def _told(trial: Trial, ranked: Sequence[str]) -> tuple[int, int, float]:
    return trial.left, len(ranked), trial.verdict
