"""Label files before anyone trusts them: what a reader gets (``LabelSource``) and what it gives (``RawPicture``).

Every format of labels has a reader ``labels_<format>.py`` of its own. It turns one source into raw pictures: the
numbers are numbers and have the right shape, but boxes may be empty or outside the picture; ``labels_clean`` judges.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from retinastream.errors import InputError

Float64 = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
ProblemKind = Literal["box", "clipped", "outside", "landmarks", "score", "duplicate"]
_LONGEST_NAME = 255  # bytes of one file name, on all common file systems
_Kind = TypeVar("_Kind", dict[str, Any], list[Any], str)


@dataclass(frozen=True, slots=True)
class LabelProblem:
    """One thing that was repaired or dropped while labels were read.

    ``picture`` is the name in the set. ``kind``: "box" (without area or not finite: dropped), "outside" (wholly outside
    the picture: dropped), "clipped" (reached more than 1 px outside), "landmarks" (of a face, not usable: dropped, the
    box stays), "score" (not usable: face dropped), "duplicate" (the same picture listed again with the same labels).
    """

    picture: str
    kind: ProblemKind
    text: str

    def __str__(self) -> str:
        return f"{self.picture}: {self.text}"


@dataclass(frozen=True, slots=True, eq=False)
class LabelSource:
    """One label file, or a folder of them, as read from the disk.

    ``kind`` says what ``content`` is: the value of a JSON file, the lines of a text file, or (name, bytes) of the XML
    files of a folder, sorted by name. ``sha256`` is that of the file; of a folder that of all names and contents.
    ``repeated`` names the keys that a JSON object has twice with the same value.
    """

    path: Path
    kind: Literal["json", "text", "xml"]
    content: Any
    sha256: str
    repeated: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class RawPicture:
    """The labels of one picture as its label file has them.

    ``boxes`` (N, 4) xyxy and ``landmarks`` (N, 5, 2), NaN where there are none, in pixels; ``ignore`` (N,) and
    ``scores`` (N,). ``width`` and ``height`` are None where the labels do not say. ``problems`` are the reader's own.
    """

    name: str
    boxes: Float64
    landmarks: Float64
    ignore: Flags
    scores: Float64
    width: int | None = None
    height: int | None = None
    problems: tuple[LabelProblem, ...] = ()


def open_labels(path: Path) -> LabelSource:
    """Read the label file or folder of XML files at ``path``; what it is follows from its content, not its name.

    Raises InputError for a path that is missing or unreadable, and for content that is neither JSON nor text nor XML.
    """
    if path.is_dir():
        return _open_folder(path)
    content = _read(path)
    digest = hashlib.sha256(content).hexdigest()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not a label file: byte {error.start} is no UTF-8 text; expected JSON, text or a folder of XML"
        ) from error
    if text.lstrip()[:1] in ("{", "["):
        value, repeated = _parse_json(path, text)
        return LabelSource(path, "json", value, digest, repeated)
    if text.lstrip()[:1] == "<":
        raise InputError(f"{path} is one XML file; expected the folder that holds one for every picture")
    return LabelSource(path, "text", text.splitlines(), digest)


def picture_name(value: Any, where: str) -> str:
    """Return the name of a picture with posix separators. Raises InputError unless it is relative and stays inside."""
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: the picture's name is {value!r}; expected text")
    name = PurePosixPath(value.strip().replace("\\", "/"))
    outside = name.is_absolute() or ".." in name.parts or not name.parts or name.parts[0].endswith(":")
    if outside or not all(_can_name_a_file(part) for part in name.parts):
        raise InputError(f"{where}: the picture's name is {_short(value)}; expected a path inside the picture folder")
    return str(name)


def _can_name_a_file(part: str) -> bool:
    try:
        return "\0" not in part and len(part.encode()) <= _LONGEST_NAME
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can write
        return False


def picture_size(width: Any, height: Any, where: str) -> tuple[int | None, int | None]:
    """Return (width, height) in pixels, (None, None) where both are absent or 0. Raises InputError for other values."""
    if width in (None, 0) and height in (None, 0):
        return None, None
    for value in (width, height):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value % 1 != 0 or value <= 0:
            raise InputError(
                f"{where}: the picture's size is {width!r} x {height!r}; expected two whole numbers above 0"
            )
    return int(width), int(height)


def rows(value: Any, columns: int, where: str) -> Float64:
    """Return a list of rows as float64 (N, columns). Raises InputError for another shape or for what is no number."""
    wanted = f"expected rows of {columns} numbers"
    if not isinstance(value, list):
        raise InputError(f"{where} is {_short(value)}; {wanted}")
    if not value:
        return np.zeros((0, columns))
    try:
        array = np.asarray(value)
    except ValueError:  # rows of different lengths
        array = np.zeros(0)
    if array.dtype.kind in "iuf" and array.shape == (len(value), columns):
        return array.astype(np.float64)
    bad = next((n for n, row in enumerate(value) if not _is_row(row, columns)), 0)
    raise InputError(f"{where}, row {bad}, is {_short(value[bad])}; {wanted}")


def typed(value: Any, kind: type[_Kind], where: str) -> _Kind:
    """Return ``value`` if it is a ``kind`` of JSON. Raises InputError."""
    if isinstance(value, kind):
        return value
    wanted = {dict: "an object {...}", list: "a list [...]", str: "text"}[kind]
    raise InputError(f"{where} is {_short(value)}; expected {wanted}")


def no_landmarks(count: int) -> Float64:
    """Landmarks of ``count`` faces that have none: NaN (count, 5, 2)."""
    return np.full((count, 5, 2), np.nan)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_row(row: Any, columns: int) -> bool:
    return (
        isinstance(row, list)
        and len(row) == columns
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in row)
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; expected a label file, or a folder of XML files") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}); check the path and its rights") from error


def _open_folder(path: Path) -> LabelSource:
    try:
        entries = sorted(path.iterdir())
    except OSError as error:
        raise InputError(f"{path} cannot be listed ({error.strerror or error}); check its rights") from error
    files = [entry for entry in entries if entry.suffix.lower() == ".xml"]
    if not files:
        kinds = Counter(entry.suffix.lower() or "no extension" for entry in entries if entry.is_file())
        found = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common(4)) or "no files"
        raise InputError(f"{path} is a folder with {found}; expected one of XML labels, or the path of a label file")
    content = [(file.name, _read(file)) for file in files]
    digest = hashlib.sha256()
    for name, data in content:
        digest.update(f"{name}\0{len(data)}\0".encode())
        digest.update(data)
    return LabelSource(path, "xml", content, digest.hexdigest())


def _parse_json(path: Path, text: str) -> tuple[Any, tuple[str, ...]]:
    repeated: list[str] = []

    def build(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) == len(pairs):
            return value
        seen: dict[str, Any] = {}
        for key, entry in pairs:
            # repr, because NaN is not equal to itself
            if key in seen and repr(seen[key]) != repr(entry):
                raise InputError(f"{path} has {key!r} twice with different labels; keep the right one of them")
            if key in seen:
                repeated.append(key)
            seen[key] = entry
        return value

    try:
        return json.loads(text, object_pairs_hook=build), tuple(repeated)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}, line {error.lineno}, column {error.colno}: not JSON ({error.msg}); is the file cut off?"
        ) from error
    except ValueError as error:
        raise InputError(f"{path}: {error}; expected numbers of ordinary length") from error
    except RecursionError as error:
        raise InputError(f"{path} is nested too deeply for labels; expected JSON of one of the formats") from error
