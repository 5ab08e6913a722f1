"""What a model of lower precision loses against the float32 one that it was made from, and whether that is allowed.

On labelled pictures the loss is in average precision at an overlap of 0.5 (WIDER FACE: of its three settings). Without
labels the float32 model's detections are the truth, and its own average precision is then 1 by definition. Of these all
count from a score of 0.1 on: average precision on labels lives on small and doubtful faces, and clear ones alone would
show next to no loss (an int8 model that loses 2.3 points on hand-made labels loses 2.7 so, and 0.2 from 0.5 on).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from retinastream.engines.device_selection import choose_device
from retinastream.engines.precision.model_files import import_onnx
from retinastream.errors import InputError, ModelError
from retinastream.evaluation.agreement import Rules, agreement
from retinastream.evaluation.labelled_set import LabelledPicture, LabelledSet
from retinastream.evaluation.measures import measure
from retinastream.evaluation.media_predictions import predict_media
from retinastream.evaluation.precision_report import (
    LIMITS,
    Limits,
    Loss,
    PrecisionReport,
    agreed,
    landmark_errors,
    recalls,
)
from retinastream.evaluation.predict import predict
from retinastream.evaluation.wider_face import evaluate
from retinastream.evaluation.wider_pictures import PictureName, predict_pictures
from retinastream.evaluation.wider_truth import SETTINGS, GroundTruth
from retinastream.models.onnx_file import OnnxModel
from retinastream.models.spec import DetectorSpec
from retinastream.models.zoo import resolve_model
from retinastream.pipeline.detector import Detector
from retinastream.pipeline.discover import Input
from retinastream.types import Faces

__all__ = [
    "LIMITS",
    "CheckSet",
    "Limits",
    "Loss",
    "PrecisionGate",
    "PrecisionReport",
    "WiderSet",
    "check_precision",
]

Progress = Callable[[str, int, int], None]
"""Called with which of the two models is running, how many pictures are done, and how many there are."""

# Scores from which average precision is computed, from which detections serve as truth, and faces count as reported.
LOW_SCORE = 0.02
TRUTH_SCORE = 0.1
FACE_SCORE = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class WiderSet:
    """WIDER FACE: its ground truth and where its pictures lie, see ``wider_pictures.find_pictures``."""

    truth: GroundTruth
    pictures: dict[PictureName, Path]


CheckSet = LabelledSet | WiderSet | Input


def check_precision(
    reference: str | Path,
    candidate: str | Path,
    on: CheckSet,
    *,
    limits: Limits | None = None,
    size: str = "native",
    spec: DetectorSpec | None = None,
    runtime: str = "onnxruntime",
    device: str = "cpu",
    threads: int = 0,
    max_frames: int | None = None,
    progress: Progress | None = None,
) -> PrecisionReport:
    """Run both models over ``on`` and return what the candidate loses.

    ``limits`` are by default those of the candidate's precision, see LIMITS. Both run on ``runtime`` on the CPU, so
    that the difference is that of the files; with ``device`` "cuda" or "cuda:N" the candidate runs there as a TensorRT
    engine, which is built where there is none, and the difference is that of the engine.

    Raises ModelError for models that cannot be compared, InputError for pictures that cannot be read or without any
    face, UsageError for values that are not allowed, and SetupError for a GPU that cannot be used.
    """
    with PrecisionGate(
        reference,
        on,
        size=size,
        spec=spec,
        runtime=runtime,
        device=device,
        threads=threads,
        max_frames=max_frames,
        progress=progress,
    ) as gate:
        return gate.check(candidate, limits)


class PrecisionGate:
    """A float32 model's results on one set, which any number of candidates are then held against.

    See ``check_precision``. The reference runs once, when it is first needed.
    """

    def __init__(
        self,
        reference: str | Path,
        on: CheckSet,
        *,
        size: str = "native",
        spec: DetectorSpec | None = None,
        runtime: str = "onnxruntime",
        device: str = "cpu",
        threads: int = 0,
        max_frames: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._model = resolve_model(reference, spec=spec)
        if self._model.precision != "f32":
            raise ModelError(f"the reference {reference} is {self._model.precision}; expected the float32 model")
        self._on = on
        if device != "cpu":
            choose_device(device, "gpu", runtime="tensorrt")  # rather than after the reference has run
        self._device = device
        self._settings: dict[str, Any] = {"size": size, "runtime": runtime, "threads": threads, "device": "cpu"}
        self._max_frames = max_frames
        self._progress = progress
        self._found: _Found | None = None

    def __enter__(self) -> PrecisionGate:
        """Return the gate itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Forget the reference's results."""
        self._found = None

    def check(self, candidate: str | Path, limits: Limits | None = None) -> PrecisionReport:
        """Run a candidate and return what it loses; see ``check_precision``."""
        if self._device == "cpu":
            import_onnx()  # without it the candidate would not be computed in its precision, see OnnxRuntimeEngine
        other = resolve_model(Path(candidate), spec=self._model.spec)
        limits = limits or LIMITS.get(other.precision, LIMITS["fp16"])
        if self._found is None:
            self._found = self._run("reference", self._model)
        found = self._run("candidate", other)
        return self._report(self._found, found, other, limits)

    def _run(self, role: str, model: OnnxModel) -> _Found:
        settings = {**self._settings, "threshold": LOW_SCORE, "clip": False, "spec": model.spec}
        if role == "candidate" and self._device != "cpu":
            settings |= {"device": self._device, "runtime": "tensorrt", "precision": model.precision}
        with Detector(model.path, **settings) as detector:
            return self._results(detector, role)

    def _results(self, detector: Detector, role: str) -> _Found:
        def tell(done: int, total: int) -> None:
            if self._progress is not None:
                self._progress(role, done, total)

        ran = {"runtime": detector.info.runtime, "device": detector.info.device}
        if isinstance(self._on, LabelledSet):
            return _Found(ran, predict(detector, [picture.path for picture in self._on.pictures], progress=tell))
        if isinstance(self._on, WiderSet):
            rows, _ = predict_pictures(detector, self._on.pictures, progress=tell)
            return _Found(ran, [], rows)
        return _Found(ran, predict_media(detector, self._on, max_frames=self._max_frames, progress=tell))

    def _report(self, one: _Found, other: _Found, candidate: OnnxModel, limits: Limits) -> PrecisionReport:
        names = {**_describe(self._model), **one.ran}, {**_describe(candidate), **other.ran}
        if isinstance(self._on, WiderSet):
            losses = _wider_losses(self._on, one, other, limits)
            return PrecisionReport(*names, kind="wider", on={"pictures": len(self._on.pictures)}, losses=losses)
        rules = Rules(score=FACE_SCORE, reference_score=FACE_SCORE)
        met = agreement(_named(one.faces), _named(other.faces), rules)
        if isinstance(self._on, LabelledSet):
            truths: Sequence[LabelledPicture] = self._on.pictures
            kind, on = "labelled", {"name": self._on.name, "labels": str(self._on.path), "sha256": self._on.sha256}
        else:
            truths = [_as_truth(faces) for faces in one.faces]
            kind, on = "self-labelled", {"name": self._on.name}
        if not any((~truth.ignore).any() for truth in truths):
            raise InputError(
                f"there is no face in the {len(truths)} pictures of {on['name']}; expected pictures with faces"
            )
        measures = measure(one.faces, truths), measure(other.faces, truths)
        losses = (_loss("ap50", measures[0].ap50, measures[1].ap50, limits.ap),)
        return PrecisionReport(
            *names,
            kind=kind,
            on={**on, "pictures": len(truths), "faces": measures[0].counts.faces},
            losses=losses,
            recall_by_height=recalls(*measures),
            landmarks=landmark_errors(*measures),
            agreement=agreed(met),
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """What one model found, and where it ``ran``: faces per picture, or rows per picture of WIDER FACE."""

    ran: dict[str, Any]
    faces: list[Faces]
    rows: dict[str, Any] = field(default_factory=dict)


def _describe(model: OnnxModel) -> dict[str, Any]:
    return {"path": str(model.path), "sha256": model.sha256, "precision": model.precision}


def _loss(name: str, reference: float, candidate: float, limit: float) -> Loss:
    return Loss(name, reference, candidate, 100.0 * (reference - candidate), limit)


def _wider_losses(on: WiderSet, one: _Found, other: _Found, limits: Limits) -> tuple[Loss, ...]:
    truth = on.truth.only(set(on.pictures))
    before, after = evaluate(one.rows, truth).ap, evaluate(other.rows, truth).ap
    allowed = {setting: limits.hard if setting == "hard" else limits.ap for setting in SETTINGS}
    return tuple(_loss(setting, before[setting], after[setting], allowed[setting]) for setting in SETTINGS)


def _named(found: Sequence[Faces]) -> list[Faces]:
    return [replace(faces, index=index) for index, faces in enumerate(found)]


def _as_truth(faces: Faces) -> LabelledPicture:
    """Take the reference's detections for labels."""
    kept = faces.above(TRUTH_SCORE)
    return LabelledPicture(
        name=f"{faces.source}#{faces.index}",
        path=Path(faces.source),
        width=None,
        height=None,
        boxes=kept.boxes,
        landmarks=kept.landmarks,
        ignore=np.zeros(len(kept), np.bool_),
        scores=kept.scores,
    )
