"""What an ONNX file declares, read without the onnx package.

The base install has no onnx, and all that is needed of a file is its declarations: inputs, outputs, operators and
metadata. ONNX files are protocol buffers; the fields used here are numbered as in the public ``onnx.proto3`` schema.
The file is mapped, not read, and weights are stepped over, so the size of a model does not matter.
"""

from __future__ import annotations

import hashlib
import mmap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from retinastream.errors import ModelError

FLOAT = 1
ELEMENT_TYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    6: "int32",
    7: "int64",
    10: "float16",
    11: "float64",
    16: "bfloat16",
}
_EXPORT_HINT = "export it with `retinastream model export FILE` or give an .onnx file"


@dataclass(frozen=True, slots=True)
class Tensor:
    """A declared input or output; ``shape`` holds None where a size is free, and is None where the rank is unknown."""

    name: str
    element_type: int
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        """Write it like ``loc float32 [?, ?, 4]``."""
        kind = ELEMENT_TYPES.get(self.element_type, f"type {self.element_type}")
        shape = "?" if self.shape is None else "[" + ", ".join("?" if d is None else str(d) for d in self.shape) + "]"
        return f"{self.name} {kind} {shape}"


@dataclass(slots=True)
class OnnxGraph:
    """The declarations of one file; ``external`` names the files that its weights lie in, relative to it."""

    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    operators: Counter[str] = field(default_factory=Counter)
    metadata: dict[str, str] = field(default_factory=dict)
    opset: int = 0
    producer: str = ""
    external: list[str] = field(default_factory=list)


class _WireError(ValueError):
    """The bytes are not a protocol buffer."""


def read_graph(path: Path) -> OnnxGraph:
    """Read the declarations of the ONNX file at ``path``.

    Raises ModelError, naming the file and what to do, when it is missing, empty, cut short or something else.
    """
    try:
        with path.open("rb") as file:
            if file.seek(0, 2) == 0:
                raise ModelError(f"{path} is empty; {_EXPORT_HINT}")
            # Not closed by hand: the traceback of an error still holds views of it, and closing would fail.
            return _parse(path, memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
    except FileNotFoundError as error:
        raise ModelError(f"model file {path} does not exist") from error
    except IsADirectoryError as error:
        raise ModelError(f"{path} is a directory; expected an .onnx file") from error
    except OSError as error:
        raise ModelError(f"model file {path} cannot be read: {error.strerror or error}") from error


def _parse(path: Path, view: memoryview) -> OnnxGraph:
    head = bytes(view[:8])
    if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04")):
        raise ModelError(f"{path} is a PyTorch file, not ONNX; {_EXPORT_HINT}")
    try:
        graph = _model(view)
    except (_WireError, UnicodeDecodeError) as error:
        raise ModelError(
            f"{path} ({len(view)} bytes) is not a complete ONNX file: {error}; if it was downloaded, fetch it again, "
            f"else {_EXPORT_HINT}"
        ) from error
    if not graph.outputs:
        raise ModelError(f"{path} is not an ONNX model: it declares no graph outputs; {_EXPORT_HINT}")
    return graph


def file_sha256(path: Path, *, external: list[str] | None = None) -> str:
    """Return the SHA-256 of a file in hexadecimal; files of external weights are hashed after it, in their order."""
    digest = hashlib.sha256()
    for part in (path, *(path.parent / name for name in external or ())):
        with part.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _model(view: memoryview) -> OnnxGraph:
    graph = OnnxGraph()
    for number, value in _fields(view):
        if number == 2:
            graph.producer = _text(value) + graph.producer
        elif number == 3:
            graph.producer += f" {_text(value)}"
        elif number == 7:
            _read_graph_body(_message(value), graph)
        elif number == 8:
            entry = dict(_fields(_message(value)))
            if not entry.get(1) or _text(entry[1]) in ("", "ai.onnx"):
                graph.opset = _integer(entry.get(2, 0))
        elif number == 14:
            key, text = _pair(_message(value))
            graph.metadata[key] = text
    return graph


def _read_graph_body(view: memoryview, graph: OnnxGraph) -> None:
    initialisers: set[str] = set()
    for number, value in _fields(view):
        if number == 1:
            entry = {n: v for n, v in _fields(_message(value)) if n == 4}
            graph.operators[_text(entry.get(4, memoryview(b"")))] += 1
        elif number == 5:
            name, location = _initialiser(_message(value))
            initialisers.add(name)
            if location and location not in graph.external:
                graph.external.append(location)
        elif number == 11:
            graph.inputs.append(_tensor(_message(value)))
        elif number == 12:
            graph.outputs.append(_tensor(_message(value)))
    # Before IR version 4 weights had to be listed among the inputs as well.
    graph.inputs = [tensor for tensor in graph.inputs if tensor.name not in initialisers]


def _initialiser(view: memoryview) -> tuple[str, str]:
    name, location = "", ""
    for number, value in _fields(view):
        if number == 8:
            name = _text(value)
        elif number == 13:
            key, text = _pair(_message(value))
            location = text if key == "location" else location
    return name, location


def _tensor(view: memoryview) -> Tensor:
    name, element_type = "", 0
    shape: tuple[int | None, ...] | None = None
    for number, value in _fields(view):
        if number == 1:
            name = _text(value)
        elif number == 2:
            for kind, tensor_type in _fields(_message(value)):
                if kind == 1:
                    element_type, shape = _tensor_type(_message(tensor_type))
    return Tensor(name, element_type, shape)


def _tensor_type(view: memoryview) -> tuple[int, tuple[int | None, ...] | None]:
    element_type = 0
    shape: tuple[int | None, ...] | None = None
    for number, value in _fields(view):
        if number == 1:
            element_type = _integer(value)
        elif number == 2:
            dims = [dict(_fields(_message(dim))) for n, dim in _fields(_message(value)) if n == 1]
            shape = tuple(_size(dim.get(1)) for dim in dims)
    return element_type, shape


def _size(value: int | memoryview | None) -> int | None:
    """Return a declared size; exporters write 0 and -1 (as an unsigned number) for sizes that vary."""
    size = None if value is None else _integer(value)
    return size if size is not None and 0 < size < 1 << 40 else None


def _pair(view: memoryview) -> tuple[str, str]:
    entry = dict(_fields(view))
    return _text(entry.get(1, memoryview(b""))), _text(entry.get(2, memoryview(b"")))


def _fields(view: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (field number, value) of a message: numbers as int, everything with a length as a view of the bytes."""
    position, end = 0, len(view)
    while position < end:
        tag, position = _varint(view, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            value, position = _varint(view, position)
            yield number, value
            continue
        if wire_type == 2:
            length, position = _varint(view, position)
        elif wire_type in (1, 5):
            length = 8 if wire_type == 1 else 4
        else:
            raise _WireError(f"byte {position - 1} is not a field of a model")
        if position + length > end:
            raise _WireError(f"{position + length - end} bytes are missing at its end")
        if number == 0:
            raise _WireError("it holds a field numbered 0")
        yield number, view[position : position + length]
        position += length


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(view):
            raise _WireError("it ends inside a number")
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _WireError("it holds a number longer than 64 bits")


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise _WireError("a number stands where a message belongs")
    return value


def _integer(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise _WireError("a message stands where a number belongs")
    return value


def _text(value: int | memoryview) -> str:
    return str(_message(value), "utf-8")
