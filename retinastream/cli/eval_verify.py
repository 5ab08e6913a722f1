"""``retinastream eval verify``: how well faces are recognised when this detector finds and aligns them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retinastream.errors import UsageError

if TYPE_CHECKING:
    from retinastream.evaluation.embedding import FaceEmbedder
    from retinastream.evaluation.face_features import Verification
    from retinastream.pipeline.detector import Detector

_NUMBERS, _PAIRS = "verification.json", "similarities.csv"
_SHOWN = 5


class Normalise(str, Enum):  # noqa: UP042 (typer of the oldest supported version wants str and Enum)
    """What the embedder's pixels are to look like."""

    arcface = "arcface"
    imagenet = "imagenet"
    none = "none"


class Choice(str, Enum):  # noqa: UP042 (as above)
    """Which face of a picture with several is compared."""

    largest = "largest"
    central = "central"
    best = "best"


class WithoutFace(str, Enum):  # noqa: UP042 (as above)
    """What becomes of pairs with a picture in which no face is found."""

    fail = "fail"
    skip = "skip"


class PairFormat(str, Enum):  # noqa: UP042 (as above)
    """How a list of pairs is written."""

    auto = "auto"
    text = "text"
    lfw = "lfw"


def verify(
    pairs: Annotated[
        Path,
        typer.Argument(
            metavar="PAIRS|FOLDER",
            help="A list of 'file1 file2 1|0' lines (or CSV), LFW's pairs.txt, or a folder with a folder per person.",
            show_default=False,
        ),
    ],
    embedder: Annotated[
        str,
        typer.Option(
            metavar="FILE.onnx", help="An ArcFace-type network: 112x112 RGB to a row of numbers.", show_default=False
        ),
    ],
    model: Annotated[str, typer.Option("--model", "-m", help="The detector: a zoo name or a file.")] = "mnet025",
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="What the list's names are relative to; by default its folder.")
    ] = None,
    pair_format: Annotated[PairFormat, typer.Option("--format", help="How the list is written.")] = PairFormat.auto,
    far: Annotated[str, typer.Option(metavar="X,...", help="The FARs to give the TAR at.")] = "1e-1,1e-2,1e-3",
    normalise: Annotated[
        Normalise, typer.Option(help="arcface: (x - 127.5) / 127.5; imagenet: mean and deviation; none: 0 to 255.")
    ] = Normalise.arcface,
    flip: Annotated[bool, typer.Option("--flip", help="Add the embedding of the mirrored face.")] = False,
    choose: Annotated[Choice, typer.Option(help="Which face of a picture with several.")] = Choice.largest,
    without_face: Annotated[
        WithoutFace, typer.Option(help="Pairs with a picture without a face: never accepted, or left out.")
    ] = WithoutFace.fail,
    size: Annotated[str, typer.Option("--size", "-s", help="Size policy of the detector.")] = "auto",
    threshold: Annotated[float, typer.Option(help="Lowest score of a face.")] = 0.5,
    spec: Annotated[str | None, typer.Option(help="A spec name or file, for detectors that do not say theirs.")] = None,
    device: Annotated[str, typer.Option(help="auto | cpu | cuda | cuda:N, of the detector.")] = "auto",
    runtime: Annotated[str, typer.Option(help="auto | openvino | onnxruntime, for both networks.")] = "auto",
    precision: Annotated[str | None, typer.Option(help="As for detect, of the detector.")] = None,
    threads: Annotated[int, typer.Option(help="Processors; 0: all.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help=f"Write {_NUMBERS} and {_PAIRS} there."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that exist.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Measure face verification with a detector: TAR at chosen FARs, AUC, EER and accuracy.

    Of every picture one face is found, aligned by its landmarks and embedded; pairs are compared by cosine similarity.
    """
    from retinastream.evaluation import face_features
    from retinastream.evaluation.embedding import FaceEmbedder
    from retinastream.evaluation.face_pairs import read_pairs
    from retinastream.models.spec_registry import read_spec
    from retinastream.pipeline.detector import Detector
    from retinastream.pipeline.sinks.part_file import check_target, write_whole

    fars = _read_fars(far)
    targets = [] if output is None else [output / _NUMBERS, output / _PAIRS]
    for target in targets:
        check_target(target, overwrite=overwrite)
    listed = read_pairs(pairs, images=images, format=pair_format.value)
    network = FaceEmbedder(embedder, normalise=normalise.value, flip=flip, runtime=runtime, threads=threads)
    with (
        Detector(
            model,
            size=size,
            threshold=threshold,
            device=device,
            runtime=runtime,
            precision=precision,
            threads=threads,
            spec=None if spec is None else read_spec(spec),
        ) as detector,
        _progress(quiet=quiet) as progress,
    ):
        result = face_features.verify(
            listed, detector, network, choose=choose.value, without_face=without_face.value, progress=progress
        )
        numbers = {
            "pairs_file": str(pairs),
            **_setup(detector, network),
            "choose": choose.value,
            **result.to_dict(fars),
        }
    if targets:
        write_whole(targets[0], (json.dumps(numbers, indent=2) + "\n").encode(), overwrite=overwrite)
        write_whole(targets[1], _pairs_csv(result).encode(), overwrite=overwrite)
    for warning in _warnings(result, fars):
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(json.dumps(numbers) if as_json else "\n".join(_table(numbers)))
    if result.features.unreadable:
        raise typer.Exit(1)


def _setup(detector: Detector, embedder: FaceEmbedder) -> dict[str, Any]:
    return {
        "detector": {
            "model": detector.model.name,
            "sha256": detector.model.sha256,
            "size": str(detector.size),
            "threshold": detector.threshold,
            "runtime": detector.info.runtime,
            "precision": detector.info.precision,
        },
        "embedder": {
            "file": str(embedder.path),
            "sha256": embedder.sha256,
            "dimension": embedder.dimension,
            "normalise": embedder.normalise,
            "flip": embedder.flip,
            "runtime": embedder.runtime,
        },
    }


def _read_fars(text: str) -> list[float]:
    try:
        fars = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        fars = []
    if not fars or not all(0 < far <= 1 for far in fars):
        raise UsageError(f"--far {text!r} is not understood; expected numbers above 0 and at most 1, such as 1e-2,1e-3")
    return fars


def _table(numbers: dict[str, Any]) -> Iterator[str]:
    detector, embedder = numbers["detector"], numbers["embedder"]
    yield f"detector      {detector['model']}, {detector['size']}, {detector['precision']}"
    yield f"embedder      {Path(embedder['file']).name}, normalise {embedder['normalise']}"
    yield f"pictures      {numbers['pictures']}, {numbers['pictures_without_face']} without a face"
    yield f"pairs         {numbers['same_pairs']} of one person, {numbers['different_pairs']} of two"
    for point in numbers["tar_at_far"]:
        at = "nothing is accepted" if point["threshold"] is None else f"threshold {point['threshold']:.4f}"
        unsure = "" if point["resolved"] else "  (too few pairs for this FAR)"
        yield f"TAR           {100 * point['tar']:.2f} % at FAR {point['wanted_far']:g}: {at}{unsure}"
    yield f"AUC           {numbers['auc']:.6f}"
    yield f"EER           {100 * numbers['eer']:.2f} %"
    best = numbers["best_accuracy_threshold"]
    yield f"accuracy      {100 * numbers['best_accuracy']:.2f} % at best" + ("" if best is None else f", at {best:.4f}")


def _warnings(result: Verification, fars: list[float]) -> Iterator[str]:
    from retinastream.evaluation.verification import pairs_to_resolve

    features, names, counts = result.features, result.pairs.names, result.counts()
    failed = f"{counts['failed_same_pairs']} same and {counts['failed_different_pairs']} different pairs"
    kept = result.without_face == "fail"
    consequence = f"{failed} count as not accepted" if kept else "their pairs are left out"
    for positions, what in (
        (features.faceless, "no face was found in"),
        (features.unaligned, "the landmarks cannot be aligned in"),
    ):
        if positions:
            shown = ", ".join(names[i] for i in positions[:_SHOWN]) + (", ..." if len(positions) > _SHOWN else "")
            yield f"{what} {len(positions)} of {len(names)} pictures ({shown}); {consequence}"
    for reason in features.unreadable.values():
        yield f"{reason}; its pairs are left out"
    if counts["skipped_pairs"]:
        yield f"{counts['skipped_pairs']} of {counts['pairs']} pairs are left out"
    for far in fars:
        if not result.curve.at_far(far).resolved:
            yield (
                f"a FAR of {far:g} needs at least {pairs_to_resolve(far):,} different pairs and there are "
                f"{result.curve.different:,}: its TAR is the one without a single false acceptance in this set"
            )


def _pairs_csv(result: Verification) -> str:
    """One line per pair; the similarity is empty where a picture gave no embedding."""
    import numpy as np

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("file1", "file2", "same", "similarity", "counted"))
    pairs = result.pairs
    for k, similarity in enumerate(result.similarities):
        value = f"{similarity:.6f}" if np.isfinite(similarity) else ""
        names = pairs.names[pairs.first[k]], pairs.names[pairs.second[k]]
        writer.writerow((*names, int(pairs.same[k]), value, int(result.counted[k])))
    return text.getvalue()


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on a terminal, on standard error; elsewhere nothing, so that logs stay short."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("pictures", total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield show
