"""One embedding per picture: find its faces, choose one, align it, embed it; and the similarities of pairs of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from retinastream.errors import InputError, UsageError
from retinastream.evaluation.face_pairs import FacePairs
from retinastream.evaluation.verification import VerificationCurve, verification_curve
from retinastream.kernels.align import align_faces, similarity_transforms
from retinastream.pipeline.images import read_picture
from retinastream.types import Faces

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]
FaceChoice = Literal["largest", "central", "best"]
WithoutFace = Literal["fail", "skip"]

FACE_CHOICES: tuple[str, ...] = get_args(FaceChoice)
WITHOUT_FACE: tuple[str, ...] = get_args(WithoutFace)
_CROPS_AT_ONCE = 64  # 2.4 MB of crops
_PAIRS_AT_ONCE = 1 << 16


class FaceFinder(Protocol):
    """What finds faces: a ``Detector``, or anything called like it."""

    def __call__(self, pictures: Pixels, /) -> Faces:
        """Find the faces of one BGR picture."""


class Embedder(Protocol):
    """What embeds crops: a ``FaceEmbedder``, or anything called like it."""

    def __call__(self, crops: Pixels, /) -> Float32:
        """Embed crops (N, 112, 112, 3) BGR as rows of length 1."""


@dataclass(frozen=True, slots=True, eq=False)
class FaceFeatures:
    """The embeddings (N, D) of N pictures; a row is NaN where a picture gave none.

    ``faces`` (N,) counts the faces found, -1 where the picture could not be read. ``faceless`` are the positions of
    pictures without a face, ``unaligned`` of those whose chosen face has landmarks that cannot be aligned,
    ``unreadable`` of those that are no pictures, with the reason.
    """

    embeddings: Float32
    faces: npt.NDArray[np.int64]
    faceless: tuple[int, ...] = ()
    unaligned: tuple[int, ...] = ()
    unreadable: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Verification:
    """The result of a verification: which pairs counted, how alike they are, and the curve over them.

    ``similarities`` (P,) belong to the pairs of ``pairs``, -inf where a picture gave no embedding; ``counted`` (P,)
    says which entered the ``curve``: never those with an unreadable picture, those without a face only with "fail".
    """

    pairs: FacePairs
    features: FaceFeatures
    similarities: Float64
    counted: npt.NDArray[np.bool_]
    without_face: str
    curve: VerificationCurve

    def counts(self) -> dict[str, int]:
        """How many pictures and pairs there were, and what became of those that could not be compared."""
        same = self.pairs.same
        lost = np.isneginf(self.similarities)
        failed = lost & self.counted
        return {
            "pictures": len(self.pairs.pictures),
            "pictures_without_face": len(self.features.faceless),
            "pictures_unaligned": len(self.features.unaligned),
            "pictures_unreadable": len(self.features.unreadable),
            "pictures_with_several_faces": int(np.count_nonzero(self.features.faces > 1)),
            "pairs": len(self.pairs),
            "duplicate_pairs": self.pairs.duplicates,
            "same_pairs": self.curve.same,
            "different_pairs": self.curve.different,
            "failed_same_pairs": int(np.count_nonzero(failed & same)),
            "failed_different_pairs": int(np.count_nonzero(failed & ~same)),
            "skipped_pairs": int(np.count_nonzero(~self.counted)),
        }

    def to_dict(self, fars: Sequence[float]) -> dict[str, Any]:
        """Counts and measures as JSON holds them, TAR at each of ``fars``."""
        accuracy, threshold = self.curve.best_accuracy
        return {
            **self.counts(),
            "without_face": self.without_face,
            "tar_at_far": [self.curve.at_far(far).to_dict() for far in fars],
            "auc": self.curve.auc,
            "eer": self.curve.eer,
            "best_accuracy": accuracy,
            "best_accuracy_threshold": threshold if np.isfinite(threshold) else None,
        }


def choose_face(faces: Faces, how: str = "largest") -> int | None:
    """Return which face of a picture is compared, None where there is none; of equal ones the best score.

    "largest" is by the area of the box, "central" by the distance of its middle to that of the picture, "best" by
    score. Raises UsageError for other words.
    """
    if how not in FACE_CHOICES:
        raise UsageError(f"the choice of a face {how!r} is not known; allowed are {', '.join(FACE_CHOICES)}")
    if not len(faces):
        return None
    boxes = faces.boxes.astype(np.float64)
    if how == "best":
        return int(np.argmax(faces.scores))
    if how == "largest":
        return int(np.argmax((boxes[:, 2:] - boxes[:, :2]).prod(axis=1)))
    middle = np.array([faces.width, faces.height]) / 2
    return int(np.argmin(np.linalg.norm((boxes[:, :2] + boxes[:, 2:]) / 2 - middle, axis=1)))


def embed_pictures(
    pictures: Sequence[Path],
    detector: FaceFinder,
    embedder: Embedder,
    *,
    choose: str = "largest",
    progress: Callable[[int, int], None] | None = None,
) -> FaceFeatures:
    """Find, choose, align and embed one face of every picture file.

    ``progress`` is called with how many pictures are done and how many there are. A picture that cannot be read does
    not end the run; it is in ``unreadable``. Raises UsageError for an unknown ``choose``.
    """
    choose_face(Faces(), choose)
    counts = np.zeros(len(pictures), np.int64)
    crops = _Crops(embedder)
    unaligned: list[int] = []
    unreadable: dict[int, str] = {}
    for index, path in enumerate(pictures):
        if progress is not None:
            progress(index, len(pictures))
        try:
            picture = read_picture(path)
        except InputError as error:
            counts[index], unreadable[index] = -1, str(error)
            continue
        faces = detector(picture)
        counts[index] = len(faces)
        chosen = choose_face(faces, choose)
        if chosen is None:
            continue
        landmarks = faces.landmarks[chosen : chosen + 1]
        if np.isnan(similarity_transforms(landmarks)).any():
            unaligned.append(index)
        else:
            crops.add(index, align_faces(picture, landmarks)[0])
    if progress is not None:
        progress(len(pictures), len(pictures))
    faceless = tuple(int(i) for i in np.flatnonzero(counts == 0))
    return FaceFeatures(crops.embeddings(len(pictures)), counts, faceless, tuple(unaligned), unreadable)


def similarities(embeddings: Float32, pairs: FacePairs) -> Float64:
    """Cosine similarity of each pair (P,), from embeddings (N, D) of length 1; -inf where one of them is NaN."""
    result = np.empty(len(pairs), np.float64)
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        result[part] = np.einsum("pd,pd->p", embeddings[pairs.first[part]], embeddings[pairs.second[part]])
    result[np.isnan(result)] = -np.inf
    return result


def verify(
    pairs: FacePairs,
    detector: FaceFinder,
    embedder: Embedder,
    *,
    choose: str = "largest",
    without_face: str = "fail",
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Measure recognition with this detector's faces over pairs of pictures.

    A pair with a picture in which no face was found (or whose landmarks cannot be aligned) can never be accepted with
    ``without_face`` "fail": a same pair lost by the detector lowers the TAR. With "skip" it is left out, which measures
    recognition of the faces that were found. A pair with a picture that cannot be read is left out in both cases.

    Raises UsageError for other words, and where no pair of each kind is left.
    """
    if without_face not in WITHOUT_FACE:
        raise UsageError(f"without_face {without_face!r} is not known; allowed are {', '.join(WITHOUT_FACE)}")
    features = embed_pictures(pairs.pictures, detector, embedder, choose=choose, progress=progress)
    alike = similarities(features.embeddings, pairs)
    broken = np.zeros(len(pairs.pictures), np.bool_)
    broken[list(features.unreadable)] = True
    counted = ~(broken[pairs.first] | broken[pairs.second])
    if without_face == "skip":
        counted &= np.isfinite(alike)
    left = int(np.count_nonzero(pairs.same[counted])), int(np.count_nonzero(~pairs.same[counted]))
    if 0 in left:
        raise UsageError(
            f"{pairs.path}: {left[0]} pairs of one person and {left[1]} of two are left of {len(pairs)}: "
            f"{len(features.unreadable)} pictures cannot be read, {len(features.faceless)} show no face to this "
            "detector; lower its threshold, or correct the pictures"
        )
    curve = verification_curve(alike[counted], pairs.same[counted])
    return Verification(pairs, features, alike, counted, without_face, curve)


class _Crops:
    """Crops waiting for the network, which takes several at once, and the rows of those that went through."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._waiting: list[tuple[int, Pixels]] = []
        self._rows: dict[int, Float32] = {}

    def add(self, index: int, crop: Pixels) -> None:
        """Take the crop of picture ``index``."""
        self._waiting.append((index, crop))
        if len(self._waiting) == _CROPS_AT_ONCE:
            self._flush()

    def embeddings(self, count: int) -> Float32:
        """Return the rows (count, D) of all pictures, NaN for those without a crop."""
        self._flush()
        dimension = len(next(iter(self._rows.values()))) if self._rows else 1
        result = np.full((count, dimension), np.nan, np.float32)
        for index, row in self._rows.items():
            result[index] = row
        return result

    def _flush(self) -> None:
        if self._waiting:
            indices, crops = zip(*self._waiting, strict=True)
            self._rows.update(zip(indices, self._embedder(np.stack(crops)), strict=True))
            self._waiting.clear()
