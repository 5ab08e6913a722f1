"""``retinastream eval``: how good a detector is."""

from __future__ import annotations

import typer

from retinastream.cli.eval_compare import compare
from retinastream.cli.eval_set import evaluate_set
from retinastream.cli.eval_verify import verify
from retinastream.cli.eval_wider import evaluate_wider

app = typer.Typer(help="Measure detectors: accuracy, comparisons, face verification.", no_args_is_help=True)
app.command("set")(evaluate_set)
app.command("wider")(evaluate_wider)
app.command("compare")(compare)
app.command("verify")(verify)
