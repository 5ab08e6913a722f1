"""A finished detector that answers for every anchor of a training batch, so that another network can imitate it.

Runtimes that normalise inside their graph take uint8, and a training batch is float: rounding it back moves a colour
by half a value at most, and only where the augmentation left values between whole numbers. Measured with mnet0.25 on 64
pictures of 320x320 after a change of contrast, over anchors whose score is above 0.3: the score moves by 0.0014 in the
mean and 0.022 at most, a box offset by 0.002. bf16 moves them by 0.0066, 0.071 and 0.011, and takes 3.1 ms a picture on
one thread where f32 takes 4.8.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from retinastream.engines.engine import Engine, EngineSlot
from retinastream.engines.select import create_engine
from retinastream.errors import UsageError
from retinastream.models.spec import DetectorSpec
from retinastream.models.zoo import resolve_model
from retinastream.training.loss import Predictions, predictions_from_fused

logger = logging.getLogger(__name__)

# A probability of exactly 0 or 1 has no logit; this one leaves them at -13.8 and 13.8.
_LEAST_PROBABILITY = 1e-6
# Multi-scale training has a handful of sizes; each slot holds a network compiled for its own.
_KEPT_SLOTS = 6


class Teacher(Protocol):
    """Anything that gives its ``Predictions`` for a batch as the student sees it, without gradients."""

    def __call__(self, images: Tensor) -> Predictions:
        """Answer for normalised ``images`` (B, 3, H, W), in the student's order of anchors and on their device."""
        ...


class DenseTeacher:
    """Runs a detector file of the student's strides, anchors and variances through one of the engines, on the CPU.

    ``model`` is a zoo name, an .onnx file of either layout or a checkpoint; ``spec`` is the student's, which also says
    how the images were normalised. ``runtime``, ``precision`` and ``threads`` are those of ``create_engine``.

    One call at a time: the buffers, one slot per shape of the images, are shared by all calls. Raises UsageError for a
    model of other anchors, and what ``resolve_model`` and ``create_engine`` raise.
    """

    def __init__(
        self,
        model: str | Path,
        spec: DetectorSpec,
        *,
        runtime: str = "auto",
        precision: str | None = None,
        threads: int = 0,
    ) -> None:
        found = resolve_model(str(model))  # a zoo name may come as a path
        check_same_anchors(found.spec, spec, str(model))
        self.spec = spec
        self._fixed = found.input_shape
        self.engine: Engine = create_engine(found, runtime=runtime, precision=precision, threads=threads)
        self._slots: OrderedDict[tuple[int, int, int], EngineSlot] = OrderedDict()
        info = self.engine.info
        logger.info("teacher %s on %s, %s, %d threads", found.name, info.runtime, info.precision, info.threads)

    def __call__(self, images: Tensor) -> Predictions:
        """Answer for ``images`` (B, 3, H, W), normalised by the student's spec; H and W multiples of the last stride.

        Returns float32 tensors of their own memory on the images' device. Raises UsageError for another shape, or one
        that a model of fixed size does not take.
        """
        check_images(images, self.spec)
        count = self._pictures_at_once(images)
        with torch.no_grad():
            parts = [self._run(part) for part in torch.split(images, count)]
            joined = (torch.cat([getattr(p, n) for p in parts]) for n in ("logits", "boxes", "landmarks"))
            return parts[0] if len(parts) == 1 else Predictions(*joined)

    def close(self) -> None:
        """Release the network and its buffers."""
        self._slots.clear()
        self.engine.close()

    def _run(self, images: Tensor) -> Predictions:
        slot = self._slot(images)
        fill = torch.from_numpy(slot.input)
        if self.engine.input_kind == "bgr-u8-nhwc":
            fill.copy_(to_bgr(images, self.spec))
        else:
            fill.copy_(renormalise(images, self.spec, self.engine.model.spec))
        outputs = [torch.from_numpy(np.ascontiguousarray(values)).float() for values in slot.run()]
        found = predictions_of(outputs, self.engine.model.spec)
        return Predictions(*(getattr(found, n).to(images.device) for n in ("logits", "boxes", "landmarks")))

    def _slot(self, images: Tensor) -> EngineSlot:
        key = (images.shape[0], images.shape[2], images.shape[3])
        if key not in self._slots:
            self._slots[key] = self.engine.slot(*key, steady=True)
        self._slots.move_to_end(key)
        while len(self._slots) > _KEPT_SLOTS:
            self._slots.popitem(last=False)
        return self._slots[key]

    def _pictures_at_once(self, images: Tensor) -> int:
        """Pictures per run: all, or as many as a model with a fixed batch takes."""
        batch, _, height, width = self._fixed
        at_once = batch or len(images)
        sides = zip((height, width), images.shape[2:], strict=True)
        if len(images) % at_once or any(fixed not in (None, given) for fixed, given in sides):
            raise UsageError(
                f"the teacher {self.engine.model.path} takes inputs of shape {self._fixed} (None is free) and the "
                f"batch is {tuple(images.shape)}; train at its size, or give a teacher of free sizes"
            )
        return at_once


