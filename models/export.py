"""From a torch RetinaFace to an ONNX file, dynamic in batch, height and width.

Everything below the heads is written by ``export_layers``; the heads are written here, as the layout of the outputs
demands. The same checkpoint yields the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

import retinastream
from retinastream.errors import ModelError
from retinastream.models.checkpoints import load_checkpoint
from retinastream.models.export_emitter import Emitter, to_array
from retinastream.models.export_layers import emit_features
from retinastream.models.network_heads import PART_CHANNELS, PARTS, DetectorNetwork
from retinastream.models.onnx_file import CLASSIC_NAMES, EXPORTER_VERSION, SOURCE_KEY, SPEC_KEY
from retinastream.models.onnx_output import save_model_file
from retinastream.models.spec import DetectorSpec, OutputLayout
from retinastream.models.zoo_entries import find_by_sha256

DEFAULT_OPSET = 17
# The newest intermediate representation that everything which reads opset 17 also reads.
IR_VERSION = 8


def export_onnx(
    checkpoint: str | Path,
    out: str | Path,
    layout: OutputLayout = "fused",
    *,
    opset: int = DEFAULT_OPSET,
    spec: DetectorSpec | None = None,
    architecture: str | None = None,
) -> Path:
    """Export a checkpoint to the ONNX file ``out`` and return its path.

    ``spec`` is needed for checkpoints that do not say theirs and are not in the zoo. The file carries the spec, the
    version of this package, the SHA-256 of the checkpoint, the architecture and the licence in its metadata.

    Raises ModelError for checkpoints that cannot be used and OutputError when ``out`` cannot be written.
    """
    loaded = load_checkpoint(checkpoint, spec=spec, architecture=architecture)
    entry = find_by_sha256(loaded.sha256)
    metadata = {SOURCE_KEY: loaded.sha256, "retinastream.licence": "unknown" if entry is None else entry.licence}
    return export_network(loaded.network, loaded.spec, out, layout, metadata, opset=opset)


def export_network(
    network: DetectorNetwork,
    spec: DetectorSpec,
    out: str | Path,
    layout: OutputLayout = "fused",
    metadata: Mapping[str, str] | None = None,
    *,
    opset: int = DEFAULT_OPSET,
) -> Path:
    """Write ``network`` to the ONNX file ``out``; ``metadata`` is added to what the file says about itself.

    The input is ``images`` (batch, 3, height, width); the outputs are one ``head_<stride>`` per level (fused) or
    ``loc``, ``conf``, ``landms`` (classic). Height and width must be multiples of 32 when the file is run.

    Raises ModelError when spec and network do not belong together, OutputError when ``out`` cannot be written.
    """
    _check(network, spec, layout, opset)
    described = DetectorSpec.from_dict({**spec.to_dict(), "output_layout": layout})
    entries = {
        SPEC_KEY: json.dumps(described.to_dict(), sort_keys=True),
        "retinastream.version": retinastream.__version__,
        "retinastream.exporter": str(EXPORTER_VERSION),
        "retinastream.architecture": network.architecture,
        **(metadata or {}),
    }
    model = _build(network, described, layout, opset)
    helper.set_model_props(model, dict(sorted(entries.items())))
    onnx.checker.check_model(model, full_check=True)
    return save_model_file(model.SerializeToString(deterministic=True), Path(out))


def _check(network: DetectorNetwork, spec: DetectorSpec, layout: str, opset: int) -> None:
    if layout not in ("fused", "classic"):
        raise ModelError(f"unknown output layout {layout!r}; allowed are fused, classic")
    if opset < DEFAULT_OPSET or opset > onnx.defs.onnx_opset_version():
        raise ModelError(
            f"opset {opset} is not possible; allowed are {DEFAULT_OPSET} to {onnx.defs.onnx_opset_version()}"
        )
    if spec.strides != network.strides or {len(sizes) for sizes in spec.anchor_sizes} != {network.anchors_per_cell}:
        raise ModelError(
            f"the spec has strides {spec.strides} and anchor sizes {spec.anchor_sizes}; this network has strides "
            f"{network.strides} and {network.anchors_per_cell} anchor sizes for each"
        )


def _build(network: DetectorNetwork, spec: DetectorSpec, layout: OutputLayout, opset: int) -> Any:
    emitter = Emitter()
    was_training = network.training
    network.eval()
    try:
        features = emit_features(network, emitter)
        if layout == "fused":
            outputs = _emit_fused(network, spec, features, emitter)
        else:
            outputs = _emit_classic(network, features, emitter)
    finally:
        network.train(was_training)
    images = helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["batch", 3, "height", "width"])
    graph = helper.make_graph(emitter.nodes, "retinaface", [images], outputs, list(emitter.constants.values()))
    return helper.make_model(
        graph,
        producer_name="retinastream",
        producer_version=retinastream.__version__,
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=IR_VERSION,
    )


def _emit_fused(network: DetectorNetwork, spec: DetectorSpec, features: Sequence[str], emitter: Emitter) -> list[Any]:
    outputs = []
    for level, (stride, feature) in enumerate(zip(spec.strides, features, strict=True)):
        name = f"head_{stride}"
        emitter.convolution(feature, name, *map(to_array, network.fused_head(level)))
        shape: list[str | int | None] = [
            "batch",
            network.anchors_per_cell * sum(PART_CHANNELS.values()),
            f"rows_{stride}",
            f"columns_{stride}",
        ]
        outputs.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    return outputs


def _emit_classic(network: DetectorNetwork, features: Sequence[str], emitter: Emitter) -> list[Any]:
    joined = {}
    for part in PARTS:
        shape = emitter.constant(f"{part}_shape", np.array([0, -1, PART_CHANNELS[part]], np.int64))
        pieces = []
        for level, feature in enumerate(features):
            name = f"{part}_{level}"
            emitter.convolution(feature, name, *map(to_array, network.head(part, level)))
            emitter.node("Transpose", [name], f"{name}_last", perm=[0, 2, 3, 1])
            emitter.node("Reshape", [f"{name}_last", shape], f"{name}_anchors")
            pieces.append(f"{name}_anchors")
        joined[part] = pieces
    loc, conf, landms = CLASSIC_NAMES
    emitter.node("Concat", joined["box"], loc, axis=1)
    emitter.node("Concat", joined["class"], "logits", axis=1)
    emitter.node("Softmax", ["logits"], conf, axis=2)
    emitter.node("Concat", joined["landmark"], landms, axis=1)
    return [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", "anchors", size])
        for name, size in zip(CLASSIC_NAMES, (4, 2, 10), strict=True)
    ]
