"""The one thing a library user needs: pictures in, faces out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from retinastream.engines.engine import Engine, EngineInfo, EngineSlot
from retinastream.engines.select import check_device, create_engine
from retinastream.errors import UsageError
from retinastream.kernels.decode import Candidates
from retinastream.kernels.postprocess import candidates, final_faces
from retinastream.kernels.preprocess import preprocess
from retinastream.kernels.sizing import Placement
from retinastream.models.onnx_file import OnnxModel
from retinastream.models.spec import DetectorSpec
from retinastream.models.zoo import resolve_model
from retinastream.pipeline.batches import in_batches
from retinastream.pipeline.model_fit import check_batch, choose_size, fixed_size
from retinastream.pipeline.slots import SlotKey, SlotPool
from retinastream.pipeline.stages import Pipeline, Stage
from retinastream.types import Faces, Frame


@dataclass(slots=True)
class Pass:
    """One run of the network over the frames of a batch at one size."""

    key: SlotKey
    slot: EngineSlot
    placement: Placement
    outputs: tuple[npt.NDArray[Any], ...] = ()


@dataclass(slots=True)
class Job:
    """A batch of frames of one upright size on its way through the detector."""

    frames: Sequence[Frame]
    passes: list[Pass]


class Detector:
    """Finds faces and their five landmarks in pictures and videos.

    ``model`` is a name of the model zoo, or a path to an .onnx file or (with the extra ``export``) a .pth checkpoint.
    ``threshold`` is the lowest score returned, ``iou`` the overlap above which the weaker of two boxes is dropped.
    ``size`` is "native", "fit:1280", "short:800,max:1200", "pyramid" or "auto": native on a GPU, fit:1280 on a CPU,
    logged when chosen. ``device`` is "auto" or "cpu"; ``runtime`` "auto", "openvino" or "onnxruntime"; ``precision``
    None (f32), "f32" or "bf16" (OpenVINO on a CPU with AVX512-BF16 or AMX). ``max_faces`` bounds the faces per picture.
    ``threads`` 0 means all processors; ``streams`` is how many networks run side by side on them: 1 answers a single
    picture soonest, 0 chooses for throughput. ``batch`` frames go through the network at once. ``plus_one`` counts
    widths as the classic NumPy NMS does; ``clip`` cuts boxes at the borders of the picture. ``spec`` is for ONNX files
    of others with other anchors.

    Raises UsageError for values that are not allowed, ModelError for a model that cannot be used, SetupError for what
    this machine lacks.
    """

    def __init__(
        self,
        model: str | Path = "mnet025",
        *,
        threshold: float = 0.5,
        iou: float = 0.4,
        size: str = "auto",
        device: str = "auto",
        runtime: str = "auto",
        precision: str | None = None,
        max_faces: int = 750,
        threads: int = 0,
        streams: int = 1,
        batch: int = 1,
        plus_one: bool = False,
        clip: bool = True,
        spec: DetectorSpec | None = None,
    ) -> None:
        _check_range("threshold", threshold, 0.0, 1.0)
        _check_range("iou", iou, 0.0, 1.0)
        _check_range("max_faces", max_faces, 1, 100_000, whole=True)
        _check_range("batch", batch, 1, 64, whole=True)
        self.threshold, self.iou, self.max_faces = threshold, iou, max_faces
        self.batch, self.plus_one, self.clip = batch, plus_one, clip
        check_device(device)
        self.model: OnnxModel = resolve_model(model, spec=spec)
        self.size = choose_size(size, self.model)
        self._fixed = fixed_size(self.model)
        check_batch(batch, self.model)
        self.engine: Engine = create_engine(
            self.model,
            runtime=runtime,
            device=device,
            precision=precision,
            threads=threads,
            streams=streams,
        )
        self._slots = SlotPool(self.engine)

    @property
    def info(self) -> EngineInfo:
        """What executes the network, and why it was chosen."""
        return self.engine.info

    @property
    def spec(self) -> DetectorSpec:
        """The model's anchors, strides, normalisation and layout."""
        return self.model.spec

    @overload
    def __call__(self, pictures: npt.NDArray[np.uint8] | Frame) -> Faces: ...
    @overload
    def __call__(self, pictures: Sequence[npt.NDArray[np.uint8] | Frame]) -> list[Faces]: ...
    def __call__(
        self, pictures: npt.NDArray[np.uint8] | Frame | Sequence[npt.NDArray[np.uint8] | Frame]
    ) -> Faces | list[Faces]:
        """Find the faces of one picture, or of each of several.

        A picture is a uint8 array (height, width, 3) in BGR order, as OpenCV reads it, or a ``Frame``.
        """
        if isinstance(pictures, np.ndarray | Frame):
            return self._run([_as_frame(pictures)])[0]
        if not isinstance(pictures, list | tuple):
            raise UsageError(
                f"pictures were given as {type(pictures).__name__}; expected a uint8 BGR array (height, width, 3), "
                "a Frame, or a list of them (for videos use detector.stream(open_video(path)))"
            )
        frames = [_as_frame(p, index) for index, p in enumerate(pictures)]
        return [faces for group in in_batches(frames, self.batch) for faces in self._run(group)]

    def stream(self, frames: Iterable[Frame | npt.NDArray[np.uint8]]) -> Iterator[Faces]:
        """Yield the faces of every frame, in order; decoding, detection and the caller's work overlap.

        ``frames`` is a source such as ``open_video(path)``, or any iterable of frames or BGR pictures; it is read by
        another thread, a bounded number of frames ahead. Leaving the loop early stops all threads.
        """
        if isinstance(frames, str | Path) or not isinstance(frames, Iterable):
            raise UsageError(f"stream was given {frames!r}; expected frames: detector.stream(open_video(path))")
        return self._stream(frames)

    def _stream(self, frames: Iterable[Frame | npt.NDArray[np.uint8]]) -> Iterator[Faces]:
        source = in_batches(_as_frames(frames), self.batch)
        stages = self.stages(steady=is_video(frames))
        with Pipeline(source, stages, source_name="decode") as pipeline:
            for _, faces in pipeline:
                yield from faces

    def stages(self, *, keep_frames: bool = False, steady: bool = False) -> list[Stage]:
        """Declare the stages from ``[Frame]`` to ``([Frame], [Faces])``; frames are let go unless they are kept.

        ``steady`` says that the frames are of one size, as those of a video: the engine then prepares for that size.
        """

        def finish(job: Job) -> tuple[Sequence[Frame], list[Faces]]:
            return (job.frames if keep_frames else ()), self.finish(job)

        return [
            Stage("preprocess", partial(self.prepare, steady=steady)),
            # One worker more than streams: it brings the next input into place while the network runs.
            Stage("inference", self.infer, workers=self.info.streams + 1, capacity=1),
            Stage("postprocess", finish, capacity=1),
        ]

    def prepare(self, frames: Sequence[Frame], *, steady: bool = False) -> Job:
        """Fill the network's input from frames of one upright size; ``steady`` as in ``stages``."""
        width, height = frames[0].upright_size
        job = Job(frames, [])
        for placement in self.size.placements(width, height, self.spec.max_stride, self._fixed):
            key = (len(frames), placement.padded_height, placement.padded_width, steady)
            slot = self._slots.acquire(key)
            preprocess(frames, [placement] * len(frames), self.spec, slot.input)
            job.passes.append(Pass(key, slot, placement))
        return job

    def infer(self, job: Job) -> Job:
        """Run the network over every pass of a job."""
        for step in job.passes:
            step.outputs = step.slot.run()
        return job

    def finish(self, job: Job) -> list[Faces]:
        """Decode, merge and suppress; gives the job's buffers back."""
        found: list[list[Candidates]] = [
            [candidates(p.outputs, item, p.placement, self.spec, self.threshold) for p in job.passes]
            for item in range(len(job.frames))
        ]
        for step in job.passes:
            step.outputs = ()
            self._slots.release(step.key, step.slot)
        return [self._faces(frame, passes) for frame, passes in zip(job.frames, found, strict=True)]

    def close(self) -> None:
        """Release the network and its buffers."""
        self._slots.clear()
        self.engine.close()

    def __enter__(self) -> Detector:
        """Return the detector itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def _run(self, frames: Sequence[Frame]) -> list[Faces]:
        return self.finish(self.infer(self.prepare(frames)))

    def _faces(self, frame: Frame, passes: list[Candidates]) -> Faces:
        width, height = frame.upright_size
        faces = final_faces(
            passes,
            width=width,
            height=height,
            iou=self.iou,
            max_faces=self.max_faces,
            plus_one=self.plus_one,
            clip=self.clip,
        )
        return replace(
            faces,
            source=frame.source,
            index=frame.index,
            pts=frame.seconds,
            corrupt=frame.corrupt,
            interlaced=frame.interlaced,
        )


def _as_frame(picture: npt.NDArray[np.uint8] | Frame, index: int = 0) -> Frame:
    return picture if isinstance(picture, Frame) else Frame.from_bgr(picture, index=index)


def is_video(frames: object) -> bool:
    """Whether an iterable of frames is a source that knows itself to be a video."""
    return getattr(getattr(frames, "info", None), "kind", None) == "video"


def _as_frames(pictures: Iterable[Frame | npt.NDArray[np.uint8]]) -> Iterator[Frame]:
    items = iter(pictures)
    try:
        for index, picture in enumerate(items):
            yield _as_frame(picture, index)
            del picture
    finally:
        close = getattr(items, "close", None)
        if close is not None:
            close()


def _check_range(name: str, value: float, low: float, high: float, *, whole: bool = False) -> None:
    number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high:
        kind = "whole numbers " if whole else ""
        raise UsageError(f"{name} {value!r} is out of range; allowed is {kind}{low:g} to {high:g}")
