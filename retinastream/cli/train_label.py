"""``retinastream train label``: pictures labelled by a detector, as data to train another one."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from retinastream.evaluation.labelled_set import LabelledSet
    from retinastream.evaluation.predict import FindFaces

_LINE_SECONDS = 5.0
_SHOWN = 5


class MergeOption(str, Enum):  # noqa: UP042 (typer of the oldest supported version wants str and Enum)
    """What becomes of labels that are there already."""

    teacher = "teacher"
    labels = "labels"
    scores = "scores"


def label(
    pictures: Annotated[
        Path, typer.Option("--pictures", help="A folder of pictures, or a label file whose pictures are meant.")
    ],
    teacher: Annotated[str, typer.Option("--teacher", help="A name of `retinastream model list`, an .onnx or a .pth.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The label file (JSON, format pack) to write.")],
    images: Annotated[
        Path | None, typer.Option(help="Picture folder of the labels, where it is not the usual one.")
    ] = None,
    format: Annotated[str, typer.Option(help="Format of the labels: auto, boxes, pack, coco, voc, wider.")] = "auto",
    merge: Annotated[
        MergeOption,
        typer.Option(
            help="teacher: replace labels; labels: keep them and add the teacher's further faces; "
            "scores: keep them and give them the teacher's scores."
        ),
    ] = MergeOption.teacher,
    positive: Annotated[float, typer.Option(help="Score from which the teacher's face is a face.")] = 0.7,
    ignore_above: Annotated[float, typer.Option(help="Score from which it is to be ignored; below, left out.")] = 0.3,
    iou: Annotated[float, typer.Option(help="Overlap from which a label and the teacher's face are the same.")] = 0.5,
    least_height: Annotated[float, typer.Option(help="Lower faces, in pixels, are to be ignored at best.")] = 0.0,
    size: Annotated[str, typer.Option(help="native, fit:1280, short:800,max:1200 or pyramid.")] = "native",
    augmented: Annotated[
        bool, typer.Option("--augmented", help="Look in five sizes and mirrored, and vote; slow, finds more.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    runtime: Annotated[str, typer.Option(help="As for detect, such as openvino or tensorrt.")] = "auto",
    precision: Annotated[str | None, typer.Option(help="As for detect, such as f32, bf16 or fp16.")] = None,
    threads: Annotated[int, typer.Option(help="Processors to use; 0: all.")] = 0,
    batch: Annotated[int, typer.Option(help="Pictures of one size that go through the network together.")] = 1,
    spec: Annotated[str | None, typer.Option(help="A spec name or file, for models that do not say theirs.")] = None,
    missing_limit: Annotated[float, typer.Option(help="Largest share of pictures that may be unusable.")] = 0.01,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output when it exists.")] = False,
) -> None:
    """Let a detector label pictures, to train another one on them.

    The teacher may have any anchors. What is trained on its labels is distilled from it: keep to its licence.
    """
    from retinastream.errors import UsageError
    from retinastream.evaluation.labels_pack import write_pack
    from retinastream.training.pseudo_labels import PseudoLabelRecipe, label_with_teacher

    recipe = PseudoLabelRecipe(merge.value, positive, ignore_above, iou, least_height)
    if not pictures.exists():
        raise UsageError(f"{pictures} does not exist; expected a folder of pictures, or a label file")
    _check_output(output, overwrite)
    if _is_picture_folder(pictures, format):
        if merge is not MergeOption.teacher or images is not None:
            raise UsageError(
                f"{pictures} is a folder of pictures without labels; --merge and --images are for label files, give one"
            )
        found = _unlabelled(pictures, missing_limit)
    else:
        found = _labelled(pictures, images, format, missing_limit)
    settings = {
        "threshold": ignore_above,
        "device": device,
        "runtime": runtime,
        "precision": precision,
        "threads": threads,
    }
    with _detector(teacher, spec, augmented, size, batch, settings) as detector, _progress() as report:
        labelled = label_with_teacher(found, detector, recipe, batch=batch, progress=report)
    write_pack(labelled, output)
    typer.echo(
        f"{len(labelled)} pictures, {labelled.faces} faces ({labelled.landmarked} with landmarks), "
        f"{labelled.ignored} ignored; before: {found.faces} faces, {found.ignored} ignored"
    )
    typer.echo(f"{output}: its pictures are in {_folder(labelled)}")


def _check_output(output: Path, overwrite: bool) -> None:
    """Refuse an output that cannot be written before the hours it takes to find the faces, not after them."""
    from retinastream.errors import OutputError, UsageError

    if output.is_dir():
        raise OutputError(f"{output} is a folder; give the name of a file, such as {output / 'labels.json'}")
    if output.exists() and not overwrite:
        raise UsageError(f"{output} exists; give --overwrite to replace it, or another --output")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{output} cannot be written ({error.strerror or error}); give another --output") from error
    if not os.access(output.parent, os.W_OK):
        raise OutputError(f"{output} cannot be written; give the name of a file in a folder that is yours")


def _is_picture_folder(path: Path, format: str) -> bool:
    """A folder is one of pictures unless a format was named, or there is XML in it: labels come in folders too."""
    return path.is_dir() and format == "auto" and not any(path.glob("*.xml"))


def _unlabelled(folder: Path, missing_limit: float) -> LabelledSet:
    from retinastream.errors import InputError
    from retinastream.training.pseudo_labels import unlabelled_set

    found, left_out = unlabelled_set(folder)
    for reason in left_out[:_SHOWN]:
        typer.echo(f"left out: {reason}", err=True)
    if len(left_out) > _SHOWN:
        typer.echo(f"left out: {len(left_out) - _SHOWN} more", err=True)
    total = len(found) + len(left_out)
    if len(left_out) > missing_limit * total:
        raise InputError(
            f"{folder}: {len(left_out)} of {total} pictures cannot be used, more than the share of {missing_limit:g} "
            "that is allowed; bring them back, or raise --missing-limit"
        )
    return found


def _labelled(path: Path, images: Path | None, format: str, missing_limit: float) -> LabelledSet:
    from retinastream.evaluation.integrity import check_pictures
    from retinastream.evaluation.labelled_set import read_labelled_set

    found, report = check_pictures(read_labelled_set(path, format=format, images=images), missing_limit=missing_limit)
    typer.echo(str(report), err=True)
    return found


@contextmanager
def _detector(
    teacher: str, spec: str | None, augmented: bool, size: str, batch: int, settings: dict[str, Any]
) -> Iterator[FindFaces]:
    from retinastream.errors import UsageError
    from retinastream.evaluation.test_time import AugmentedDetector
    from retinastream.models.spec_registry import read_spec
    from retinastream.pipeline.detector import Detector

    settings = {**settings, "spec": None if spec is None else read_spec(spec)}
    if not augmented:
        with Detector(teacher, size=size, batch=batch, **settings) as detector:
            yield detector
        return
    if size != "native":
        raise UsageError(f"--augmented looks in sizes of its own; leave out --size {size}")
    with AugmentedDetector(teacher, **settings) as many:
        yield many


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """Show how many pictures are done on standard error: a bar on a terminal, a line now and then elsewhere."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("pictures"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("pictures", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _Lines:
    """Progress for logs and pipes."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last >= _LINE_SECONDS:
            self._last = now
            left = (now - self._began) * (total / done - 1)
            typer.echo(f"{done} of {total} pictures, {left:.0f} s left", err=True)


def _folder(found: LabelledSet) -> Path:
    first = found.pictures[0]
    return first.path.parents[len(PurePosixPath(first.name).parts) - 1]
