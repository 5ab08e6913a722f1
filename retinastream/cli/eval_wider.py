"""``retinastream eval wider``: average precision on WIDER FACE val by the official protocol."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retinastream.cli.eval_model import EvalModel, choose, describe, opened, takes_model
from retinastream.cli.eval_output import check_output, check_predictions_folder, write_json
from retinastream.errors import UsageError

if TYPE_CHECKING:
    from retinastream.evaluation.wider_face import WiderFaceResult
    from retinastream.evaluation.wider_truth import Float64, GroundTruth

    Predictions = dict[str, dict[str, Float64]]

OUTPUTS = ("result.json", "curves.json", "precision_recall.png")
PREDICTIONS = "predictions"


@takes_model
def evaluate_wider(
    ground_truth: Annotated[
        Path, typer.Argument(metavar="GROUND_TRUTH", help="Folder of the four official .mat files.")
    ],
    flags: dict[str, Any],
    images: Annotated[
        Path | None, typer.Option(help="Folder of the pictures: <event>/<picture>.jpg, or all in one folder.")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Measure these instead of a model: a folder of <event>/<picture>.txt.")
    ] = None,
    only_present: Annotated[
        bool, typer.Option("--only-present", help="Measure on the pictures that are there; not comparable with others.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder for result, curves and predictions.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that exist.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the result, warnings and errors only.")] = False,
) -> None:
    """Measure a model, or predictions, on WIDER FACE val: average precision easy, medium and hard."""
    chosen = choose(flags, predictions=predictions is not None)
    if (images is None) == (chosen is not None):
        raise UsageError("--images is the folder that --model runs on; give both of them, or --predictions alone")
    from retinastream.evaluation.wider_face import evaluate
    from retinastream.evaluation.wider_truth import read_ground_truth

    if output is not None:
        check_output(output, OUTPUTS, overwrite=overwrite)
    whole = read_ground_truth(ground_truth)
    if chosen is not None and images is not None:
        files = _find(images, whole, only_present=only_present)
        if output is not None:
            names = [f"{event}/{picture}.txt" for event, picture in files]
            check_predictions_folder(output / PREDICTIONS, names, overwrite=overwrite)
        found, facts = _predict(chosen, files, quiet=quiet)
    else:
        found, facts = _from_files(predictions, whole, only_present=only_present)
    truth = whole.only([(event, p) for event in found for p in found[event]]) if only_present else whole
    result = evaluate(found, truth)
    summary = _summary(ground_truth, facts, result, truth, whole)
    if output is not None:
        _write(output, summary, result, found if chosen else None, overwrite=overwrite)
    _report(result, truth, whole, json.dumps(summary, allow_nan=False) if as_json else None)
    if output is not None and not quiet and not as_json:
        typer.echo(f"-> {output}", err=True)


def _find(images: Path, whole: GroundTruth, *, only_present: bool) -> dict[tuple[str, str], Path]:
    from retinastream.evaluation.wider_pictures import find_pictures, require_all

    files = find_pictures(images, whole)
    if not only_present:
        require_all(files, whole, images)
    return files


def _predict(
    chosen: EvalModel, files: dict[tuple[str, str], Path], *, quiet: bool
) -> tuple[Predictions, dict[str, Any]]:
    from retinastream.cli.picture_progress import PictureProgress
    from retinastream.evaluation.wider_pictures import WIDTH, predict_pictures

    with opened(chosen) as (detector, facts):
        if not quiet:
            typer.echo(describe(facts), err=True)
        with PictureProgress("WIDER FACE", quiet=quiet) as progress:
            found, other_widths = predict_pictures(detector, files, batch=chosen.batch, progress=progress)
    if other_widths:
        typer.echo(
            f"WARNING: {len(other_widths)} of {len(files)} pictures are not {WIDTH} pixels wide, as those of WIDER "
            f"FACE are (the first is {other_widths[0]}): the labels do not fit resized copies",
            err=True,
        )
    return found, facts


def _from_files(
    predictions: Path | None, whole: GroundTruth, *, only_present: bool
) -> tuple[Predictions, dict[str, Any]]:
    from retinastream.evaluation.wider_text import read_predictions

    assert predictions is not None
    found = read_predictions(predictions)
    files = sum(map(len, found.values()))
    if files < whole.pictures and not only_present:
        typer.echo(
            f"WARNING: {predictions} has predictions for {files} of the {whole.pictures} pictures; on the others "
            "nothing counts as found",
            err=True,
        )
    return found, {"predictions": str(predictions)}


def _summary(
    ground_truth: Path, facts: dict[str, Any], result: WiderFaceResult, truth: GroundTruth, whole: GroundTruth
) -> dict[str, Any]:
    from retinastream.evaluation.measures import finite

    summary: dict[str, Any] = finite(
        {
            "ground_truth": str(ground_truth),
            "predictions_of": facts,
            "ap": result.ap,
            "faces": {setting: truth.faces(setting) for setting in result.ap},
            "pictures": truth.pictures,
            "pictures_of_ground_truth": whole.pictures,
            "comparable": truth.pictures == whole.pictures,
        }
    )
    return summary


def _write(
    folder: Path, summary: dict[str, Any], result: WiderFaceResult, found: Predictions | None, *, overwrite: bool
) -> None:
    from retinastream.evaluation.curves import wider_curves, write_wider_curves
    from retinastream.evaluation.wider_text import write_predictions

    if found is not None:
        write_predictions(folder / PREDICTIONS, found)
    write_json(folder / "result.json", summary, overwrite=overwrite)
    write_json(folder / "curves.json", wider_curves(result), overwrite=overwrite)
    title = "WIDER FACE val" if summary["comparable"] else f"{summary['pictures']} pictures of WIDER FACE val"
    write_wider_curves(folder, result, title=title, overwrite=overwrite)


def _report(result: WiderFaceResult, truth: GroundTruth, whole: GroundTruth, as_json: str | None) -> None:
    if truth.pictures < whole.pictures:
        typer.echo(
            f"WARNING: only {truth.pictures} of the {whole.pictures} pictures were measured; these figures are NOT "
            "comparable with published ones",
            err=True,
        )
    if as_json is not None:
        typer.echo(as_json)
        return
    from retinastream.cli.eval_tables import print_wider

    print_wider(result, truth, partial_of=whole.pictures if truth.pictures < whole.pictures else None)
