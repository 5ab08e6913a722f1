"""Detection from pictures on the device to faces on the device, in which the host never waits."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from retinastream.engines.device_engine import DeviceEngine
from retinastream.kernels.cuda_faces import ROW
from retinastream.kernels.device import Device, Event, Stream
from retinastream.pipeline.backend import DetectionRules, Sizing, blank_faces
from retinastream.pipeline.batches import in_batches
from retinastream.pipeline.device_faces import DeviceFaces
from retinastream.pipeline.device_pictures import (
    LEGACY_STREAM,
    declared_streams,
    device_frames,
    picture_list,
    stream_handle,
)
from retinastream.pipeline.gpu_network import BatchShape, NetworkMemory
from retinastream.pipeline.gpu_replay import GraphSwitch
from retinastream.pipeline.gpu_staging import Parameters
from retinastream.pipeline.limit_log import LimitLog
from retinastream.types import Frame


class ParameterBlocks:
    """Pinned memory for the parameters of batches whose copy to the device may not have happened yet."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._used: deque[tuple[Event, npt.NDArray[np.uint8]]] = deque()

    def take(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """Return a block that nothing reads any more: the oldest one, or a new one rather than waiting for it."""
        if self._used and self._used[0][0].done:
            _, block = self._used.popleft()
            if len(block) >= nbytes:
                return block
        return self._device.empty_pinned((nbytes,), np.uint8)

    def give_back(self, block: npt.NDArray[np.uint8], done: Event) -> None:
        """Take a block back that is free after an event."""
        self._used.append((done, block))


class DeviceLane:
    """A stream with memory of its own for ``Detector.detect_device``; not to be used by two threads at once.

    Batches run one after the other in the same buffers, ordered by the stream. What a batch reads and writes outside of
    them is kept until it has run: the memory pools of CuPy and torch would give it to somebody else otherwise. Every
    method expects the device to be current.
    """

    def __init__(self, engine: DeviceEngine, rules: DetectionRules, sizing: Sizing, log: LimitLog) -> None:
        self._device: Device = engine.device
        self._rules, self._sizing, self._log = rules, sizing, log
        self._stream: Stream = self._device.stream()
        # Every call has results elsewhere, so there is nothing to replay.
        self._network = NetworkMemory(engine, self._stream, rules, GraphSwitch(wanted=False))
        self._blocks = ParameterBlocks(self._device)
        self._upload: Any = None
        self._running: deque[tuple[Event, Any]] = deque()

    def detect(self, pictures: Any, stream: Any, batch: int) -> DeviceFaces:
        """Queue the search for the faces of pictures on the device, ``batch`` at a time; see the detector."""
        self._let_go()
        listed = picture_list(pictures)
        frames = device_frames(listed, self._device, self._stream)
        followed = declared_streams(frames) if stream is None else {stream_handle(stream)}
        # A decoded frame is written on its decoder's stream, whatever stream the caller works on.
        for handle in sorted(followed | declared_streams(p for p in listed if isinstance(p, Frame))):
            ready = self._device.event()
            self._device.foreign_stream(handle).record(ready)
            self._stream.wait(ready)
        rows, counts = self._results(len(frames), followed)
        start = 0
        try:
            for group in in_batches(frames, batch):
                part = slice(start, start + len(group))
                self._queue(group, {"rows": rows[part], "counts": counts[part]})
                start += len(group)
        finally:
            done = self._device.event()
            self._stream.record(done)
            self._running.append((done, (frames, rows, counts)))
        for handle in _followers(followed):
            self._device.foreign_stream(handle).wait(done)
        return DeviceFaces(self._device, rows, counts, [done], [blank_faces(frame) for frame in frames], self._log)

    def close(self) -> None:
        """Wait for what is queued and release everything."""
        try:
            self._stream.synchronize()
        finally:
            self._running.clear()
            self._network.close()
            self._upload = None

    def _results(self, count: int, followed: set[int]) -> tuple[Any, Any]:
        """Allocate what the faces go into on the caller's stream, which may still read it when it is dropped."""
        stream = self._device.foreign_stream(_followers(followed)[0])
        rows = self._device.empty((count, self._rules.max_faces, ROW), np.float32, stream)
        return rows, self._device.empty((count, 4), np.int32, stream)

    def _queue(self, frames: Sequence[Frame], results: dict[str, Any]) -> None:
        placements = self._sizing.placements(frames[0])
        bound = self._network.bind(BatchShape.of(len(frames), placements))
        parameters = Parameters(len(frames), len(placements))
        upload = self._room_for(parameters.nbytes)
        block = self._blocks.take(parameters.nbytes)
        parameters.write(block, frames, placements)
        self._device.copy_in(upload, block[: parameters.nbytes], self._stream)
        copied = self._device.event()
        self._stream.record(copied)
        self._blocks.give_back(block, copied)
        bound.queue(upload, results)

    def _room_for(self, nbytes: int) -> Any:
        if self._upload is None or nbytes > len(self._upload):
            if self._upload is not None:
                self._stream.synchronize()
                self._upload = None
            self._upload = self._device.empty((nbytes,), np.uint8, self._stream)
        return self._upload[:nbytes]

    def _let_go(self) -> None:
        while self._running and self._running[0][0].done:
            self._running.popleft()


def _followers(followed: set[int]) -> list[int]:
    """Return the streams on which the results may be used at once."""
    return sorted(followed) or [LEGACY_STREAM]
