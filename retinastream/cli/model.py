"""``retinastream model``: list, pull, export and inspect detectors."""

from __future__ import annotations

import json
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from retinastream.models.onnx_file import OnnxModel
    from retinastream.models.onnx_graph import OnnxGraph
    from retinastream.models.zoo_entries import ZooEntry

app = typer.Typer(help="List, fetch, export and inspect models.", no_args_is_help=True)

_PLAIN_STEP = 10  # per cent between two lines of progress when the output is not a terminal


class Layout(str, Enum):  # noqa: UP042 (typer of the oldest supported version wants str and Enum)
    """What the outputs of an exported file look like."""

    fused = "fused"
    classic = "classic"


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


@app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """Show the models known by name, their published accuracy and licence, and which are on this machine."""
    from retinastream.models.zoo import cache_dir, path_of
    from retinastream.models.zoo_entries import zoo

    if as_json:
        rows = [
            {**entry.model_dump(mode="json"), "here": path_of(entry).is_file(), "path": str(path_of(entry))}
            for entry in zoo().values()
        ]
        typer.echo(json.dumps(rows, indent=2))
        return
    _print_table(zoo(), lambda entry: path_of(entry).is_file())
    typer.echo(f"AP: easy / medium / hard of WIDER FACE val as published. Models lie in {cache_dir()}")


def _print_table(entries: dict[str, ZooEntry], is_here: Callable[[ZooEntry], bool]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("name", "here", "AP", "get it by", "licence", "what"):
        table.add_column(column, no_wrap=column in ("name", "here", "AP"))
    for name, entry in entries.items():
        ap = entry.average_precision
        published = "" if ap is None else f"{ap.easy:.1f} / {ap.medium:.1f} / {ap.hard:.1f}"
        way = "part of the package" if entry.bundled else "pull" if entry.url else "export"
        table.add_row(name, "yes" if is_here(entry) else "no", published, way, entry.licence, entry.description)
    # Piped into another program a row stays on one line, whatever width the terminal behind it had.
    Console(width=None if sys.stdout.isatty() else 250).print(table)


@app.command()
def pull(name: Annotated[str, typer.Argument(help="A name of `retinastream model list`.")]) -> None:
    """Download a model into the cache, continuing an interrupted download; its SHA-256 is checked."""
    from retinastream.models import zoo

    entry = zoo.find_entry(name)
    typer.echo(f"{name}: licence: {entry.licence}", err=True)
    with _Progress(name) as report:
        path = zoo.pull(name, progress=report)
    typer.echo(str(path))


class _Progress:
    """Progress of one download on standard error: a bar on a terminal, a line every few per cent elsewhere."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._bar: Any = None
        self._task: Any = None
        self._next_line = 0.0

    def __enter__(self) -> Callable[[int, int | None], None]:
        if not sys.stderr.isatty():
            return self.line
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self._bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
        self._bar.start()
        self._task = self._bar.add_task(self._name, total=None)
        return self.draw

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def draw(self, done: int, total: int | None) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=done, total=total)

    def line(self, done: int, total: int | None) -> None:
        """Write a line whenever another step has been passed."""
        if total and 100.0 * done / total >= self._next_line:
            typer.echo(f"{self._name}: {done / 1e6:.1f} of {total / 1e6:.1f} MB", err=True)
            self._next_line = 100.0 * done / total + _PLAIN_STEP


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A PyTorch checkpoint (.pth) of a RetinaFace.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The .onnx file to write; by default the cache for models of the zoo."),
    ] = None,
    layout: Annotated[
        Layout, typer.Option(help="fused: one map per stride, fastest; classic: loc, conf, landms.")
    ] = Layout.fused,
    spec: Annotated[
        str | None, typer.Option(help="A spec name or file, for checkpoints that are not in the zoo.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output when it exists.")] = False,
) -> None:
    """Export a checkpoint to ONNX; needs the export extra of the package."""
    from retinastream.errors import UsageError
    from retinastream.models.spec_registry import read_spec
    from retinastream.models.zoo import cache_dir, export_checkpoint, export_destination

    detector = None if spec is None else read_spec(spec)
    out = export_destination(checkpoint, layout.value) if output is None else output
    # The cache holds nothing that cannot be made again, so an export that goes there by default may replace it.
    if out.exists() and not overwrite and (output is not None or not out.is_relative_to(cache_dir())):
        raise UsageError(f"{out} exists; give --overwrite to replace it, or another --output")
    typer.echo(str(export_checkpoint(checkpoint, out, layout=layout.value, spec=detector)))


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="An .onnx file or a name of `retinastream model list`.")],
    spec: Annotated[str | None, typer.Option(help="A spec name or file, for files that do not say theirs.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a model is: layout, spec, inputs, outputs, operators."""
    from retinastream.models.onnx_graph import read_graph
    from retinastream.models.spec_registry import read_spec
    from retinastream.models.zoo import resolve_model

    found = resolve_model(model, spec=None if spec is None else read_spec(spec))
    description = _describe(found, read_graph(found.path))
    if as_json:
        typer.echo(json.dumps(description, indent=2))
        return
    for key, text in _lines(description):
        typer.echo(f"{key:<12} {text}")


def _describe(model: OnnxModel, graph: OnnxGraph) -> dict[str, Any]:
    return {
        "name": model.name,
        "path": str(model.path),
        "sha256": model.sha256,
        "layout": model.spec.output_layout,
        "spec": model.spec.to_dict(),
        "inputs": [str(tensor) for tensor in graph.inputs],
        "outputs": [str(tensor) for tensor in sorted(graph.outputs, key=lambda t: model.output_names.index(t.name))],
        "opset": graph.opset,
        "producer": graph.producer,
        "operators": dict(graph.operators.most_common()),
        "metadata": {key: value for key, value in sorted(graph.metadata.items()) if not key.endswith(".spec")},
    }


def _lines(description: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in description.items():
        if isinstance(value, list):
            yield from ((key if i == 0 else "", text) for i, text in enumerate(value))
        elif key == "operators":
            yield key, ", ".join(f"{count} {name}" for name, count in value.items())
        elif isinstance(value, dict):
            yield from ((key if i == 0 else "", f"{name} {v}") for i, (name, v) in enumerate(value.items()))
        else:
            yield key, str(value)
