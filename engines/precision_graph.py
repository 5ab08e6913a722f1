"""The graph of a precision: the model itself, or one that was converted once and is kept beside the engines."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import JsonValue

from retinastream.engines.cache.durable import make_private_folder
from retinastream.engines.cache.folder import engines_dir
from retinastream.engines.tensorrt.plan_source import NetworkIo
from retinastream.errors import ModelError, UsageError
from retinastream.models.onnx_file import OnnxModel, read_onnx
from retinastream.models.onnx_graph import ELEMENT_TYPES, read_graph

logger = logging.getLogger(__name__)

CALIBRATION_KEY = "retinastream.calibration"
INPUT_SCALE_KEY = "retinastream.input_scale"
# Raised whenever a conversion gives another graph for the same file.
RECIPE_VERSION = 1
PRECISIONS = ("f32", "fp16", "int8")
_GRAPH_TYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "int8": np.dtype(np.int8),
}


@dataclass(frozen=True)
class PrecisionGraph:
    """What TensorRT is given: the graph, how it came about, and the types of its input and outputs."""

    model: OnnxModel
    precision: str
    io: NetworkIo
    recipe: dict[str, JsonValue] = field(default_factory=dict)
    calibration_sha256: str = ""


def precision_graph(model: OnnxModel, precision: str, folder: Path | None = None) -> PrecisionGraph:
    """Return the graph of ``model`` in a precision: "f32", "fp16" or "int8".

    A float32 model is converted to fp16 at first use and kept in ``folder`` (by default in the cache of engines). int8
    needs pictures, so that the last file that was calibrated for an engine of this model is taken. UsageError for a
    precision that a file cannot have.
    """
    if model.precision == precision:
        return describe_graph(model)
    if model.precision != "f32":
        raise UsageError(
            f"{model.path} is {model.precision} and {precision} was asked for; use --precision {model.precision}, or "
            "give the float32 file that it was made from"
        )
    if precision == "int8":
        folder = folder or graphs_dir()
        kept = sorted(folder.glob(kept_int8_path(model, "*").name), key=lambda path: path.stat().st_mtime)
        if kept:
            return describe_graph(read_onnx(kept[-1], name=model.name))
        raise UsageError(
            f"{model.path} is float32, and int8 needs pictures to be calibrated with: make the int8 file with "
            "`retinastream engine quantize` and give that, or use `retinastream engine build --precision int8 "
            "--calibration`"
        )
    if precision != "fp16":
        raise UsageError(f"precision {precision!r} is not available on tensorrt; allowed are {', '.join(PRECISIONS)}")
    return describe_graph(_converted(model, folder or make_graphs_dir()))


def graphs_dir() -> Path:
    """Return the folder of graphs that were converted for engines."""
    return engines_dir() / "graphs"


def make_graphs_dir() -> Path:
    """Make that folder, and the one of engines around it, for this user alone; OutputError where that cannot be."""
    # Not left to whoever writes a graph: made with a common umask, the folder of engines would be refused afterwards.
    make_private_folder(engines_dir())
    make_private_folder(graphs_dir())
    return graphs_dir()


def kept_int8_path(model: OnnxModel, calibration: str) -> Path:
    """Return where the int8 graph of a float32 model lies that was calibrated with pictures of this SHA-256."""
    return graphs_dir() / f"{model.sha256[:32]}-int8-{calibration[:32]}.onnx"


def describe_graph(model: OnnxModel) -> PrecisionGraph:
    """Describe a file as it is; ModelError where its outputs have several types, or an int8 input has no scale."""
    graph = read_graph(model.path)
    outputs = {tensor.element_type for tensor in graph.outputs if tensor.name in model.output_names}
    image = next(tensor.element_type for tensor in graph.inputs if tensor.name == model.input_name)
    kinds = [ELEMENT_TYPES.get(kind, f"type {kind}") for kind in (image, *sorted(outputs))]
    if len(kinds) != 2 or not set(kinds) <= set(_GRAPH_TYPES):
        raise ModelError(
            f"{model.path} takes {kinds[0]} and returns {' and '.join(kinds[1:])}; expected float32, float16 or int8 "
            "in, and outputs that are all float32 or all float16"
        )
    scale = graph.metadata.get(INPUT_SCALE_KEY)
    if kinds[0] == "int8" and scale is None:
        raise ModelError(
            f"{model.path} takes int8 and does not say by which scale ({INPUT_SCALE_KEY}); quantise it again"
        )
    io = NetworkIo(
        _GRAPH_TYPES[kinds[0]], _GRAPH_TYPES[kinds[1]], float(scale) if kinds[0] == "int8" and scale else None
    )
    recipe: dict[str, JsonValue] = {
        name.removeprefix("retinastream."): text
        for name, text in sorted(graph.metadata.items())
        if name == "retinastream.converted_from_sha256"
    }
    calibration = json.loads(graph.metadata.get(CALIBRATION_KEY, "{}"))
    return PrecisionGraph(model, model.precision, io, recipe, str(calibration.get("sha256", "")))


def _converted(model: OnnxModel, folder: Path) -> OnnxModel:
    from retinastream.engines.precision.half import to_fp16

    target = folder / f"{model.sha256[:32]}-fp16-{RECIPE_VERSION}.onnx"
    if not target.is_file():
        logger.info("converting %s to half precision", model.path)
        # Weights below the smallest number of half precision are as good as zero; too large ones are an error.
        to_fp16(model.path, target, outside="round", spec=model.spec, overwrite=True)
    return read_onnx(target, name=model.name)
