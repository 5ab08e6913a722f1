"""``retinastream engine export | import``: engines that are carried to another machine of the same kind."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export_engine(
    key: Annotated[str, typer.Argument(metavar="KEY|MODEL", help="First digits of an engine, or a model.")],
    target: Annotated[Path, typer.Argument(metavar="FILE.zip|DIR", help="A .zip file, or a folder for two files.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what exists.")] = False,
) -> None:
    """Write an engine and what is known of it to a file; it runs only on the GPU and TensorRT that it was built for."""
    from retinastream.engines.cache.select_entry import select_entry
    from retinastream.engines.cache.store import EngineCache
    from retinastream.engines.cache.transfer import export_engine as export

    cache = EngineCache()
    typer.echo(str(export(cache, select_entry(cache, key), target, overwrite=overwrite)))


def import_engine(
    source: Annotated[Path, typer.Argument(metavar="FILE|DIR", help="What `retinastream engine export` wrote.")],
    trust: Annotated[
        bool, typer.Option("--trust", help="I trust whoever built it: an engine is code that runs with my rights.")
    ] = False,
) -> None:
    """Take an exported engine into the cache, after its SHA-256 has been compared."""
    from retinastream.engines.cache.store import EngineCache
    from retinastream.engines.cache.transfer import import_engine as take

    entry, warnings = take(EngineCache(), source, trust=trust)
    for warning in warnings:
        typer.echo(warning, err=True)
    typer.echo(str(entry.plan_path))
