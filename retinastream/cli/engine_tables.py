"""What the engine commands print for people: layers, losses, agreement."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

from retinastream.cli.eval_tables import number

if TYPE_CHECKING:
    from rich.console import Console

    from retinastream.engines.precision.half import HalfModel
    from retinastream.engines.precision.quantise import QuantisedModel
    from retinastream.evaluation.auto_quantise import AutoQuantised
    from retinastream.evaluation.precision_check import PrecisionReport

# Layers shown of a ranking; the report has all of them.
_SHOWN = 10


def print_check(report: PrecisionReport) -> None:
    """Print the losses with their limits, recall by height, landmarks, and the verdict."""
    console = _console()
    pictures = _counted(report.on["pictures"], "picture")
    faces = f", {_counted(report.on['faces'], 'face')}" if "faces" in report.on else ""
    where = f" on {report.candidate['runtime']}, {report.candidate['device']}," if "runtime" in report.candidate else ""
    console.print(
        f"{report.candidate['precision']}{where} against {report.reference['precision']}, {report.kind}: "
        f"{pictures}{faces}",
        markup=False,
    )
    _losses(console, report)
    _heights(console, report.recall_by_height)
    if report.landmarks:
        means = [_percent(report.landmarks[side]["mean"]) for side in ("reference", "candidate")]
        console.print(f"landmark error / sqrt(box area): {means[0]} -> {means[1]}", markup=False)
    if report.agreement:
        met = report.agreement
        console.print(
            f"faces from score {met['score']:g}: {_percent(met['recall'])} of the reference's found, "
            f"{_percent(met['precision'])} of the candidate's are the reference's; mean overlap "
            f"{number(met['overlap'], 4)}, landmarks {_percent(met['landmarks_apart'])} apart",
            markup=False,
        )
    console.print("passed" if report.passed else "FAILED: more is lost than is allowed", markup=False)
    for remark in report.remarks:
        console.print(f"note: {remark}", markup=False)


def print_quantised(result: HalfModel | QuantisedModel, chosen: AutoQuantised | None) -> None:
    """Print what was made: layers by precision, calibration, and how layers were chosen."""
    console = _console()
    lines = _half_lines(result) if not hasattr(result, "int8_layers") else _int8_lines(result)
    for line in lines:
        console.print(line, markup=False)
    if chosen is not None:
        _ranking(console, chosen)
        _losses(console, chosen.report)


def _half_lines(result: Any) -> list[str]:
    lines = [f"{result.nodes} nodes, {len(result.fp32_nodes)} of them in float32"]
    return [*lines, *(f"rounded or left in float32: {weight}" for weight in result.outside)]


def _int8_lines(result: Any) -> list[str]:
    lines = [
        f"{len(result.int8_layers)} layers in int8, {len(result.fp16_layers)} in fp16; calibrated by {result.method} "
        f"on {result.pictures} pictures, {result.pictures_with_faces} with faces"
    ]
    if result.fp16_layers:
        lines.append(f"in fp16: {', '.join(result.fp16_layers)}")
    return lines


def _ranking(console: Console, chosen: AutoQuantised) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("layer, quantised alone")
    table.add_column("signal / noise", justify="right")
    table.add_column("is now")
    left = set(chosen.search.left)
    for cost in chosen.ranking[:_SHOWN]:
        table.add_row(cost.layer, f"{cost.decibels:.1f} dB", "fp16" if cost.layer in left else "int8")
    console.print(table)
    trials = ", ".join(f"{trial.left} left out: {trial.verdict:.2f}" for trial in chosen.search.trials)
    console.print(f"loss as a part of what is aimed at: {trials}", markup=False)


def _losses(console: Console, report: PrecisionReport) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("AP", "reference", "candidate", "lost", "allowed", ""):
        table.add_column(name, justify="left" if name in ("AP", "") else "right")
    for loss in report.losses:
        table.add_row(
            loss.measure,
            number(loss.reference, 4),
            number(loss.candidate, 4),
            f"{loss.points:.2f}",
            f"{loss.limit:g}",
            "" if loss.passed else "too much",
        )
    console.print(table)


def _heights(console: Console, bins: list[dict[str, Any]]) -> None:
    from rich.table import Table

    if not bins:
        return
    table = Table(box=None, pad_edge=False)
    for name in ("recall from score 0.5", "faces", "reference", "candidate"):
        table.add_column(name, justify="left" if " " in name else "right")
    for row in bins:
        bounds = f"{row['from']:g} to {row['to']:g} px" if math.isfinite(row["to"]) else f"{row['from']:g} px and more"
        cells = (number(row["reference"], 3), number(row["candidate"], 3))
        table.add_row(bounds, str(row["faces"]), *cells)
    console.print(table)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.2f} %"


def _console() -> Console:
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False, soft_wrap=True)
