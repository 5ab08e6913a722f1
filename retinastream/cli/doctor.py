"""``retinastream doctor``: what this machine has and lacks, with what to do about it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from retinastream.diagnosis import Diagnosis, Finding

_COLOURS = {"ok": "green", "missing": "dim", "warning": "yellow", "error": "bold red"}
_NOT_READY = 3


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for scripts.")] = False,
) -> None:
    """Look at packages, processor, runtimes, codecs, GPU, models and disk, and say what to do about each.

    Exit code 0 when detection on the CPU can work, 3 when something that it needs is missing.
    """
    from retinastream.diagnosis import diagnose

    diagnosis = diagnose()
    if as_json:
        typer.echo(_as_json(diagnosis))
    elif sys.stdout.isatty():
        _print_table(diagnosis)
    else:
        _print_lines(diagnosis)
    if not diagnosis.ready:
        raise typer.Exit(_NOT_READY)


def _as_json(diagnosis: Diagnosis) -> str:
    content = {
        "findings": [asdict(finding) for finding in diagnosis.findings],
        "ready": diagnosis.ready,
        "summary": diagnosis.summary,
    }
    return json.dumps(content, indent=2)


def _print_table(diagnosis: Diagnosis) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table(box=None, pad_edge=False, show_header=False)
    for no_wrap in (True, True, True, False):
        table.add_column(no_wrap=no_wrap)
    for area, findings in groupby(diagnosis.findings, key=lambda finding: finding.area):
        for index, finding in enumerate(findings):
            # Text, because details hold square brackets that would be read as markup.
            table.add_row(
                Text("" if index else area, "bold"),
                Text(finding.name),
                Text(finding.status, _COLOURS[finding.status]),
                Text(finding.detail),
            )
        table.add_row()
    console.print(table)
    for finding in _with_remedy(diagnosis.findings):
        console.print(
            Text.assemble((f"{finding.area}/{finding.name}: ", _COLOURS[finding.status]), finding.remedy),
            soft_wrap=True,
        )
    console.print(Text(f"\n{diagnosis.summary}", "bold"), soft_wrap=True)


def _print_lines(diagnosis: Diagnosis) -> None:
    """One finding a line, whatever its length: for logs, bug reports and grep."""
    for finding in diagnosis.findings:
        typer.echo(f"{finding.status:<8}{finding.area}/{finding.name}: {finding.detail}")
    for finding in _with_remedy(diagnosis.findings):
        typer.echo(f"{'remedy':<8}{finding.area}/{finding.name}: {finding.remedy}")
    typer.echo(diagnosis.summary)


def _with_remedy(findings: Iterable[Finding]) -> list[Finding]:
    """Those with something to do, the most urgent first."""
    order = list(_COLOURS)[::-1]
    return sorted((finding for finding in findings if finding.remedy), key=lambda finding: order.index(finding.status))
