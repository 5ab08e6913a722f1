"""An int8 model with as few layers in half precision as the accuracy that is asked for allows.

The layers are chosen on one set of pictures and the model is used on others, which lose somewhat more: two layers left
out used 99.5 % of what is allowed on the pictures that they were chosen on, and 136 % on others (facemask). So the
search aims at a part of the limits.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retinastream.engines.precision.graph_run import Picture
from retinastream.engines.precision.model_files import check_out
from retinastream.engines.precision.quantise import QuantisedModel, Quantiser, choose_method
from retinastream.engines.precision.sensitivity import LayerCost, OutputNoise, Search, fewest_left, rank_layers
from retinastream.errors import UsageError
from retinastream.evaluation.precision_check import Limits, PrecisionGate, PrecisionReport

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


AIM = 0.8


@dataclass(frozen=True, slots=True)
class AutoQuantised:
    """What was written, how every layer ranked, the search, and what the result loses.

    ``noise_of_methods`` is what each calibration method does to the raw outputs; empty where one was asked for.
    """

    model: QuantisedModel
    noise_of_methods: dict[str, float]
    ranking: tuple[LayerCost, ...]
    search: Search
    report: PrecisionReport

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON can hold it."""
        return {
            "model": {**asdict(self.model), "path": str(self.model.path)},
            "noise_of_methods": self.noise_of_methods,
            "ranking": [asdict(cost) for cost in self.ranking],
            "search": self.search.to_dict(),
            "check": self.report.to_dict(),
        }


def auto_quantise(
    quantiser: Quantiser,
    out: str | Path,
    gate: PrecisionGate,
    probe: Iterable[Picture],
    *,
    method: str | None = None,
    limits: Limits | None = None,
    aim: float = AIM,
    threads: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> AutoQuantised:
    """Write the int8 model to ``out`` that ``gate`` lets pass and has the fewest layers in half precision.

    ``probe`` are a few of the calibration pictures, on which the layers are ranked; without a ``method`` the one that
    changes the raw outputs least there is taken. ``aim`` is the part of the limits that may be used. Raises ModelError
    where no choice of layers passes, UsageError for an ``aim`` that is none, and what the gate raises.
    """
    if not 0.0 < aim <= 1.0:
        raise UsageError(f"aim is {aim!r}; expected a part of the limits, above 0 and at most 1")
    target = check_out(quantiser.found.path, out, overwrite=overwrite)
    noise = OutputNoise(quantiser.model, probe, threads=threads)
    costs: dict[str, float] = {}
    if method is None:
        method, costs = choose_method(quantiser, noise)
    chosen = method

    def told(done: int, total: int) -> None:
        if progress is not None:
            progress("ranking", done, total)

    ranking = rank_layers(quantiser, chosen, noise, told)
    reports: dict[int, PrecisionReport] = {}
    with tempfile.TemporaryDirectory() as folder:

        def judge(left: Sequence[str]) -> float:
            tried = quantiser.write(Path(folder) / f"without_{len(left)}.onnx", chosen, left)
            reports[len(left)] = gate.check(tried.path, limits)
            return reports[len(left)].used / aim

        search = fewest_left([cost.layer for cost in ranking], judge)
    written = quantiser.write(target, chosen, search.left, overwrite=overwrite)
    return AutoQuantised(written, costs, tuple(ranking), search, reports[len(search.left)])
