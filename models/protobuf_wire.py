"""The wire format of protocol buffers, as far as ONNX files use it: fields of a message, one by one.

Numbers, texts and messages are told apart by whoever knows the field; what does not fit raises ``WireError``.
"""

from __future__ import annotations

from collections.abc import Iterator


class WireError(ValueError):
    """The bytes are not a protocol buffer."""


def fields(view: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (field number, value) of a message: numbers as int, everything with a length as a view of the bytes."""
    position, end = 0, len(view)
    while position < end:
        tag, position = varint(view, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            value, position = varint(view, position)
            yield number, value
            continue
        if wire_type == 2:
            length, position = varint(view, position)
        elif wire_type in (1, 5):
            length = 8 if wire_type == 1 else 4
        else:
            raise WireError(f"byte {position - 1} is not a field of a model")
        if position + length > end:
            raise WireError(f"{position + length - end} bytes are missing at its end")
        if number == 0:
            raise WireError("it holds a field numbered 0")
        yield number, view[position : position + length]
        position += length


def varint(view: memoryview, position: int) -> tuple[int, int]:
    """Read the number of variable length at ``position``: its value, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(view):
            raise WireError("it ends inside a number")
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise WireError("it holds a number longer than 64 bits")


def as_message(value: int | memoryview) -> memoryview:
    """Take a value for a message, or for bytes."""
    if isinstance(value, int):
        raise WireError("a number stands where a message belongs")
    return value


def as_integer(value: int | memoryview) -> int:
    """Take a value for a number, unsigned as it is stored."""
    if not isinstance(value, int):
        raise WireError("a message stands where a number belongs")
    return value


def as_text(value: int | memoryview) -> str:
    """Take a value for a text."""
    return str(as_message(value), "utf-8")
