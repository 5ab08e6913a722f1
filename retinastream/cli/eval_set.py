"""``retinastream eval set``: everything measured on a set of labelled pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retinastream.cli.eval_labels import read_labels
from retinastream.cli.eval_model import EvalModel, choose, describe, opened, takes_model
from retinastream.cli.eval_output import check_output, write_json

if TYPE_CHECKING:
    from retinastream.evaluation.labelled_set import LabelledSet
    from retinastream.evaluation.measures import Measures
    from retinastream.types import Faces

OUTPUTS = ("result.json", "curves.json", "precision_recall.png", "recall.png")
PREDICTIONS = "predictions.faces.jsonl"


@takes_model
def evaluate_set(
    labels: Annotated[Path, typer.Argument(metavar="LABELS", help="A label file, or a folder of Pascal VOC files.")],
    flags: dict[str, Any],
    images: Annotated[
        Path | None, typer.Option(help="Folder of the pictures; by default looked for beside the labels.")
    ] = None,
    label_format: Annotated[
        str, typer.Option("--format", help="Format of the labels: auto | boxes | pack | coco | voc | wider.")
    ] = "auto",
    missing_limit: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the pictures that may be missing or damaged.")
    ] = 0.0,
    predictions: Annotated[
        Path | None, typer.Option(help="Measure these instead of a model: .jsonl, or a folder of .txt files.")
    ] = None,
    score: Annotated[
        float, typer.Option(min=0, max=1, help="Score from which precision, recall and F1 are counted.")
    ] = 0.5,
    target_precision: Annotated[
        float, typer.Option(min=0, max=1, help="Precision whose score threshold is looked for.")
    ] = 0.95,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder for result, curves and predictions.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that exist.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the result and errors only.")] = False,
) -> None:
    """Measure a model, or predictions, on labelled pictures: AP, recall by face height, precision, landmarks."""
    from retinastream.evaluation.measures import measure

    chosen = choose(flags, predictions=predictions is not None)
    if output is not None:
        check_output(output, [*OUTPUTS, *([PREDICTIONS] if chosen else [])], overwrite=overwrite)
    truths = read_labels(labels, label_format, images, missing_limit if chosen else None, quiet=quiet)
    found, facts = _predict(chosen, truths, quiet=quiet) if chosen else _from_files(predictions, truths)
    measures = measure(found, truths, score_threshold=score, precision_target=target_precision)
    result = {"set": _describe_set(truths), "predictions_of": facts, **measures.to_dict()}
    if output is not None:
        _write(output, result, measures, truths.name, overwrite=overwrite)
        if chosen:
            _write_predictions(output / PREDICTIONS, found, truths, facts, overwrite=overwrite)
    if as_json:
        typer.echo(json.dumps(result, allow_nan=False))
        return
    from retinastream.cli.eval_tables import print_measures

    print_measures(measures, f"{truths.name}: {measures.counts.pictures} pictures")
    if output is not None and not quiet:
        typer.echo(f"-> {output}", err=True)


def _predict(chosen: EvalModel, truths: LabelledSet, *, quiet: bool) -> tuple[list[Faces], dict[str, Any]]:
    from retinastream.cli.picture_progress import PictureProgress
    from retinastream.evaluation.predict import predict

    with opened(chosen) as (detector, facts):
        if not quiet:
            typer.echo(describe(facts), err=True)
        with PictureProgress(truths.name, quiet=quiet) as progress:
            files = [picture.path for picture in truths.pictures]
            return predict(detector, files, batch=chosen.batch, progress=progress), facts


def _from_files(predictions: Path | None, truths: LabelledSet) -> tuple[list[Faces], dict[str, Any]]:
    from retinastream.evaluation.prediction_files import read_faces

    assert predictions is not None
    return read_faces(predictions, [p.name for p in truths.pictures]), {"predictions": str(predictions)}


def _describe_set(truths: LabelledSet) -> dict[str, Any]:
    return {"name": truths.name, "labels": str(truths.path), "format": truths.format, "sha256": truths.sha256}


def _write(folder: Path, result: dict[str, Any], measures: Measures, title: str, *, overwrite: bool) -> None:
    from retinastream.evaluation.curves import measure_curves, write_measure_curves

    write_json(folder / "result.json", result, overwrite=overwrite)
    write_json(folder / "curves.json", measure_curves(measures), overwrite=overwrite)
    write_measure_curves(folder, measures, title=title, overwrite=overwrite)


def _write_predictions(
    path: Path, found: list[Faces], truths: LabelledSet, facts: dict[str, Any], *, overwrite: bool
) -> None:
    from retinastream.evaluation.prediction_files import write_faces
    from retinastream.pipeline.sinks.sink import RunHeader

    same = ("model", "model_sha256", "runtime", "runtime_version", "precision", "device", "threshold", "iou")
    header = RunHeader(
        source=str(truths.path),
        kind="images",
        size_policy=facts["size"],
        max_faces=facts["max_faces"],
        tool_version=facts["tool_version"],
        **{name: facts[name] for name in same},
    )
    write_faces(path, found, [p.name for p in truths.pictures], header, overwrite=overwrite)
