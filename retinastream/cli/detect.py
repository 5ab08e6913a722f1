"""``retinastream detect``: faces out of files."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from retinastream.cli.interrupts import Interrupts
from retinastream.cli.options import parameters
from retinastream.settings import DetectSettings, load_settings


def _detect(
    sources: list[str] | None,
    *,
    config: Path | None,
    dump_config: bool,
    as_json: bool,
    stats: bool,
    quiet: bool,
    **flags: Any,
) -> None:
    settings = load_settings({name: value for name, value in flags.items() if value not in (None, [])}, config)
    if dump_config:
        import yaml

        typer.echo(yaml.safe_dump(settings.plain(), sort_keys=False), nl=False)
        return
    if not sources:
        raise typer.BadParameter("give at least one video, picture, directory or pattern", param_hint="SOURCE...")
    from retinastream.cli.progress import make_observer, print_stats
    from retinastream.pipeline.run import run

    interrupts = Interrupts("finishing what is in flight")
    observer = make_observer(quiet=quiet, inputs=len(sources))
    with observer, interrupts, _log_level(logging.ERROR if quiet else logging.NOTSET):
        report = run(settings, sources, observer, interrupts.stop)
    if stats:
        print_stats(report)
    if as_json:
        typer.echo(json.dumps(report.to_dict()))
    if report.exit_code:
        raise typer.Exit(report.exit_code)


@contextmanager
def _log_level(level: int) -> Iterator[None]:
    """Let messages of this package through from ``level`` on, for a while."""
    logger = logging.getLogger("retinastream")
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


def _signature() -> inspect.Signature:
    """Everything the command takes: the sources, the settings' own fields, and how to report."""
    first = inspect.Parameter(
        "sources",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[
            list[str] | None,
            typer.Argument(
                metavar="SOURCE...",
                help="Videos, pictures, directories, patterns, or sequences such as frame_%04d.png.",
                show_default=False,
            ),
        ],
    )
    reporting: list[tuple[str, str, type, Any, str]] = [
        ("config", "--config", Path, None, "YAML file with settings, named as the options are."),
        ("dump_config", "--dump-config", bool, False, "Print the settings in effect as YAML and exit."),
        ("as_json", "--json", bool, False, "Print one JSON object at the end, for scripts."),
        ("stats", "--stats", bool, False, "Print what each stage did and which one was the bottleneck."),
        ("quiet", "--quiet", bool, False, "Print errors only."),
    ]
    rest = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=default,
            annotation=Annotated[
                kind if kind is bool else kind | None,
                typer.Option(flag, help=text, show_default=False, rich_help_panel="Reporting"),
            ],
        )
        for name, flag, kind, default, text in reporting
    ]
    return inspect.Signature([first, *parameters(DetectSettings), *rest])


def detect(**values: Any) -> None:
    """Find faces in videos and pictures and write them down.

    Results are named after their source: clip.mp4 gives clip.faces.jsonl, and clip.annotated.mp4 with --annotate.
    """
    _detect(values.pop("sources"), **values)


detect.__signature__ = _signature()  # type: ignore[attr-defined]
detect.__annotations__ = {p.name: p.annotation for p in _signature().parameters.values()}
