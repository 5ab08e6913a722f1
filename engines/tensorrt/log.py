"""TensorRT's log: kept in a ring, so that an error can say what TensorRT said, and passed on to Python's logging."""

from __future__ import annotations

import logging
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorrt as trt

logger = logging.getLogger(__name__)

_KEPT_LINES = 400
_LONGEST_LINE = 2000
# TensorRT's numbers for severities: the lower, the worse.
INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)
_LEVELS = {
    INTERNAL_ERROR: logging.WARNING,
    ERROR: logging.WARNING,
    WARNING: logging.WARNING,
    INFO: logging.INFO,
    VERBOSE: logging.DEBUG,
}


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the log; ``number`` counts all lines of this process."""

    number: int
    severity: int
    text: str


class LogRing:
    """The last lines of TensorRT's log; any thread may write and read.

    Warnings and errors are passed on to Python's logging once per text: a build repeats some of them hundreds of times.
    """

    def __init__(self, size: int = _KEPT_LINES) -> None:
        self._lines: deque[Line] = deque(maxlen=size)
        self._passed_on: set[str] = set()
        self._count = 0
        self._lock = threading.Lock()

    def add(self, severity: int, text: str) -> None:
        """Take a line; verbose ones are passed on and not kept, or they would push everything else out."""
        text = text.strip()[:_LONGEST_LINE]
        with self._lock:
            if severity < VERBOSE:
                self._lines.append(Line(self._count, severity, text))
                self._count += 1
            is_repeated = severity <= WARNING and text in self._passed_on
            if severity <= WARNING and len(self._passed_on) < _KEPT_LINES:
                self._passed_on.add(text)
        logger.log(logging.DEBUG if is_repeated else _LEVELS.get(severity, logging.DEBUG), "TensorRT: %s", text)

    def mark(self) -> int:
        """Return the place in the log that ``since`` starts from."""
        with self._lock:
            return self._count

    def since(self, mark: int, worst_of: int = INFO) -> tuple[str, ...]:
        """Return the lines after a mark that are at least as bad as ``worst_of``; the oldest may be gone."""
        with self._lock:
            return tuple(line.text for line in self._lines if line.number >= mark and line.severity <= worst_of)

    def complaints(self, mark: int) -> tuple[str, ...]:
        """Return errors and warnings after a mark."""
        return self.since(mark, WARNING)


RING = LogRing()


def make_logger(ring: LogRing = RING) -> trt.ILogger:
    """Create what TensorRT writes its log to. It must outlive all TensorRT objects: see ``process_logger``."""
    import tensorrt as trt

    class RingLogger(trt.ILogger):  # type: ignore[misc]  # the bindings have no types of their own
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            ring.add(int(severity), str(msg))

    return RingLogger()


_loggers: dict[int, trt.ILogger] = {}


def process_logger() -> trt.ILogger:
    """Return the one logger of this process: TensorRT ignores any other, and uses it until the process ends."""
    import tensorrt as trt

    if id(trt) not in _loggers:
        _loggers[id(trt)] = make_logger()
    return _loggers[id(trt)]
