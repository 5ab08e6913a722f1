"""Building everything that a run needs before its first step, so that what can fail fails there."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retinastream.errors import MissingPackageError, ModelError, UsageError
from retinastream.evaluation.labelled_set import LabelledSet
from retinastream.kernels.sizing import SizePolicy
from retinastream.models.architectures import create_network, spec_of
from retinastream.models.network_heads import DetectorNetwork
from retinastream.models.onnx_graph import file_sha256
from retinastream.models.spec import DetectorSpec
from retinastream.models.spec_registry import read_spec
from retinastream.training.batches import Batches
from retinastream.training.cache import PictureCache
from retinastream.training.config import DistillationConfig, TrainConfig
from retinastream.training.initial_weights import load_backbone, load_network
from retinastream.training.learner import Learner
from retinastream.training.machine import Machine
from retinastream.training.observer import Observer
from retinastream.training.run_folder import RunFolder
from retinastream.training.schedule import total_steps
from retinastream.training.teacher import DenseTeacher, Teacher, TorchTeacher
from retinastream.training.training_data import TrainingData, read_evaluation_data, read_training_data


@dataclass(frozen=True, slots=True)
class Assembly:
    """The parts of a run; ``steps`` is its length and ``per_epoch`` how many of them make an epoch."""

    spec: DetectorSpec
    data: TrainingData
    held_out: LabelledSet | None
    batches: Batches
    learner: Learner
    per_epoch: int
    steps: int
    teacher_sha256: str | None


def assemble(
    config: TrainConfig,
    machine: Machine,
    folder: RunFolder,
    told: Observer,
    *,
    state: Mapping[str, Any] | None,
    accept_changes: bool,
) -> Assembly:
    """Check and build the parts, and tell ``told`` what was chosen and found.

    ``state`` is the checkpoint to go on from; its weights replace those of the configuration. Other data than it was
    trained on are refused unless ``accept_changes``. Raises UsageError, InputError, ModelError and OutputError.
    """
    _require_exporter()
    told.note(f"machine: {machine.describe()}")
    spec = _spec(config)
    _check_sizes(config, spec)
    network = _network(config, spec, told, start=state is None)
    parameters = sum(p.numel() for p in network.parameters())
    told.note(f"network: {config.model.architecture}, {parameters:,} weights, strides {spec.strides}")
    if machine.world.leads:
        # Weights, average, momentum, and as much again while one file replaces another.
        folder.prepare(needed_bytes=(config.run.keep + 2) * parameters * 4 * 3 + (1 << 20))
    teacher, teacher_sha256 = _teacher(config.distillation, spec, machine, told)
    data = read_training_data(config.data, config.run.missing_limit)
    for report in data.reports:
        told.note(str(report))
    if state is not None:
        _check_data(state["data_sha256"], data, accept_changes, told)
    held_out = _held_out(config, told)
    batches = _batches(config, spec, data, machine, told)
    learner = Learner(network, spec, config, machine, teacher)
    if state is not None:
        learner.load_state(state, f"the checkpoint of step {state['step']} in {folder.checkpoints}")
    per_epoch = batches.steps_per_epoch
    steps = total_steps(config.schedule_recipe(), per_epoch)
    told.note(
        f"{steps} steps of {config.run.batch * machine.world.size} pictures at {config.run.size} px: "
        f"{config.schedule.epochs:g} epochs of {per_epoch} steps over {len(data.pictures)} pictures, {data.faces} faces"
    )
    return Assembly(spec, data, held_out, batches, learner, per_epoch, steps, teacher_sha256)


def _require_exporter() -> None:
    """Find out now, not after hours, that the model could not be written at the end."""
    if importlib.util.find_spec("onnx") is None:
        raise MissingPackageError(
            "a finished run exports its model, which needs the package onnx; install it with: "
            "pip install 'retinastream[export]'"
        )


def _spec(config: TrainConfig) -> DetectorSpec:
    wanted = config.model
    spec = spec_of(wanted.architecture) if wanted.spec is None else read_spec(wanted.spec)
    return DetectorSpec.from_dict({**spec.to_dict(), "output_layout": "fused"})


def _check_sizes(config: TrainConfig, spec: DetectorSpec) -> None:
    """Refuse sizes that would only fail at the first step, or at the first evaluation."""
    given = config.run.size
    for one in [given] if isinstance(given, int) else given:
        side = one if isinstance(one, int) else one[0]
        if side < 1 or side % spec.max_stride:
            raise UsageError(
                f"run.size {side} is not allowed: the network has cells of {spec.max_stride} px; give a multiple of "
                f"it, such as {max(1, round(side / spec.max_stride)) * spec.max_stride}"
            )
    if config.evaluation is not None:
        try:
            SizePolicy.parse(config.evaluation.size)
        except UsageError as error:
            raise UsageError(f"evaluation.size: {error}") from None


def _network(config: TrainConfig, spec: DetectorSpec, told: Observer, *, start: bool) -> DetectorNetwork:
    wanted = config.model
    network = create_network(
        wanted.architecture,
        anchors_per_cell=len(spec.anchor_sizes[0]),
        deformable=wanted.deformable,
        face_prior=wanted.face_prior,
        seed=config.run.seed,
    )
    _check_spec(network, spec)
    if start and wanted.backbone is not None:
        _require_file("model.backbone", wanted.backbone)
        told.note(str(load_backbone(network, wanted.backbone)))
    if start and wanted.weights is not None:
        _require_file("model.weights", wanted.weights)
        told.note(str(load_network(network, wanted.weights)))
    return network


def _require_file(key: str, path: Path) -> None:
    if not path.is_file():
        raise ModelError(
            f"{key}: there is no file {path} (seen from {Path.cwd()}); give its path with {key}=FILE, or start from "
            f"random weights with {key}=null"
        )


def _check_spec(network: DetectorNetwork, spec: DetectorSpec) -> None:
    """Refuse anchors that the network has no outputs for."""
    counts = {len(sizes) for sizes in spec.anchor_sizes}
    if network.strides != spec.strides:
        raise UsageError(
            f"model.spec has strides {spec.strides} and {network.architecture} has {network.strides}; leave model.spec "
            "out for the network's own"
        )
    if len(counts) > 1:
        raise UsageError(f"model.spec has {sorted(counts)} anchors per cell; expected as many on every level")


def _check_data(before: str, data: TrainingData, accept: bool, told: Observer) -> None:
    if before != data.sha256:
        text = f"the training data has hash {data.sha256[:12]} and the run began with {before[:12]}"
        if not accept:
            raise UsageError(f"{text}; restore the labels and pictures, or give --accept-changes")
        told.note(f"changed on resume: {text}")


def _held_out(config: TrainConfig, told: Observer) -> LabelledSet | None:
    wanted = config.evaluation
    if wanted is None:
        told.note("evaluation: none configured")
        return None
    found = read_evaluation_data(wanted.data, wanted.pictures, config.run.missing_limit)
    told.note(f"evaluation: {len(found.pictures)} pictures of {wanted.data.labels} every {wanted.every} steps")
    return found


def _batches(config: TrainConfig, spec: DetectorSpec, data: TrainingData, machine: Machine, told: Observer) -> Batches:
    run, began = config.run, time.monotonic()
    cache = PictureCache(data.pictures, long_side=run.cache_long_side, file=run.cache_file)
    batches = Batches(
        data.pictures,
        cache,
        config.augmentation,
        batch=run.batch,
        size=run.size,
        seed=run.seed,
        rank=machine.world.rank,
        world=machine.world.size,
        device=machine.device,
        mean=spec.mean,
        channel_order=spec.channel_order,
        scale=spec.scale,
        channels_last=run.channels_last,
        weights=data.weights,
    )
    where = "memory" if run.cache_file is None else str(run.cache_file)
    told.note(
        f"pictures: {cache.nbytes / 1e9:.2f} GB decoded in {where}, {time.monotonic() - began:.1f} s; "
        f"rendered on the {batches.rendering}"
    )
    return batches


def _teacher(
    wanted: DistillationConfig | None, spec: DetectorSpec, machine: Machine, told: Observer
) -> tuple[Teacher | None, str | None]:
    """Return the teacher and the SHA-256 of its file; a checkpoint runs on the GPU, every other file on the CPU."""
    if wanted is None or wanted.recipe.share == 0:
        return None, None
    if machine.device.type == "cuda" and wanted.teacher.suffix == ".pth":
        from retinastream.models.checkpoints import load_checkpoint

        loaded = load_checkpoint(wanted.teacher)
        sha256, where = loaded.sha256, str(machine.device)
        teacher: Teacher = TorchTeacher(
            loaded.network.to(machine.device), spec, network_spec=loaded.spec, autocast=machine.dtype
        )
    else:
        dense = DenseTeacher(
            wanted.teacher, spec, runtime=wanted.runtime, precision=wanted.precision, threads=wanted.threads
        )
        sha256 = file_sha256(wanted.teacher if wanted.teacher.is_file() else Path(dense.engine.model.path))
        teacher, where = dense, f"{dense.engine.info.runtime} {dense.engine.info.precision} on the CPU"
    told.note(f"teacher: {wanted.teacher} (sha256 {sha256[:12]}), {where}, share {wanted.recipe.share:g}")
    return teacher, sha256
