"""The detector on a CPU: preprocessing, a runtime's network, and the reference of anchors and NMS."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy.typing as npt

from retinastream.engines.engine import Engine, EngineInfo, EngineSlot
from retinastream.kernels.decode import Candidates
from retinastream.kernels.postprocess import candidates, final_faces
from retinastream.kernels.preprocess import preprocess
from retinastream.kernels.sizing import Placement
from retinastream.pipeline.backend import DetectionRules, Sizing, blank_faces
from retinastream.pipeline.limit_log import LimitLog
from retinastream.pipeline.slots import SlotKey, SlotPool
from retinastream.pipeline.stages import Stage
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


class CpuBackend:
    """See ``Backend``; closes the engine that it is given."""

    def __init__(self, engine: Engine, rules: DetectionRules, sizing: Sizing, batch: int) -> None:
        self.engine, self.rules, self.sizing, self.batch = engine, rules, sizing, batch
        self.model = engine.model
        self.slots = SlotPool(engine)
        self.log = LimitLog()

    @property
    def info(self) -> EngineInfo:
        """What executes the network, and why it was chosen."""
        return self.engine.info

    @property
    def execution(self) -> dict[str, Any]:
        """Nothing that ``info`` does not say."""
        return {}

    def detect(self, batches: Iterable[Sequence[Frame]]) -> Iterator[list[Faces]]:
        """Yield the faces of every batch."""
        for frames in batches:
            yield self.finish(self.infer(self.prepare(frames)))

    def stages(self, *, keep_frames: bool = False, steady: bool = False) -> list[Stage]:
        """See ``Backend``; with ``steady`` the engine prepares for the one size that the frames have."""

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
        job = Job(frames, [])
        for placement in self.sizing.placements(frames[0]):
            key = (len(frames), placement.padded_height, placement.padded_width, steady)
            slot = self.slots.acquire(key)
            preprocess(frames, [placement] * len(frames), self.model.spec, slot.input)
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
            [candidates(p.outputs, item, p.placement, self.model.spec, self.rules.threshold) for p in job.passes]
            for item in range(len(job.frames))
        ]
        for step in job.passes:
            step.outputs = ()
            self.slots.release(step.key, step.slot)
        result = [self._faces(frame, passes) for frame, passes in zip(job.frames, found, strict=True)]
        for faces in result:
            self.log.observe_faces(faces)
        return result

    def settle(self) -> None:
        """Nothing runs on after its batch was given up."""

    def close(self) -> None:
        """Release the network and its buffers."""
        self.slots.clear()
        self.engine.close()

    def _faces(self, frame: Frame, passes: list[Candidates]) -> Faces:
        blank, rules = blank_faces(frame), self.rules
        faces = final_faces(
            passes,
            width=blank.width,
            height=blank.height,
            iou=rules.iou,
            max_faces=rules.max_faces,
            plus_one=rules.plus_one,
            clip=rules.clip,
        )
        return replace(
            blank,
            boxes=faces.boxes,
            scores=faces.scores,
            landmarks=faces.landmarks,
            overflow=faces.overflow,
            not_a_number=faces.not_a_number,
        )
