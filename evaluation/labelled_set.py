"""Pictures with labelled faces, read from any of the formats that such sets come in.

Coordinates are pixels of the upright picture, x to the right and y down; a box over the whole picture is
(0, 0, width, height).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from retinastream.errors import InputError, UsageError
from retinastream.evaluation.labels_boxes import read_boxes
from retinastream.evaluation.labels_clean import clean_faces
from retinastream.evaluation.labels_coco import read_coco
from retinastream.evaluation.labels_format import FORMATS, check_kind, detect_format, picture_folders
from retinastream.evaluation.labels_pack import read_pack
from retinastream.evaluation.labels_raw import LabelProblem, LabelSource, RawPicture, open_labels
from retinastream.evaluation.labels_voc import read_voc
from retinastream.evaluation.labels_wider import read_wider

__all__ = ["FORMATS", "LabelProblem", "LabelledPicture", "LabelledSet", "read_labelled_set"]

Float32 = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class LabelledPicture:
    """One picture and its faces.

    ``name`` is relative to the picture folder and unique in its set; ``path`` may not exist (``check_pictures`` finds
    out). ``width`` and ``height`` are what the labels say, None where they do not. ``boxes`` (N, 4) xyxy lie inside the
    picture where its size is known. ``landmarks`` (N, 5, 2): left eye, right eye (image left first), nose, left and
    right mouth corner; all NaN where a face has none, and possibly outside the picture. ``ignore`` (N,) marks what is
    neither to be found nor background. ``scores`` (N,) are 1 for labels made by hand, a teacher's otherwise.
    """

    name: str
    path: Path
    width: int | None
    height: int | None
    boxes: Float32
    landmarks: Float32
    ignore: Flags
    scores: Float32

    def __post_init__(self) -> None:
        n = len(self.boxes)
        given = (self.boxes.shape, self.landmarks.shape, self.ignore.shape, self.scores.shape)
        if given != ((n, 4), (n, 5, 2), (n,), (n,)):
            raise UsageError(
                f"picture {self.name}: boxes, landmarks, ignore and scores have shapes {given}; "
                "expected (N, 4), (N, 5, 2), (N,) and (N,)"
            )

    def __len__(self) -> int:
        """Return the number of faces, ignored ones included."""
        return len(self.boxes)

    @property
    def has_landmarks(self) -> Flags:
        """Which faces have landmarks: (N,)."""
        return np.asarray(np.isfinite(self.landmarks).all(axis=(1, 2)))


@dataclass(frozen=True, slots=True, eq=False)
class LabelledSet:
    """Labelled pictures in the order of their label file, and what was repaired or dropped while reading.

    ``sha256`` is that of the label file; of a folder of files that of their names and contents.
    """

    name: str
    path: Path
    format: str
    sha256: str
    pictures: tuple[LabelledPicture, ...]
    problems: tuple[LabelProblem, ...] = ()

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.pictures)

    @property
    def faces(self) -> int:
        """How many faces are to be found; ignored ones do not count."""
        return sum(int(np.count_nonzero(~p.ignore)) for p in self.pictures)

    @property
    def ignored(self) -> int:
        """How many faces are marked as to be ignored."""
        return sum(int(np.count_nonzero(p.ignore)) for p in self.pictures)

    @property
    def landmarked(self) -> int:
        """How many of the faces to be found have landmarks."""
        return sum(int(np.count_nonzero(~p.ignore & p.has_landmarks)) for p in self.pictures)


def read_labelled_set(
    path: str | Path,
    *,
    format: str = "auto",
    images: str | Path | None = None,
    categories: Collection[str] | None = None,
    missed_as_faces: bool = False,
    one_based: bool = False,
) -> LabelledSet:
    """Read the labels at ``path``; the pictures themselves are not opened (``check_pictures`` does).

    ``format`` is one of FORMATS, or "auto": told by the content. ``images`` is the picture folder; by default the
    format's usual places beside the labels are tried. ``categories`` names the classes that are faces, in formats that
    have classes ("boxes", "coco", "voc"; default: all). ``missed_as_faces`` ("pack"): boxes that the teacher missed are
    faces without landmarks instead of ignored. ``one_based`` ("voc"): coordinates count from 1, so 1 is subtracted from
    the top left corner; by default they are taken as they are.

    Raises UsageError for an unknown format or an option that the format does not have; InputError for labels that
    cannot be read, are of another format, list no picture, list one twice with different faces, or have none of
    ``categories``. A set of backgrounds without faces is read; ``check_pictures`` refuses it.
    """
    path = Path(path)
    if format != "auto" and format not in FORMATS:
        raise UsageError(f"labels of format {format!r} are unknown; expected auto, {', '.join(FORMATS)}")
    source = open_labels(path)
    chosen = detect_format(source) if format == "auto" else format
    check_kind(source, chosen)
    _check_options(chosen, categories, missed_as_faces, one_based)
    raw, problems = _distinct(_read(source, chosen, categories, missed_as_faces, one_based), source)
    if not raw:
        raise InputError(f"{path} was read as {chosen!r} and lists no picture; expected at least one")
    if categories is not None and not any(len(picture.boxes) for picture in raw):
        raise InputError(
            f"{path} has {len(raw)} pictures, but no face of the classes {sorted(categories)}; check their spelling"
        )
    folder = _picture_folder(path, chosen, images, [picture.name for picture in raw[:20]])
    pictures = tuple(_clean(picture, folder, problems) for picture in raw)
    return LabelledSet(_set_name(path), path, chosen, source.sha256, pictures, tuple(problems))


def _read(
    source: LabelSource,
    chosen: str,
    categories: Collection[str] | None,
    missed_as_faces: bool,
    one_based: bool,
) -> Iterable[RawPicture]:
    if chosen == "boxes":
        return read_boxes(source, categories)
    if chosen == "coco":
        return read_coco(source, categories)
    if chosen == "voc":
        return read_voc(source, categories, one_based=one_based)
    if chosen == "wider":
        return read_wider(source)
    return read_pack(source, missed_as_faces=missed_as_faces)


def _check_options(chosen: str, categories: Collection[str] | None, missed_as_faces: bool, one_based: bool) -> None:
    if isinstance(categories, str):
        raise UsageError(f"categories is the text {categories!r}; expected a list of names")
    given = {"categories": categories is not None, "missed_as_faces": missed_as_faces, "one_based": one_based}
    allowed = {"categories": ("boxes", "coco", "voc"), "missed_as_faces": ("pack",), "one_based": ("voc",)}
    for option, is_given in given.items():
        if is_given and chosen not in allowed[option]:
            raise UsageError(f"labels of format {chosen!r} have no {option}; only {', '.join(allowed[option])} do")


def _distinct(pictures: Iterable[RawPicture], source: LabelSource) -> tuple[list[RawPicture], list[LabelProblem]]:
    """Keep every picture once; the same picture with other faces is an error, because nobody knows which is right."""
    found: dict[str, RawPicture] = {}
    problems: list[LabelProblem] = []
    again = [picture for picture in pictures if found.setdefault(picture.name, picture) is not picture]
    for picture in again:
        first = found[picture.name]
        if not _same_faces(first, picture):
            raise InputError(
                f"{source.path} lists picture {picture.name!r} twice with different faces "
                f"({len(first.boxes)} and {len(picture.boxes)}); keep the right entry"
            )
    names = [picture.name for picture in again] + [name for name in source.repeated if name in found]
    problems += [LabelProblem(name, "duplicate", "is listed twice with the same faces; one is kept") for name in names]
    problems += [problem for picture in found.values() for problem in picture.problems]
    return list(found.values()), problems


def _same_faces(first: RawPicture, second: RawPicture) -> bool:
    return (
        np.array_equal(first.boxes, second.boxes, equal_nan=True)
        and np.array_equal(first.landmarks, second.landmarks, equal_nan=True)
        and np.array_equal(first.ignore, second.ignore)
        and np.array_equal(first.scores, second.scores, equal_nan=True)
    )


def _clean(raw: RawPicture, folder: Path, problems: list[LabelProblem]) -> LabelledPicture:
    size = (raw.width, raw.height)
    faces, found = clean_faces(raw.name, size, raw.boxes, raw.landmarks, raw.ignore, raw.scores)
    problems.extend(found)
    return LabelledPicture(raw.name, folder / raw.name, *size, faces.boxes, faces.landmarks, faces.ignore, faces.scores)


def _picture_folder(path: Path, chosen: str, images: str | Path | None, names: list[str]) -> Path:
    if images is not None:
        folder = Path(images)
        if not folder.is_dir():
            raise InputError(f"the picture folder {folder} does not exist; expected the folder of {names[0]}")
        return folder
    folders = picture_folders(path, chosen)
    return next((f for f in folders if any((f / name).is_file() for name in names)), folders[0])


def _set_name(path: Path) -> str:
    """Name of the set: its file's, unless that only says that it holds labels."""
    path = path.resolve()
    plain = ("boxes", "labels", "label", "annotations")
    return path.parent.name if path.stem.lower() in plain else path.stem
