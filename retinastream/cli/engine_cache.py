"""``retinastream engine list | prune | path``: the engines that are kept."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from retinastream.engines.cache.contents import Quarantined, Unusable
    from retinastream.engines.cache.entry import Entry
    from retinastream.engines.cache.store import EngineCache

_COLUMNS = ("engine", "model", "precision", "shapes", "GPU", "TensorRT", "MB", "used")
_NARROW = ("engine", "MB", "used")


def list_engines(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read every engine and compare its SHA-256.")] = False,
) -> None:
    """Show the engines that are kept: what they were built from, for which GPU, and when they were used last."""
    from retinastream.engines.cache import contents
    from retinastream.engines.cache.store import EngineCache

    cache = EngineCache()
    entries = cache.entries()
    unusable = contents.usable(cache.folder)[1]
    if verify:
        entries, damaged = _verified(cache, entries)
        unusable += damaged
    put_aside = cache.quarantined()
    if as_json:
        typer.echo(json.dumps(_as_json(cache, entries, unusable, put_aside), indent=2))
        return
    if entries:
        _print_table(entries)
    for item in unusable:
        typer.echo(f"unusable: {item.path.name}: {item.reason}")
    for aside in put_aside:
        typer.echo(f"put aside: {aside.path.name} ({aside.model}, {aside.when}): {aside.reason}")
    total = sum(entry.sidecar.plan_size for entry in entries)
    typer.echo(f"{len(entries)} engine{'' if len(entries) == 1 else 's'}, {total / 1e6:.1f} MB, in {cache.folder}")


def prune(
    older_than: Annotated[
        str | None, typer.Option("--older-than", metavar="AGE", help="Those not used for so long: 12h, 30d, 2w.")
    ] = None,
    keep: Annotated[int | None, typer.Option(metavar="N", help="All but the N that were used last.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All engines, and what builders learned.")] = False,
    quarantined: Annotated[bool, typer.Option("--quarantined", help="Engines that were put aside.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> None:
    """Remove engines; without options only what killed builds left and what cannot be used any more."""
    from retinastream.engines.cache.prune import plan_removals, read_age, remove
    from retinastream.engines.cache.store import EngineCache

    cache = EngineCache()
    removals = plan_removals(
        cache,
        older_than=None if older_than is None else read_age(older_than),
        keep=keep,
        everything=everything,
        quarantined=quarantined,
    )
    freed = 0
    for removal, gone in ((r, True) for r in removals) if dry_run else remove(cache, removals):
        verb = "would remove" if dry_run else "removed" if gone else "kept, because it is being built:"
        typer.echo(f"{verb} {removal.what}, {removal.size / 1e6:.1f} MB: {removal.reason}")
        freed += removal.size if gone else 0
    typer.echo(f"{freed / 1e6:.1f} MB {'would be freed' if dry_run else 'freed'} in {cache.folder}")


def path(
    name: Annotated[list[str], typer.Argument(metavar="KEY|MODEL...", help="First digits of an engine, or a model.")],
) -> None:
    """Print where engines lie, one line each."""
    from retinastream.engines.cache.select_entry import select_entry
    from retinastream.engines.cache.store import EngineCache

    cache = EngineCache()
    for entry in [select_entry(cache, each) for each in name]:
        typer.echo(str(entry.plan_path))


def _verified(cache: EngineCache, entries: list[Entry]) -> tuple[list[Entry], list[Unusable]]:
    from retinastream.engines.cache.contents import Unusable
    from retinastream.engines.cache.errors import DamagedPlanError, UntrustedPlanError

    good, bad = [], []
    for entry in entries:
        try:
            cache.read_verified_plan(entry, used=False)
            good.append(entry)
        except (DamagedPlanError, UntrustedPlanError) as error:
            bad.append(Unusable(entry.plan_path, str(error)))
    return good, bad


def _as_json(
    cache: EngineCache, entries: list[Entry], unusable: list[Unusable], put_aside: list[Quarantined]
) -> dict[str, Any]:
    return {
        "folder": str(cache.folder),
        "engines": [
            {
                "digest": entry.digest,
                "path": str(entry.plan_path),
                "used": entry.used.isoformat(timespec="seconds"),
                **entry.sidecar.model_dump(mode="json"),
            }
            for entry in entries
        ],
        "unusable": [{"path": str(item.path), "reason": item.reason} for item in unusable],
        "quarantined": [
            {"path": str(q.path), "reason": q.reason, "when": q.when, "model": q.model, "size": q.size}
            for q in put_aside
        ],
    }


def _print_table(entries: list[Entry]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in _COLUMNS:
        table.add_column(column, no_wrap=column in _NARROW, justify="right" if column == "MB" else "left")
    for entry in entries:
        table.add_row(*map(Text, _row(entry)))
    # Piped into another program a row stays on one line, whatever width the terminal behind it had.
    Console(width=None if sys.stdout.isatty() else 250).print(table)


def _row(entry: Entry) -> tuple[str, ...]:
    sidecar = entry.sidecar
    key = sidecar.key
    shapes = ", ".join(str(shape) for profile in key.profiles for shape in profile.values())
    size = f"{sidecar.plan_size / 1e6:.1f}"
    used = f"{entry.used:%Y-%m-%d}"
    machine = key.machine
    return (entry.short, sidecar.build.model, key.precision, shapes, machine.gpu, machine.tensorrt, size, used)
