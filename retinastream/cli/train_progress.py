"""Showing a training run on standard error: a bar on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from retinastream.training.observer import Observer


class QuietTrainObserver(Observer):
    """Prints nothing: errors end the command and are printed there."""

    def __enter__(self) -> Self:
        """Return the observer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is held."""


class LineTrainObserver(QuietTrainObserver):
    """Plain lines: for logs and pipes."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._last = 0

    def note(self, text: str) -> None:
        """Print what was chosen or found."""
        self.console.print(text, markup=False)

    def started(self, first: int, last: int) -> None:  # noqa: ARG002
        """Remember where the run ends."""
        self._last = last

    def logged(self, step: int, row: Mapping[str, float]) -> None:
        """Print a line of the log."""
        self.note(f"step {step}/{self._last}  {describe_row(row)}")

    def evaluated(self, step: int, row: Mapping[str, float]) -> None:
        """Print an evaluation."""
        self.note(f"step {step}  {describe_evaluation(row)}")

    def saved(self, path: Path) -> None:
        """Print where something was written."""
        self.note(f"-> {path}")


class TerminalTrainObserver(LineTrainObserver):
    """A bar with the losses of the last line of the log; what else is said scrolls above it."""

    def __init__(self) -> None:
        super().__init__()
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[facts]}", markup=False),
            console=self.console,
        )
        self._task = self._bar.add_task("steps", total=None, facts="", visible=False)

    def __enter__(self) -> Self:
        """Start drawing."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing and leave the printed lines."""
        self._bar.stop()

    def started(self, first: int, last: int) -> None:
        """Show the bar, as far as the run has come."""
        super().started(first, last)
        self._bar.reset(self._task, total=last, completed=first, visible=True, facts="")

    def stepped(self, step: int, values: Mapping[str, float]) -> None:  # noqa: ARG002
        """Move the bar; the display itself limits how often it is drawn."""
        self._bar.update(self._task, completed=step)

    def logged(self, step: int, row: Mapping[str, float]) -> None:  # noqa: ARG002
        """Put the averages behind the bar."""
        self._bar.update(self._task, facts=describe_row(row))


def make_train_observer(*, quiet: bool) -> QuietTrainObserver:
    """Choose how to show a run: by ``quiet``, and by whether standard error is a terminal."""
    if quiet:
        return QuietTrainObserver()
    return TerminalTrainObserver() if sys.stderr.isatty() else LineTrainObserver()


def describe_row(row: Mapping[str, float]) -> str:
    """Loss and its parts, rate and speed, in one line; a teacher's part where there is one."""
    parts = [f"loss {row['loss']:.3f} (class {row['classification']:.3f}, box {row['box']:.3f}, "]
    parts.append(f"landmark {row['landmark']:.3f}")
    if row["teacher_total"] == row["teacher_total"]:
        parts.append(f", teacher {row['teacher_total']:.3f}")
    parts.append(f")  rate {row['rate']:.2e}  {row['images_per_second']:.1f} img/s, {row['waited']:.0%} waiting")
    return "".join(parts)


def describe_evaluation(row: Mapping[str, float]) -> str:
    """Average precision, and precision and recall at a score of 0.5."""
    return (
        f"AP50 {row['ap50']:.4f}, AP {row['ap']:.4f}, at 0.5: precision {row['precision']:.3f}, recall "
        f"{row['recall']:.3f} ({row['pictures']:.0f} pictures, {row['faces']:.0f} faces, {row['seconds']:.1f} s)"
    )
