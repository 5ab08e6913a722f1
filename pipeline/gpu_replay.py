"""CUDA graphs of what is queued for a batch: plain the first time, recorded the second, replayed from then on."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable

from retinastream.engines.device_engine import DeviceEngine
from retinastream.kernels.device import CaptureError, Stream

logger = logging.getLogger(__name__)

# Batches of one shape differ only in the bytes that are copied: other pixel formats, frames on the device.
_KEPT_GRAPHS = 4


class GraphSwitch:
    """Whether graphs are used: all slots of a detector ask, and the first that cannot record turns it off for all."""

    def __init__(self, *, wanted: bool) -> None:
        self.is_on = wanted
        self.state = "on" if wanted else "off"

    def refuse(self, error: CaptureError) -> None:
        """Turn graphs off, for a reason that is said once."""
        if not self.is_on:
            return
        self.is_on, self.state = False, f"refused: {error}"
        logger.warning("the work of a batch cannot be recorded as a CUDA graph and is queued piece by piece: %s", error)


class Replays:
    """The graphs of one shape on one stream, by the bytes that are copied to the device."""

    def __init__(self, engine: DeviceEngine, stream: Stream, switch: GraphSwitch) -> None:
        self._engine, self._stream, self._switch = engine, stream, switch
        self._graphs: OrderedDict[int, Callable[[], None] | None] = OrderedDict()

    def queue(self, key: int, work: Callable[[], None]) -> None:
        """Queue ``work``, or a replay of it; it must be the same for a key, as long as nothing is forgotten.

        The first run is plain: it warms up what may not happen while recording. When it comes again, that has finished.
        """
        if not self._switch.is_on:
            work()
            return
        if key not in self._graphs:
            work()
            self._graphs[key] = None
            while len(self._graphs) > _KEPT_GRAPHS:
                self._graphs.popitem(last=False)
            return
        self._graphs.move_to_end(key)
        launch = self._graphs[key] or self._record(key, work)
        launch()

    def forget(self) -> None:
        """Drop all graphs, as their addresses are no longer valid; none of them is running."""
        self._graphs.clear()

    def _record(self, key: int, work: Callable[[], None]) -> Callable[[], None]:
        try:
            launch = self._engine.capture(self._stream, work)
        except CaptureError as error:
            self._switch.refuse(error)
            self.forget()
            return work
        self._graphs[key] = launch
        return launch
