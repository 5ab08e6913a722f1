"""How many of the pictures are done: a bar on a terminal, a line now and then elsewhere, nothing when quiet."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

import typer

_LINE_SECONDS = 5.0


class PictureProgress:
    """Shows progress on standard error; to be called with how many are done and how many there are.

    Fewer done than before is another run over the pictures, and what is left is counted for that alone.
    """

    def __init__(self, what: str, *, unit: str = "pictures", quiet: bool = False) -> None:
        self._what = what
        self._unit = unit
        self._quiet = quiet
        self._bar: Any = None
        self._task: Any = None
        self._began = self._last = time.monotonic()
        self._first, self._done = 0, sys.maxsize

    def __enter__(self) -> Self:
        """Open the bar on a terminal."""
        self._last = time.monotonic()
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            description = TextColumn("{task.description}", markup=False)
            columns = (description, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self._what, total=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def begin(self, what: str, unit: str = "pictures") -> None:
        """Go on with something else, of which nothing is done yet."""
        if (what, unit) == (self._what, self._unit):
            return
        self._what, self._unit, self._done = what, unit, sys.maxsize
        if self._bar is not None:
            self._bar.update(self._task, description=what)

    def __call__(self, done: int, total: int) -> None:
        """Say that ``done`` of ``total`` are done."""
        now = time.monotonic()
        if done < self._done:
            # Whatever came before this run, such as opening a model, says nothing about what is left of it.
            self._began, self._first = now, done
            if self._bar is not None:
                self._bar.reset(self._task, total=total)
        self._done = done
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total)
        elif not self._quiet and now - self._last >= _LINE_SECONDS:
            self._last = now
            timed = done - self._first
            left = f", {(now - self._began) / timed * (total - done):.0f} s left" if timed else ""
            typer.echo(f"{self._what}: {done} of {total} {self._unit}{left}", err=True)
