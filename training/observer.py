"""Who is told what happens in a training run: the command line shows it, tests record it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


class Observer:
    """Told what happens in a run; this one keeps silent."""

    def note(self, text: str) -> None:
        """Take a line that says what was chosen or found."""

    def started(self, first: int, last: int) -> None:
        """Take note that steps ``first`` to ``last`` (exclusive) follow."""

    def stepped(self, step: int, values: Mapping[str, float]) -> None:
        """Take the values of every step; ``step`` counts those that are done."""

    def logged(self, step: int, row: Mapping[str, float]) -> None:
        """Take a line of the log."""

    def evaluated(self, step: int, row: Mapping[str, float]) -> None:
        """Take the result of an evaluation."""

    def saved(self, path: Path) -> None:
        """Take the path of a checkpoint or model that was written."""
