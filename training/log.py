"""What a run writes down as it goes: CSV always, TensorBoard where its package is installed."""

from __future__ import annotations

import csv
import importlib.util
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from retinastream.errors import OutputError, UsageError

Value = float | int | str


class CsvLog:
    """A table with a row per event, each on the disk when ``write`` returns; the first column is the step.

    When a run is resumed, rows after ``keep_until`` are removed: the steps they tell of are done again. Raises
    OutputError where the file cannot be written, UsageError where it has other columns.
    """

    def __init__(self, path: Path, columns: Sequence[str], *, keep_until: int | None = None) -> None:
        self.path, self.columns = path, tuple(columns)
        try:
            kept = [] if keep_until is None else _rows_until(path, self.columns, keep_until)
            partial = path.with_name(path.name + ".part")
            with partial.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([self.columns, *kept])
            partial.replace(path)
            self._file = path.open("a", encoding="utf-8", newline="")
        except OSError as error:
            raise OutputError(f"the log {path} cannot be written: {error.strerror or error}") from error

    def write(self, row: Mapping[str, Value]) -> None:
        """Append a row; floats keep six digits, columns without a value stay empty."""
        text = io.StringIO()
        csv.writer(text).writerow([_text(row.get(name, "")) for name in self.columns])
        try:
            self._file.write(text.getvalue())
            self._file.flush()
        except OSError as error:
            raise OutputError(f"the log {self.path} cannot be written: {error.strerror or error}") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TrainingLog:
    """The two tables of a run, ``log.csv`` and ``evaluation.csv``, and the same numbers as TensorBoard events.

    ``tensorboard`` says whether events are written: only where the package ``tensorboard`` is installed.
    """

    def __init__(
        self, folder: Path, columns: Sequence[str], evaluation: Sequence[str], *, keep_until: int | None = None
    ) -> None:
        self._steps = CsvLog(folder / "log.csv", ("step", *columns), keep_until=keep_until)
        self._evaluation = CsvLog(folder / "evaluation.csv", ("step", *evaluation), keep_until=keep_until)
        self._folder, self._first = folder / "tensorboard", 0 if keep_until is None else keep_until + 1
        self._writer: Any = None
        self.tensorboard = importlib.util.find_spec("tensorboard") is not None

    def steps(self, step: int, row: Mapping[str, Value]) -> None:
        """Write the averages over the steps up to ``step``."""
        self._steps.write({"step": step, **row})
        self._event("train", step, row)

    def evaluated(self, step: int, row: Mapping[str, Value]) -> None:
        """Write what an evaluation after ``step`` steps found."""
        self._evaluation.write({"step": step, **row})
        self._event("evaluation", step, row)

    def _event(self, group: str, step: int, row: Mapping[str, Value]) -> None:
        if not self.tensorboard:
            return
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # Events of steps that are done again are hidden by the reader from this step on.
            self._writer = SummaryWriter(str(self._folder), purge_step=self._first)
        for name, value in row.items():
            if isinstance(value, float) and not math.isnan(value):
                self._writer.add_scalar(f"{group}/{name}", value, step)

    def __enter__(self) -> Self:
        """Return the log itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all files."""
        self._steps.close()
        self._evaluation.close()
        if self._writer is not None:
            self._writer.close()


def _rows_until(path: Path, columns: Sequence[str], last: int) -> list[list[str]]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    if rows and tuple(rows[0]) != tuple(columns):
        raise UsageError(f"{path} has other columns than this version writes; move it away to resume the run")
    # A process that was killed may leave half a row.
    whole = [row for row in rows[1:] if len(row) == len(columns) and row[0].isdigit()]
    return [row for row in whole if int(row[0]) <= last]


def _text(value: Value) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
