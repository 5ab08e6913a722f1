"""Picture files as a source of frames, one frame each, in the order given."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import cv2
import numpy as np
import numpy.typing as npt

from retinastream.errors import InputError, RetinastreamError, UsageError
from retinastream.pipeline.container import check_file
from retinastream.pipeline.source import MediaInfo, Selection, SourceCounts
from retinastream.types import Frame

# What OpenCV decodes in every one of its distributions. GIF is left to the video side, which plays all of it.
PICTURE_EXTENSIONS = frozenset(
    (".bmp", ".dib", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
)


# Which of the two exists depends on OpenCV's version.
_set_log_level: Callable[[int], int] = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel


def read_picture(path: Path) -> npt.NDArray[np.uint8]:
    """Read a picture file upright (EXIF orientation applied), as uint8 (height, width, 3) in BGR order.

    Deeper samples are reduced to 8 bits, alpha is dropped, grey is repeated, of an animation only the first is taken.
    Raises InputError for a file that is missing, unreadable, no picture or larger than OpenCV's limit.
    """
    file = check_file(path, "a picture file")
    try:
        # Not cv2.imread: it cannot open names outside the system's code page everywhere.
        content = np.fromfile(file, np.uint8)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error}); check the disk") from error
    level = _set_log_level(0)  # OpenCV's own lines on stderr say less than the errors below
    try:
        picture = cv2.imdecode(content, cv2.IMREAD_COLOR)
    except cv2.error as error:
        if "MAX_IMAGE" in str(error):
            raise InputError(
                f"{file}: has more pixels than OpenCV decodes (2**30, or 2**20 in a row); scale it down, or raise the "
                "environment variable OPENCV_IO_MAX_IMAGE_PIXELS"
            ) from error
        raise InputError(f"{file}: OpenCV cannot decode it ({error.err or error}); save it again as PNG") from error
    finally:
        _set_log_level(level)
    if picture is None:
        raise InputError(
            f"{file}: is not a picture that OpenCV can decode, or it is cut short; expected JPEG, PNG, ..."
        )
    return np.asarray(picture, np.uint8)


class ImageSet:
    """Picture files as a Source: ``index`` is the position in ``paths``, ``source`` the file, pts are None.

    A file that cannot be read goes to ``failures`` and counts as corrupt; the others follow. Files that ``stride``
    leaves out are not read, so nothing is counted as skipped. Raises UsageError for an empty list and bad values.
    """

    def __init__(
        self, paths: Sequence[Path], *, name: str | None = None, stride: int = 1, max_frames: int | None = None
    ) -> None:
        if not paths:
            raise UsageError("a set of pictures was given without files; expected at least one path")
        self._paths = tuple(Path(path) for path in paths)
        self._selection = Selection(stride=stride, max_frames=max_frames)
        self._closed = False
        self.path = self._paths[0] if len(self._paths) == 1 else self._paths[0].parent
        self.counts = SourceCounts()
        self.warnings: list[str] = []
        self.failures: list[tuple[str, RetinastreamError]] = []
        self.info = MediaInfo(
            name=name if name is not None else self.path.name,
            kind="images",
            promised_frames=len(self._paths),
            codec=", ".join(sorted({path.suffix.lower().lstrip(".") for path in self._paths})),
            pixel_format="bgr24",
            decoder=f"OpenCV {cv2.__version__} (CPU)",
        )

    def __enter__(self) -> Self:
        """Return this source."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the source."""
        self.close()

    def close(self) -> None:
        """End a running iteration before its next file; no file stays open in between."""
        self._closed = True

    def __iter__(self) -> Iterator[Frame]:
        """Start a pass from the first picture. Raises UsageError after ``close``."""
        if self._closed:
            raise UsageError(f"{self.path}: the set of pictures is closed; make a new ImageSet to read it once more")
        self.counts = SourceCounts()
        self.failures.clear()
        return self._frames(self.counts)

    def _frames(self, counts: SourceCounts) -> Generator[Frame, None, None]:
        for index in range(0, len(self._paths), self._selection.stride):
            if self._closed or counts.delivered == self._selection.max_frames:
                return
            path = self._paths[index]
            counts.packets += 1
            try:
                picture = read_picture(path)
            except InputError as error:
                counts.corrupt += 1
                self.failures.append((str(path), error))
                continue
            counts.decoded += 1
            yield Frame.from_bgr(picture, index=index, source=str(path))
