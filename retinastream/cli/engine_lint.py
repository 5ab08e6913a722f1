"""``retinastream engine lint``: what TensorRT would refuse about a quantised model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def lint(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An .onnx file with quantise/dequantise pairs.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Find what TensorRT would refuse about a quantised ONNX file, or run slowly, and how to correct it.

    Exit code 1 where it would be refused; what is only slow is a warning.
    """
    from retinastream.engines.precision.lint import lint as find

    findings = find(file)
    errors = sum(finding.severity == "error" for finding in findings)
    if as_json:
        typer.echo(json.dumps({"file": str(file), "errors": errors, "findings": [f.to_dict() for f in findings]}))
    else:
        for finding in findings:
            typer.echo(str(finding))
        typer.echo(f"{file}: {errors} errors, {len(findings) - errors} warnings", err=True)
    if errors:
        raise typer.Exit(1)
