"""What a detector asks of that which finds the faces: on a CPU and on a GPU it is the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from retinastream.engines.engine import EngineInfo
from retinastream.errors import UsageError
from retinastream.kernels.sizing import Placement, SizePolicy
from retinastream.models.onnx_file import OnnxModel
from retinastream.pipeline.model_fit import fixed_size
from retinastream.pipeline.stages import Stage
from retinastream.types import Faces, Frame


@dataclass(frozen=True, slots=True)
class DetectionRules:
    """Which faces count: the settings of a detector that decide its result, see ``Detector``."""

    threshold: float = 0.5
    iou: float = 0.4
    max_faces: int = 750
    plus_one: bool = False
    clip: bool = True

    def __post_init__(self) -> None:
        """Raise UsageError for values out of range."""
        check_range("threshold", self.threshold, 0.0, 1.0)
        check_range("iou", self.iou, 0.0, 1.0)
        check_range("max_faces", self.max_faces, 1, 100_000, whole=True)


@dataclass(frozen=True, slots=True)
class Sizing:
    """At which sizes frames are shown to a model; ``fixed`` is the (width, height) of one that takes no other."""

    policy: SizePolicy
    stride: int
    fixed: tuple[int, int] | None

    @classmethod
    def of(cls, policy: SizePolicy, model: OnnxModel) -> Sizing:
        """Return the sizing of a policy for a model."""
        return cls(policy, model.spec.max_stride, fixed_size(model))

    def placements(self, frame: Frame) -> tuple[Placement, ...]:
        """Return the passes of a frame, and of all frames of its upright size."""
        return self.policy.placements(*frame.upright_size, self.stride, self.fixed)


class Backend(Protocol):
    """Finds the faces of batches; safe to be used by several threads.

    ``batch`` frames go through the network at once, and frames of one batch have one upright size.
    """

    batch: int
    model: OnnxModel

    @property
    def info(self) -> EngineInfo:
        """What executes the network."""
        ...

    @property
    def execution(self) -> dict[str, Any]:
        """How batches are run, as plain values to show: what ``info`` has no field for."""
        ...

    def detect(self, batches: Iterable[Sequence[Frame]]) -> Iterator[list[Faces]]:
        """Yield the faces of every batch, in order, on the caller's thread."""
        ...

    def stages(self, *, keep_frames: bool = False, steady: bool = False) -> list[Stage]:
        """Declare the stages from ``[Frame]`` to ``([Frame], [Faces])``; frames are let go unless they are kept."""
        ...

    def settle(self) -> None:
        """Finish what was begun and given up, as by leaving a stream early, and let its frames go."""
        ...

    def close(self) -> None:
        """Release the network and all buffers."""
        ...


def blank_faces(frame: Frame) -> Faces:
    """Return no faces, with the identity of a frame."""
    width, height = frame.upright_size
    return Faces(
        source=frame.source,
        index=frame.index,
        pts=frame.seconds,
        width=width,
        height=height,
        corrupt=frame.corrupt,
        interlaced=frame.interlaced,
    )


def check_range(name: str, value: float, low: float, high: float, *, whole: bool = False) -> None:
    """Raise UsageError for what is no number from ``low`` to ``high``, or no whole one."""
    number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high:
        kind = "whole numbers " if whole else ""
        raise UsageError(f"{name} {value!r} is out of range; allowed is {kind}{low:g} to {high:g}")
