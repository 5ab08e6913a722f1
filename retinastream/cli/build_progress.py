"""How far the build of an engine is: a bar on a terminal, a line every few seconds elsewhere, nothing when quiet."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import typer

if TYPE_CHECKING:
    from retinastream.engines.tensorrt.progress import BuildProgress

# With two looks a second a line comes before five seconds are over.
_LINE_SECONDS = 4.5


class BuildDisplay:
    """Shows progress on standard error; to be called with a ``BuildProgress`` now and then."""

    def __init__(self, what: str, *, quiet: bool = False) -> None:
        self._what = what
        self._quiet = quiet
        self._bar: Any = None
        self._task: Any = None
        self._last = 0.0
        self._stage = ""

    def __enter__(self) -> Self:
        """Return the display itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, progress: BuildProgress) -> None:
        """Show a moment of the build; the first one says that one has begun."""
        if self._quiet:
            return
        if not self._stage:
            typer.echo(f"building {self._what}: this takes minutes, once per machine", err=True)
        if sys.stderr.isatty():
            self._draw(progress)
        else:
            self._line(progress)
        self._stage = progress.stage

    def _line(self, progress: BuildProgress) -> None:
        from retinastream.engines.tensorrt.progress import describe_progress

        now = time.monotonic()
        if progress.stage != self._stage or now - self._last >= _LINE_SECONDS:
            self._last = now
            typer.echo(describe_progress(progress), err=True)

    def _draw(self, progress: BuildProgress) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

            text = TextColumn("{task.description}", markup=False)
            left = TextColumn("{task.fields[left]}", markup=False)
            self._bar = Progress(
                text,
                BarColumn(),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                left,
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(progress.stage, total=1.0, left="")
        phase = f": {progress.phase}" if progress.phase else ""
        left_text = "" if progress.left is None else f"about {progress.left:.0f} s left"
        self._bar.update(
            self._task, description=f"{progress.stage}{phase}", completed=progress.fraction, left=left_text
        )
