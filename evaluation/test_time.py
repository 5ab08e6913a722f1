"""Test-time augmentation: every picture is looked at in several sizes and mirrored, and what was found is voted on.

The protocol of RetinaFace (arXiv 1905.00641, section 4.2): short sides of 500, 800, 1100, 1400 and 1700 pixels, each
with its mirror image, merged by box voting at an overlap of 0.4.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self, overload

import numpy as np
import numpy.typing as npt

from retinastream.engines.engine import EngineInfo
from retinastream.errors import UsageError
from retinastream.evaluation.box_voting import vote
from retinastream.kernels.colour import to_bgr
from retinastream.kernels.preprocess import resize_bgr
from retinastream.models.spec import DetectorSpec
from retinastream.pipeline.detector import Detector
from retinastream.types import Faces, Frame

logger = logging.getLogger(__name__)

Picture = npt.NDArray[np.uint8]

SCALES = (500, 800, 1100, 1400, 1700)
# A picture of the longest usual shape, 21:9, has 6.7 million pixels at a short side of 1700.
MAX_PIXELS = 8_000_000

# Left and right change places in a mirror: eyes with each other, corners of the mouth with each other.
_MIRRORED = [1, 0, 2, 4, 3]


class PictureDetector(Protocol):
    """What finds the faces of pictures: ``Detector`` and whatever can be called like it."""

    @property
    def info(self) -> EngineInfo:
        """What executes the network, and why it was chosen."""
        ...

    @property
    def spec(self) -> DetectorSpec:
        """The model's anchors, strides, normalisation and layout."""
        ...

    @overload
    def __call__(self, pictures: Picture | Frame) -> Faces: ...
    @overload
    def __call__(self, pictures: Sequence[Picture | Frame]) -> list[Faces]: ...
    def __call__(self, pictures: Picture | Frame | Sequence[Picture | Frame]) -> Faces | list[Faces]:
        """Find the faces of one picture, or of each of several."""
        ...

    def close(self) -> None:
        """Release what it holds."""


@dataclass(frozen=True, slots=True)
class Look:
    """One pass over a picture: resampled to ``width`` x ``height`` pixels, and ``mirrored`` or not."""

    width: int
    height: int
    mirrored: bool


