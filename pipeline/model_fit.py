"""What a model allows: which sizes and batches it takes, and which size "auto" means for it."""

from __future__ import annotations

import logging
from typing import Literal

from retinastream.errors import ModelError, UsageError
from retinastream.kernels.sizing import SizePolicy
from retinastream.models.onnx_file import OnnxModel

logger = logging.getLogger(__name__)

AUTO_SIZE_CPU = "fit:1280"
AUTO_SIZE_GPU = "native"


def choose_size(size: str, model: OnnxModel, device: Literal["cpu", "cuda"] = "cpu") -> SizePolicy:
    """Parse a size policy; "auto" is chosen for the device and the model, and said. Raises UsageError."""
    if not isinstance(size, str):
        raise UsageError(f"size was given as {size!r}; expected text such as 'native', 'fit:1280' or 'auto'")
    if size.strip().lower() != "auto":
        return SizePolicy.parse(size)
    fixed = fixed_size(model)
    if fixed is not None:
        logger.warning("size auto is fit:%d: %s takes inputs of %dx%d only", max(fixed), model.path, *fixed)
        return SizePolicy("fit", long_side=max(fixed))
    if device == "cuda":
        logger.info("size auto on a GPU is %s: every pixel is looked at, and nothing reduced", AUTO_SIZE_GPU)
        return SizePolicy.parse(AUTO_SIZE_GPU)
    logger.warning(
        "size auto on a CPU is %s: larger pictures are reduced; for the smallest faces of 4K choose native",
        AUTO_SIZE_CPU,
    )
    return SizePolicy.parse(AUTO_SIZE_CPU)


def fixed_size(model: OnnxModel) -> tuple[int, int] | None:
    """Return the (width, height) that a model is exported for, or None where it takes any."""
    height, width = model.input_shape[2:]
    return None if height is None or width is None else (width, height)


def check_batch(batch: int, model: OnnxModel) -> None:
    """Raise ModelError where a model takes another batch only."""
    allowed = model.input_shape[0]
    if allowed is not None and allowed != batch:
        raise ModelError(
            f"{model.path} takes batches of {allowed} only, and {batch} was asked for; choose that, or export the "
            "model with a dynamic batch"
        )
