"""``retinastream train``: a run from a configuration file, and labels from a teacher."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from retinastream.cli.interrupts import Interrupts
from retinastream.cli.train_label import label

if TYPE_CHECKING:
    from retinastream.training.config import TrainConfig

_RUNS = Path("runs")


class _RunByDefault(TyperGroup):
    """Reads ``train --config FILE`` as ``train run --config FILE``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_RunByDefault,
    help="Train a detector: `retinastream train --config FILE` is short for `retinastream train run --config FILE`.",
    no_args_is_help=True,
)
app.command("label")(label)


@app.command("run")
def run(
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Changes of the configuration, such as run.batch=16."),
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="YAML file with the configuration.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of the run; by default runs/ and the name of the configuration."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --output.")] = False,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Resume although configuration or data have changed.")
    ] = False,
    stop_after: Annotated[
        int | None, typer.Option("--stop-after", min=1, help="Save and stop when this many steps are done.")
    ] = None,
    dump_config: Annotated[
        bool, typer.Option("--dump-config", help="Print the configuration in effect as YAML and exit.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only.")] = False,
) -> None:
    """Train a detector, evaluating and saving as it goes, and export it at the end.

    Ctrl-C or SIGTERM finish the step, save and stop; --resume then goes on as if nothing had happened.
    """
    chosen, folder = _configuration(config, output, changes or [], resume)
    if dump_config:
        import yaml

        typer.echo(yaml.safe_dump(chosen.plain(), sort_keys=False), nl=False)
        return
    from retinastream.cli.train_progress import make_train_observer
    from retinastream.training.trainer import train

    interrupts = Interrupts("finishing the step and saving")
    with make_train_observer(quiet=quiet) as observer, interrupts:
        result = train(
            chosen,
            run_dir=folder,
            resume=resume,
            accept_changes=accept_changes,
            observer=observer,
            stop=interrupts.stop,
            stop_after=stop_after,
        )
    # Under torchrun every process comes here.
    if not result.finished and not quiet and os.environ.get("RANK", "0") == "0":
        typer.echo(f"to go on: retinastream train --output {folder} --resume", err=True)
    if interrupts.signal is not None and not result.finished:
        raise typer.Exit(128 + interrupts.signal)


def _configuration(
    config: Path | None, output: Path | None, changes: list[str], resume: bool
) -> tuple[TrainConfig, Path]:
    """Return the configuration in effect and the folder of the run."""
    from retinastream.errors import MissingPackageError, UsageError

    try:
        from retinastream.training.config_file import change_config, load_config
    except ImportError as error:
        if error.name != "torch":
            raise
        raise MissingPackageError(
            "training needs PyTorch; install it with: pip install 'retinastream[train]'"
        ) from error
    from retinastream.training.run_folder import RunFolder

    for name in changes:
        if "=" not in name and Path(name).exists():
            option = f"--output {name} --resume" if Path(name).is_dir() else f"--config {name}"
            raise UsageError(f"{name!r} is no change of the configuration; did you mean {option}?")
    if config is not None:
        return load_config(config, changes), output or _RUNS / config.stem
    if not resume or output is None:
        raise UsageError("no configuration: give --config FILE, or --output FOLDER --resume to go on with a run")
    return change_config(RunFolder(output).read_config(), changes), output
