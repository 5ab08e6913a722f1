"""``retinastream engine bench``: how fast a model runs here, and which runtime is the fastest."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from retinastream.engines.bench import BenchResult, BenchSettings
    from retinastream.engines.engine import EngineInfo
    from retinastream.models.onnx_file import OnnxModel

_INTERRUPTED = 130
# The order and the words of trtexec's summary.
_TIMES = (
    ("latency", "Latency"),
    ("enqueue", "Enqueue Time"),
    ("copy_in", "H2D Latency"),
    ("compute", "GPU Compute Time"),
    ("copy_out", "D2H Latency"),
)


def bench(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A zoo name, an .onnx file, or a checkpoint.")
    ] = "mnet025",
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RUNTIME[:PRECISION]",
            help="auto | openvino | onnxruntime | torch | tensorrt, as in tensorrt:int8; repeated, they are compared.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto | cpu | cuda | cuda:N.")] = "auto",
    precision: Annotated[str | None, typer.Option(help="For runtimes that are given without one.")] = None,
    shape: Annotated[str, typer.Option(metavar="WxH", help="Size of the pictures in pixels.")] = "1280x720",
    batch: Annotated[int, typer.Option(help="Pictures per query.")] = 1,
    streams: Annotated[int, typer.Option("--streams", "--infStreams", help="Queries in flight.")] = 1,
    threads: Annotated[int, typer.Option(help="Processors for a runtime on the CPU; 0: all that are usable.")] = 0,
    warm_up: Annotated[
        float, typer.Option("--warm-up", "--warmUp", metavar="MS", help="Time that does not count.")
    ] = 200,
    duration: Annotated[float, typer.Option(metavar="S", help="Measure at least so long.")] = 3,
    iterations: Annotated[int, typer.Option(help="Measure at least so many queries.")] = 10,
    cuda_graph: Annotated[
        bool, typer.Option("--cuda-graph/--no-cuda-graph", " /--noCudaGraph", help="Launch as a CUDA graph (GPU).")
    ] = True,
    transfers: Annotated[
        bool, typer.Option("--transfers", "--includeDataTransfers", help="Copy input and outputs, too (GPU).")
    ] = False,
    spec: Annotated[str | None, typer.Option(help="A spec name or file, for files that do not say theirs.")] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the figures as JSON.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a report that exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of lines.")] = False,
) -> None:
    """Time the network alone, without decoding, preprocessing and NMS, with the terms of trtexec.

    A query is one run on one batch. Several runtimes run one after the other, and the first is what the others are
    compared with. Where one cannot run, the figures of those before it are still written.
    """
    from retinastream.cli.interrupts import Interrupts
    from retinastream.engines.bench_contenders import Contender, run_contenders
    from retinastream.models.spec_registry import read_spec
    from retinastream.models.zoo import resolve_model

    if report is not None:
        from retinastream.pipeline.sinks.part_file import check_target

        check_target(report, overwrite=overwrite)
    found = resolve_model(model, spec=None if spec is None else read_spec(spec))
    width, height = _padded(shape, found)
    settings = _settings(batch, height, width, warm_up, duration, iterations, streams, cuda_graph, transfers)
    contenders = [Contender.parse(text, precision) for text in runtime or ["auto"]]
    results: list[BenchResult] = []
    try:
        with Interrupts("printing what was measured") as interrupts:
            for result in run_contenders(
                found, contenders, settings, device=device, threads=threads, stop=interrupts.stop, on_start=_say_start
            ):
                results.append(result)
                if not as_json:
                    _print_result(result)
    finally:
        _finish(results, found, shape, report, overwrite=overwrite, as_json=as_json)
    if interrupts.signal is not None:
        raise typer.Exit(_INTERRUPTED)


def _padded(shape: str, model: OnnxModel) -> tuple[int, int]:
    """Read the size of a picture and return that of the network's input for it."""
    from retinastream.errors import UsageError

    match = re.fullmatch(r"(\d{1,5})[xX](\d{1,5})", shape)
    if match is None or min(int(match[1]), int(match[2])) < 1:
        raise UsageError(f"shape {shape!r} is not understood; expected WIDTHxHEIGHT, like 3840x2160")
    multiple = model.spec.max_stride
    width, height = (-(-int(side) // multiple) * multiple for side in match.groups())
    return width, height


def _settings(
    batch: int,
    height: int,
    width: int,
    warm_up: float,
    duration: float,
    iterations: int,
    streams: int,
    cuda_graph: bool,
    transfers: bool,
) -> BenchSettings:
    from retinastream.engines.bench import BenchSettings

    return BenchSettings(
        batch,
        height,
        width,
        warm_up=warm_up,
        duration=duration,
        iterations=iterations,
        streams=streams,
        cuda_graph=cuda_graph,
        transfers=transfers,
    )


def _say_start(info: EngineInfo) -> None:
    name = f"{info.runtime} {info.runtime_version}, {info.precision}, on {info.device} ({info.device_name})"
    typer.echo(f"measuring {name}: {info.reason}", err=True)


def _print_result(result: BenchResult) -> None:
    settings = result.settings
    typer.echo(f"=== {result.label}, batch {settings.batch}, {settings.width}x{settings.height}, {_manner(result)} ===")
    typer.echo(
        f"Throughput: {result.throughput:.2f} qps ({result.throughput * settings.batch:.2f} pictures/s, "
        f"{result.iterations} queries)"
    )
    for name, label in _TIMES:
        if name in result.times:
            typer.echo(f"{label}: {result.times[name]}")
    typer.echo(f"Total Host Walltime: {result.seconds:.3f} s")
    if result.compute_seconds is not None:
        typer.echo(f"Total GPU Compute Time: {result.compute_seconds:.3f} s")
    for note in result.notes:
        typer.echo(f"note: {note}")


def _manner(result: BenchResult) -> str:
    streams = _counted(result.settings.streams, "stream")
    if result.cuda_graph is None:
        return f"{streams}, {_counted(result.info.threads, 'thread')}"
    return f"{streams}, {'with' if result.cuda_graph else 'without'} CUDA graph"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _print_ratios(results: list[BenchResult]) -> None:
    first = results[0]
    typer.echo(f"=== throughput in relation to {first.label} ===")
    width = max(len(result.label) for result in results)
    for result in results:
        ratio = result.throughput / first.throughput
        typer.echo(f"{result.label:<{width}}  {ratio:.2f}x  {result.throughput:.2f} qps")


def _finish(
    results: list[BenchResult], model: OnnxModel, shape: str, report: Path | None, *, overwrite: bool, as_json: bool
) -> None:
    """Compare what was measured, and write it down; nothing where there is nothing."""
    if not results:
        return
    content = {
        "model": model.name,
        "model_sha256": model.sha256,
        "picture": shape.lower(),
        "results": [
            {**result.to_dict(), "ratio": round(result.throughput / results[0].throughput, 4)} for result in results
        ],
    }
    if report is not None:
        from retinastream.cli.eval_output import write_json

        write_json(report, content, overwrite=overwrite)
    if as_json:
        typer.echo(json.dumps(content))
    elif len(results) > 1:
        _print_ratios(results)
