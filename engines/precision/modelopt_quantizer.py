"""Quantising with NVIDIA's Model Optimizer (``nvidia-modelopt``) instead of this package's own way.

It is the vendor's tool, and the way to float8 (experimental: what a small detector gains by it is open). It needs torch
and pins versions that do not go together with a GPU runtime, so it is best kept in an environment of its own.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from retinastream.engines.precision.calibration import FEWEST_PICTURES
from retinastream.engines.precision.graph_run import Picture
from retinastream.engines.precision.lint import lint_graph
from retinastream.engines.precision.model_files import (
    CALIBRATION_KEY,
    check_out,
    import_onnx,
    load_float_model,
    write_model,
)
from retinastream.engines.precision.node_patterns import matching_nodes
from retinastream.errors import InputError, MissingPackageError, ModelError, UsageError
from retinastream.models.spec import DetectorSpec

Mode = Literal["int8", "fp8"]
METHODS = ("entropy", "max")


def quantise_with_modelopt(
    path: str | Path,
    out: str | Path,
    pictures: Iterable[Picture],
    *,
    mode: Mode = "int8",
    method: str = "entropy",
    leave: Sequence[str] = (),
    force: bool = False,
    overwrite: bool = False,
    spec: DetectorSpec | None = None,
) -> Path:
    """Write the float32 detector at ``path`` as an int8 or float8 one to ``out`` and return its path.

    All pictures go to the tool in one array, so they are padded to the largest of them. ``leave`` names layers that
    are not quantised, with ``*`` as a wildcard. The result is checked by ``lint``. Raises as ``quantise`` does, and
    ModelError where the tool fails or writes what TensorRT would refuse.
    """
    if mode not in get_args(Mode):
        raise UsageError(f"mode is {mode!r}; allowed are {', '.join(get_args(Mode))}")
    if method not in METHODS:
        raise UsageError(f"calibration method {method!r} is not known to modelopt; allowed are {', '.join(METHODS)}")
    target = check_out(path, out, overwrite=overwrite)
    found, model = load_float_model(path, spec=spec)
    left = sorted(matching_nodes(model, leave))
    quantize, version = _tool()
    batch = together(pictures)
    if len(batch) < FEWEST_PICTURES and not force:
        raise InputError(
            f"too few pictures to calibrate with: {len(batch)}; expected at least {FEWEST_PICTURES}. Add some, or pass "
            "--force (force=True)"
        )
    onnx = import_onnx()
    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder) / "model.onnx", Path(folder) / "quantised.onnx"
        onnx.save(model, str(source))
        try:
            quantize(
                onnx_path=str(source),
                quantize_mode=mode,
                calibration_data={found.input_name: batch},
                calibration_method=method,
                calibration_shapes=f"{found.input_name}:1x{'x'.join(map(str, batch.shape[1:]))}",
                # The tool's default tries a GPU and TensorRT, too.
                calibration_eps=["cpu"],
                nodes_to_exclude=[f"^{re.escape(name)}$" for name in left],
                high_precision_dtype="fp16",
                output_path=str(result),
            )
            quantised = onnx.load(str(result))
        except Exception as error:
            raise ModelError(f"modelopt {version} could not quantise {path}: {error}") from error
    errors = [finding for finding in lint_graph(quantised) if finding.severity == "error"]
    if errors:
        raise ModelError(f"modelopt {version} wrote what TensorRT would refuse: {errors[0]} ({len(errors)} errors)")
    facts = {
        "quantizer": f"modelopt {version}",
        "method": method,
        "pictures": len(batch),
        "sha256": hashlib.sha256(batch).hexdigest(),
        "fp16_layers": left,
    }
    return write_model(quantised, found, target, mode, {CALIBRATION_KEY: json.dumps(facts, sort_keys=True)})


def together(pictures: Iterable[Picture]) -> npt.NDArray[np.float32]:
    """Return all pictures as one array, padded at the bottom and right with 0, which is the mean, to the largest.

    Raises InputError where there is none.
    """
    items = [item for picture in pictures for item in picture]
    if not items:
        raise InputError("there is no picture to calibrate with; give pictures, a folder of them, or a video")
    height, width = (max(item.shape[axis] for item in items) for axis in (1, 2))
    batch = np.zeros((len(items), 3, height, width), np.float32)
    for target, item in zip(batch, items, strict=True):
        target[:, : item.shape[1], : item.shape[2]] = item
    return batch


def _tool() -> tuple[Callable[..., Any], str]:
    try:
        import modelopt  # type: ignore[import-not-found]
        from modelopt.onnx.quantization import quantize  # type: ignore[import-not-found]
    except ImportError as error:
        raise MissingPackageError(
            "the quantizer modelopt is not installed: pip install 'nvidia-modelopt[onnx]' in an environment of its "
            "own, or use --quantizer own"
        ) from error
    return quantize, str(getattr(modelopt, "__version__", "of unknown version"))
