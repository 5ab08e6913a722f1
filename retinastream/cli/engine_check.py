"""``retinastream engine check``: what a model of lower precision loses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def check(
    reference: Annotated[str, typer.Argument(metavar="REFERENCE", help="The float32 model: zoo name, .onnx, .pth.")],
    candidate: Annotated[Path, typer.Argument(metavar="CANDIDATE", help="The .onnx file that was made from it.")],
    on: Annotated[
        str, typer.Option("--on", metavar="LABELS|FOLDER|VIDEO", help="Labels; or pictures or a video without.")
    ],
    images: Annotated[Path | None, typer.Option(help="Folder of the pictures that are labelled.")] = None,
    label_format: Annotated[
        str, typer.Option("--format", help="Format of the labels: auto | boxes | pack | coco | voc | wider.")
    ] = "auto",
    missing_limit: Annotated[
        float, typer.Option(min=0, max=1, help="Share of labelled pictures that may be missing or damaged.")
    ] = 0.0,
    size: Annotated[str, typer.Option("--size", "-s", help="Size policy for both.")] = "native",
    limit: Annotated[
        float | None, typer.Option(help="Points of AP that may be lost; default 0.1 for fp16, 1.0 for int8.")
    ] = None,
    limit_hard: Annotated[
        float | None, typer.Option(help="The same of WIDER FACE hard; default 0.1 for fp16, 1.5 for int8.")
    ] = None,
    max_frames: Annotated[int | None, typer.Option(min=1, help="Stop after this many frames of a video.")] = None,
    spec: Annotated[str | None, typer.Option(help="Spec name or file for an ONNX that does not say its own.")] = None,
    device: Annotated[
        str, typer.Option(help="cpu: the file as its precision computes | cuda | cuda:N: its TensorRT engine there.")
    ] = "cpu",
    threads: Annotated[int, typer.Option(min=0, help="Processors to use; 0: all.")] = 0,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the result as JSON.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a report that exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the result and errors only.")] = False,
) -> None:
    """Run both models over the same pictures and compare what they find. Exit code 1 above the limit.

    Labels of WIDER FACE are a folder with its .mat files, with --images. Without labels, the faces that REFERENCE finds
    are the truth. Both run on ONNX Runtime on the CPU; with --device cuda CANDIDATE runs as the engine that TensorRT
    makes of it, which is built where there is none.
    """
    from retinastream.cli.picture_progress import PictureProgress
    from retinastream.errors import UsageError
    from retinastream.evaluation.check_sets import open_check_set
    from retinastream.evaluation.precision_check import LIMITS, Limits, check_precision
    from retinastream.models.onnx_file import read_onnx
    from retinastream.models.spec_registry import read_spec
    from retinastream.pipeline.sinks.part_file import check_target

    if report is not None:
        check_target(report, overwrite=overwrite)
    detector_spec = read_spec(spec) if spec else None
    if device == "auto":
        raise UsageError("--device auto leaves open what is checked; give cpu, cuda or cuda:N")
    precision = read_onnx(candidate, spec=detector_spec).precision
    default = LIMITS.get(precision, LIMITS["fp16"])
    limits = Limits(default.ap if limit is None else limit, default.hard if limit_hard is None else limit_hard)
    chosen = open_check_set(on, images=images, label_format=label_format, missing_limit=missing_limit)
    with PictureProgress("checking", quiet=quiet) as shown:
        result = check_precision(
            reference, candidate, chosen, limits=limits, size=size, spec=detector_spec, device=device, threads=threads,
            max_frames=max_frames, progress=lambda _, done, total: shown(done, total),
        )  # fmt: skip
    if report is not None:
        from retinastream.cli.eval_output import write_json

        write_json(report, result.to_dict(), overwrite=overwrite)
    if as_json:
        typer.echo(json.dumps(result.to_dict(), allow_nan=False))
    else:
        from retinastream.cli.engine_tables import print_check

        print_check(result)
    if not result.passed:
        raise typer.Exit(1)
