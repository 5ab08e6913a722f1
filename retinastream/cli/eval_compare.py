"""``retinastream eval compare``: two models, precisions, runtimes or predictions side by side."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retinastream.cli.eval_labels import read_labels
from retinastream.cli.eval_output import write_json
from retinastream.cli.eval_sides import Prediction, Side, choose_sides, takes_sides
from retinastream.errors import UsageError

if TYPE_CHECKING:
    from retinastream.evaluation.agreement import Agreement, Rules
    from retinastream.evaluation.compare import Comparison
    from retinastream.evaluation.labelled_set import LabelledSet

RESULT = "result.json"


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What was measured: ``comparison`` where there are labels, ``agreement`` always; ``facts`` say on and of what."""

    title: str
    facts: dict[str, Any]
    comparison: Comparison | None
    agreement: Agreement

    def to_dict(self) -> dict[str, Any]:
        compared = {} if self.comparison is None else {"comparison": self.comparison.to_dict()}
        return {**self.facts, **compared, "agreement": self.agreement.to_dict()}


@takes_sides
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A model (zoo name, .onnx, .pth), or predictions.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another, or the same with other settings.")],
    flags: dict[str, Any],
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
    stride: Annotated[int, typer.Option(min=1, help="Take every N-th frame of a video, or picture.")] = 1,
    max_frames: Annotated[int | None, typer.Option(min=1, help="Stop after this many frames.")] = None,
    score: Annotated[float, typer.Option(min=0, max=1, help="Score from which faces are reported.")] = 0.5,
    a_score: Annotated[
        float | None, typer.Option(min=0, max=1, help="The same of A where B is judged by it; by default --score.")
    ] = None,
    doubtful: Annotated[
        float | None, typer.Option(min=0, max=1, help="A's faces from this score on are not held against B.")
    ] = None,
    min_height: Annotated[float, typer.Option(min=0, help="Height in pixels from which A's faces count.")] = 0.0,
    large_height: Annotated[float, typer.Option(min=0, help="Height from which landmark errors are given too.")] = 40.0,
    resamples: Annotated[int, typer.Option(min=1, help="Draws of the pictures behind the intervals.")] = 1000,
    confidence: Annotated[float, typer.Option(help="Part of the draws that an interval holds.")] = 0.95,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws; the same seed gives the same intervals.")] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder for result.json.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a result that exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the result and errors only.")] = False,
) -> None:
    """Compare two models, or one with two settings: differences with intervals on labels, agreement without.

    On labelled pictures every measure gets the difference of B from A and a bootstrap interval over the pictures. On
    pictures or a video without labels, and on labels too, B is judged by the faces that A finds.
    """
    from retinastream.evaluation.agreement import Rules

    sides = choose_sides((a, b), flags)
    rules = Rules(
        score=score, reference_score=score if a_score is None else a_score, doubtful=doubtful, min_height=min_height
    )
    if not 0.0 < confidence < 1.0:
        raise UsageError(f"--confidence {confidence:g} is not allowed; expected a value between 0 and 1, such as 0.95")
    _check_output(output, overwrite=overwrite)
    if _is_media(on, label_format):
        _refuse_given({"--images": images, "--missing-limit": missing_limit or None}, on, "pictures without labels")
        outcome = _without_labels(sides, on, rules, stride, max_frames, quiet=quiet)
    else:
        _refuse_given({"--stride": stride if stride > 1 else None, "--max-frames": max_frames}, on, "labels")
        limit = missing_limit if any(side.model for side in sides) else None
        truths = read_labels(Path(on), label_format, images, limit, quiet=quiet)
        settings = {"resamples": resamples, "confidence": confidence, "seed": seed, "large_height": large_height}
        outcome = _with_labels(sides, truths, rules, settings, quiet=quiet)
    _show(outcome, output, overwrite=overwrite, as_json=as_json)


def _is_media(on: str, label_format: str) -> bool:
    """Whether ``on`` is to be looked at without labels: a folder without annotations, a picture, a video."""
    from retinastream.pipeline.images import PICTURE_EXTENSIONS
    from retinastream.pipeline.listing import VIDEO_EXTENSIONS

    if label_format != "auto":
        return False
    path = Path(on)
    if path.is_dir():
        return next(path.rglob("*.xml"), None) is None
    return path.suffix.lower() in PICTURE_EXTENSIONS | VIDEO_EXTENSIONS


def _refuse_given(options: dict[str, Any], on: str, kind: str) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise UsageError(f"{', '.join(given)} was given, but {on} is {kind}; leave it")


def _with_labels(
    sides: tuple[Side, Side], truths: LabelledSet, rules: Rules, settings: dict[str, Any], *, quiet: bool
) -> _Outcome:
    from dataclasses import replace

    from retinastream.evaluation.agreement import agreement
    from retinastream.evaluation.compare import compare as compare_on

    predictions = [side.on_set(truths, quiet=quiet) for side in sides]
    (found_a, _), (found_b, _) = predictions
    compared = compare_on(found_a, found_b, truths, score_threshold=rules.score, **settings)
    # Predictions read from files may not say which picture they are of; here their order does.
    named = [
        [
            replace(faces, source=picture.name, index=index)
            for index, (faces, picture) in enumerate(zip(found, truths.pictures, strict=True))
        ]
        for found, _ in predictions
    ]
    on = {"name": truths.name, "labels": str(truths.path), "format": truths.format, "sha256": truths.sha256}
    return _Outcome(truths.name, _facts(on, predictions), compared, agreement(named[0], named[1], rules))


def _without_labels(
    sides: tuple[Side, Side], on: str, rules: Rules, stride: int, max_frames: int | None, *, quiet: bool
) -> _Outcome:
    from retinastream.evaluation.agreement import agreement
    from retinastream.evaluation.media_predictions import find_media

    media = find_media(on)
    predictions = [side.on_media(media, stride=stride, max_frames=max_frames, quiet=quiet) for side in sides]
    (found_a, _), (found_b, _) = predictions
    facts = {"name": media.name, "media": on, "kind": media.kind, "stride": stride, "max_frames": max_frames}
    return _Outcome(media.name, _facts(facts, predictions), None, agreement(found_a, found_b, rules))


def _facts(on: dict[str, Any], predictions: list[Prediction]) -> dict[str, Any]:
    return {"on": on, **{letter: facts for letter, (_, facts) in zip("AB", predictions, strict=True)}}


def _check_output(folder: Path | None, *, overwrite: bool) -> None:
    """Refuse an output that could not be written, before anything is run."""
    from retinastream.pipeline.sinks.part_file import check_target

    if folder is None:
        return
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"the output {folder} is a file; give the name of a folder")
    check_target(folder / RESULT, overwrite=overwrite)


def _show(outcome: _Outcome, output: Path | None, *, overwrite: bool, as_json: bool) -> None:
    values = outcome.to_dict()
    if output is not None:
        write_json(output / RESULT, values, overwrite=overwrite)
    if as_json:
        typer.echo(json.dumps(values, allow_nan=False))
        return
    from retinastream.cli.eval_compare_tables import print_agreement, print_comparison

    if outcome.comparison is not None:
        print_comparison(outcome.comparison, outcome.title)
        typer.echo()
    print_agreement(outcome.agreement, outcome.title)
    if output is not None:
        typer.echo(f"-> {output / RESULT}", err=True)
