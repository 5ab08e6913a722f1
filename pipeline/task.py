"""One input from its file to its outputs; whatever fails is in its report."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import retinastream
from retinastream.errors import InputError, RetinastreamError
from retinastream.pipeline.batches import in_batches
from retinastream.pipeline.detector import Detector, is_video
from retinastream.pipeline.discover import Input
from retinastream.pipeline.report import InputReport, RunReport
from retinastream.pipeline.sinks.plan import open_sinks
from retinastream.pipeline.sinks.sink import RunHeader, Sink
from retinastream.pipeline.source import Selection, Source
from retinastream.pipeline.stages import Pipeline, Stage
from retinastream.settings import DetectSettings
from retinastream.types import Faces, Frame


class Observer(Protocol):
    """Whoever shows a run to a person; called from the thread that runs it."""

    def run_started(self, report: RunReport) -> None:
        """Say what will run; ``report.detector`` is filled."""

    def input_started(self, report: InputReport) -> None:
        """Say that an input was opened."""

    def progressed(self, report: InputReport) -> None:
        """Say that more frames of an input are written."""

    def input_ended(self, report: InputReport) -> None:
        """Say what came of an input."""


@dataclass(frozen=True, slots=True)
class Task:
    """An input with the outputs planned for it."""

    entry: Input
    outputs: list[Path]
    report: InputReport


@dataclass(frozen=True, slots=True)
class Context:
    """What all inputs of a run share."""

    settings: DetectSettings
    detector: Detector
    observer: Observer
    stop: threading.Event


def describe(detector: Detector) -> dict[str, Any]:
    """What runs, as plain values: for the start message, the summary and the headers of outputs."""
    info = detector.info
    return {
        "tool_version": retinastream.__version__,
        "model": detector.model.name,
        "model_path": str(detector.model.path),
        "model_sha256": detector.model.sha256,
        "runtime": info.runtime,
        "runtime_version": info.runtime_version,
        "runtime_reason": info.reason,
        "device": info.device,
        "device_name": info.device_name,
        "precision": info.precision,
        "threads": info.threads,
        "streams": info.streams,
        "size_policy": str(detector.size),
        "threshold": detector.threshold,
        "iou": detector.iou,
        "max_faces": detector.max_faces,
        **detector.execution,
    }


def run_task(task: Task, context: Context) -> None:
    """Process one input; never raises what concerns this input alone."""
    report = task.report
    began = time.perf_counter()
    report.status = "running"
    try:
        _process(task, context)
        report.status = "interrupted" if context.stop.is_set() else "done"
    except RetinastreamError as error:
        report.status, report.error = "failed", error
    except MemoryError:
        report.status = "failed"
        report.error = InputError(
            f"{report.name}: not enough memory at size {context.detector.size}; choose a smaller one: --size fit:1920"
        )
    report.seconds = time.perf_counter() - began
    context.observer.input_ended(report)


def _process(task: Task, context: Context) -> None:
    report, entry, settings = task.report, task.entry, context.settings
    chosen = Selection(settings.start, settings.end, settings.stride, settings.max_frames)
    with entry.open(
        start=chosen.start,
        end=chosen.end,
        stride=chosen.stride,
        max_frames=chosen.max_frames,
        threads=settings.decode_threads,
    ) as source:
        report.promised = source.info.promised_frames
        report.warnings, report.failures = source.warnings, source.failures
        sinks = open_sinks(
            task.outputs,
            _header(source, context.detector),
            overwrite=settings.overwrite,
            source_path=source.path,
            inputs=entry.paths,
            selection=chosen,
        )
        report.outputs = [str(sink.path) for sink in sinks]
        context.observer.input_started(report)
        try:
            _stream(source, sinks, report, context)
        except BaseException as error:
            _finish_sinks(sinks, report, complete=False, cause=error)
            raise
        else:
            _finish_sinks(sinks, report, complete=not context.stop.is_set(), cause=None)
        finally:
            report.warnings = [*source.warnings, *(line for sink in sinks for line in sink.warnings)]


def _stream(source: Source, sinks: Sequence[Sink], report: InputReport, context: Context) -> None:
    """Run one source through the detector and the sinks; counts go to the report as they happen."""
    detector = context.detector
    keep = any(sink.needs_frame for sink in sinks)
    *before, last = detector.stages(keep_frames=keep, steady=is_video(source))
    stages = [*before, _counted(last, report), *map(_write_stage, sinks)]
    frames = in_batches(_until(source, context.stop), detector.batch)
    pipeline = Pipeline(frames, stages, source_name="decode")
    report.stats = pipeline.stats
    try:
        with pipeline:
            for _, faces in pipeline:
                report.written += len(faces)
                report.faces += sum(len(f) for f in faces)
                report.source = source.counts
                context.observer.progressed(report)
    finally:
        report.source = source.counts


def _counted(stage: Stage, report: InputReport) -> Stage:
    """Count the frames that leave the detector: on a failure, more of them than reach the last output."""

    def work(item: Any) -> Any:
        result = stage.work(item)
        report.detected += len(result[1])
        return result

    return replace(stage, work=work)


def _write_stage(sink: Sink) -> Stage:
    def write(item: tuple[Sequence[Frame], list[Faces]]) -> tuple[Sequence[Frame], list[Faces]]:
        frames, faces = item
        for position, found in enumerate(faces):
            sink.write(found, frames[position] if frames else None)
        return item

    name = "".join(Path(sink.path.name).suffixes[-1:]).lstrip(".") or "output"
    return Stage(f"write {name}", write)


def _until(frames: Iterable[Frame], stop: threading.Event) -> Iterator[Frame]:
    """Pass frames on until ``stop`` is set; what was passed on before is finished by everybody behind."""
    items = iter(frames)
    try:
        while not stop.is_set():
            frame = next(items, None)
            if frame is None:
                return
            yield frame
            del frame
    finally:
        close = getattr(items, "close", None)
        if close is not None:
            close()


def _finish_sinks(sinks: Sequence[Sink], report: InputReport, *, complete: bool, cause: BaseException | None) -> None:
    """Give every output its name; the first that cannot be closed raises, after the others were closed."""
    first: RetinastreamError | None = None
    for sink in sinks:
        try:
            sink.close(complete=complete, summary=report.counts())
        except RetinastreamError as error:
            sink.abort()
            first = first or error
    if first is not None and cause is None:
        raise first


def _header(source: Source, detector: Detector) -> RunHeader:
    info, facts = source.info, describe(detector)
    shared = ("model", "model_sha256", "runtime", "runtime_version", "precision", "device", "size_policy")
    return RunHeader(
        source=info.name,
        kind=info.kind,
        width=info.width,
        height=info.height,
        fps=info.fps,
        decoder=info.decoder,
        tool_version=retinastream.__version__,
        threshold=detector.threshold,
        iou=detector.iou,
        max_faces=detector.max_faces,
        **{name: facts[name] for name in shared},
    )
