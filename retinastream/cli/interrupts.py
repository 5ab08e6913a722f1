"""What Ctrl-C does to a command that can stop in order."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any


class Interrupts:
    """Turns the first Ctrl-C or SIGTERM into a request to stop, ``stop``; the second one gives up at once.

    ``doing`` is what the request starts, as it is said aloud; ``signal`` the number of the first signal, if there was
    one. Outside the main thread, where Python delivers no signals, nothing is changed.
    """

    def __init__(self, doing: str) -> None:
        self.stop = threading.Event()
        self.signal: int | None = None
        self._doing = doing
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        """Take the two signals over."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        """Give them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.stop.is_set():
            raise KeyboardInterrupt
        self.signal = number
        self.stop.set()
        print(f"stopping: {self._doing} (again to give up at once)", file=sys.stderr)  # noqa: T201
