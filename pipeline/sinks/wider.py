"""WIDER FACE text: per picture its name, the number of faces, and a line ``x y width height score`` for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retinastream.pipeline.sinks.part_file import PartFile
from retinastream.pipeline.sinks.records import face_values, xywh
from retinastream.pipeline.sinks.sink import RunHeader
from retinastream.types import Faces, Frame


class WiderSink:
    """Writes all pictures into one file; a frame of a video is named ``<source>#<index>``. Raises as ``PartFile`` does.

    Line breaks in a name are written as ``\\n``, as the format is made of lines.
    """

    needs_frame = False
    warnings: Sequence[str] = ()

    def __init__(self, path: Path, header: RunHeader, *, overwrite: bool = False) -> None:
        self.path = path
        self._header = header
        self._file = PartFile(path, overwrite=overwrite)

    def write(self, faces: Faces, frame: Frame | None) -> None:  # noqa: ARG002
        """Add one picture, also when it has no face."""
        name = faces.source or self._header.source
        if self._header.kind == "video":
            name = f"{name}#{faces.index}"
        values = face_values(faces)
        lines = [name.replace("\r", "\\r").replace("\n", "\\n"), str(len(values.scores))]
        for box, score in zip(values.boxes, values.scores, strict=True):
            x, y, width, height = xywh(box)
            lines.append(f"{x:.2f} {y:.2f} {width:.2f} {height:.2f} {score:.4f}")
        self._file.write("\n".join(lines) + "\n")

    def close(self, *, complete: bool, summary: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Name the file; the format has no room for the summary."""
        self._file.close()

    def abort(self) -> None:
        """Leave the pictures so far as ``<name>.part``."""
        self._file.abort()
