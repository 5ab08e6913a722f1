"""Keeping what made a loss infinite: the pictures as the network saw them, their labels, and the weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2

from retinastream.errors import OutputError
from retinastream.models.spec import DetectorSpec
from retinastream.training.batches import TrainingBatch
from retinastream.training.checkpoint import write_checkpoint
from retinastream.training.teacher import to_bgr


def save_failed_step(
    folder: Path, batch: TrainingBatch, spec: DetectorSpec, values: Mapping[str, float], state: Mapping[str, Any]
) -> None:
    """Write ``picture-NN.png``, ``batch.json`` (labels in pixels of those, losses) and ``state.pth`` to ``folder``.

    Pictures are rounded to whole colour values; the exact input is in ``state.pth`` as ``images``. Raises OutputError.
    """
    truths = batch.truths.to("cpu")
    pictures = []
    for i, picture in enumerate(batch.pictures):
        present = truths.present[i]
        pictures.append(
            {
                "file": f"picture-{i:02d}.png",
                "index_in_data": picture,
                "boxes": truths.boxes[i][present].tolist(),
                "landmarks": [_readable(face) for face in truths.landmarks[i][present].flatten(1).tolist()],
                "ignore": truths.ignore[i][present].tolist(),
            }
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for entry, image in zip(pictures, to_bgr(batch.images.cpu(), spec).numpy(), strict=True):
            ok, png = cv2.imencode(".png", image)
            assert ok
            (folder / str(entry["file"])).write_bytes(png.tobytes())
        told = {"step": batch.step, "values": {name: str(value) for name, value in values.items()}}
        (folder / "batch.json").write_text(json.dumps({**told, "pictures": pictures}, indent=1), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"the failed step could not be saved to {folder}: {error.strerror or error}") from error
    write_checkpoint(folder / "state.pth", {**state, "images": batch.images.detach().cpu()})


def _readable(values: list[float]) -> list[float | None]:
    """JSON has no NaN, which is how a face without landmarks may be marked."""
    return [None if math.isnan(value) else value for value in values]
