"""Which detector an ONNX file is: its spec, its input, and its outputs in the order that decoding expects."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path

from retinastream.errors import ModelError, UsageError
from retinastream.models.onnx_graph import ELEMENT_TYPES, FLOAT, FLOAT16, OnnxGraph, Tensor, file_sha256, read_graph
from retinastream.models.spec import DetectorSpec

logger = logging.getLogger(__name__)

# What export writes into a file and reading finds there. The version counts changes of what export writes.
SPEC_KEY = "retinastream.spec"
SOURCE_KEY = "retinastream.source_sha256"
PRECISION_KEY = "retinastream.precision"
EXPORTER_VERSION = 1
CLASSIC_NAMES = ("loc", "conf", "landms")
_VALUES_PER_ANCHOR = 16
# Any of these can end a computation of probabilities; a file with none of them returns raw logits.
_PROBABILITY_OPERATORS = {"Softmax", "Sigmoid", "Exp", "LogSoftmax"}
_CLASSIC_PATTERNS = (("loc", "bbox", "box"), ("conf", "cls", "class", "score"), ("landm", "ldm", "kps", "point"))


@dataclass(frozen=True)
class OnnxModel:
    """One detector in one file.

    ``input_shape`` is (batch, 3, height, width) with None where a size is free. ``output_names`` holds one name per
    level in the order of the strides (fused), or the names of loc, conf and landms in that order (classic).
    ``input_type`` is "float32" or "float16". ``precision`` is what the graph computes in: "f32", "fp16", "int8", "fp8".
    """

    path: Path
    sha256: str
    spec: DetectorSpec
    input_name: str
    input_shape: tuple[int | None, ...]
    output_names: tuple[str, ...]
    name: str
    input_type: str = "float32"
    precision: str = "f32"


def read_onnx(path: str | Path, *, spec: DetectorSpec | None = None, name: str | None = None) -> OnnxModel:
    """Read what the ONNX file at ``path`` detects with.

    The spec is the one this package wrote into the file; for files made elsewhere it is ``spec``, by default that of
    the light RetinaFace. ``spec.output_layout`` follows what the file holds. ``sha256`` covers external weights too.

    Raises ModelError for files that are missing, not ONNX, or not a RetinaFace in one of the two layouts.
    """
    path = Path(path)
    graph = read_graph(path)
    _check_external(path, graph)
    image = _image_input(path, graph)
    written = _written_spec(path, graph)
    if written is not None and spec is not None and replace(spec, output_layout=written.output_layout) != written:
        raise ModelError(
            f"{path} carries its own spec (anchors {written.anchor_sizes}, strides {written.strides}) and another one "
            "was given; leave the given one out, or export the checkpoint again with it"
        )
    detector, outputs = _recognise(path, graph, written or spec or DetectorSpec())
    if written is None and spec is None:
        logger.warning(
            "%s does not say which anchors it was trained with; those of the light RetinaFace (16 to 512) are used",
            path,
        )
    assert image.shape is not None
    _check_anchor_count(path, detector, image.shape, outputs)
    return OnnxModel(
        path=path,
        sha256=file_sha256(path, external=graph.external),
        spec=detector,
        input_name=image.name,
        input_shape=image.shape,
        output_names=tuple(output.name for output in outputs),
        name=name or path.stem,
        input_type=ELEMENT_TYPES[image.element_type],
        precision=_precision(graph, image),
    )


def _precision(graph: OnnxGraph, image: Tensor) -> str:
    """Return what a graph says that it computes in; of files made elsewhere, what their types and operators tell."""
    if PRECISION_KEY in graph.metadata:
        return graph.metadata[PRECISION_KEY]
    if {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger"} & set(graph.operators):
        return "int8"
    return "fp16" if image.element_type == FLOAT16 else "f32"


def _written_spec(path: Path, graph: OnnxGraph) -> DetectorSpec | None:
    if SPEC_KEY not in graph.metadata:
        return None
    try:
        return DetectorSpec.from_dict(json.loads(graph.metadata[SPEC_KEY]))
    except (UsageError, ValueError, TypeError) as error:
        raise ModelError(
            f"the spec inside {path} cannot be read ({error}); it was written by another version: export it again"
        ) from error


def _check_external(path: Path, graph: OnnxGraph) -> None:
    missing = [name for name in graph.external if not (path.parent / name).is_file()]
    if missing:
        raise ModelError(
            f"{path} keeps its weights in {missing[0]!r}, which is not beside it; copy that file to {path.parent}"
        )


def _image_input(path: Path, graph: OnnxGraph) -> Tensor:
    wanted = "expected one float32 input (batch, 3, height, width), or one of float16"
    given = "; ".join(map(str, graph.inputs)) or "none"
    if len(graph.inputs) != 1:
        raise ModelError(f"{path} has {len(graph.inputs)} inputs ({given}); {wanted}")
    image = graph.inputs[0]
    shape = image.shape
    if shape is None or len(shape) != 4:
        raise ModelError(f"{path} has the input {given}; {wanted}")
    if shape[1] not in (3, None) or (shape[1] is None and shape[3] == 3):
        if shape[3] == 3:
            raise ModelError(
                f"{path} takes its channels last (NHWC: {given}); {wanted}, so export it with channels first (NCHW)"
            )
        raise ModelError(f"{path} takes {shape[1]} channels ({given}); {wanted}")
    if image.element_type not in (FLOAT, FLOAT16):
        raise ModelError(
            f"{path} takes {given}; inputs of other floats and integers are not supported here: {wanted}. Keep the "
            "input float32 when converting"
        )
    return image


def _recognise(path: Path, graph: OnnxGraph, spec: DetectorSpec) -> tuple[DetectorSpec, list[Tensor]]:
    """Find the layout of the outputs, which a file's own shapes decide rather than what a spec says."""
    fused = _fused_outputs(graph.outputs, spec)
    if fused is not None:
        return replace(spec, output_layout="fused"), fused
    classic = _classic_outputs(graph.outputs)
    if classic is None:
        anchors = len(spec.anchor_sizes[0])
        raise ModelError(
            f"{path} is not a RetinaFace of this kind: its outputs are {'; '.join(map(str, graph.outputs))}. Expected "
            "three outputs (batch, anchors, 4), (batch, anchors, 2) and (batch, anchors, 10), or one output "
            f"(batch, {anchors * _VALUES_PER_ANCHOR}, rows, columns) per stride {', '.join(map(str, spec.strides))}; "
            "for other strides or anchors give its spec, such as retinaface-paper"
        )
    if not _PROBABILITY_OPERATORS & set(graph.operators):
        raise ModelError(
            f"{path} returns raw class logits in {classic[1].name!r} (it has no softmax); expected probabilities: "
            "export the network in its test mode"
        )
    return replace(spec, output_layout="classic"), classic


