"""The two things that are compared: each a model with its settings, or predictions of an earlier run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import typer
from pydantic import create_model

from retinastream.cli.eval_model import EvalModel, choose, describe, opened
from retinastream.cli.options import parameters
from retinastream.errors import RetinastreamError, UsageError

if TYPE_CHECKING:
    from retinastream.evaluation.labelled_set import LabelledSet
    from retinastream.evaluation.media_predictions import Streams
    from retinastream.pipeline.discover import Input
    from retinastream.types import Faces

# What can differ between the sides. The rest (threads, batch, the lowest score kept) is the same for a fair comparison.
OWN = ("spec", "size", "iou", "clip", "tta", "device", "runtime", "precision")
Prediction = tuple[list["Faces"], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Side:
    """A or B: what was given for it, and the model's settings, or None where that is predictions."""

    letter: str
    given: str
    model: EvalModel | None

    def on_set(self, truths: LabelledSet, *, quiet: bool) -> Prediction:
        """Return the faces of every picture of a labelled set, and what found them. Raises what these raise."""
        from retinastream.evaluation.predict import predict
        from retinastream.evaluation.prediction_files import read_faces

        if self.model is None:
            return read_faces(self.given, [p.name for p in truths.pictures]), {"predictions": self.given}
        from retinastream.cli.picture_progress import PictureProgress

        with opened(self.model) as (detector, facts):
            self._tell(facts, quiet=quiet)
            with PictureProgress(self.letter, quiet=quiet) as progress:
                files = [picture.path for picture in truths.pictures]
                return predict(detector, files, batch=self.model.batch, progress=progress), facts

    def on_media(self, media: Input, *, stride: int, max_frames: int | None, quiet: bool) -> Prediction:
        """Return the faces of every ``stride``-th frame, and what found them. Raises what these raise."""
        from retinastream.evaluation.media_predictions import predict_media

        if self.model is None:
            found = [faces for faces in self._read_media(media) if faces.index % stride == 0]
            return found[:max_frames], {"predictions": self.given}
        from retinastream.cli.picture_progress import PictureProgress

        with opened(self.model) as (detector, facts):
            self._tell(facts, quiet=quiet)
            with PictureProgress(self.letter, quiet=quiet) as progress:
                streams = cast("Streams", detector)
                return predict_media(streams, media, stride=stride, max_frames=max_frames, progress=progress), facts

    def _read_media(self, media: Input) -> list[Faces]:
        from retinastream.evaluation.media_predictions import read_media_predictions
        from retinastream.evaluation.prediction_files import read_faces

        if media.kind == "images":
            found = read_faces(self.given, [path.name for path in media.paths])
            return [
                replace(faces, index=index, source=str(path))
                for index, (faces, path) in enumerate(zip(found, media.paths, strict=True))
            ]
        if Path(self.given).is_dir():
            raise UsageError(f"{self.letter} is a folder, but predictions of a video are one .faces.jsonl file")
        return read_media_predictions(Path(self.given))

    def _tell(self, facts: Mapping[str, Any], *, quiet: bool) -> None:
        if not quiet:
            typer.echo(f"{self.letter}: {describe(facts)}", err=True)


def choose_sides(given: tuple[str, str], flags: Mapping[str, Any]) -> tuple[Side, Side]:
    """Read both sides; ``flags`` are those of ``takes_sides`` that were given.

    Raises UsageError for values that are not allowed and for settings of what is no model.
    """
    shared = {name: value for name, value in flags.items() if name in EvalModel.model_fields}
    if shared and all(map(is_predictions, given)):
        names = ", ".join(f"--{name.replace('_', '-')}" for name in shared)
        raise UsageError(f"A and B are predictions, which are compared as they are; leave {names}")
    a, b = (_choose(letter, text, shared, flags) for letter, text in zip("AB", given, strict=True))
    return a, b


def is_predictions(given: str) -> bool:
    """Whether a side is a file or folder of predictions; anything else is the name or the file of a model."""
    return given.endswith(".jsonl") or Path(given).is_dir()


def takes_sides(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of both sides, and of each, in the place of its parameter ``flags``.

    ``flags`` then holds what was given: "precision" is for both, "a_precision" and "b_precision" for one.
    """
    own = list(inspect.signature(command, eval_str=True).parameters.values())
    kept = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own if p.name != "flags"]
    shared = [p for p in parameters(EvalModel) if p.name != "model"]
    options = [*shared, *_own_parameters("A"), *_own_parameters("B")]
    signature = inspect.Signature([*kept[:2], *options, *kept[2:]])

    def call(**values: Any) -> None:
        flags = {p.name: value for p in options if (value := values.pop(p.name)) is not None}
        command(**values, flags=flags)

    call.__signature__ = signature  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    call.__name__, call.__doc__ = command.__name__, command.__doc__
    return call


def _own_parameters(letter: str) -> list[inspect.Parameter]:
    fields: dict[str, Any] = {
        f"{letter.lower()}_{name}": (field.annotation, None)
        for name, field in EvalModel.model_fields.items()
        if name in OWN
    }
    found = parameters(create_model(f"Side{letter}", **fields))
    for parameter in found:
        option = get_args(parameter.annotation)[1]
        name = parameter.name[2:].replace("_", "-")
        option.help, option.rich_help_panel = f"As --{name}, for {letter} alone.", f"{letter} alone"
    return found


def _choose(letter: str, given: str, shared: Mapping[str, Any], flags: Mapping[str, Any]) -> Side:
    prefix = f"{letter.lower()}_"
    own = {name.removeprefix(prefix): value for name, value in flags.items() if name.startswith(prefix)}
    if is_predictions(given):
        if own:
            names = ", ".join(f"--{prefix[0]}-{name.replace('_', '-')}" for name in own)
            raise UsageError(f"{letter} is predictions ({given}), which are compared as they are; leave {names}")
        return Side(letter, given, None)
    try:
        return Side(letter, given, choose({**shared, **own, "model": given}, predictions=False))
    except RetinastreamError as error:
        raise UsageError(f"{letter}: {error}") from error
