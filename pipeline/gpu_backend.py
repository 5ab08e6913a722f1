"""The detector on a GPU: batches are queued in a ring of slots, and read when their faces are wanted.

The host waits once per batch. While it reads one batch, the next ones are queued already, so the device does not wait
for it. See gpu_slot.py for what a batch is made of, and gpu_ring.py for how slots change hands.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from retinastream.engines.device_engine import DeviceEngine
from retinastream.engines.engine import EngineInfo
from retinastream.engines.select import DeviceChoice, create_device_engine
from retinastream.errors import DeviceMemoryError, UsageError
from retinastream.kernels.cuda_faces import FaceLimits
from retinastream.models.onnx_file import OnnxModel
from retinastream.pipeline.backend import DetectionRules, Sizing
from retinastream.pipeline.device_faces import DeviceFaces
from retinastream.pipeline.device_lane import DeviceLane
from retinastream.pipeline.gpu_replay import GraphSwitch
from retinastream.pipeline.gpu_ring import Flight, SlotRing
from retinastream.pipeline.gpu_slot import GpuSlot
from retinastream.pipeline.limit_log import LimitLog
from retinastream.pipeline.stages import Stage
from retinastream.types import Faces, Frame

logger = logging.getLogger(__name__)

# One batch is read, one computed and one uploaded; more only adds memory and delay.
DEFAULT_SLOTS, MOST_SLOTS = 3, 4
_REMEDIES = "use a smaller size (--size fit:1920), a smaller batch (--batch), or fewer streams (--streams 1)"


@dataclass(slots=True)
class GpuJob:
    """Frames on their way: in one flight, or in several where memory was too short for the batch."""

    frames: Sequence[Frame]
    flights: list[Flight]


class GpuBackend:
    """See ``Backend``; closes the engine that it is given. ``streams`` is the number of slots, 0 chooses."""

    def __init__(
        self,
        engine: DeviceEngine,
        rules: DetectionRules,
        sizing: Sizing,
        batch: int,
        *,
        streams: int = 0,
        cuda_graph: bool = True,
    ) -> None:
        check_gpu_settings(rules, streams)
        self.engine, self.model, self.rules, self.sizing, self.batch = engine, engine.model, rules, sizing, batch
        self.log = LimitLog()
        self._graphs = GraphSwitch(wanted=cuda_graph)
        self._ring = SlotRing(self._slot, streams or DEFAULT_SLOTS, engine.device.current, self.log)
        self._lane: DeviceLane | None = None
        self._submitting = threading.Lock()
        self._is_halved = self._is_closed = False
        with engine.device.current():
            # A CUDA graph must not capture the compiling of a kernel.
            engine.device.prepare_kernels()

    @property
    def info(self) -> EngineInfo:
        """What executes the network, and why it was chosen."""
        return self.engine.info

    @property
    def execution(self) -> dict[str, Any]:
        """Batch, slots, and whether CUDA graphs are used."""
        return {"batch": self.batch, "slots": self._ring.size, "cuda_graph": self._graphs.state}

    def detect(self, batches: Iterable[Sequence[Frame]]) -> Iterator[list[Faces]]:
        """Yield the faces of every batch; the next ones are queued before a batch is read."""
        waiting: deque[GpuJob] = deque()
        try:
            for frames in batches:
                waiting.append(self.submit(frames))
                if len(waiting) == self._ring.size:
                    yield self.collect(waiting.popleft())
            while waiting:
                yield self.collect(waiting.popleft())
        finally:
            for job in waiting:
                for flight in job.flights:
                    flight.land()

    def stages(self, *, keep_frames: bool = False, steady: bool = False) -> list[Stage]:  # noqa: ARG002
        """See ``Backend``; ``steady`` is for engines of a CPU, as every shape is prepared for here."""

        def submit(frames: Sequence[Frame]) -> GpuJob:
            job = self.submit(frames)
            return job if keep_frames else GpuJob((), job.flights)

        def collect(job: GpuJob) -> tuple[Sequence[Frame], list[Faces]]:
            return job.frames, self.collect(job)

        # With one batch in each stage's hands, the queue between them holds the others.
        return [Stage("submit", submit), Stage("collect", collect, capacity=max(1, self._ring.size - 2))]

    def submit(self, frames: Sequence[Frame]) -> GpuJob:
        """Queue frames of one upright size; those in host memory are not touched afterwards.

        Where memory is too short, the batch is halved, once; DeviceMemoryError where that does not help.
        """
        job, first = GpuJob(frames, []), 0
        with self._submitting:
            while first < len(frames):
                self._expect_open()
                group = frames[first : first + self.batch]
                try:
                    job.flights.append(self._ring.launch(group, self.sizing.placements(group[0])))
                except DeviceMemoryError as error:
                    self._release()
                    self._halve(error)
                    continue
                first += len(group)
        return job

    def collect(self, job: GpuJob) -> list[Faces]:
        """Wait for frames that were submitted and return their faces."""
        return [faces for flight in job.flights for faces in flight.faces()]

    def detect_device(self, pictures: Any, stream: Any) -> DeviceFaces:
        """See ``Detector.detect_device``."""
        device = self.engine.device
        with self._submitting, device.current():
            self._expect_open()
            if self._lane is None:
                self._lane = DeviceLane(self.engine, self.rules, self.sizing, self.log)
            try:
                return self._lane.detect(pictures, stream, self.batch)
            except DeviceMemoryError as error:
                self._release()
                raise self._too_little(error) from error

    def settle(self) -> None:
        """Wait for batches that nobody read, and let their frames go."""
        self._ring.land_all()

    def close(self) -> None:
        """Release the network and all buffers, after what is queued has run; faces of it can be collected still."""
        with self._submitting:
            if self._is_closed:
                return
            self._is_closed = True
            try:
                self._release()
            finally:
                self.engine.close()

    def _slot(self) -> GpuSlot:
        return GpuSlot(self.engine, self.rules, self._graphs)

    def _release(self) -> None:
        """Give all memory back; batches on their way are finished first."""
        self._ring.release()
        lane, self._lane = self._lane, None
        with self.engine.device.current():
            if lane is not None:
                lane.close()
            # What was freed is kept for streams that are no more.
            self.engine.device.release_unused()

    def _halve(self, error: DeviceMemoryError) -> None:
        is_fixed = self.model.input_shape[0] is not None
        if self.batch == 1 or self._is_halved or is_fixed:
            raise self._too_little(error) from error
        self._is_halved = True
        smaller = self.batch // 2
        logger.warning("batches are of %d instead of %d frames from now on: %s", smaller, self.batch, error)
        self.batch = smaller

    def _too_little(self, error: DeviceMemoryError) -> DeviceMemoryError:
        return DeviceMemoryError(
            f"a batch of {self.batch} at size {self.sizing.policy} does not fit in the memory of "
            f"{self.engine.device.label}: {error}; {_REMEDIES}"
        )

    def _expect_open(self) -> None:
        if self._is_closed:
            raise UsageError("the detector is closed; create a new one")


def check_gpu_settings(rules: DetectionRules, streams: int) -> None:
    """Raise UsageError for what is allowed on a CPU only; cheaper than to find out when an engine has been built."""
    if isinstance(streams, bool) or not isinstance(streams, int) or not 0 <= streams <= MOST_SLOTS:
        raise UsageError(
            f"streams {streams!r} is out of range; on a GPU it is how many batches are on it at once: 1 to "
            f"{MOST_SLOTS}, or 0 for {DEFAULT_SLOTS}"
        )
    FaceLimits(1, max_faces=rules.max_faces, iou=rules.iou)


def open_device_engine(
    model: OnnxModel, choice: DeviceChoice, *, runtime: str, precision: str | None, torch_compile: bool, batch: int
) -> DeviceEngine:
    """Open the GPU that was chosen and build the model's engine on it, for batches of up to ``batch``."""
    from retinastream.kernels.cupy_device import CuPyDevice

    device = CuPyDevice(choice.index)
    return create_device_engine(
        model,
        device,
        runtime=runtime,
        precision=precision,
        torch_compile=torch_compile,
        batch=batch,
        reason=choice.reason,
    )
