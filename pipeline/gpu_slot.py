"""One batch on a device: a stream, the memory that its work needs, and one point at which the host waits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from retinastream.engines.device_engine import DeviceEngine
from retinastream.kernels.cuda_faces import FACES, NOT_A_NUMBER, OVERFLOW
from retinastream.kernels.device import Device
from retinastream.kernels.sizing import Placement
from retinastream.pipeline.backend import DetectionRules
from retinastream.pipeline.device_pictures import declared_streams
from retinastream.pipeline.gpu_network import BatchShape, BoundNetwork, NetworkMemory
from retinastream.pipeline.gpu_replay import GraphSwitch
from retinastream.pipeline.gpu_staging import Staged, Staging
from retinastream.types import Faces, Frame


class GpuSlot:
    """Takes a batch, queues all of its work and gives its faces back; for one batch at a time.

    All buffers stay where they are until a larger batch comes, so that the work of a shape can be replayed. Every
    method expects the device to be current.
    """

    def __init__(self, engine: DeviceEngine, rules: DetectionRules, switch: GraphSwitch) -> None:
        self._device: Device = engine.device
        self._rules = rules
        self._stream, self._done, self._ready = self._device.stream(), self._device.event(), self._device.event()
        self._staging = Staging(self._device, self._stream)
        self._network = NetworkMemory(engine, self._stream, rules, switch)
        self._result: npt.NDArray[np.uint8] = np.zeros(0, np.uint8)
        self._bound: BoundNetwork | None = None  # what was queued and not read
        self._held: list[tuple[Frame, tuple[Any, ...]]] = []
        self.is_busy = False  # whether anything was queued since the last read

    def submit(self, frames: Sequence[Frame], placements: Sequence[Placement]) -> None:
        """Queue everything from planes to faces in host memory.

        Frames in host memory are not touched afterwards. Those on the device are held until ``read``: their decoder
        would otherwise write the next picture into their memory while it is read here.
        """
        bound = self._network.bind(BatchShape.of(len(frames), placements))
        staged = self._stage(frames, placements)
        self._make_room_for_result(bound.result_bytes)
        self.is_busy, self._bound = True, bound
        self._held = [(frame, frame.planes) for frame in staged.on_device]
        self._wait_for_writers(staged.on_device)
        bound.replays.queue(staged.nbytes, partial(self._queue, bound, staged.nbytes))
        self._stream.record(self._done)

    def read(self, blanks: Sequence[Faces]) -> tuple[list[Faces], npt.NDArray[np.int32]]:
        """Wait for the batch, once; return the faces of its frames, and what was counted: (frames, 4).

        Errors of the queued work are raised here.
        """
        if self._bound is None:
            raise ValueError("nothing was submitted")
        self._done.synchronize()
        self.is_busy = False
        self._held.clear()
        # Let go here, or a larger batch's memory would have to fit beside this one's.
        regions, self._bound = self._bound.regions, None
        rows, counts = (np.asarray(regions[name].of(self._result)) for name in ("rows", "counts"))
        return [faces_of(blank, *one) for blank, *one in zip(blanks, rows, counts, strict=True)], counts.copy()

    def close(self) -> None:
        """Wait for what is queued and release everything."""
        try:
            if self.is_busy:
                self._stream.synchronize()
        finally:
            self.is_busy = False
            self._bound, self._held = None, []
            self._network.close()
            self._staging = Staging(self._device, self._stream)
            self._result = np.zeros(0, np.uint8)

    def _queue(self, bound: BoundNetwork, nbytes: int) -> None:
        staging, size = self._staging, bound.result_bytes
        self._device.copy_in(staging.block[:nbytes], staging.pinned[:nbytes], self._stream)
        bound.queue(staging.block)
        self._device.copy_out(self._result[:size], bound.block[:size], self._stream)

    def _stage(self, frames: Sequence[Frame], placements: Sequence[Placement]) -> Staged:
        moves = self._staging.moves
        staged = self._staging.fill(frames, placements)
        if self._staging.moves != moves:
            self._network.forget_replays()
        return staged

    def _make_room_for_result(self, nbytes: int) -> None:
        if nbytes > len(self._result):
            self._network.forget_replays()
            self._result = self._device.empty_pinned((nbytes,), np.uint8)

    def _wait_for_writers(self, frames: Sequence[Frame]) -> None:
        """Let the stream wait for the streams that device frames are written on; the host waits for nothing."""
        for handle in sorted(declared_streams(frames)):
            self._device.foreign_stream(handle).record(self._ready)
            self._stream.wait(self._ready)


def faces_of(blank: Faces, rows: npt.NDArray[np.float32], counts: npt.NDArray[np.int32]) -> Faces:
    """Return the faces of one frame, copied from its rows (max_faces, 16) and counts (4,) in host memory."""
    found = rows[: counts[FACES]]
    return replace(
        blank,
        boxes=found[:, :4].copy(),
        scores=found[:, 4].copy(),
        landmarks=found[:, 5:15].reshape(-1, 5, 2).copy(),
        overflow=bool(counts[OVERFLOW]),
        not_a_number=int(counts[NOT_A_NUMBER]),
    )
