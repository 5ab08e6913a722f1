"""Annotated pictures: a folder with a copy of every picture of the source, its faces drawn in."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from retinastream.errors import OutputError, UsageError
from retinastream.kernels.colour import to_bgr
from retinastream.pipeline.sinks.draw import draw
from retinastream.pipeline.sinks.part_file import write_whole
from retinastream.pipeline.sinks.sink import RunHeader
from retinastream.types import Faces, Frame

# Quality 95: what drawing and encoding once more adds is not seen. Formats that are not here become PNG.
_ENCODINGS: dict[str, list[int]] = {
    ".jpg": [cv2.IMWRITE_JPEG_QUALITY, 95],
    ".jpeg": [cv2.IMWRITE_JPEG_QUALITY, 95],
    ".png": [cv2.IMWRITE_PNG_COMPRESSION, 3],
    ".webp": [cv2.IMWRITE_WEBP_QUALITY, 95],
    ".bmp": [],
    ".tif": [],
    ".tiff": [],
}


class AnnotatedImagesSink:
    """Writes pictures into the folder ``path``, under the names that they have below ``source_root``.

    A picture that is not below it keeps its last name; a name that was used already gets ``_2``, ``_3`` and so on; a
    format that cannot be written gets ``.png`` added. Each picture is written as ``<name>.part`` and then named, so
    that none is ever half there. A folder that holds anything is refused without ``overwrite``; with it, pictures of
    the same names are replaced and the others stay.

    Raises UsageError for a folder that may not be written into and for a picture that would replace its own source,
    OutputError when writing fails.
    """

    needs_frame = True
    warnings: Sequence[str] = ()

    def __init__(
        self, path: Path, header: RunHeader, *, overwrite: bool = False, source_root: Path | None = None
    ) -> None:
        check_folder(path, overwrite=overwrite)
        self.path = path
        self._header = header
        self._overwrite = overwrite
        self._root = source_root
        self._used: set[str] = set()
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the folder {path}: {error.strerror}") from error

    def write(self, faces: Faces, frame: Frame | None) -> None:
        """Draw the faces on the picture and write it."""
        if frame is None:
            raise UsageError(f"{self.path} holds pictures: write() needs the frame, not only its faces")
        source = faces.source or frame.source
        target = self.path / self._name(source, faces.index)
        with contextlib.suppress(OSError):
            if target.samefile(source):
                raise UsageError(f"the annotated picture {target} would replace its own source; choose another folder")
        picture = np.array(to_bgr(frame), order="C")  # a copy: the caller's picture is not drawn on
        draw(picture, faces)
        suffix = target.suffix.lower()
        try:
            done, data = cv2.imencode(suffix, picture, _ENCODINGS[suffix])
        except cv2.error as error:
            raise OutputError(f"cannot write {target}: {error}") from error
        if not done:
            raise OutputError(f"cannot write {target}: {picture.shape[1]}x{picture.shape[0]} does not fit {suffix}")
        write_whole(target, data.tobytes(), overwrite=self._overwrite)

    def close(self, *, complete: bool, summary: Mapping[str, Any]) -> None:
        """Nothing is left to do: every picture was finished when it was written."""

    def abort(self) -> None:
        """Leave the pictures that are finished."""

    def _name(self, source: str, index: int) -> str:
        """The name of a picture below the folder, not used before."""
        name = Path(f"frame_{index:06d}.png") if not source else Path(source)
        below = None
        if self._root is not None:
            # Not resolve(): a picture that is a link keeps the place where the user sees it.
            with contextlib.suppress(ValueError):
                below = Path(os.path.abspath(name)).relative_to(os.path.abspath(self._root))  # noqa: PTH100
        # A relative name may climb with "..": only the last part is then safe.
        name = below if below is not None and below.name else Path(name.name)
        if name.suffix.lower() not in _ENCODINGS:
            name = name.with_name(name.name + ".png")
        free, count = name, 1
        # Compared without case, as a file system may do.
        while str(free).casefold() in self._used:
            count += 1
            free = name.with_name(f"{name.stem}_{count}{name.suffix}")
        self._used.add(str(free).casefold())
        return str(free)


def check_folder(path: Path, *, overwrite: bool) -> None:
    """Refuse a folder that may not be written into. Raises UsageError."""
    try:
        if path.exists() and not path.is_dir():
            raise UsageError(f"the output {path} is a file; give the name of a folder for annotated pictures")
        if path.is_dir() and not overwrite and any(path.iterdir()):
            raise UsageError(f"the folder {path} is not empty; choose another, or pass --overwrite to write into it")
    except OSError as error:
        raise OutputError(f"cannot read the folder {path}: {error.strerror}") from error
