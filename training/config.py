"""Every setting of a training run, read from YAML, with ``key=value`` changes on top."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
)

from retinastream.training.augmentation import AugmentationSettings
from retinastream.training.distillation import DistillationRecipe
from retinastream.training.loss import LIGHT_LOSS, LossRecipe
from retinastream.training.matching import LIGHT, MatchRecipe
from retinastream.training.schedule import Schedule, Shape


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=(), frozen=True)


class ModelConfig(_Section):
    """Which network is trained, what its anchors are, and where its weights start."""

    architecture: str = Field(default="mobilenetv1-x0.25", description="A name of `retinastream.models.architectures`.")
    spec: str | None = Field(
        default=None, description="Name or file of the spec: strides, anchors; by default that of the architecture."
    )
    deformable: bool = Field(default=False, description="Deformable convolutions in the context modules (paper only).")
    face_prior: float | None = Field(
        default=None, gt=0, lt=1, description="Score that every anchor starts with, such as 0.01."
    )
    backbone: Path | None = Field(default=None, description="ImageNet classification checkpoint for the backbone.")
    weights: Path | None = Field(default=None, description="Checkpoint of a whole network of this architecture.")


class DataSource(_Section):
    """One labelled set."""

    labels: Path = Field(description="Label file, or folder of label files.")
    images: Path | None = Field(default=None, description="Picture folder; by default the one of the label format.")
    format: str = Field(default="auto", description="auto | boxes | pack | coco | voc | wider.")
    categories: tuple[str, ...] | None = Field(default=None, description="Classes that are faces; by default all.")
    missed_as_faces: bool = Field(
        default=False, description="pack: faces that its teacher missed count, without landmarks."
    )
    one_based: bool = Field(default=False, description="voc: coordinates count from 1.")
    weight: float = Field(default=1.0, gt=0, le=1000, description="How often an epoch shows every picture of this set.")
    part: Literal["all", "train", "held-out"] = Field(
        default="all", description="All pictures, or one side of a split by name."
    )
    held_out: float = Field(default=0.05, gt=0, lt=1, description="Share of the pictures that the split holds out.")


class EvaluationConfig(_Section):
    """What is measured while training."""

    data: DataSource
    every: int = Field(default=1000, ge=1, description="Steps between two evaluations.")
    size: str = Field(default="native", description="native | fit:LONG | short:SHORT,max:LONG | pyramid.")
    threshold: float = Field(default=0.02, ge=0, le=1, description="Lowest score that counts as a prediction.")
    iou: float = Field(default=0.4, ge=0, le=1, description="Overlap above which the weaker of two boxes is dropped.")
    pictures: int | None = Field(default=None, ge=1, description="Evaluate on the first N pictures only.")


class MatchingConfig(_Section):
    """The fields of ``MatchRecipe``; the defaults are those of the light lineage."""

    positive: float = LIGHT.positive
    background: float = LIGHT.background
    claim_above: float | None = LIGHT.claim_above


class LossConfig(_Section):
    """The fields of ``LossRecipe``; the defaults are those of the light lineage."""

    box_weight: float = LIGHT_LOSS.box_weight
    landmark_weight: float = LIGHT_LOSS.landmark_weight
    class_weight: float = LIGHT_LOSS.class_weight
    negatives_per_positive: int = LIGHT_LOSS.negatives_per_positive
    least_negatives: int = Field(default=32, description="Background anchors that a picture brings at the least.")


class DistillationConfig(_Section):
    """A teacher beside the labels, or instead of them: total = (1 - share) * labels + share * teacher."""

    teacher: Path = Field(description="Model of the same strides and anchors: .onnx, .pth or a zoo name.")
    runtime: str = "auto"
    precision: str | None = None
    threads: int = Field(default=0, ge=0, le=1024, description="Processors for the teacher; 0: all.")
    recipe: DistillationRecipe = DistillationRecipe()


class ScheduleConfig(_Section):
    """The fields of ``Schedule``."""

    shape: Shape = "steps"
    rate: float = 1e-3
    epochs: float = 250
    warmup_epochs: float = 0.0
    warmup_rate: float = 0.0
    drops: tuple[float, ...] = ()
    factor: float = 0.1
    final_rate: float = 0.0


class OptimiserConfig(_Section):
    """Stochastic gradient descent."""

    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(default=5e-4, ge=0)
    decay_norms: bool = Field(default=True, description="Let biases and normalisation decay too, as the lineage does.")
    clip_norm: float | None = Field(default=None, gt=0, description="Largest norm of the whole gradient.")
    ema_decay: float = Field(default=0.9998, ge=0, lt=1, description="Decay of the moving average that is evaluated.")


class RunConfig(_Section):
    """How the run goes: randomness, sizes, machine, bookkeeping."""

    seed: int = Field(default=0, ge=0)
    batch: int = Field(default=32, ge=1, description="Pictures per step and process.")
    size: int | tuple[int | tuple[int, int], ...] = Field(
        default=640, description="Side of the square input; or several, or pairs [side, batch], that take turns."
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "f32", "bf16", "fp16"] = "auto"
    channels_last: bool = True
    threads: int = Field(default=0, ge=0, le=1024, description="Processors for the network; 0: what torch chooses.")
    cache_file: Path | None = Field(
        default=None, description="File for the decoded pictures; by default they are in memory."
    )
    cache_long_side: int = Field(default=1280, ge=64, description="Pictures are held at this long side at most.")
    missing_limit: float = Field(default=0.01, ge=0, le=1, description="Largest share of unusable pictures.")
    log_every: int = Field(default=20, ge=1, description="Steps that one line of the log averages.")
    checkpoint_every: int = Field(default=1000, ge=1, description="Steps between two checkpoints.")
    checkpoint_minutes: float = Field(default=10.0, gt=0, description="Most minutes between two checkpoints.")
    keep: int = Field(default=3, ge=1, description="How many of the latest checkpoints are kept.")

    @field_validator("size", mode="wrap")
    @classmethod
    def _explain_size(cls, value: Any, check: ValidatorFunctionWrapHandler) -> Any:
        """Say once what a size is, where pydantic would go through all the types it may have."""
        try:
            return check(value)
        except ValidationError:
            raise ValueError(
                "expected a side such as 640, several such as [320, 640], or sides with batches such as "
                "[[320, 32], [640, 8]]"
            ) from None


class TrainConfig(_Section):
    """A training run."""

    model: ModelConfig = ModelConfig()
    data: tuple[DataSource, ...] = Field(min_length=1)
    evaluation: EvaluationConfig | None = None
    augmentation: AugmentationSettings = Field(default_factory=AugmentationSettings)
    matching: MatchingConfig = MatchingConfig()
    loss: LossConfig = LossConfig()
    distillation: DistillationConfig | None = None
    schedule: ScheduleConfig = ScheduleConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    run: RunConfig = RunConfig()

    def match_recipe(self) -> MatchRecipe:
        """Return the matching bounds; UsageError where they contradict each other."""
        return MatchRecipe(**self.matching.model_dump())

    def loss_recipe(self) -> LossRecipe:
        """Return the weights of the loss; UsageError for negative ones."""
        return LossRecipe(**self.loss.model_dump())

    def schedule_recipe(self) -> Schedule:
        """Return the schedule; UsageError where its values contradict each other."""
        return Schedule(**self.schedule.model_dump())

    def plain(self) -> dict[str, Any]:
        """Values as JSON and YAML can hold them."""
        return self.model_dump(mode="json")

    @property
    def sha256(self) -> str:
        """Hash of all values, however the file that brought them was written."""
        return hashlib.sha256(json.dumps(self.plain(), sort_keys=True).encode()).hexdigest()
