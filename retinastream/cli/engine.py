"""``retinastream engine``: from an ONNX model to what runs fast on one machine.

Each command lives in a module of its own, ``engine_<command>.py``, and imports what is heavy inside its function.
"""

from __future__ import annotations

import typer

from retinastream.cli.engine_bench import bench
from retinastream.cli.engine_build import build
from retinastream.cli.engine_cache import list_engines, path, prune
from retinastream.cli.engine_check import check
from retinastream.cli.engine_inspect import inspect
from retinastream.cli.engine_lint import lint
from retinastream.cli.engine_quantize import quantize
from retinastream.cli.engine_transfer import export_engine, import_engine

app = typer.Typer(
    help="Engines: choose a precision, see what it costs, build for this GPU, keep and compare.", no_args_is_help=True
)
app.command("quantize")(quantize)
app.command("check")(check)
app.command("lint")(lint)
app.command("build")(build)
app.command("bench")(bench)
app.command("list")(list_engines)
app.command("inspect")(inspect)
app.command("path")(path)
app.command("prune")(prune)
app.command("export")(export_engine)
app.command("import")(import_engine)
