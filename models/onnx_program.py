"""All of an ONNX file: its operators with their attributes, and its weights, read without the onnx package.

``onnx_graph`` reads the declarations only and steps over weights; this is for whoever runs the file. Fields are
numbered as in the public ``onnx.proto3`` schema. Weights are views of the mapped file where they lie in it as they are
in memory, so that reading costs no second copy.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from retinastream.errors import ModelError
from retinastream.models.onnx_graph import ELEMENT_TYPES, read_graph
from retinastream.models.protobuf_wire import WireError, as_integer, as_message, as_text, fields, varint

Array = npt.NDArray[Any]

# Element types of ONNX that NumPy has, too.
_DTYPES: dict[int, type[np.generic]] = {
    1: np.float32,
    2: np.uint8,
    3: np.int8,
    5: np.int16,
    6: np.int32,
    7: np.int64,
    9: np.bool_,
    10: np.float16,
    11: np.float64,
}
# What an attribute of a type holds whose value is not in the file.
_ABSENT: dict[int, Any] = {1: 0.0, 2: 0, 3: ""}
# Which field of a tensor holds the values of a type that are not raw bytes; float16 comes as its bits.
_FLOAT_DATA, _INT32_DATA, _INT64_DATA, _DOUBLE_DATA = 4, 5, 7, 10


@dataclass(frozen=True, slots=True)
class Node:
    """One operator; an input that is left out is named ""."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


@dataclass(slots=True)
class OnnxProgram:
    """What a file computes: operators in the order in which they can be run, and constants by name."""

    path: Path
    opset: int
    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


def read_program(path: Path) -> OnnxProgram:
    """Read the ONNX file at ``path``, with weights that lie in other files beside it.

    Raises ModelError, naming the file, where it is no complete ONNX file or holds tensors of a type without NumPy form.
    """
    declared = read_graph(path)
    program = OnnxProgram(path, declared.opset)
    program.inputs = tuple(tensor.name for tensor in declared.inputs)
    program.outputs = tuple(tensor.name for tensor in declared.outputs)
    try:
        for number, value in fields(_mapped(path)):
            if number == 7:
                _read_body(as_message(value), program)
    except (WireError, UnicodeDecodeError, struct.error, ValueError) as error:
        raise ModelError(f"{path} is not a complete ONNX file: {error}; export or download it again") from error
    return program


def _mapped(path: Path) -> memoryview:
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _read_body(view: memoryview, program: OnnxProgram) -> None:
    for number, value in fields(view):
        if number == 1:
            program.nodes.append(_node(as_message(value), program.path))
        elif number == 5:
            name, array = _tensor(as_message(value), program.path)
            program.constants[name] = array
        elif number == 15:
            raise ModelError(f"{program.path} holds sparse weights, which are not supported; export them dense")


def _node(view: memoryview, path: Path) -> Node:
    texts: dict[int, list[str]] = {1: [], 2: [], 3: [], 4: [], 7: []}
    attributes: dict[str, Any] = {}
    for number, value in fields(view):
        if number in texts:
            texts[number].append(as_text(value))
        elif number == 5:
            name, content = _attribute(as_message(value), path)
            attributes[name] = content
    kind, name = "".join(texts[4]), "".join(texts[3])
    domain = "".join(texts[7])
    if domain not in ("", "ai.onnx"):
        kind = f"{domain}.{kind}"
    return Node(kind, name or "".join(texts[2][:1]), tuple(texts[1]), tuple(texts[2]), attributes)


def _attribute(view: memoryview, path: Path) -> tuple[str, Any]:
    """Return name and value; the declared type only tells what a value stands for that was left out for being zero."""
    name, single, many = "", None, []
    absent: Any = []
    for number, value in fields(view):
        if number == 1:
            name = as_text(value)
        elif number == 2:
            single = struct.unpack("<f", as_message(value))[0]
        elif number == 3:
            single = _signed(as_integer(value))
        elif number == 4:
            single = bytes(as_message(value)).decode("utf-8", "replace")
        elif number == 5:
            single = _tensor(as_message(value), path)[1]
        elif number == 6:
            single = "a graph of its own"
        elif number == 7:
            many += _floats(value, "<f")
        elif number == 8:
            many += _integers(value)
        elif number == 20:
            absent = _ABSENT.get(as_integer(value), [])
    return name, many or (absent if single is None else single)


def _tensor(view: memoryview, path: Path) -> tuple[str, Array]:
    name, kind, shape = "", 0, []
    values: list[Any] = []
    raw: memoryview | None = None
    external: dict[str, str] = {}
    for number, value in fields(view):
        if number == 1:
            shape += _integers(value)
        elif number == 2:
            kind = as_integer(value)
        elif number == _FLOAT_DATA:
            values += _floats(value, "<f")
        elif number in (_INT32_DATA, _INT64_DATA):
            values += _integers(value)
        elif number == 8:
            name = as_text(value)
        elif number == 9:
            raw = as_message(value)
        elif number == _DOUBLE_DATA:
            values += _floats(value, "<d")
        elif number == 13:
            entry = dict(fields(as_message(value)))
            external[as_text(entry[1])] = as_text(entry.get(2, memoryview(b"")))
    if kind not in _DTYPES:
        raise ModelError(
            f"{path}: the tensor {name!r} is of {ELEMENT_TYPES.get(kind, f'type {kind}')}, which has no NumPy form; "
            "export the network with float32 weights"
        )
    if external:
        raw = _external(path, external)
    return name, _array(name, np.dtype(_DTYPES[kind]), shape, values, raw)


def _array(name: str, dtype: np.dtype[Any], shape: list[int], values: list[Any], raw: memoryview | None) -> Array:
    if raw is not None:
        flat = np.frombuffer(raw, dtype)
    elif dtype == np.float16:
        flat = np.array(values, np.uint16).view(np.float16)
    else:
        flat = np.array(values, dtype)
    if flat.size != int(np.prod(shape, dtype=np.int64)):
        raise WireError(f"the tensor {name!r} of shape {shape} holds {flat.size} values")
    return flat.reshape(shape)


def _external(path: Path, where: dict[str, str]) -> memoryview:
    """Map the part of another file that holds a tensor."""
    other = path.parent / where.get("location", "")
    if path.parent.resolve() not in other.resolve().parents:
        raise ModelError(f"{path} names weights at {where.get('location')!r}, which is not in its own folder")
    try:
        whole = _mapped(other)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} keeps weights in {other}, which cannot be read: {error}") from error
    offset = int(where.get("offset") or 0)
    length = int(where.get("length") or len(whole) - offset)
    if offset < 0 or length < 0 or offset + length > len(whole):
        raise ModelError(f"{path}: {other} ends before byte {offset + length}; copy or download it again")
    return whole[offset : offset + length]


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _integers(value: int | memoryview) -> list[int]:
    """Read repeated whole numbers, packed into one field or one of many."""
    return [_signed(value)] if isinstance(value, int) else [_signed(number) for number in _packed(value)]


def _packed(view: memoryview) -> Iterator[int]:
    position = 0
    while position < len(view):
        number, position = varint(view, position)
        yield number


def _floats(value: int | memoryview, form: str) -> list[float]:
    """Read repeated fractions: one of many fields looks like a packed field with one number."""
    return [number for (number,) in struct.iter_unpack(form, as_message(value))]
