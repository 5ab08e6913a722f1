"""COCO results JSON: one array of detections, streamed, and a valid document whenever the process stops."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retinastream.pipeline.sinks.part_file import PartFile
from retinastream.pipeline.sinks.records import face_values, xywh
from retinastream.pipeline.sinks.sink import RunHeader
from retinastream.types import Faces, Frame

FACE_CATEGORY = 1
_VISIBLE = 2


class CocoSink:
    """Writes one result per face: ``image_id`` is the index of the frame, ``keypoints`` are the five landmarks.

    For image sets each result also carries ``file_name``, which maps the image id to the picture. Raises as
    ``PartFile`` does.
    """

    needs_frame = False
    warnings: Sequence[str] = ()

    def __init__(self, path: Path, header: RunHeader, *, overwrite: bool = False) -> None:
        self.path = path
        self._header = header
        self._file = PartFile(path, overwrite=overwrite, tail="\n]\n")
        self._separator = "\n"
        self._file.write("[")

    def write(self, faces: Faces, frame: Frame | None) -> None:  # noqa: ARG002
        """Add the faces of one frame."""
        values = face_values(faces)
        parts = []
        for i, (box, score, landmarks) in enumerate(zip(values.boxes, values.scores, values.landmarks, strict=True)):
            result: dict[str, Any] = {"image_id": faces.index, "category_id": FACE_CATEGORY}
            if self._header.kind == "images":
                result["file_name"] = faces.source
            result["bbox"] = xywh(box)
            result["score"] = score
            result["keypoints"] = [v for x, y in landmarks for v in (x, y, _VISIBLE)]
            if values.track_ids is not None:
                result["track_id"] = values.track_ids[i]
            parts.append(self._separator + json.dumps(result, ensure_ascii=False, allow_nan=False))
            self._separator = ",\n"
        if parts:
            self._file.write("".join(parts))

    def close(self, *, complete: bool, summary: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Name the file; the format has no room for the summary."""
        self._file.close()

    def abort(self) -> None:
        """Leave the results so far, a valid document, as ``<name>.part``."""
        self._file.abort()
