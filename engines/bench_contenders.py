"""What is measured against what: runtimes and precisions, each with an engine of its own, one after the other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from retinastream.engines.bench import BenchResult, BenchSettings, NothingMeasuredError
from retinastream.engines.engine import EngineInfo
from retinastream.models.onnx_file import OnnxModel


@dataclass(frozen=True, slots=True)
class Contender:
    """A runtime, and a precision where it is not to be the runtime's own choice."""

    runtime: str
    precision: str | None = None

    @classmethod
    def parse(cls, text: str, precision: str | None = None) -> Contender:
        """Read "tensorrt" or "tensorrt:int8"; ``precision`` is for those that name none."""
        runtime, _, given = text.partition(":")
        return cls(runtime, given or precision)


def run_contenders(
    model: OnnxModel,
    contenders: Sequence[Contender],
    settings: BenchSettings,
    *,
    device: str = "auto",
    threads: int = 0,
    stop: threading.Event | None = None,
    on_start: Callable[[EngineInfo], None] | None = None,
) -> Iterator[BenchResult]:
    """Measure each contender on ``device`` ("auto", "cpu", "cuda", "cuda:N"); yields each result when it is there.

    Only one engine exists at a time, so that none takes memory from another. ``on_start`` is told what runs. Once
    ``stop`` is set, what has been measured is yielded and nothing more begins. Raises what choosing, building and
    running an engine raise.
    """
    stop = stop or threading.Event()
    for contender in contenders:
        if stop.is_set():
            return
        try:
            result = _run(model, contender, settings, device, threads, stop, on_start or (lambda _: None))
        except NothingMeasuredError:
            return
        yield result


def _run(
    model: OnnxModel,
    contender: Contender,
    settings: BenchSettings,
    device: str,
    threads: int,
    stop: threading.Event,
    on_start: Callable[[EngineInfo], None],
) -> BenchResult:
    from retinastream.engines.select import choose_device

    choice = choose_device(device, runtime=contender.runtime)
    if choice.kind == "cuda":
        return _run_on_gpu(model, contender, settings, choice.index, choice.reason, stop, on_start)
    from retinastream.engines.bench_cpu import bench_engine
    from retinastream.engines.select import create_engine

    engine = create_engine(
        model,
        runtime=contender.runtime,
        precision=contender.precision,
        threads=threads,
        streams=settings.streams,
        reason=choice.reason,
    )
    try:
        on_start(engine.info)
        return bench_engine(engine, settings, stop=stop)
    finally:
        engine.close()


def _run_on_gpu(
    model: OnnxModel,
    contender: Contender,
    settings: BenchSettings,
    index: int,
    reason: str,
    stop: threading.Event,
    on_start: Callable[[EngineInfo], None],
) -> BenchResult:
    from retinastream.engines.bench_device import bench_device_engine
    from retinastream.engines.select import create_device_engine
    from retinastream.kernels.cupy_device import CuPyDevice

    device = CuPyDevice(index)
    with device.current():
        engine = create_device_engine(
            model,
            device,
            runtime=contender.runtime,
            precision=contender.precision,
            batch=settings.batch,
            reason=reason,
        )
        try:
            on_start(engine.info)
            return bench_device_engine(engine, settings, stop=stop)
        finally:
            engine.close()
