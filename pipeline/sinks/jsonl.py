"""JSON Lines: a header record, a record per frame, an end record; and the reader of such files."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from retinastream.errors import InputError
from retinastream.pipeline.sinks.part_file import PartFile
from retinastream.pipeline.sinks.records import COORDINATE_DECIMALS, face_values
from retinastream.pipeline.sinks.sink import SCHEMA_VERSION, RunHeader
from retinastream.types import Faces, Frame

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False, allow_nan=False).encode


class JsonlSink:
    """Writes one JSON record per line: header, frames in order, end.

    ``decimals`` is the number of digits of coordinates after the point. Raises as ``PartFile`` does.
    """

    needs_frame = False
    warnings: Sequence[str] = ()

    def __init__(
        self, path: Path, header: RunHeader, *, overwrite: bool = False, decimals: int = COORDINATE_DECIMALS
    ) -> None:
        self.path = path
        self._header = header
        self._decimals = decimals
        self._file = PartFile(path, overwrite=overwrite)
        self._line({"type": "header", **_plain(asdict(header))})

    def write(self, faces: Faces, frame: Frame | None) -> None:  # noqa: ARG002
        """Add the record of one frame."""
        self._line(self._record(faces))

    def close(self, *, complete: bool, summary: Mapping[str, Any]) -> None:
        """Add the end record and name the file."""
        end = {"type": "end", "complete": complete}
        self._line({**end, **_plain(dict(summary)), **end})
        self._file.close()

    def abort(self) -> None:
        """Leave the file without an end record as ``<name>.part``."""
        self._file.abort()

    def _line(self, record: dict[str, Any]) -> None:
        self._file.write(_encode(record) + "\n")

    def _record(self, faces: Faces) -> dict[str, Any]:
        values = face_values(faces, self._decimals)
        record: dict[str, Any] = {"type": "frame", "index": faces.index, "pts": faces.pts}
        if self._header.kind == "images":
            record["source"] = faces.source
        if (faces.width, faces.height) != (self._header.width, self._header.height):
            record["width"], record["height"] = faces.width, faces.height
        for flag in ("corrupt", "interlaced", "overflow"):
            if getattr(faces, flag):
                record[flag] = True
        if faces.not_a_number:
            record["not_a_number"] = faces.not_a_number
        if values.dropped:
            record["not_finite"] = values.dropped
        rows: list[dict[str, Any]] = [
            {"box": box, "score": score, "landmarks": landmarks}
            for box, score, landmarks in zip(values.boxes, values.scores, values.landmarks, strict=True)
        ]
        if values.track_ids is not None:
            for row, track in zip(rows, values.track_ids, strict=True):
                row["track_id"] = track
        record["faces"] = rows
        return record


class FaceRecords(Iterator[Faces]):
    """Iterates the frames of a JSONL file without holding more than one.

    ``end`` is the end record once the last frame was read; it stays None, with a warning, where the run that wrote the
    file did not get that far. Raises InputError, naming file and line, for a line that is not such a record.
    """

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self.end: dict[str, Any] | None = None
        self._frames = self._read(path, header)

    def __next__(self) -> Faces:
        """Return the faces of the next frame."""
        return next(self._frames)

    def _read(self, path: Path, header: dict[str, Any]) -> Iterator[Faces]:
        with path.open("rb") as file:
            file.readline()
            for number, line in enumerate(file, 2):
                if not line.endswith(b"\n"):
                    break  # the last line was cut off: told below, as the end record is missing
                if not line.strip():
                    continue
                record = _parse(line, path, number)
                if record.get("type") == "end":
                    self.end = record
                    return
                yield _faces(record, header, path, number)
        warnings.warn(
            f"{path} has no end record: the run that wrote it was cut off, and its last line may be missing",
            stacklevel=3,
        )


def read_jsonl(path: str | Path) -> tuple[dict[str, Any], FaceRecords]:
    """Read a file of ``JsonlSink``: its header, and its frames one at a time.

    Raises InputError when the file cannot be read, is not one of ours, or is of a newer schema. A file cut off in the
    middle, also a ``.part``, is read up to its last whole line, with a warning.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            line = file.readline()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    header = _parse(line, path, 1)
    if header.get("type") != "header":
        raise InputError(f"{path} does not begin with a header record; expected a .faces.jsonl file of retinastream")
    if header.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"{path} has schema version {header.get('schema_version')!r}; this version of retinastream reads "
            f"{SCHEMA_VERSION}: update retinastream, or write the file again"
        )
    return header, FaceRecords(path, header)


def _parse(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise InputError(f"{path}, line {number}: not a JSON record ({error})") from error
    if not isinstance(record, dict):
        raise InputError(f"{path}, line {number}: a {type(record).__name__}; expected a JSON object")
    return record


def _faces(record: dict[str, Any], header: dict[str, Any], path: Path, number: int) -> Faces:
    try:
        rows = record["faces"]
        n = len(rows)
        tracked = n > 0 and "track_id" in rows[0]
        return Faces(
            np.array([r["box"] for r in rows], np.float32).reshape(n, 4),
            np.array([r["score"] for r in rows], np.float32).reshape(n),
            np.array([r["landmarks"] for r in rows], np.float32).reshape(n, 5, 2),
            np.array([r["track_id"] for r in rows], np.int64) if tracked else None,
            source=record.get("source", header.get("source", "")),
            index=record["index"],
            pts=record["pts"],
            width=record.get("width", header.get("width", 0)),
            height=record.get("height", header.get("height", 0)),
            corrupt=record.get("corrupt", False),
            interlaced=record.get("interlaced", False),
            overflow=record.get("overflow", False),
            not_a_number=record.get("not_a_number", 0),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}, line {number}: not the record of a frame ({error!r})") from error


def _plain(value: Any) -> Any:
    """Reduce a value to what JSON has: paths and fractions as text, NaN and infinity as null."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist())
    return str(value)
