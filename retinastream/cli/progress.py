"""Showing a run: one nested display on a terminal, plain lines elsewhere, nothing but errors when quiet.

Everything here goes to standard error, so that standard output stays free for ``--json``.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from retinastream.pipeline.report import InputReport, RunReport

_LINE_SECONDS = 5.0


class QuietObserver:
    """Prints errors only."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        """Return the observer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is held."""

    def say(self, text: str) -> None:
        """Print one line, whatever brackets its names contain."""
        self.console.print(text, markup=False)

    def run_started(self, report: RunReport) -> None:
        """Stay silent."""

    def input_started(self, report: InputReport) -> None:
        """Stay silent."""

    def progressed(self, report: InputReport) -> None:
        """Stay silent."""

    def input_ended(self, report: InputReport) -> None:
        """Print what failed."""
        if report.error is not None:
            self.say(f"error: {report.error}")
        for _, error in report.failures:
            self.say(f"error: {error}")


class LineObserver(QuietObserver):
    """Plain lines: for logs and pipes."""

    def __init__(self) -> None:
        super().__init__()
        self._began = self._last = 0.0

    def run_started(self, report: RunReport) -> None:
        """Say what runs, where, and why."""
        for note in report.notes:
            self.say(f"note: {note}")
        self.say(describe_run(report.detector))

    def input_started(self, report: InputReport) -> None:
        """Name the input."""
        self._began = self._last = time.monotonic()
        promised = f" ({report.promised} frames)" if report.promised else ""
        self.say(f"{report.name}{promised}")

    def progressed(self, report: InputReport) -> None:
        """Print a line now and then."""
        now = time.monotonic()
        if now - self._last >= _LINE_SECONDS:
            self._last = now
            self.say(f"  {describe_progress(report, now - self._began)}")

    def input_ended(self, report: InputReport) -> None:
        """Print the outcome, the warnings and the outputs."""
        for warning in report.warnings:
            self.say(f"  warning: {warning}")
        super().input_ended(report)
        if report.status in ("done", "interrupted"):
            self.say(f"  {describe_outcome(report)}")
        if report.written or report.status == "done":
            for output in report.outputs:
                self.say(f"  -> {output}")


class TerminalObserver(LineObserver):
    """Two nested bars: all inputs, and the frames of the current one with fps, faces and time left."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}", markup=False),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        self._all = self._progress.add_task("inputs", total=inputs, facts="")
        self._current: TaskID | None = None

    def __enter__(self) -> Self:
        """Start drawing."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing and leave the printed lines."""
        self._progress.stop()

    def run_started(self, report: RunReport) -> None:
        """Say what runs; now the number of inputs is known."""
        super().run_started(report)
        self._progress.update(self._all, total=len(report.inputs))

    def input_started(self, report: InputReport) -> None:
        """Open a bar for this input."""
        super().input_started(report)
        self._current = self._progress.add_task("frames", total=report.promised, facts="")

    def progressed(self, report: InputReport) -> None:
        """Move the bar; the display itself limits how often it is drawn."""
        if self._current is None:
            return
        seconds = max(time.monotonic() - self._began, 1e-6)
        facts = f"{report.written / seconds:.1f} fps, {report.faces} faces"
        done = report.source.decoded if report.promised else report.written
        self._progress.update(self._current, completed=done, facts=facts)

    def input_ended(self, report: InputReport) -> None:
        """Replace the bar by the outcome."""
        if self._current is not None:
            self._progress.remove_task(self._current)
            self._current = None
        self._progress.advance(self._all)
        super().input_ended(report)


def make_observer(*, quiet: bool, inputs: int) -> QuietObserver:
    """Choose how to show a run: by ``quiet``, and by whether standard error is a terminal."""
    if quiet:
        return QuietObserver()
    return TerminalObserver(inputs) if sys.stderr.isatty() else LineObserver()


def describe_run(facts: dict[str, Any]) -> str:
    """One sentence: model, runtime, precision, device, threads (of a CPU), streams, size policy, and why."""
    threads = f"{_count(facts['threads'], 'thread')}, " if facts["threads"] else ""
    return (
        f"model {facts['model']} (sha256 {facts['model_sha256'][:12]}), size {facts['size_policy']}; "
        f"{facts['runtime']} {facts['runtime_version']} {facts['precision']} on {facts['device']} "
        f"({facts['device_name']}, {threads}{_count(facts['streams'], 'stream')}): "
        f"{facts['runtime_reason']}"
    )


def describe_progress(report: InputReport, seconds: float) -> str:
    """Frames so far, of how many, at which rate, and the time left where it can be known."""
    rate = report.written / seconds if seconds > 0 else 0.0
    of = f" of {report.promised}" if report.promised else ""
    text = f"{report.source.decoded}{of} frames, {rate:.1f} fps, {report.faces} faces"
    if report.promised and report.source.decoded and report.promised > report.source.decoded:
        left = seconds * (report.promised / report.source.decoded - 1)
        text += f", {left:.0f} s left"
    return text


def describe_outcome(report: InputReport) -> str:
    """What came of an input, every frame accounted for."""
    counts = report.counts()
    parts = [f"{_count(report.written, 'frame')} written", _count(report.faces, "face"), f"{report.fps:.1f} fps"]
    parts += [f"{counts[name]} {name}" for name in ("skipped", "corrupt", "damaged", "lost") if counts[name]]
    prefix = "interrupted: " if report.status == "interrupted" else ""
    return prefix + ", ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def print_stats(report: RunReport) -> None:
    """Print what each stage did and how long its queue kept whom waiting."""
    console = Console(stderr=True, highlight=False)
    for outcome in report.inputs:
        if outcome.stats is None:
            continue
        stats = outcome.stats.to_dict()
        title = f"{outcome.name}: bottleneck is {stats['bottleneck']} ({stats['wall_seconds']:.2f} s)"
        console.print(title, markup=False, soft_wrap=True)
        table = Table(box=None)
        table.add_column("stage", no_wrap=True)
        for column in (
            "workers",
            "items",
            "busy s",
            "cpu s",
            "busy",
            "max/cap",
            "mean depth",
            "put waits",
            "get waits",
        ):
            table.add_column(column, justify="right")
        for row in stats["stages"]:
            queue = row.get("queue")
            table.add_row(
                row["name"],
                str(row["workers"]),
                str(row["items"]),
                f"{row['busy_seconds']:.2f}",
                f"{row['cpu_seconds']:.2f}",
                f"{row['busy_share']:.0%}",
                f"{queue['max_depth']}/{queue['capacity']}" if queue else "-",
                f"{queue['mean_depth']:.2f}" if queue else "-",
                f"{queue['producer_wait_seconds']:.2f} s" if queue else "-",
                f"{queue['consumer_wait_seconds']:.2f} s" if queue else "-",
            )
        console.print(table)
