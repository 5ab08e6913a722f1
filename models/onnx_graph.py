"""What an ONNX file declares, read without the onnx package.

The base install has no onnx, and all that is needed of a file is its declarations: inputs, outputs, operators and
metadata. ONNX files are protocol buffers; the fields used here are numbered as in the public ``onnx.proto3`` schema.
The file is mapped, not read, and weights are stepped over, so the size of a model does not matter.
"""

from __future__ import annotations

import hashlib
import mmap
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from retinastream.errors import ModelError
from retinastream.models.protobuf_wire import WireError, as_integer, as_message, as_text, fields

FLOAT = 1
FLOAT16 = 10
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
    except (WireError, UnicodeDecodeError) as error:
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
    for number, value in fields(view):
        if number == 2:
            graph.producer = as_text(value) + graph.producer
        elif number == 3:
            graph.producer += f" {as_text(value)}"
        elif number == 7:
            _read_graph_body(as_message(value), graph)
        elif number == 8:
            entry = dict(fields(as_message(value)))
            if not entry.get(1) or as_text(entry[1]) in ("", "ai.onnx"):
                graph.opset = as_integer(entry.get(2, 0))
        elif number == 14:
            key, text = _pair(as_message(value))
            graph.metadata[key] = text
    return graph


def _read_graph_body(view: memoryview, graph: OnnxGraph) -> None:
    initialisers: set[str] = set()
    for number, value in fields(view):
        if number == 1:
            entry = {n: v for n, v in fields(as_message(value)) if n == 4}
            graph.operators[as_text(entry.get(4, memoryview(b"")))] += 1
        elif number == 5:
            name, location = _initialiser(as_message(value))
            initialisers.add(name)
            if location and location not in graph.external:
                graph.external.append(location)
        elif number == 11:
            graph.inputs.append(_tensor(as_message(value)))
        elif number == 12:
            graph.outputs.append(_tensor(as_message(value)))
    # Before IR version 4 weights had to be listed among the inputs as well.
    graph.inputs = [tensor for tensor in graph.inputs if tensor.name not in initialisers]


def _initialiser(view: memoryview) -> tuple[str, str]:
    name, location = "", ""
    for number, value in fields(view):
        if number == 8:
            name = as_text(value)
        elif number == 13:
            key, text = _pair(as_message(value))
            location = text if key == "location" else location
    return name, location


def _tensor(view: memoryview) -> Tensor:
    name, element_type = "", 0
    shape: tuple[int | None, ...] | None = None
    for number, value in fields(view):
        if number == 1:
            name = as_text(value)
        elif number == 2:
            for kind, tensor_type in fields(as_message(value)):
                if kind == 1:
                    element_type, shape = _tensor_type(as_message(tensor_type))
    return Tensor(name, element_type, shape)


def _tensor_type(view: memoryview) -> tuple[int, tuple[int | None, ...] | None]:
    element_type = 0
    shape: tuple[int | None, ...] | None = None
    for number, value in fields(view):
        if number == 1:
            element_type = as_integer(value)
        elif number == 2:
            dims = [dict(fields(as_message(dim))) for n, dim in fields(as_message(value)) if n == 1]
            shape = tuple(_size(dim.get(1)) for dim in dims)
    return element_type, shape


def _size(value: int | memoryview | None) -> int | None:
    """Return a declared size; exporters write 0 and -1 (as an unsigned number) for sizes that vary."""
    size = None if value is None else as_integer(value)
    return size if size is not None and 0 < size < 1 << 40 else None


def _pair(view: memoryview) -> tuple[str, str]:
    entry = dict(fields(view))
    return as_text(entry.get(1, memoryview(b""))), as_text(entry.get(2, memoryview(b"")))
