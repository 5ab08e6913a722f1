"""CSV: one row per face, for spreadsheets and data frames. Frames without a face have no row."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retinastream.pipeline.sinks.part_file import PartFile
from retinastream.pipeline.sinks.records import face_values
from retinastream.pipeline.sinks.sink import RunHeader
from retinastream.types import Faces, Frame

COLUMNS = (
    *("source", "frame", "pts", "x1", "y1", "x2", "y2", "score"),
    *(f"lm{i}{axis}" for i in range(5) for axis in "xy"),
    "track_id",
)


class CsvSink:
    """Writes a header row and one row per face (RFC 4180, UTF-8). Raises as ``PartFile`` does."""

    needs_frame = False
    warnings: Sequence[str] = ()

    def __init__(self, path: Path, header: RunHeader, *, overwrite: bool = False) -> None:
        self.path = path
        self._header = header
        self._file = PartFile(path, overwrite=overwrite)
        self._text = io.StringIO()
        self._rows = csv.writer(self._text)
        self._put([COLUMNS])

    def write(self, faces: Faces, frame: Frame | None) -> None:  # noqa: ARG002
        """Add the rows of one frame."""
        values = face_values(faces)
        tracks = values.track_ids if values.track_ids is not None else [""] * len(values.scores)
        source = faces.source or self._header.source
        pts = "" if faces.pts is None else faces.pts
        self._put(
            (source, faces.index, pts, *box, score, *(v for point in landmarks for v in point), track)
            for box, score, landmarks, track in zip(values.boxes, values.scores, values.landmarks, tracks, strict=True)
        )

    def close(self, *, complete: bool, summary: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Name the file; the format has no room for the summary."""
        self._file.close()

    def abort(self) -> None:
        """Leave the rows so far as ``<name>.part``."""
        self._file.abort()

    def _put(self, rows: Any) -> None:
        self._rows.writerows(rows)
        self._file.write(self._text.getvalue())
        self._text.seek(0)
        self._text.truncate()
