"""A training run from its configuration to an exported model."""

from __future__ import annotations

import copy
import dataclasses
import math
import statistics
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch

from retinastream.errors import TrainingError, UsageError
from retinastream.evaluation.measures import finite
from retinastream.models.network_heads import DetectorNetwork
from retinastream.models.onnx_graph import file_sha256
from retinastream.training.assemble import Assembly, assemble
from retinastream.training.batches import TrainingBatch
from retinastream.training.checkpoint import (
    FORMAT,
    checkpoint_name,
    prune,
    read_checkpoint,
    restore_rng,
    rng_state,
    saved_steps,
    state_sha256,
    write_checkpoint,
)
from retinastream.training.config import TrainConfig
from retinastream.training.config_file import changes_since
from retinastream.training.evaluate_during import EVALUATION_VALUES, evaluate_network
from retinastream.training.failed_step import save_failed_step
from retinastream.training.learner import STEP_VALUES, NotFiniteError
from retinastream.training.log import TrainingLog
from retinastream.training.machine import Machine, choose_machine, join_world, leave_world
from retinastream.training.observer import Observer
from retinastream.training.run_folder import RunFolder
from retinastream.training.schedule import rate_at

LOG_COLUMNS = ("epoch", "rate", *STEP_VALUES, "images_per_second", "waited", "seconds")


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What came of a run: ``finished`` is False where it was stopped; ``model`` is written at the end only."""

    run_dir: Path
    step: int
    steps: int
    finished: bool
    model: Path | None
    best_ap50: float
    last_ap50: float
    report: dict[str, Any]


@dataclass(slots=True)
class _Progress:
    """What a run remembers from step to step, and across resumes."""

    step: int = 0
    best: float = math.nan
    best_step: int = -1
    last: float = math.nan
    seconds: float = 0.0

    def metrics(self) -> dict[str, float]:
        return dataclasses.asdict(self)


@dataclass(slots=True)
class _Interval:
    """The steps since the last line of the log."""

    began: float = field(default_factory=time.monotonic)
    waited: float = 0.0
    pictures: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)

    def row(self) -> dict[str, float]:
        passed = max(time.monotonic() - self.began, 1e-9)
        means = {name: statistics.fmean(row[name] for row in self.rows) for name in STEP_VALUES}
        return {**means, "images_per_second": self.pictures / passed, "waited": self.waited / passed}


def train(
    config: TrainConfig,
    *,
    run_dir: str | Path,
    resume: bool = False,
    accept_changes: bool = False,
    observer: Observer | None = None,
    stop: threading.Event | None = None,
    stop_after: int | None = None,
) -> TrainResult:
    """Run or ``resume`` a training; everything it writes lies in ``run_dir``.

    When ``stop`` is set the step in progress is finished, a checkpoint written, and the function returns; likewise
    when ``stop_after`` steps of the whole run are done. On one device a resumed run continues bit for bit. A changed
    configuration is refused unless ``accept_changes``. The generators of torch are seeded. Under torchrun every process
    calls this, and the first one writes the files.

    Raises UsageError for a configuration that cannot run, a folder that is in use, or a change that was not accepted;
    InputError for data that cannot be used; OutputError where the folder cannot be written; ModelError for weights
    of another architecture; TrainingError where a loss is no number, after saving the batch to ``nan-step-N``.
    """
    world = join_world(config.run.device)
    machine = choose_machine(config.run, world)
    folder = RunFolder(Path(run_dir))
    told = (observer or Observer()) if world.leads else Observer()
    state = read_checkpoint(folder.latest()) if resume else None
    if state is not None:
        _check_config(state["config"], config, accept_changes, told)
    elif world.leads:
        folder.require_new()
    try:
        parts = assemble(config, machine, folder, told, state=state, accept_changes=accept_changes)
    except BaseException:
        if world.leads and not resume:
            folder.abandon()
        raise
    progress = _Progress()
    if state is None:
        torch.manual_seed(config.run.seed)
    else:
        restore_rng(state["rng"])
        progress = _Progress(**state["metrics"])
        told.note(f"resumed after step {progress.step} of {parts.steps}")
    last = parts.steps if stop_after is None else min(parts.steps, stop_after)
    result = _Run(config, folder, machine, told, parts, progress).go(last, stop or threading.Event())
    leave_world(world)
    return result


def _check_config(before: Mapping[str, Any], config: TrainConfig, accept: bool, told: Observer) -> None:
    changes = changes_since(before, config)
    if changes and not accept:
        raise UsageError(
            f"the configuration differs from that of the run in {len(changes)} place(s): {'; '.join(changes)}. Resume "
            "without --config and changes to go on as before, or give --accept-changes"
        )
    for change in changes:
        told.note(f"changed on resume: {change}")


class _Run:
    """One process's part in a run."""

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        machine: Machine,
        told: Observer,
        parts: Assembly,
        progress: _Progress,
    ) -> None:
        self.config, self.folder, self.machine, self.told = config, folder, machine, told
        self.parts, self.learner, self.progress = parts, parts.learner, progress
        self.schedule = config.schedule_recipe()

    def go(self, last: int, stop: threading.Event) -> TrainResult:
        """Take the steps up to ``last``, then evaluate, export and report if that is the end."""
        if not self.machine.world.leads:
            self._loop(None, last, stop)
            return self._result(None)
        first = self.progress.step
        self._write_facts()
        with TrainingLog(self.folder.path, LOG_COLUMNS, EVALUATION_VALUES, keep_until=first) as log:
            if not log.tensorboard:
                self.told.note("tensorboard is not installed: the log is CSV only")
            self._loop(log, last, stop)
            finished = self.progress.step >= self.parts.steps
            if finished and self.config.evaluation and self.progress.step % self.config.evaluation.every:
                self._evaluate(log)
        self._save()
        result = self._result(self._export() if finished else None)
        self.folder.write_json("report.json", result.report)
        return result

    def _write_facts(self) -> None:
        data = self.parts.data
        self.folder.write_config(self.config)
        self.folder.write_json("data.json", {"sha256": data.sha256, "sets": [r.to_dict() for r in data.reports]})
        self.folder.write_text("data.txt", "\n\n".join(str(report) for report in data.reports) + "\n")

    def _loop(self, log: TrainingLog | None, last: int, stop: threading.Event) -> None:
        run, progress, per_epoch = self.config.run, self.progress, self.parts.per_epoch
        every = self.config.evaluation.every if self.config.evaluation else None
        self.told.started(progress.step, last)
        interval, saved, before = _Interval(), time.monotonic(), time.monotonic()
        for batch in self.parts.batches.prefetch(progress.step, last):
            interval.waited += time.monotonic() - before
            rate = rate_at(self.schedule, batch.step, per_epoch)
            values = self._learn(batch, rate)
            progress.step = batch.step + 1
            interval.rows.append(values)
            interval.pictures += len(batch.pictures) * self.machine.world.size
            self.told.stepped(progress.step, values)
            progress.seconds += time.monotonic() - before
            before = time.monotonic()
            if log is not None and progress.step % run.log_every == 0:
                self._log(log, interval, rate)
                interval = _Interval()
            if log is not None and every is not None and progress.step % every == 0:
                self._evaluate(log)
                interval = _Interval()
            due = progress.step % run.checkpoint_every == 0 or time.monotonic() - saved > 60 * run.checkpoint_minutes
            if log is not None and due and progress.step < last:
                self._save()
                saved = time.monotonic()
            if self.machine.world.any(stop.is_set(), self.machine.device):
                self.told.note(f"stopped after step {progress.step}")
                return
            before = time.monotonic()

    def _learn(self, batch: TrainingBatch, rate: float) -> dict[str, float]:
        try:
            return self.learner.learn(batch, rate)
        except NotFiniteError as error:
            self._stop_at(batch, error)

    def _stop_at(self, batch: TrainingBatch, error: NotFiniteError) -> NoReturn:
        rank = self.machine.world.rank
        name = f"nan-step-{batch.step}" + (f"-rank-{rank}" if rank else "")
        save_failed_step(self.folder.path / name, batch, self.parts.spec, error.values, self.learner.state())
        saved = bool(saved_steps(self.folder.checkpoints))
        again = "resume from the last checkpoint with --accept-changes" if saved else "start again in another --output"
        raise TrainingError(
            f"step {batch.step}: {error}. The batch, its labels and the weights are in {self.folder.path / name}; look "
            f"at them, or lower schedule.rate or set optimiser.clip_norm, and {again}"
        ) from error

    def _log(self, log: TrainingLog, interval: _Interval, rate: float) -> None:
        row = interval.row()
        step = self.progress.step
        row |= {"epoch": step / self.parts.per_epoch, "rate": rate, "seconds": self.progress.seconds}
        log.steps(step, row)
        self.told.logged(step, row)

    def _evaluate(self, log: TrainingLog) -> None:
        assert self.parts.held_out is not None and self.config.evaluation is not None
        row = evaluate_network(self._averaged(), self.parts.spec, self.parts.held_out.pictures, self.config.evaluation)
        log.evaluated(self.progress.step, row)
        self.told.evaluated(self.progress.step, row)
        self.progress.last = row["ap50"]
        if not self.progress.best >= row["ap50"]:
            self.progress.best, self.progress.best_step = row["ap50"], self.progress.step
            write_checkpoint(self.folder.best, self._state())

    def _averaged(self) -> DetectorNetwork:
        network = copy.deepcopy(self.learner.network)
        network.load_state_dict(self.learner.average.state)
        return network.eval()

    def _state(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "step": self.progress.step,
            "architecture": self.config.model.architecture,
            "spec": self.parts.spec.to_dict(),
            "config": self.config.plain(),
            "config_sha256": self.config.sha256,
            "data_sha256": self.parts.data.sha256,
            "teacher_sha256": self.parts.teacher_sha256,
            "metrics": self.progress.metrics(),
            "rng": rng_state(),
            **self.learner.state(),
        }

    def _save(self) -> None:
        path = self.folder.checkpoints / checkpoint_name(self.progress.step)
        write_checkpoint(path, self._state())
        prune(self.folder.checkpoints, self.config.run.keep)
        self.told.saved(path)

    def _export(self) -> Path:
        from retinastream.models.export import export_network

        network = self._averaged()
        network.to("cpu")
        metadata = {
            "retinastream.training_config_sha256": self.config.sha256,
            "retinastream.training_data_sha256": self.parts.data.sha256,
            "retinastream.training_step": str(self.progress.step),
            **({"retinastream.teacher_sha256": self.parts.teacher_sha256} if self.parts.teacher_sha256 else {}),
        }
        path = export_network(network, self.parts.spec, self.folder.model, "fused", metadata)
        self.told.saved(path)
        return path

    def _result(self, model: Path | None) -> TrainResult:
        progress = self.progress
        report = {
            "step": progress.step,
            "steps": self.parts.steps,
            "finished": progress.step >= self.parts.steps,
            "seconds": round(progress.seconds, 1),
            "best_ap50": finite(progress.best),
            "best_step": progress.best_step,
            "last_ap50": finite(progress.last),
            "machine": self.machine.describe(),
            "torch": torch.__version__,
            "config_sha256": self.config.sha256,
            "data_sha256": self.parts.data.sha256,
            "teacher_sha256": self.parts.teacher_sha256,
            "weights_sha256": state_sha256(self.learner.averaged_state()),
            "model": None if model is None else model.name,
            "model_sha256": None if model is None else file_sha256(model),
        }
        finished = progress.step >= self.parts.steps
        return TrainResult(
            self.folder.path, progress.step, self.parts.steps, finished, model, progress.best, progress.last, report
        )
