"""``retinastream engine inspect``: what an engine is, as far as it can be told on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retinastream.cli import engine_gpu

if TYPE_CHECKING:
    from retinastream.engines.cache.sidecar import Sidecar
    from retinastream.engines.tensorrt.loaded_plan import EngineTensor, LoadedPlan


def inspect(
    engine: Annotated[str, typer.Argument(metavar="FILE|KEY|MODEL", help="A plan, first digits of a key, or a model.")],
    device: Annotated[str, typer.Option(help="cuda | cuda:N: the GPU to load it on.")] = "cuda",
    trust: Annotated[
        bool, typer.Option("--trust", help="Load a FILE: I trust whoever built it, an engine runs with my rights.")
    ] = False,
    layers: Annotated[
        bool, typer.Option("--layers", help="Print TensorRT's description of every layer (JSON).")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show inputs and outputs, profiles, memory, the precision of layers and how many only reformat.

    What was written down when an engine of the cache was built is shown without a GPU, too; the rest is asked of
    TensorRT.
    """
    from retinastream.errors import SetupError, UsageError

    facts, plan, version_compatible = _read(engine, trust=trust)
    try:
        facts["engine"] = _ask_tensorrt(plan, device, version_compatible=version_compatible, layers=layers)
    except (SetupError, UsageError) as error:
        facts["not_loaded"] = str(error)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    _print(facts)


def _read(name: str, *, trust: bool) -> tuple[dict[str, Any], bytes | None, bool]:
    """What is known without TensorRT, the plan if it may be loaded, and whether it carries code of its own."""
    from retinastream.engines.cache.plan_header import describe_plan
    from retinastream.engines.cache.select_entry import select_entry
    from retinastream.engines.cache.store import EngineCache
    from retinastream.errors import InputError

    path = Path(name).expanduser()
    cache = EngineCache()
    if not path.is_file() or path.parent.resolve() == cache.folder.resolve():
        entry = select_entry(cache, path.stem if path.is_file() else name)
        plan = cache.read_verified_plan(entry)
        facts = {"path": str(entry.plan_path), "digest": entry.digest, "header": str(describe_plan(plan))}
        key = entry.sidecar.key
        return {**facts, **_written(entry.sidecar)}, plan, key.builder.get("version_compatible") is True
    try:
        plan = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    return {"path": str(path), "header": str(describe_plan(plan))}, plan if trust else None, trust


def _written(sidecar: Sidecar) -> dict[str, Any]:
    key, build = sidecar.key, sidecar.build
    return {
        "model": build.model,
        "precision": key.precision,
        "machine": key.machine.model_dump(mode="json"),
        "builder": {**key.builder, "hardware_compatibility": key.hardware_compatibility},
        "created": sidecar.created,
        "build_seconds": build.build_seconds,
        "plan_bytes": sidecar.plan_size,
        "tensors": [tensor.model_dump(mode="json") for tensor in build.tensors],
        "notes": build.notes,
        "accuracy_checked": build.accuracy is not None,
        "accepted_loss": build.accepted_loss,
        "log": list(build.log_tail),
    }


def _ask_tensorrt(plan: bytes | None, device: str, *, version_compatible: bool, layers: bool) -> dict[str, Any]:
    from retinastream.errors import UsageError

    if plan is None:
        raise UsageError("it is not from the cache of engines; give --trust where you know who built it")
    from retinastream.engines.tensorrt.inspect_plan import describe_layers, summarise_layers
    from retinastream.engines.tensorrt.load import require_tensorrt
    from retinastream.engines.tensorrt.loaded_plan import load_plan

    require_tensorrt()
    with engine_gpu.open_gpu(device).current():
        loaded = load_plan(plan, version_compatible=version_compatible)
        try:
            facts = _loaded_facts(loaded)
            facts["layers"] = summarise_layers(loaded)
            return {**facts, "layer_descriptions": describe_layers(loaded)} if layers else facts
        finally:
            loaded.close()


def _loaded_facts(plan: LoadedPlan) -> dict[str, Any]:
    return {
        "tensors": [_tensor_facts(tensor) for tensor in plan.tensors],
        "profiles": plan.profile_count,
        "scratch_bytes": list(plan.scratch_sizes),
        "aux_streams": plan.aux_streams,
    }


def _tensor_facts(tensor: EngineTensor) -> dict[str, Any]:
    profiles = [{"minimum": low, "optimum": best, "maximum": high} for low, best, high in tensor.profiles]
    where = "device" if tensor.on_device else "host"
    shape = list(tensor.shape)
    return {"name": tensor.name, "mode": tensor.mode, "dtype": tensor.dtype, "shape": shape, "where": where} | (
        {"profiles": profiles} if profiles else {}
    )


def _print(facts: dict[str, Any]) -> None:
    known = facts.get("engine", {})
    for key in ("path", "digest", "model", "precision", "created"):
        if key in facts:
            typer.echo(f"{key:<12} {facts[key]}")
    typer.echo(f"{'file':<12} {facts['header']}")
    for tensor in known.get("tensors") or facts.get("tensors", []):
        typer.echo(f"{tensor['mode']:<12} {tensor['name']} {tensor['dtype']} {_shape(tensor['shape'])}")
        for number, profile in enumerate(tensor.get("profiles", ())):
            low, best, high = (_shape(profile[name]) for name in ("minimum", "optimum", "maximum"))
            typer.echo(f"{'  profile ' + str(number):<12} {low} .. {high}, tuned for {best}")
    layers = known.get("layers") or facts.get("notes", {}).get("layers")
    if layers:
        precisions = ", ".join(f"{count} {name}" for name, count in layers["precisions"].items())
        typer.echo(f"{'layers':<12} {layers['count']} ({precisions}); {layers['reformats']} only reformat")
    if known:
        sizes = ", ".join(f"{size / 2**20:.1f} MiB" for size in known["scratch_bytes"])
        typer.echo(f"{'scratch':<12} {sizes} per profile; {known['aux_streams']} auxiliary streams")
    if facts.get("accepted_loss"):
        typer.echo(f"{'accuracy':<12} {facts['accepted_loss']}")
    elif "accuracy_checked" in facts:
        typer.echo(f"{'accuracy':<12} {'within the limits' if facts['accuracy_checked'] else 'was not checked'}")
    if "not_loaded" in facts:
        typer.echo(f"{'not loaded':<12} {facts['not_loaded']}")
    for layer in known.get("layer_descriptions", ()):
        typer.echo(json.dumps(layer))


def _shape(sizes: list[int]) -> str:
    return "x".join("?" if size == -1 else str(size) for size in sizes)