class AugmentedDetector:
    """Finds faces as ``Detector`` does, in several sizes of the picture and in its mirror image.

    ``detector`` is a model, for which a ``Detector`` with ``settings`` is made, or a detector that takes every picture
    as large as it is (size "native"). What votes are the faces that its NMS leaves of each pass. ``scales`` are short
    sides in pixels, to which pictures are enlarged or reduced; a pass never has more than ``max_pixels``: scales beyond
    are reduced to that, and logged. ``flip`` adds the mirror image of each. ``iou`` is the overlap above which boxes
    vote together (and, for a model, of the NMS of each pass). Boxes are clipped to the picture where the detector
    clips.

    Raises UsageError for values that are not allowed and for detectors of another size policy, and what ``Detector``
    raises.
    """

    def __init__(
        self,
        detector: PictureDetector | str | Path,
        *,
        scales: Sequence[int] = SCALES,
        flip: bool = True,
        iou: float = 0.4,
        max_pixels: int = MAX_PIXELS,
        **settings: Any,
    ) -> None:
        _check(scales, iou, max_pixels)
        self.scales, self.flip, self.iou, self.max_pixels = tuple(scales), flip, iou, max_pixels
        if isinstance(detector, str | Path):
            _check_settings(settings)
            self.clip = settings.pop("clip", True)
            # NMS in every pass, not the candidates behind it: with these voting, too, AP fell from 0.309 to 0.296 (63
            # photographs, all scales), because clumps of neighbouring anchors outvote the best one. What lies beyond
            # the border is cut once, after the vote.
            self._detector: PictureDetector = Detector(detector, size="native", iou=iou, clip=False, **settings)
        else:
            _check_given(detector, settings)
            self.clip = getattr(detector, "clip", True)
            self._detector = detector
        self.max_faces: int = getattr(self._detector, "max_faces", 750)
        self._told: set[tuple[int, int]] = set()

    @property
    def info(self) -> EngineInfo:
        """What executes the network, and why it was chosen."""
        return self._detector.info

    @property
    def spec(self) -> DetectorSpec:
        """The model's anchors, strides, normalisation and layout."""
        return self._detector.spec

    @overload
    def __call__(self, pictures: Picture | Frame) -> Faces: ...
    @overload
    def __call__(self, pictures: Sequence[Picture | Frame]) -> list[Faces]: ...
    def __call__(self, pictures: Picture | Frame | Sequence[Picture | Frame]) -> Faces | list[Faces]:
        """Find the faces of one picture, or of each of several.

        A picture is a uint8 array (height, width, 3) in BGR order, as OpenCV reads it, or a ``Frame``.
        """
        if isinstance(pictures, np.ndarray | Frame):
            return self._find(_as_frame(pictures))
        if not isinstance(pictures, list | tuple):
            raise UsageError(
                f"pictures were given as {type(pictures).__name__}; expected a uint8 BGR array (height, width, 3), "
                "a Frame, or a list of them"
            )
        return [self._find(_as_frame(picture, index)) for index, picture in enumerate(pictures)]

    def stream(self, frames: Iterable[Frame | Picture]) -> Iterator[Faces]:
        """Yield the faces of every frame, in order."""
        for index, frame in enumerate(frames):
            yield self._find(_as_frame(frame, index))

    def looks(self, width: int, height: int) -> list[Look]:
        """List the passes over a picture of this size, each size once."""
        sizes = dict.fromkeys(_size_at(scale, width, height, self.max_pixels) for scale in self.scales)
        return [Look(*size, mirrored) for size in sizes for mirrored in ((False, True) if self.flip else (False,))]

    def close(self) -> None:
        """Release the network and its buffers."""
        self._detector.close()

    def __enter__(self) -> Self:
        """Return the detector itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def _find(self, frame: Frame) -> Faces:
        picture = to_bgr(frame)
        height, width = picture.shape[:2]
        looks = self.looks(width, height)
        self._tell_reduced(width, height)
        passes = [self._look(picture, look) for look in looks]
        faces = _merge(passes, self.iou, self.max_faces, (width, height) if self.clip else None)
        return replace(
            faces,
            source=frame.source,
            index=frame.index,
            pts=frame.seconds,
            width=width,
            height=height,
            corrupt=frame.corrupt,
            interlaced=frame.interlaced,
        )

    def _look(self, picture: Picture, look: Look) -> Faces:
        height, width = picture.shape[:2]
        shown = _resample(picture, look.width, look.height)
        if look.mirrored:
            shown = np.ascontiguousarray(shown[:, ::-1])
        faces = self._detector(shown)
        if look.mirrored:
            faces = mirror(faces, look.width)
        scale = np.array([width / look.width, height / look.height], np.float32)
        return replace(faces, boxes=faces.boxes * np.tile(scale, 2), landmarks=faces.landmarks * scale)

    def _tell_reduced(self, width: int, height: int) -> None:
        reduced = [s for s in self.scales if min(_size_at(s, width, height, self.max_pixels)) < s]
        if reduced and (width, height) not in self._told:
            self._told.add((width, height))
            logger.warning(
                "pictures of %dx%d at a short side of %s would have more than %d pixels; they are reduced to that",
                width,
                height,
                ", ".join(map(str, reduced)),
                self.max_pixels,
            )


def mirror(faces: Faces, width: int) -> Faces:
    """Mirror faces at the middle of a picture that is ``width`` pixels wide; left and right landmarks change places."""
    x1, y1, x2, y2 = faces.boxes.T
    landmarks = faces.landmarks[:, _MIRRORED].copy()
    landmarks[..., 0] = width - landmarks[..., 0]
    return replace(faces, boxes=np.stack([width - x2, y1, width - x1, y2], axis=1), landmarks=landmarks)


def _merge(passes: Sequence[Faces], iou: float, max_faces: int, clip_to: tuple[int, int] | None) -> Faces:
    boxes, scores, landmarks = (
        np.concatenate([getattr(faces, name) for faces in passes]) for name in ("boxes", "scores", "landmarks")
    )
    votes = vote(boxes, scores, landmarks, iou)
    placed = votes.boxes if clip_to is None else np.clip(votes.boxes, 0, np.array([*clip_to, *clip_to], np.float32))
    return Faces(
        boxes=placed[:max_faces],
        scores=votes.scores[:max_faces],
        landmarks=votes.landmarks[:max_faces],
        overflow=any(faces.overflow for faces in passes) or len(votes.scores) > max_faces,
        not_a_number=sum(faces.not_a_number for faces in passes),
    )


def _size_at(scale: int, width: int, height: int, max_pixels: int) -> tuple[int, int]:
    """Width and height with a short side of ``scale``, or smaller where that has more than ``max_pixels``."""
    factor = min(scale / min(width, height), (max_pixels / (width * height)) ** 0.5)
    return max(1, round(width * factor)), max(1, round(height * factor))


def _resample(picture: Picture, width: int, height: int) -> Picture:
    """Resample as the detector does."""
    if picture.shape[1::-1] == (width, height):
        return picture
    out = np.empty((height, width, 3), np.uint8)
    resize_bgr(picture, width, height, out)
    return out


def _as_frame(picture: Picture | Frame, index: int = 0) -> Frame:
    return picture if isinstance(picture, Frame) else Frame.from_bgr(picture, index=index)


def _check(scales: Sequence[int], iou: float, max_pixels: int) -> None:
    whole = all(isinstance(s, int) and not isinstance(s, bool) and 32 <= s <= 16384 for s in scales)
    if not scales or not whole:
        raise UsageError(f"scales are {list(scales)}; expected at least one short side, whole pixels from 32 to 16384")
    if not 0.0 <= iou <= 1.0:
        raise UsageError(f"iou is {iou}; expected a value from 0 to 1")
    if max_pixels < 32 * 32:
        raise UsageError(f"max_pixels is {max_pixels}; expected at least 1024")


def _check_settings(settings: dict[str, Any]) -> None:
    if "size" in settings:
        raise UsageError(f"size {settings['size']!r} was given beside scales; the scales say at which sizes to look")


def _check_given(detector: PictureDetector, settings: dict[str, Any]) -> None:
    if settings:
        raise UsageError(f"settings {sorted(settings)} were given beside a detector; they are for making one")
    size = getattr(detector, "size", None)
    if size is not None and str(size) != "native":
        raise UsageError(f"the detector looks at size {size}; expected size='native', because pictures come resampled")