def _fused_outputs(outputs: list[Tensor], spec: DetectorSpec) -> list[Tensor] | None:
    if len(outputs) != len(spec.strides):
        return None
    named = {int(match[1]): output for output in outputs if (match := re.search(r"(\d+)$", output.name))}
    ordered = [named[s] for s in spec.strides] if set(named) == set(spec.strides) else _coarser_last(outputs)
    for output, sizes in zip(ordered, spec.anchor_sizes, strict=True):
        if output.shape is None or len(output.shape) != 4 or output.shape[1] != len(sizes) * _VALUES_PER_ANCHOR:
            return None
    return ordered


def _coarser_last(outputs: list[Tensor]) -> list[Tensor]:
    """Order maps by their declared height; where that is free, keep the order of the file."""
    heights = [output.shape[2] if output.shape is not None and len(output.shape) == 4 else None for output in outputs]
    if any(height is None for height in heights):
        return outputs
    return [output for _, output in sorted(zip(heights, outputs, strict=True), key=lambda pair: -(pair[0] or 0))]


def _classic_outputs(outputs: list[Tensor]) -> list[Tensor] | None:
    if len(outputs) != 3 or any(output.shape is not None and len(output.shape) != 3 for output in outputs):
        return None
    by_size = {output.shape[-1]: output for output in outputs if output.shape is not None}
    if {4, 2, 10} == set(by_size):
        return [by_size[4], by_size[2], by_size[10]]
    ordered: list[Tensor] = []
    for patterns, size in zip(_CLASSIC_PATTERNS, (4, 2, 10), strict=True):
        matches = [o for o in outputs if any(p in o.name.lower() for p in patterns)]
        if len(matches) != 1 or (matches[0].shape is not None and matches[0].shape[-1] not in (None, size)):
            return None
        ordered.append(matches[0])
    return ordered if len({output.name for output in ordered}) == 3 else None


def _check_anchor_count(path: Path, spec: DetectorSpec, image: tuple[int | None, ...], outputs: list[Tensor]) -> None:
    """Refuse a file of fixed size whose number of anchors contradicts the spec."""
    height, width = image[2], image[3]
    if spec.output_layout != "classic" or height is None or width is None:
        return
    declared = {output.shape[1] for output in outputs if output.shape is not None} - {None}
    expected = spec.anchor_count(height, width)
    if declared and declared != {expected}:
        raise ModelError(
            f"{path} has {sorted(d for d in declared if d)[0]} anchors for its input of {width}x{height}, and a spec "
            f"with strides {spec.strides} and anchor sizes {spec.anchor_sizes} has {expected}; give the spec that it "
            "was trained with"
        )
