"""From a model to a TensorRT engine that runs on this machine: found in the cache, or built now and kept there."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import JsonValue

from retinastream.engines.cache.entry import Entry
from retinastream.engines.cache.key import EngineKey, Machine, ShapeRange
from retinastream.engines.cache.obtain import Obtained, obtain
from retinastream.engines.cache.sidecar import BuildRecord, TensorFacts
from retinastream.engines.cache.store import Build, EngineCache
from retinastream.engines.precision_graph import PrecisionGraph, precision_graph
from retinastream.engines.tensorrt.build import BuiltPlan, OnProgress, build_plan
from retinastream.engines.tensorrt.loaded_plan import LoadedPlan, load_plan
from retinastream.engines.tensorrt.machine import machine_of
from retinastream.engines.tensorrt.options import BuildOptions, profile_for
from retinastream.kernels.device import Device
from retinastream.models.onnx_file import OnnxModel

_KEPT_LOG_LINES = 40
# A plan holds the weights once or twice and little else; room for that and the sidecar.
_ROOM_PER_BYTE, _LEAST_ROOM = 4, 32 << 20


@dataclass(frozen=True)
class Gate:
    """What an accuracy check said about the graph: its report, and the loss that was accepted, if one was."""

    accuracy: dict[str, JsonValue] | None = None
    accepted_loss: str | None = None


def obtain_engine(
    graph: PrecisionGraph,
    options: BuildOptions,
    device: Device,
    *,
    cache: EngineCache | None = None,
    may_build: bool = True,
    rebuild: bool = False,
    gate: Gate | None = None,
    notes: dict[str, JsonValue] | None = None,
    timing_cache: bytes = b"",
    on_progress: OnProgress | None = None,
    on_wait: Callable[[str], None] | None = None,
    stop: threading.Event | None = None,
) -> Obtained[LoadedPlan]:
    """Load the engine of a graph with these options, building it where that is needed and allowed.

    ``notes`` go into the sidecar. ``timing_cache`` is used instead of the one in the cache of engines. See
    ``build_plan`` and ``cache.obtain`` for the others and for what is raised.
    """
    store = cache or EngineCache()
    machine, gpu = machine_of(device)
    key = engine_key(graph, options, machine)

    def build(_: Build) -> tuple[bytes, BuildRecord]:
        times = timing_cache or store.read_timing_cache(machine)
        built = build_plan(graph.model.path, options, device, on_progress, timing_cache=times, stop=stop)
        if built.timing_cache:
            store.write_timing_cache(machine, built.timing_cache)
        return built.plan, _record(graph, built, gate or Gate(), notes or {})

    room = max(_LEAST_ROOM, _ROOM_PER_BYTE * graph.model.path.stat().st_size)
    with device.current():
        return obtain(
            store,
            key,
            load=_load,
            build=build,
            may_build=may_build,
            rebuild=rebuild,
            gpu=gpu,
            room=room,
            on_wait=on_wait,
            stop=stop,
        )


def ensure_engine(
    model: OnnxModel,
    precision: str,
    sizes: Sequence[tuple[int, int]],
    device: Device,
    *,
    batches: Sequence[int] = (1,),
    options: BuildOptions | None = None,
    on_progress: OnProgress | None = None,
    cache: EngineCache | None = None,
) -> Path:
    """Return the plan for inputs of ``sizes`` (width, height), building it where it is missing."""
    profiles = tuple(profile_for(height, width, batches) for width, height in sizes)
    graph = precision_graph(model, precision)
    wanted = replace(options or BuildOptions(), profiles=profiles)
    obtained = obtain_engine(graph, wanted, device, cache=cache, on_progress=on_progress)
    obtained.engine.close()
    return obtained.entry.plan_path


def engine_key(graph: PrecisionGraph, options: BuildOptions, machine: Machine) -> EngineKey:
    """Return the key under which an engine is kept."""
    name = graph.model.input_name
    profiles = tuple(
        {name: ShapeRange(minimum=p.minimum, optimum=p.optimum, maximum=p.maximum)} for p in options.profiles
    )
    builder = options.builder_values()
    compatibility = builder.pop("hardware_compatibility")
    return EngineKey(
        onnx_sha256=graph.model.sha256,
        precision=graph.precision,
        recipe=graph.recipe,
        calibration_sha256=graph.calibration_sha256,
        profiles=profiles,
        builder=builder,
        hardware_compatibility=compatibility,
        machine=machine,
    )


def _load(plan: bytes, entry: Entry) -> LoadedPlan:
    return load_plan(plan, version_compatible=entry.sidecar.key.builder.get("version_compatible") is True)


def _record(graph: PrecisionGraph, built: BuiltPlan, gate: Gate, notes: dict[str, JsonValue]) -> BuildRecord:
    return BuildRecord(
        model=graph.model.name,
        build_seconds=round(built.seconds, 3),
        tensors=tuple(
            TensorFacts(
                name=tensor.name,
                mode=tensor.mode,
                dtype=tensor.dtype,
                shape=tensor.shape,
                profiles=tuple(ShapeRange(minimum=a, optimum=b, maximum=c) for a, b, c in tensor.profiles),
            )
            for tensor in built.tensors
        ),
        log_tail=built.log[-_KEPT_LOG_LINES:],
        accuracy=gate.accuracy,
        accepted_loss=gate.accepted_loss,
        notes={**notes, "scratch_bytes": built.scratch_bytes, "layers": json.loads(json.dumps(built.layers))},
    )