class TorchTeacher:
    """Runs a network of PyTorch: one that is at hand already, or on CUDA, where the engines are no help.

    ``network`` returns either layout and normalises as ``network_spec`` says, by default as the student. It is put
    into evaluation mode. ``autocast`` is a type to compute in (torch.bfloat16), or None for that of the weights.
    Raises UsageError for other anchors.
    """

    def __init__(
        self,
        network: nn.Module,
        spec: DetectorSpec,
        *,
        network_spec: DetectorSpec | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        self._own = network_spec or spec
        check_same_anchors(self._own, spec, type(network).__name__)
        self.spec = spec
        self.network = network.eval()
        self._autocast = autocast

    def __call__(self, images: Tensor) -> Predictions:
        """Answer for ``images`` (B, 3, H, W) on the network's device; float32, without gradients.

        The same shapes and errors as ``DenseTeacher``.
        """
        check_images(images, self.spec)
        # Not inference_mode: its tensors may not be saved for the student's backward pass.
        with (
            torch.no_grad(),
            torch.autocast(images.device.type, dtype=self._autocast, enabled=self._autocast is not None),
        ):
            outputs = self.network(renormalise(images, self.spec, self._own))
        return predictions_of([values.float() for values in outputs], self._own)

    def close(self) -> None:
        """Let go of the network."""
        self.network = nn.Identity()


def predictions_of(outputs: list[Tensor], spec: DetectorSpec) -> Predictions:
    """Put the outputs of a network of either layout into ``Predictions``; probabilities become logits (0, log odds).

    The layout is read off the outputs: maps have four axes, classic tensors three, in the order loc, conf, landms.
    """
    if outputs[0].ndim == 4:
        return predictions_from_fused(outputs, spec)
    boxes, probabilities, landmarks = outputs
    odds = torch.special.logit(probabilities[..., 1].float(), eps=_LEAST_PROBABILITY)
    return Predictions(torch.stack([torch.zeros_like(odds), odds], dim=-1), boxes.clone(), landmarks.clone())


def to_bgr(images: Tensor, spec: DetectorSpec) -> Tensor:
    """Undo the normalisation of ``spec``: images (B, 3, H, W) to (B, H, W, 3) uint8 BGR, rounded."""
    mean = torch.tensor(spec.mean, device=images.device)[:, None, None]
    pixels = images.float() / spec.scale + mean
    if spec.channel_order == "rgb":
        pixels = pixels.flip(1)
    return pixels.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def renormalise(images: Tensor, given: DetectorSpec, wanted: DetectorSpec) -> Tensor:
    """Turn images (B, 3, H, W) normalised by one spec into those of another; the same tensor where they agree."""
    rules = [(s.channel_order, s.mean, s.scale) for s in (given, wanted)]
    if rules[0] == rules[1]:
        return images
    pixels = images / given.scale + images.new_tensor(given.mean)[:, None, None]
    if given.channel_order != wanted.channel_order:
        pixels = pixels.flip(1)
    return (pixels - images.new_tensor(wanted.mean)[:, None, None]) * wanted.scale


def check_same_anchors(teacher: DetectorSpec, student: DetectorSpec, name: str) -> None:
    """Refuse a teacher whose outputs do not stand for the student's anchors."""
    for what in ("strides", "anchor_sizes", "variances"):
        theirs, ours = getattr(teacher, what), getattr(student, what)
        if theirs != ours:
            raise UsageError(
                f"the teacher {name} has {what.replace('_', ' ')} {theirs} and the network to be trained has {ours}; "
                "to imitate it anchor by anchor they must be equal. Let it label the pictures instead "
                f"(retinastream train label --teacher {name} ...) and train on those labels"
            )


def check_images(images: Tensor, spec: DetectorSpec) -> None:
    """Refuse what is no batch of network input."""
    shape, multiple = tuple(images.shape), spec.max_stride
    floating = images.is_floating_point()
    if not floating or len(shape) != 4 or shape[1] != 3 or 0 in shape or shape[2] % multiple or shape[3] % multiple:
        raise UsageError(
            f"the teacher was given {images.dtype} images of shape {shape}; expected floating point, "
            f"(batch, 3, height, width), sides multiples of {multiple}"
        )
