"""What ``retinastream engine build`` does: graph, accuracy check, engine, cache."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from retinastream.cli import engine_gpu
from retinastream.cli.build_progress import BuildDisplay
from retinastream.cli.picture_progress import PictureProgress
from retinastream.engines.cache.durable import write_durably
from retinastream.engines.cache.store import EngineCache
from retinastream.engines.engine_store import Gate, obtain_engine
from retinastream.engines.precision_graph import (
    PRECISIONS,
    PrecisionGraph,
    describe_graph,
    kept_int8_path,
    make_graphs_dir,
    precision_graph,
)
from retinastream.engines.tensorrt.machine import machine_of
from retinastream.engines.tensorrt.options import (
    BuildOptions,
    ShapeProfile,
    check_fits,
    parse_profile,
    profile_for,
    profiles_for,
)
from retinastream.errors import UsageError
from retinastream.models.onnx_file import OnnxModel, read_onnx
from retinastream.models.spec_registry import read_spec
from retinastream.models.zoo import resolve_model

if TYPE_CHECKING:
    from retinastream.engines.cache.entry import Entry

Shapes = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]


@dataclass(frozen=True)
class Request:
    """The options of the command; ``sizes`` are (width, height), ``shapes`` those of trtexec's three options.

    ``precision`` None leaves the choice to the file.
    """

    model: str
    spec: str | None
    precision: str | None
    sizes: tuple[tuple[int, int], ...]
    batches: tuple[int, ...]
    shapes: Shapes
    options: BuildOptions
    device: str
    timing_cache: Path | None
    calibration: tuple[str, ...]
    force: bool
    check: str | None
    images: Path | None
    accept_loss: bool
    rebuild: bool


def run(request: Request, *, as_json: bool, quiet: bool) -> None:
    """Build and say what came of it; raises what building raises."""
    _check_together(request)
    model = resolve_model(request.model, spec=read_spec(request.spec) if request.spec else None)
    precision = request.precision or _precision_of(model, is_calibrated=bool(request.calibration))
    options = replace(request.options, profiles=_profiles(request, model))
    times = _read_timings(request.timing_cache)
    # Before the calibration and the check, which may take long, where the GPU would be missing after them.
    device = engine_gpu.open_gpu(request.device)
    machine, _ = machine_of(device)
    graph = _graph(request, model, precision, quiet=quiet)
    cache = EngineCache()
    # An engine that was not checked does not answer for one that was.
    is_checked = request.check is not None and not request.rebuild and _was_checked(cache, graph, options, device)
    gate = Gate() if is_checked else _gate(request, model, graph, quiet=quiet)
    what = f"{model.name} {graph.precision}, {', '.join(map(str, options.profiles))}"
    with BuildDisplay(what, quiet=quiet) as display:
        obtained = obtain_engine(
            graph,
            options,
            device,
            cache=cache,
            rebuild=request.rebuild or (request.check is not None and not is_checked),
            gate=gate,
            timing_cache=times,
            on_progress=display,
            on_wait=lambda text: typer.echo(text, err=True),
        )
    obtained.engine.close()
    if request.timing_cache is not None and obtained.built:
        _write_timings(request.timing_cache, cache.read_timing_cache(machine))
    if not quiet:
        for remark in obtained.remarks:
            typer.echo(remark, err=True)
    _show(obtained.entry, built=obtained.built, as_json=as_json, quiet=quiet)


def _check_together(request: Request) -> None:
    """Refuse options that do not go together, before anything is read."""
    if request.precision not in (None, *PRECISIONS):
        raise UsageError(
            f"precision {request.precision!r} is not available on tensorrt; allowed are {', '.join(PRECISIONS)}"
        )
    low, best, high = request.shapes
    if any(request.shapes) and request.sizes:
        raise UsageError("--shape was given together with --minShapes, --optShapes or --maxShapes; use one of the ways")
    if any(request.shapes) and not len(low) == len(best) == len(high):
        raise UsageError(
            f"{len(low)} --minShapes, {len(best)} --optShapes and {len(high)} --maxShapes were given; expected as many "
            "of each"
        )
    if request.calibration and request.precision not in (None, "int8"):
        raise UsageError(f"--calibration is for --precision int8, and {request.precision} was asked for")
    if request.force and not request.calibration:
        raise UsageError(
            "--force is about calibration pictures, and no --calibration was given; to build an engine "
            "anew use --rebuild"
        )
    if request.check is None and (request.accept_loss or request.images is not None):
        raise UsageError("--accept-loss and --images go with --check; give the set to check on")


def _profiles(request: Request, model: OnnxModel) -> tuple[ShapeProfile, ...]:
    if any(request.shapes):
        triples = zip(*request.shapes, strict=True)
        profiles = tuple(parse_profile(*triple, model.input_name) for triple in triples)
        for profile in profiles:
            check_fits(model, profile)
        return profiles
    if request.sizes:
        return profiles_for(model, request.sizes, request.batches)
    batch, _, height, width = model.input_shape
    if batch is not None and height is not None and width is not None:
        return (profile_for(height, width, (batch,)),)
    raise UsageError(
        f"{model.name} takes pictures of any size, and none was given: use --shape 3840x2160 --batch 1,8,16"
    )


def _precision_of(model: OnnxModel, *, is_calibrated: bool) -> str:
    """Choose where none was asked for: what the file has, which cannot be changed, else by what else was given."""
    if model.precision != "f32":
        return model.precision
    return "int8" if is_calibrated else "fp16"


def _graph(request: Request, model: OnnxModel, precision: str, *, quiet: bool) -> PrecisionGraph:
    if precision == "int8" and model.precision == "f32" and request.calibration:
        return _quantised(request, model, quiet=quiet)
    if request.calibration:
        raise UsageError(f"{model.path} is {model.precision} already; leave --calibration out")
    return precision_graph(model, precision)


def _quantised(request: Request, model: OnnxModel, *, quiet: bool) -> PrecisionGraph:
    """Calibrate and keep the graph beside the engines, under what it was made of."""
    from retinastream.engines.precision.quantise import quantise
    from retinastream.pipeline.calibration_frames import CalibrationFrames

    make_graphs_dir()
    part = kept_int8_path(model, f"part{os.getpid()}")
    if not quiet:
        typer.echo(f"calibrating {model.name} with pictures of {', '.join(request.calibration)}", err=True)
    with PictureProgress("calibrating", quiet=quiet) as shown:
        frames = CalibrationFrames(request.calibration, model, progress=shown)
        made = quantise(model.path, part, frames, outside="round", force=request.force, overwrite=True, spec=model.spec)
    target = kept_int8_path(model, made.calibration_sha256)
    part.replace(target)
    return describe_graph(read_onnx(target, name=model.name))


def _gate(request: Request, model: OnnxModel, graph: PrecisionGraph, *, quiet: bool) -> Gate:
    """Compare the graph with the float32 model where that was asked for; stops the command where it loses too much."""
    if request.check is None:
        return Gate()
    if graph.model.path == model.path:
        raise UsageError(
            f"--check compares a lower precision with {model.path}, and the engine is built from that itself"
        )
    from retinastream.cli.engine_tables import print_check
    from retinastream.evaluation.check_sets import open_check_set
    from retinastream.evaluation.precision_check import check_precision

    chosen = open_check_set(request.check, images=request.images)
    with PictureProgress("checking", quiet=quiet) as shown:
        report = check_precision(
            model.path, graph.model.path, chosen, spec=model.spec, progress=lambda _, done, total: shown(done, total)
        )
    facts: dict[str, Any] = json.loads(json.dumps(report.to_dict()))
    if report.passed:
        return Gate(facts)
    losses = "; ".join(f"{loss.measure} {loss.points:.2f} of {loss.limit:g} points" for loss in report.losses)
    if not request.accept_loss:
        if not quiet:
            print_check(report)
        typer.echo(
            f"error: {graph.precision} loses too much on {request.check} ({losses}); nothing was built. Leave layers "
            "in a higher precision (`retinastream engine quantize --auto`), or accept it with --accept-loss",
            err=True,
        )
        raise typer.Exit(1)
    return Gate(facts, f"accepted with --accept-loss on {request.check}: {losses}")


def _was_checked(cache: EngineCache, graph: PrecisionGraph, options: BuildOptions, device: Any) -> bool:
    from retinastream.engines.cache.match import Found
    from retinastream.engines.engine_store import engine_key

    found = cache.find(engine_key(graph, options, machine_of(device)[0]))
    return isinstance(found, Found) and found.entry.sidecar.build.accuracy is not None


def _read_timings(path: Path | None) -> bytes:
    if path is None or not path.exists():
        return b""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"the timing cache {path} cannot be read: {error.strerror}") from error


def _write_timings(path: Path, data: bytes) -> None:
    write_durably(path, data, "give another file with --timing-cache")


def _show(entry: Entry, *, built: bool, as_json: bool, quiet: bool) -> None:
    if as_json:
        facts = {"path": str(entry.plan_path), "digest": entry.digest, "built": built}
        typer.echo(json.dumps({**facts, "sidecar": entry.sidecar.model_dump(mode="json")}))
        return
    if not quiet:
        verb = f"built in {entry.sidecar.build.build_seconds:.1f} s" if built else "found; nothing to build"
        typer.echo(f"{entry}: {verb}, {entry.sidecar.plan_size / 1e6:.1f} MB", err=True)
    typer.echo(str(entry.plan_path))
