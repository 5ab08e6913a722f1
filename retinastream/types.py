"""The types that flow between the rooms: a decoded picture goes in, its faces come out.

Coordinates are pixels of the upright picture (after rotation), x to the right and y down; the centre of the top left
pixel is at (0.5, 0.5), so a box that covers the whole picture is (0, 0, width, height).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import supervision

Float32 = npt.NDArray[np.float32]
Matrix = Literal["bt601", "bt709", "bt2020"]
Rotation = Literal[0, 90, 180, 270]


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """How the samples of a picture lie in memory.

    ``planes`` counts arrays; ``sub_x`` and ``sub_y`` say how many luma columns and rows share a chroma sample;
    ``bits`` is the depth of a sample and ``shift`` how far it is shifted to the left inside its container.
    """

    name: str
    planes: int
    sub_x: int
    sub_y: int
    bits: int
    shift: int = 0
    interleaved_chroma: bool = False

    @property
    def is_yuv(self) -> bool:
        """Whether the samples are luma and chroma (grey counts: luma alone)."""
        return self.name != "bgr24"

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of one sample."""
        return np.dtype(np.uint8 if self.bits == 8 else np.uint16)

    def plane_shapes(self, width: int, height: int) -> tuple[tuple[int, ...], ...]:
        """Shapes of the planes of a picture of this size; chroma sizes round up."""
        if self.name == "bgr24":
            return ((height, width, 3),)
        chroma = (-(-height // self.sub_y), -(-width // self.sub_x))
        if self.interleaved_chroma:
            return ((height, width), (*chroma, 2))
        return ((height, width), chroma, chroma)[: self.planes]


PIXEL_FORMATS: dict[str, PixelFormat] = {
    f.name: f
    for f in (
        PixelFormat("nv12", 2, 2, 2, 8, interleaved_chroma=True),
        PixelFormat("p010", 2, 2, 2, 10, shift=6, interleaved_chroma=True),
        PixelFormat("yuv420p", 3, 2, 2, 8),
        PixelFormat("yuv420p10", 3, 2, 2, 10),
        PixelFormat("yuv422p", 3, 2, 1, 8),
        PixelFormat("yuv422p10", 3, 2, 1, 10),
        PixelFormat("yuv444p", 3, 1, 1, 8),
        PixelFormat("yuv444p10", 3, 1, 1, 10),
        PixelFormat("gray", 1, 1, 1, 8),
        PixelFormat("bgr24", 1, 1, 1, 8),
    )
}


@dataclass(slots=True, eq=False)
class Frame:
    """One decoded picture, its planes as arrays where they are (host or device), never converted to RGB.

    ``planes`` have the shapes of ``format.plane_shapes(width, height)`` with any row stride. ``rotation`` is how many
    degrees counter-clockwise the stored picture must be turned to stand upright (``np.rot90`` with k = rotation / 90).
    ``index`` counts decoded pictures of the source from 0, also those that ``stride`` or ``start`` skip.
    """

    planes: tuple[Any, ...]
    format: PixelFormat
    width: int
    height: int
    matrix: Matrix = "bt709"
    full_range: bool = False
    rotation: Rotation = 0
    pts: int | None = None
    time_base: Fraction | None = None
    index: int = 0
    source: str = ""
    interlaced: bool = False
    corrupt: bool = False

    @property
    def seconds(self) -> float | None:
        """Presentation time in seconds, or None where the container gives none."""
        if self.pts is None or self.time_base is None:
            return None
        return float(self.pts * self.time_base)

    @property
    def upright_size(self) -> tuple[int, int]:
        """(width, height) after rotation: the picture that boxes refer to."""
        return (self.height, self.width) if self.rotation in (90, 270) else (self.width, self.height)

    @property
    def nbytes(self) -> int:
        """Bytes of pixel data."""
        return sum(int(p.nbytes) for p in self.planes)

    @classmethod
    def from_bgr(cls, image: npt.NDArray[np.uint8], *, index: int = 0, source: str = "") -> Frame:
        """Wrap a picture (height, width, 3) uint8 in BGR order, as OpenCV reads it, without a copy."""
        if (
            not isinstance(image, np.ndarray)
            or image.ndim != 3
            or image.shape[2] != 3
            or image.dtype != np.uint8
            or not image.size
        ):
            given = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            from retinastream.errors import UsageError

            raise UsageError(
                f"a picture was given as {given}; expected a uint8 array (height, width, 3), not empty, in BGR order"
            )
        height, width = image.shape[:2]
        return cls((image,), PIXEL_FORMATS["bgr24"], width, height, full_range=True, index=index, source=source)


def _no_boxes() -> Float32:
    return np.zeros((0, 4), np.float32)


def _no_scores() -> Float32:
    return np.zeros((0,), np.float32)


def _no_landmarks() -> Float32:
    return np.zeros((0, 5, 2), np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Faces:
    """The faces of one picture, best score first, and which picture that is.

    ``boxes`` (N, 4) float32 as x1, y1, x2, y2; ``scores`` (N,) float32 in 0..1; ``landmarks`` (N, 5, 2) float32 as x, y
    of the picture's left eye, right eye, nose, left and right mouth corner (left as seen in the picture). All in pixels
    of the original upright picture, whose size is ``width`` x ``height``. ``pts`` is in seconds. ``not_a_number``
    counts candidates with a NaN, which are left out: anything but 0 means that the weights or the input are broken.
    """

    boxes: Float32 = field(default_factory=_no_boxes)
    scores: Float32 = field(default_factory=_no_scores)
    landmarks: Float32 = field(default_factory=_no_landmarks)
    track_ids: npt.NDArray[np.int64] | None = None
    source: str = ""
    index: int = 0
    pts: float | None = None
    width: int = 0
    height: int = 0
    corrupt: bool = False
    interlaced: bool = False
    overflow: bool = False
    not_a_number: int = 0

    def __post_init__(self) -> None:
        """Refuse arrays whose shapes do not belong together."""
        n = len(self.boxes)
        given = (self.boxes.shape, self.scores.shape, self.landmarks.shape)
        if given != ((n, 4), (n,), (n, 5, 2)):
            raise ValueError(f"boxes, scores and landmarks have shapes {given}; expected (N, 4), (N,) and (N, 5, 2)")
        if self.track_ids is not None and self.track_ids.shape != (n,):
            raise ValueError(f"track_ids has shape {self.track_ids.shape}; expected ({n},)")

    def __len__(self) -> int:
        """Return the number of faces."""
        return len(self.scores)

    def above(self, threshold: float) -> Faces:
        """Return the faces whose score is at least ``threshold``."""
        keep = self.scores >= threshold
        ids = None if self.track_ids is None else self.track_ids[keep]
        return replace(
            self, boxes=self.boxes[keep], scores=self.scores[keep], landmarks=self.landmarks[keep], track_ids=ids
        )

    def to_supervision(self) -> supervision.Detections:
        """Convert to ``supervision.Detections``; landmarks go to ``data["landmarks"]``, class id is 0.

        Raises MissingPackageError when supervision is not installed.
        """
        try:
            import supervision as sv
        except ImportError as error:
            from retinastream.errors import MissingPackageError

            raise MissingPackageError(
                "Faces.to_supervision() needs the package supervision: pip install 'retinastream[supervision]'"
            ) from error
        return sv.Detections(
            xyxy=self.boxes.copy(),
            confidence=self.scores.copy(),
            class_id=np.zeros(len(self), dtype=int),
            tracker_id=None if self.track_ids is None else self.track_ids.copy(),
            data={"landmarks": self.landmarks.copy()},
        )
