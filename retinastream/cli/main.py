"""Assembles the commands, and turns errors into one line and an exit code."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer

import retinastream
from retinastream.cli.detect import detect
from retinastream.cli.doctor import doctor
from retinastream.cli.engine import app as engine_app
from retinastream.cli.eval import app as eval_app
from retinastream.cli.model import app as model_app
from retinastream.cli.train import app as train_app
from retinastream.errors import RetinastreamError

EPILOG = "Exit codes: 0 all done, 1 some inputs failed, 2 wrong usage, 3 environment, 130 interrupted."

app = typer.Typer(
    name="retinastream",
    help="Finds faces in video at full 4K resolution.",
    epilog=EPILOG,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
app.command("detect", epilog=EPILOG)(detect)
app.command("doctor")(doctor)
app.add_typer(engine_app, name="engine")
app.add_typer(eval_app, name="eval")
app.add_typer(model_app, name="model")
app.add_typer(train_app, name="train")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"retinastream {retinastream.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


class _ToStandardError(logging.Handler):
    """Writes to what standard error is at that moment: a progress display puts itself there, and makes room."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"{self.format(record)}\n")


def _is_interrupt(ended: BaseException | None) -> bool:
    """Whether Ctrl-C is behind this: typer turns it into an exit of its own, which says nothing."""
    while ended is not None and not isinstance(ended, KeyboardInterrupt):
        ended = ended.__cause__ or ended.__context__
    return ended is not None


def main() -> None:
    """Run the command line; the exit code is the process's."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING, handlers=[_ToStandardError()])
    try:
        app()
    except RetinastreamError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, SystemExit) as ended:
        if not _is_interrupt(ended):
            raise
        typer.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output went away; Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
