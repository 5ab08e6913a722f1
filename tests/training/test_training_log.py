"""The log of a run: rows at once on the disk, cut back on resume, and the same numbers for TensorBoard."""

import csv
import importlib.util
import sys
import types
from typing import ClassVar

import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from retinastream.errors import OutputError, UsageError  # noqa: E402
from retinastream.training.log import CsvLog, TrainingLog  # noqa: E402

COLUMNS = ("step", "loss", "rate")


def rows(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


@pytest.fixture
def no_tensorboard(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else real(name))


def test_a_row_is_in_the_file_when_write_returns(tmp_path):
    log = CsvLog(tmp_path / "log.csv", COLUMNS)
    log.write({"step": 10, "loss": 1 / 3})
    assert rows(tmp_path / "log.csv") == [["step", "loss", "rate"], ["10", "0.333333", ""]]
    log.close()


def test_a_resumed_log_forgets_the_steps_that_are_done_again_and_half_a_row(tmp_path):
    path = tmp_path / "log.csv"
    log = CsvLog(path, COLUMNS)
    for step in (10, 20, 30):
        log.write({"step": step, "loss": float(step), "rate": 0.1})
    log.close()
    with path.open("a") as file:
        file.write("2")
    log = CsvLog(path, COLUMNS, keep_until=20)
    log.write({"step": 30, "loss": 3.5, "rate": 0.2})
    log.close()
    assert rows(path)[1:] == [["10", "10", "0.1"], ["20", "20", "0.1"], ["30", "3.5", "0.2"]]


def test_a_log_with_other_columns_is_not_mixed_with_new_rows(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("step,cost\n10,3\n")
    with pytest.raises(UsageError, match="other columns"):
        CsvLog(path, COLUMNS, keep_until=10)
    assert path.read_text() == "step,cost\n10,3\n"


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(OutputError, match=r"nowhere.*log\.csv"):
        CsvLog(tmp_path / "nowhere" / "log.csv", COLUMNS)


def test_without_tensorboard_only_csv_is_written_and_the_log_says_so(tmp_path, no_tensorboard):
    with TrainingLog(tmp_path, ("loss",), ("ap50",)) as log:
        assert not log.tensorboard
        log.steps(5, {"loss": 2.0})
        log.evaluated(5, {"ap50": 0.25})
    assert rows(tmp_path / "log.csv")[1:] == [["5", "2"]]
    assert rows(tmp_path / "evaluation.csv")[1:] == [["5", "0.25"]]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evaluation.csv", "log.csv"]


class Recorder:
    made: ClassVar[list] = []

    def __init__(self, folder, purge_step):
        self.folder, self.purge_step, self.scalars, self.closed = folder, purge_step, [], False
        Recorder.made.append(self)

    def add_scalar(self, name, value, step):
        self.scalars.append((name, value, step))

    def close(self):
        self.closed = True


def test_tensorboard_gets_the_same_numbers_but_those_that_are_none(tmp_path, monkeypatch):
    Recorder.made.clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Recorder))
    with TrainingLog(tmp_path, ("loss", "teacher"), ("ap50",), keep_until=20) as log:
        assert not Recorder.made
        log.steps(30, {"loss": 2.0, "teacher": float("nan")})
        log.evaluated(30, {"ap50": 0.5})
    (writer,) = Recorder.made
    assert writer.scalars == [("train/loss", 2.0, 30), ("evaluation/ap50", 0.5, 30)]
    assert (writer.folder, writer.purge_step, writer.closed) == (str(tmp_path / "tensorboard"), 21, True)
