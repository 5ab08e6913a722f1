"""Reading a model that is to be converted, and writing what came of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import retinastream
from retinastream.errors import MissingPackageError, ModelError, UsageError
from retinastream.models.onnx_file import PRECISION_KEY, SPEC_KEY, OnnxModel, read_onnx
from retinastream.models.onnx_output import save_model_file
from retinastream.models.spec import DetectorSpec

CONVERTED_KEY = "retinastream.converted_from_sha256"
CALIBRATION_KEY = "retinastream.calibration"
# Explicit quantisation with scales of half precision exists from this opset on.
LOWEST_OPSET = 19
_IR_OF_LOWEST_OPSET = 9


def load_float_model(path: str | Path, *, spec: DetectorSpec | None = None) -> tuple[OnnxModel, Any]:
    """Read a float32 detector: what it is, and its ONNX graph, whose constants are all initialisers and nodes named.

    Raises ModelError for files that are missing, broken, no detector, of another precision already or with operators
    that cannot be converted; MissingPackageError without the onnx package.
    """
    onnx = import_onnx()
    found = read_onnx(path, spec=spec)
    if found.precision != "f32":
        raise ModelError(
            f"{path} is {found.precision} already; converting it once more would add up the errors: give the float32 "
            "file that it was made from"
        )
    try:
        model = onnx.load(str(found.path))
        onnx.checker.check_model(model)
    except Exception as error:
        raise ModelError(f"{path} is not a valid ONNX file: {_first_line(error)}") from error
    _check_float(found.path, model)
    _check_operators(found.path, model)
    fold_constants(model)
    name_nodes(model)
    return found, model


def import_onnx() -> Any:
    """Return the onnx package. Raises MissingPackageError with what brings it."""
    try:
        import onnx
        import onnx.checker
        import onnx.shape_inference
        import onnx.version_converter
    except ImportError as error:
        raise MissingPackageError(
            "converting models needs the package onnx: pip install 'retinastream[export]'"
        ) from error
    return onnx


def _check_float(path: Path, model: Any) -> None:
    onnx = import_onnx()
    half = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    weights = [tensor.name for tensor in model.graph.initializer if tensor.data_type in half]
    if weights:
        raise ModelError(
            f"{path} takes float32, but {len(weights)} of its weights are of half precision, such as {weights[0]!r}: "
            "it was converted already; give the float32 file that it was made from"
        )


def _check_operators(path: Path, model: Any) -> None:
    onnx = import_onnx()
    if model.functions:
        raise ModelError(f"{path} has functions of its own ({model.functions[0].name}); export it without them")
    opset = opset_of(model)
    unknown: Counter[str] = Counter()
    for node in model.graph.node:
        nested = any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute)
        if nested or node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type, opset, ""):
            unknown[f"{node.domain}.{node.op_type}".lstrip(".")] += 1
    if unknown:
        names = ", ".join(f"{name} ({count})" for name, count in unknown.most_common(5))
        raise ModelError(
            f"{path} has operators whose precision cannot be changed here: {names}; allowed are those of ONNX itself, "
            "without control flow: export the model with standard operators"
        )


def opset_of(model: Any) -> int:
    """Return the version of the standard operators that a graph uses."""
    return max((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def raise_opset(model: Any, lowest: int = LOWEST_OPSET) -> Any:
    """Return the graph with at least opset ``lowest``. Raises ModelError where it cannot be brought there."""
    onnx = import_onnx()
    if opset_of(model) >= lowest:
        return model
    try:
        raised = onnx.version_converter.convert_version(model, lowest)
        onnx.checker.check_model(raised)
    except Exception as error:
        raise ModelError(
            f"the model has opset {opset_of(model)} and could not be raised to {lowest}, which fp16 scales need: "
            f"{_first_line(error)}; export it with opset {lowest}"
        ) from error
    raised.ir_version = max(raised.ir_version, _IR_OF_LOWEST_OPSET)
    name_nodes(raised)
    return raised


def fold_constants(model: Any) -> None:
    """Turn ``Constant`` nodes into initialisers, in place."""
    onnx = import_onnx()
    kept = []
    for node in model.graph.node:
        if node.op_type != "Constant":
            kept.append(node)
            continue
        model.graph.initializer.append(_constant_value(onnx, node))
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _constant_value(onnx: Any, node: Any) -> Any:
    attribute = node.attribute[0]
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.name == "value":
        tensor = onnx.TensorProto()
        tensor.CopyFrom(value)
        tensor.name = node.output[0]
        return tensor
    kinds = {"value_float": "FLOAT", "value_floats": "FLOAT", "value_int": "INT64", "value_ints": "INT64"}
    if attribute.name not in kinds:
        raise ModelError(f"the constant {node.output[0]!r} holds a {attribute.name}, which is not a number; fold it")
    values, shape = ([value], []) if attribute.name in ("value_float", "value_int") else (value, [len(value)])
    return onnx.helper.make_tensor(node.output[0], getattr(onnx.TensorProto, kinds[attribute.name]), shape, values)


def name_nodes(model: Any) -> None:
    """Give nodes without a name one of their own, so that they can be spoken of."""
    taken = {node.name for node in model.graph.node}
    seen: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            name = f"{node.op_type}_{index}"
            while name in taken:
                name += "_"
            node.name = name
            taken.add(name)
        seen.add(node.name)


def check_out(path: str | Path, out: str | Path, *, overwrite: bool) -> Path:
    """Refuse an output that could not be written, before the work. Raises UsageError."""
    target = Path(out)
    if target.exists() and not target.is_file():
        raise UsageError(f"the output {target} is not a file; give the name of an .onnx file")
    if target.exists() and Path(path).exists() and target.samefile(path):
        raise UsageError(f"the output {target} is the model itself; give another name")
    if target.exists() and not overwrite:
        raise UsageError(f"{target} exists; choose another name, or pass --overwrite (overwrite=True)")
    return target


def write_model(model: Any, found: OnnxModel, out: Path, precision: str, metadata: Mapping[str, str]) -> Path:
    """Write the converted graph of ``found`` to ``out``, whole or not at all, and what it was made of into it.

    Raises ModelError where the graph is not valid, which is a mistake of the conversion, and OutputError.
    """
    onnx = import_onnx()
    entries = {entry.key: entry.value for entry in model.metadata_props}
    entries |= {
        SPEC_KEY: json.dumps(found.spec.to_dict(), sort_keys=True),
        PRECISION_KEY: precision,
        CONVERTED_KEY: found.sha256,
        "retinastream.version": retinastream.__version__,
        **metadata,
    }
    onnx.helper.set_model_props(model, dict(sorted(entries.items())))
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        raise ModelError(
            f"{found.path} was converted to {precision}, but the result is not valid: {_first_line(error)}; leave the "
            "nodes that it names in float32"
        ) from error
    return save_model_file(model.SerializeToString(deterministic=True), out)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
