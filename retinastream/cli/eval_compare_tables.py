"""Differences and agreement of two detectors as tables for people, on standard output."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from retinastream.cli.eval_tables import number

if TYPE_CHECKING:
    from rich.console import Console

    from retinastream.evaluation.agreement import Agreement, Rules, Sighting
    from retinastream.evaluation.compare import Comparison, Difference

_SHOWN = 5


def print_comparison(result: Comparison, title: str) -> None:
    """Print a row per measure: both values, their difference, its interval and a verdict."""
    from rich.table import Table

    console = _console()
    console.print(
        f"{title}: {result.pictures} pictures, {result.faces} faces; intervals from {result.resamples} resamples of "
        f"the pictures, seed {result.seed}",
        markup=False,
    )
    table = Table(box=None, pad_edge=False)
    interval = f"{100 * result.confidence:g} % interval"
    for name in ("", "A", "B", "B - A", interval, "B higher", "verdict"):
        table.add_column(name, justify="left" if name in ("", "verdict") else "right", no_wrap=True)
    for row in result.differences:
        digits = _Digits(row)
        table.add_row(
            _label(row.measure, result),
            digits.value(row.a),
            digits.value(row.b),
            digits.signed(row.difference),
            "-" if math.isnan(row.low) else f"{digits.signed(row.low)} to {digits.signed(row.high)}",
            "-" if math.isnan(row.b_higher) else f"{row.b_higher:.1%}",
            row.verdict,
        )
    console.print(table)
    console.print(
        f"landmark errors are parts of the face size, over the {result.landmarked} faces that both found", markup=False
    )


def print_agreement(result: Agreement, title: str) -> None:
    """Print how B does by A's faces, and the clearest faces that only one of them has."""
    console = _console()
    asked = _question(result.rules)
    console.print(f"{title}: B judged by what A finds in {result.pictures} pictures; {asked}", markup=False)
    landmarks = result.landmarks
    lines = [
        ("recall", f"{number(result.recall, 4)} ({result.found} of {result.faces} faces)"),
        ("precision", f"{number(result.precision, 4)} ({result.wrong} that A has not)"),
        ("overlap", f"mean {number(result.overlap, 4)}"),
        (
            "landmarks",
            f"mean {landmarks.mean:.2%}, median {landmarks.median:.2%} of the face size apart ({landmarks.faces} faces)"
            if landmarks.faces
            else "no face to compare",
        ),
    ]
    for name, text in lines:
        console.print(f"{name:<11}{text}", markup=False)
    _print_sightings(console, "only B has", result.wrong_faces)
    _print_sightings(console, "only A has", result.missed_faces)


class _Digits:
    """How the numbers of one measure are written: errors in per cent, everything else with four digits."""

    def __init__(self, row: Difference) -> None:
        self._error = row.measure.startswith("landmark_error")

    def value(self, value: float) -> str:
        if math.isnan(value):
            return "-"
        return f"{value:.2%}" if self._error else f"{value:.4f}"

    def signed(self, value: float) -> str:
        if math.isnan(value):
            return "-"
        return f"{value:+.2%}" if self._error else f"{value:+.4f}"


def _label(measure: str, result: Comparison) -> str:
    score = f"from score {result.score_threshold:g}"
    labels = {
        "ap50": "AP at IoU 0.5",
        "ap": "AP 0.5 to 0.95",
        "recall": f"recall {score}",
        "precision": f"precision {score}",
        "landmark_error": "landmark error",
        "landmark_error_large": f"landmark error from {result.large_height:g} px",
    }
    return labels[measure]


def _question(rules: Rules) -> str:
    scores = f"scores from {rules.score:g}"
    if rules.reference_score != rules.score:
        scores = f"scores from {rules.reference_score:g} (A) and {rules.score:g} (B)"
    doubtful = f", A's from {rules.doubtful:g} doubtful" if rules.doubtful is not None else ""
    height = f", heights from {rules.min_height:g} px" if rules.min_height else ""
    return f"{scores}{doubtful}{height}, IoU {rules.iou:g}"


def _print_sightings(console: Console, name: str, sightings: tuple[Sighting, ...]) -> None:
    for sighting in sightings[:_SHOWN]:
        x1, y1, x2, y2 = (round(value) for value in sighting.box)
        where = f"{Path(sighting.source).name} [{sighting.index}] at {x1},{y1} to {x2},{y2}"
        console.print(f"{name:<11}score {sighting.score:.3f}, {where}", markup=False)
    if len(sightings) > _SHOWN:
        console.print(f"{'':<11}and {len(sightings) - _SHOWN} more", markup=False)


def _console() -> Console:
    from rich.console import Console

    # Piped into another program a row stays on one line, whatever width the terminal behind it had.
    return Console(width=None if sys.stdout.isatty() else 250, highlight=False)
