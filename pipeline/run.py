"""The runner: inputs in, outputs and a report out; one failing input never costs another."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from retinastream.errors import RetinastreamError
from retinastream.models.spec_registry import read_spec
from retinastream.pipeline.detector import Detector
from retinastream.pipeline.discover import Input, discover, output_stems
from retinastream.pipeline.report import InputReport, RunReport
from retinastream.pipeline.sinks.plan import check_outputs, plan_outputs
from retinastream.pipeline.task import Context, Observer, Task, describe, run_task
from retinastream.settings import DetectSettings


def run(
    settings: DetectSettings, arguments: Sequence[str], observer: Observer, stop: threading.Event | None = None
) -> RunReport:
    """Detect faces in everything that ``arguments`` name and write the outputs that ``settings`` ask for.

    Setting ``stop`` finishes what is in flight, closes the outputs and returns. Problems of single inputs are in the
    report; what concerns all of them (the model, the device, a setting) raises.
    """
    began = time.perf_counter()
    stop = stop or threading.Event()
    report = RunReport()
    tasks = _plan(settings, arguments, report, observer)
    if tasks:
        detector = make_detector(settings)
        with detector:
            report.detector = describe(detector)
            observer.run_started(report)
            context = Context(settings, detector, observer, stop)
            for task in tasks:
                if stop.is_set():
                    task.report.status = "interrupted"
                else:
                    run_task(task, context)
            report.detector = describe(detector)  # a GPU may have refused a graph or a batch meanwhile
    report.interrupted = stop.is_set()
    report.seconds = time.perf_counter() - began
    return report


def make_detector(settings: DetectSettings) -> Detector:
    """Build the detector that the settings describe; raises as ``Detector`` does."""
    return Detector(
        settings.model,
        threshold=settings.threshold,
        iou=settings.iou,
        size=settings.size,
        device=settings.device,
        require=settings.require,
        runtime=settings.runtime,
        precision=settings.precision,
        max_faces=settings.max_faces,
        threads=settings.threads,
        streams=settings.streams,
        batch=settings.batch,
        plus_one=settings.classic_nms,
        clip=settings.clip,
        spec=read_spec(settings.spec) if settings.spec else None,
        cuda_graph=settings.cuda_graph,
        torch_compile=settings.torch_compile,
    )


def _plan(settings: DetectSettings, arguments: Sequence[str], report: RunReport, observer: Observer) -> list[Task]:
    """Find the inputs and check their outputs; what cannot run is reported at once."""
    found = discover(arguments, recursive=settings.recursive)
    report.notes = found.notes
    for name, error in found.failures:
        failed = InputReport(name, status="failed", error=error)
        report.inputs.append(failed)
        observer.input_ended(failed)
    read = [path for entry in found.inputs for path in entry.paths]
    read += [Path(settings.model)] if os.path.exists(settings.model) else []  # noqa: PTH110 - may be a zoo name
    tasks = []
    for entry, stem in zip(found.inputs, output_stems(found.inputs), strict=True):
        outcome = InputReport(_display_name(entry), entry.kind)
        report.inputs.append(outcome)
        outputs = plan_outputs(stem, settings.output, settings.format, settings.annotate, entry.kind)
        try:
            check_outputs(outputs, read, overwrite=settings.overwrite)
        except RetinastreamError as error:
            outcome.status, outcome.error = "failed", error
            observer.input_ended(outcome)
            continue
        tasks.append(Task(entry, outputs, outcome))
    return tasks


def _display_name(entry: Input) -> str:
    if len(entry.paths) == 1:
        return str(entry.paths[0])
    return f"{entry.paths[0].parent} ({len(entry.paths)} pictures)"
