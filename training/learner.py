"""What a run changes: weights, their moving average, momentum; and the one step that changes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from retinastream.errors import RetinastreamError
from retinastream.models.network_heads import DetectorNetwork
from retinastream.models.spec import DetectorSpec
from retinastream.training.batches import TrainingBatch
from retinastream.training.checkpoint import check_fits
from retinastream.training.config import TrainConfig
from retinastream.training.distillation import DISTILLATION_PARTS, distillation_loss, left_to_labels, mixed_loss
from retinastream.training.ema import MovingAverage
from retinastream.training.loss import Losses, Predictions, multi_task_loss, predictions_from_fused
from retinastream.training.machine import Machine
from retinastream.training.matching import anchors_of, match_batch
from retinastream.training.optimiser import make_optimiser, set_rate
from retinastream.training.teacher import Teacher

LABEL_PARTS = ("total", "classification", "box", "landmark", "positives", "negatives", "landmarked")
TEACHER_PARTS = tuple(f"teacher_{name}" for name in DISTILLATION_PARTS)
STEP_VALUES = ("loss", *LABEL_PARTS, *TEACHER_PARTS, "gradient_norm")


class NotFiniteError(RetinastreamError):
    """The loss or the gradient of a step is no finite number; ``values`` are those of the step."""

    def __init__(self, what: str, values: Mapping[str, float]) -> None:
        super().__init__(what)
        self.what = what
        self.values = dict(values)


class Learner:
    """A network and everything that belongs to its training state.

    Losses are normalised by the counts of this process's batch; under torchrun the gradients of all processes are
    averaged, so that every process weighs the same however many faces it drew.
    """

    def __init__(
        self,
        network: DetectorNetwork,
        spec: DetectorSpec,
        config: TrainConfig,
        machine: Machine,
        teacher: Teacher | None,
    ) -> None:
        self.spec, self.machine, self.teacher = spec, machine, teacher
        self.match_recipe, self.loss_recipe = config.match_recipe(), config.loss_recipe()
        self.distillation = config.distillation
        self.clip_norm = config.optimiser.clip_norm
        # The format first: a DistributedDataParallel keeps the strides that it saw.
        self.network = network
        network.to(machine.device)
        if config.run.channels_last:
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimiser = make_optimiser(self.network, config.optimiser)
        self.average = MovingAverage(self.network, config.optimiser.ema_decay)
        self.scaler = torch.amp.GradScaler(machine.device.type, enabled=machine.precision == "fp16")
        self._forward: nn.Module = self.network
        if machine.world.size > 1:
            ids = [machine.device.index] if machine.device.type == "cuda" else None
            self._forward = DistributedDataParallel(self.network, device_ids=ids)
        self._anchors: dict[tuple[int, int], Tensor] = {}

    def learn(self, batch: TrainingBatch, rate: float) -> dict[str, float]:
        """Take one step; returns ``STEP_VALUES``, NaN for those of a teacher that is not there.

        Raises NotFiniteError, with the weights as they were before the step, where the loss or the gradient is not
        finite (in fp16 a gradient may be: the scaler then leaves the step out).
        """
        self._forward.train()
        set_rate(self.optimiser, rate)
        self.optimiser.zero_grad(set_to_none=True)
        with self.machine.autocast():
            maps = self._forward(batch.images)
        loss, values = self._losses(predictions_from_fused(maps, self.spec), batch)
        self._require_finite("loss", values["loss"], values)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimiser)
        parameters = [p for p in self.network.parameters() if p.grad is not None]
        limit = math.inf if self.clip_norm is None else self.clip_norm
        values["gradient_norm"] = float(nn.utils.clip_grad_norm_(parameters, limit))
        if not self.scaler.is_enabled():
            self._require_finite("norm of the gradient", values["gradient_norm"], values)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.average.update(self.network)
        return values

    def _losses(self, predictions: Predictions, batch: TrainingBatch) -> tuple[Tensor, dict[str, float]]:
        height, width = batch.images.shape[-2:]
        anchors = self._anchors_for(height, width)
        matches = match_batch(batch.truths, anchors, self.match_recipe)
        told: Losses = multi_task_loss(
            predictions, batch.truths, matches, anchors, self.loss_recipe, self.spec.variances
        )
        named = {name: getattr(told, name) for name in LABEL_PARTS}
        loss = told.total
        if self.teacher is not None and self.distillation is not None:
            recipe = self.distillation.recipe
            answers = self.teacher(batch.images)
            ignore = left_to_labels(matches, answers, recipe) if recipe.share < 1 else None
            copied = distillation_loss(predictions, answers, recipe, ignore=ignore)
            loss = mixed_loss(told.total, copied.total, recipe)
            named.update({f"teacher_{name}": value for name, value in copied.parts().items()})
        named["loss"] = loss
        # One transfer for all of them: each one alone would wait for the device.
        numbers = torch.stack([value.detach().double() for value in named.values()]).tolist()
        values = dict.fromkeys(STEP_VALUES, math.nan) | dict(zip(named, numbers, strict=True))
        return loss, values

    def _anchors_for(self, height: int, width: int) -> Tensor:
        if (height, width) not in self._anchors:
            self._anchors[height, width] = anchors_of(self.spec, height, width, device=self.machine.device)
        return self._anchors[height, width]

    def _require_finite(self, name: str, value: float, values: Mapping[str, float]) -> None:
        if self.machine.world.any(not math.isfinite(value), self.machine.device):
            here = not math.isfinite(value)
            raise NotFiniteError(
                f"the {name} is {value}" if here else f"the {name} of another process is not finite", values
            )

    def averaged_state(self) -> dict[str, Tensor]:
        """Return the moving average as a state dict on the CPU."""
        return {name: value.detach().cpu() for name, value in self.average.state.items()}

    def state(self) -> dict[str, Any]:
        """Return everything that the next step depends on, and the moving average as ``state_dict``."""
        return {
            "state_dict": self.average.state,
            "average_updates": self.average.updates,
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state(self, state: Mapping[str, Any], origin: str) -> None:
        """Take over what ``state`` returned; ModelError names the first tensor of another architecture."""
        check_fits(origin, state["network"], self.network.state_dict())
        self.network.load_state_dict(state["network"])
        self.average.load(state["state_dict"], int(state["average_updates"]))
        self.optimiser.load_state_dict(state["optimiser"])
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
