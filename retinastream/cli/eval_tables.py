"""Measures as tables for people, on standard output."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from retinastream.evaluation.landmark_error import LandmarkError
    from retinastream.evaluation.measures import Measures, OperatingPoint
    from retinastream.evaluation.wider_face import WiderFaceResult
    from retinastream.evaluation.wider_truth import GroundTruth


def print_measures(measures: Measures, title: str) -> None:
    """Print average precision, the operating points, landmark errors, and a row per bin of heights."""
    counts = measures.counts
    ignored = f", {counts.ignored} ignored" if counts.ignored else ""
    console = _console()
    console.print(f"{title}, {counts.faces} faces{ignored}, {counts.predictions} predictions", markup=False)
    lines = [
        ("AP at IoU 0.5", number(measures.ap50, 4)),
        ("AP 0.5 to 0.95", number(measures.ap, 4)),
        (f"from score {measures.at_score.threshold:g}", _point(measures.at_score)),
        (f"precision {measures.precision_target:g}", _target(measures.at_precision)),
        ("landmark error", _landmarks(measures.landmarks)),
        (f"  from {measures.large_height:g} px", _landmarks(measures.landmarks_large)),
    ]
    for name, text in lines:
        console.print(f"{name:<17}{text}", markup=False)
    console.print()
    _print_heights(console, measures)


def print_wider(result: WiderFaceResult, truth: GroundTruth, *, partial_of: int | None) -> None:
    """Print average precision of the three settings; ``partial_of`` is how many pictures the whole truth has."""
    from rich.table import Table

    console = _console()
    table = Table(box=None, pad_edge=False)
    for name in ("WIDER FACE val", "AP", "faces"):
        table.add_column(name, justify="left" if name.startswith("W") else "right")
    for setting, ap in result.ap.items():
        table.add_row(setting, number(ap, 4), str(truth.faces(setting)))
    console.print(table)
    if partial_of is not None:
        console.print(
            f"measured on {truth.pictures} of {partial_of} pictures: NOT comparable with figures on the whole set",
            markup=False,
        )


def number(value: float, digits: int) -> str:
    """Format a number with fixed digits; what could not be measured is a dash."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _console() -> Console:
    from rich.console import Console

    # Piped into another program a row stays on one line, whatever width the terminal behind it had.
    return Console(width=None if sys.stdout.isatty() else 250, highlight=False)


def _point(point: OperatingPoint) -> str:
    return (
        f"precision {number(point.precision, 4)}, recall {number(point.recall, 4)}, F1 {number(point.f1, 4)} "
        f"({point.found} found, {point.wrong} wrong, {point.missed} missed)"
    )


def _target(point: OperatingPoint | None) -> str:
    return "not reached" if point is None else f"from score {point.threshold:.4f}, recall {number(point.recall, 4)}"


def _landmarks(error: LandmarkError) -> str:
    if not error.faces:
        return "no face to compare"
    return f"mean {error.mean:.2%}, median {error.median:.2%} of the face size ({error.faces} faces)"


def _print_heights(console: Console, measures: Measures) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    threshold = measures.at_score.threshold
    for name in ("height px", "faces", "recall", f"from score {threshold:g}", "landmark error"):
        table.add_column(name, justify="left" if name == "height px" else "right", no_wrap=True)
    any_score, bins = measures.recall_by_height_any_score, measures.recall_by_height
    for index, error in enumerate(measures.landmarks_by_height):
        low, high = bins.edges[index : index + 2].tolist()
        table.add_row(
            f"{low:g} and more" if math.isinf(high) else f"{low:g} to {high:g}",
            str(bins.truths[index]),
            number(float(any_score.recall[index]), 4),
            number(float(bins.recall[index]), 4),
            f"{error.mean:.2%}" if error.faces else "-",
        )
    console.print(table)
