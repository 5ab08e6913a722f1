"""Labels that a detector makes: of pictures without any, or added to what people labelled.

This is how a teacher of any kind helps, also one of other anchors or one that looks several times: it labels the
pictures once, and training reads the labels as it reads all others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from retinastream.errors import InputError, UsageError
from retinastream.evaluation.average_precision import box_iou
from retinastream.evaluation.labelled_set import LabelledPicture, LabelledSet
from retinastream.evaluation.labels_clean import FaceLabels, clean_faces
from retinastream.evaluation.picture_header import read_header
from retinastream.evaluation.predict import FindFaces, list_pictures, predict
from retinastream.pipeline.images import read_picture
from retinastream.types import Faces

logger = logging.getLogger(__name__)

Merge = Literal["teacher", "labels", "scores"]
MERGES: tuple[str, ...] = get_args(Merge)

# A head and the face in it overlap by less than any usual IoU and are the same person all the same.
_SAME_COVER = 0.5


@dataclass(frozen=True, slots=True)
class PseudoLabelRecipe:
    """What becomes of a teacher's face, and what of the labels that are there already.

    A teacher's face is a face from the score ``positive`` on, ignored from ``ignore_above`` on, and otherwise left out;
    one less than ``least_height`` pixels high is ignored at best. ``merge``:

    - "teacher": its faces replace the labels.
    - "labels": the labels stay as they are, and its faces elsewhere are added. Elsewhere means: the IoU with every
      label, ignored regions included, is below ``iou``, and the smaller of the two boxes lies by half or less inside
      the other.
    - "scores": the labels stay, nothing is added, and a face that the teacher found (one to one, best IoU first, from
      ``iou`` on) gets its score. What it did not find keeps its own.

    With ``fill_landmarks`` a labelled face without landmarks gets those of the teacher's face that is found for it in
    the same way, if that one's score is ``positive`` at least.

    Raises UsageError for values out of range.
    """

    merge: Merge = "teacher"
    positive: float = 0.7
    ignore_above: float = 0.3
    iou: float = 0.5
    least_height: float = 0.0
    fill_landmarks: bool = True

    def __post_init__(self) -> None:
        """Refuse values that contradict each other."""
        if self.merge not in MERGES:
            raise UsageError(f"merge {self.merge!r} is unknown; allowed are {', '.join(MERGES)}")
        if not 0.0 <= self.ignore_above <= self.positive <= 1.0:
            raise UsageError(
                f"score bounds: ignore_above {self.ignore_above}, positive {self.positive}; "
                "expected 0 <= ignore_above <= positive <= 1"
            )
        if not 0.0 < self.iou <= 1.0:
            raise UsageError(f"iou {self.iou} is out of range; allowed is above 0, up to 1")
        if not self.least_height >= 0.0:
            raise UsageError(f"least_height {self.least_height} must be a number of pixels, 0 or more")


def label_with_teacher(
    pictures: LabelledSet,
    detector: FindFaces,
    recipe: PseudoLabelRecipe = PseudoLabelRecipe(),
    *,
    batch: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> LabelledSet:
    """Let ``detector`` label the pictures of a set; returns them in the same order, with their sizes.

    ``batch`` pictures of one size go to the detector together; ``progress`` is called with how many are done, and how
    many there are. ``sha256`` of the result is empty: no file holds these labels until ``write_pack`` writes one.

    Raises UsageError for a detector that gives nothing below ``ignore_above`` the recipe asks for; InputError for a
    picture that is missing, cannot be decoded or is of another size than its labels say (``check_pictures`` finds those
    beforehand).
    """
    threshold = getattr(detector, "threshold", 0.0)
    if threshold > recipe.ignore_above:
        raise UsageError(
            f"the detector gives faces from the score {threshold} on and those from {recipe.ignore_above} on are asked "
            "for; make it with a threshold of that or less"
        )
    found = predict(detector, [p.path for p in pictures.pictures], batch=batch, progress=progress)
    merged = tuple(merge_faces(p, faces, recipe) for p, faces in zip(pictures.pictures, found, strict=True))
    return replace(pictures, pictures=merged, sha256="")


def merge_faces(picture: LabelledPicture, found: Faces, recipe: PseudoLabelRecipe) -> LabelledPicture:
    """Merge what the teacher found in one picture with its labels; both in pixels of the upright picture.

    Labels keep their order, and the teacher's follow, best score first. Raises InputError where the sizes differ.
    """
    size = (found.width, found.height)
    if picture.width is not None and (picture.width, picture.height) != size:
        raise InputError(
            f"picture {picture.path} is {size[0]}x{size[1]} and its labels are for {picture.width}x{picture.height}; "
            "correct the labels or bring back the picture"
        )
    teacher = _teacher_labels(picture.name, found, recipe)
    labels = FaceLabels(picture.boxes, picture.landmarks, picture.ignore, picture.scores)
    if recipe.merge == "teacher":
        merged = teacher
    else:
        merged = _informed(labels, teacher, recipe)
        if recipe.merge == "labels":
            merged = _joined(merged, _chosen(teacher, _elsewhere(teacher.boxes, labels.boxes, recipe.iou)))
    return LabelledPicture(
        picture.name, picture.path, *size, merged.boxes, merged.landmarks, merged.ignore, merged.scores
    )


def unlabelled_set(folder: str | Path) -> tuple[LabelledSet, tuple[str, ...]]:
    """List the pictures of a folder and of the folders in it as a set without labels, and what cannot be used of them.

    Names are relative to the folder, with "/". The second value has one "name: reason" for each file that is left out.
    Raises InputError for a folder that does not exist or holds no picture that can be used.
    """
    folder = Path(folder)
    pictures: list[LabelledPicture] = []
    left_out: list[str] = []
    for file in list_pictures(folder):
        name = file.relative_to(folder).as_posix()
        try:
            width, height = _size_of(file)
        except InputError as error:
            left_out.append(f"{name}: {str(error).removeprefix(f'{file}: ')}")
            continue
        pictures.append(
            LabelledPicture(
                name,
                file,
                width,
                height,
                np.zeros((0, 4), np.float32),
                np.zeros((0, 5, 2), np.float32),
                np.zeros(0, np.bool_),
                np.zeros(0, np.float32),
            )
        )
    if not pictures:
        raise InputError(f"{folder} has no picture that can be used; {left_out[0]}")
    return LabelledSet(folder.resolve().name, folder, "pictures", "", tuple(pictures)), tuple(left_out)


def _size_of(file: Path) -> tuple[int, int]:
    """Width and height of the upright picture; InputError where it is damaged or no picture."""
    try:
        header = read_header(file.read_bytes())
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error})") from error
    if header is not None:
        return header.width, header.height
    height, width = read_picture(file).shape[:2]
    return width, height


def _teacher_labels(name: str, found: Faces, recipe: PseudoLabelRecipe) -> FaceLabels:
    """Turn the teacher's faces into labels: those of use, cut at the picture's border, in three bands of score."""
    order = np.argsort(-found.scores, kind="stable")
    order = order[found.scores[order] >= recipe.ignore_above]
    scores = found.scores[order].clip(0.0, 1.0)
    nothing = np.zeros(len(order), np.bool_)
    faces, dropped = clean_faces(
        name, (found.width, found.height), found.boxes[order], found.landmarks[order], nothing, scores
    )
    if dropped:
        logger.debug("%s: %d boxes of the teacher were cut or left out", name, len(dropped))
    ignore = (faces.scores < recipe.positive) | (faces.boxes[:, 3] - faces.boxes[:, 1] < recipe.least_height)
    return replace(faces, ignore=np.asarray(ignore, np.bool_))


def _informed(labels: FaceLabels, teacher: FaceLabels, recipe: PseudoLabelRecipe) -> FaceLabels:
    """Give labels what the teacher knows of them: scores where asked for, and landmarks that they lack."""
    label, face = _pairs(labels.boxes, teacher.boxes, recipe.iou)
    to_find = ~labels.ignore[label]
    label, face = label[to_find], face[to_find]
    scores, landmarks = labels.scores.copy(), labels.landmarks.copy()
    if recipe.merge == "scores":
        scores[label] = teacher.scores[face]
    if recipe.fill_landmarks:
        lacking = np.isnan(landmarks[label]).any(axis=(1, 2)) & (teacher.scores[face] >= recipe.positive)
        landmarks[label[lacking]] = teacher.landmarks[face[lacking]]
    return replace(labels, scores=scores, landmarks=landmarks)


def _pairs(
    labels: npt.NDArray[np.float32], faces: npt.NDArray[np.float32], least: float
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Pair labels and faces one to one, the greatest IoU first, none below ``least``: two index arrays."""
    iou = box_iou(labels, faces)
    label, face = np.nonzero(iou >= least)
    order = np.argsort(-iou[label, face], kind="stable")
    free_labels, free_faces = np.ones(len(labels), np.bool_), np.ones(len(faces), np.bool_)
    kept = []
    for i in order:
        if free_labels[label[i]] and free_faces[face[i]]:
            free_labels[label[i]] = free_faces[face[i]] = False
            kept.append(i)
    chosen = np.asarray(kept, np.intp)
    return label[chosen], face[chosen]


def _elsewhere(faces: npt.NDArray[np.float32], labels: npt.NDArray[np.float32], iou: float) -> npt.NDArray[np.bool_]:
    """Which faces (N,) are those of nobody who is labelled already."""
    low = np.maximum(faces[:, None, :2], labels[None, :, :2])
    high = np.minimum(faces[:, None, 2:], labels[None, :, 2:])
    common = (high - low).clip(min=0).prod(axis=2)
    smaller = np.minimum(_area(faces)[:, None], _area(labels)[None])
    same = (box_iou(faces, labels) >= iou) | (common > _SAME_COVER * smaller)
    return np.asarray(~same.any(axis=1), np.bool_)


def _area(boxes: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.asarray((boxes[:, 2:] - boxes[:, :2]).prod(axis=1), np.float32)


def _chosen(faces: FaceLabels, keep: npt.NDArray[np.bool_]) -> FaceLabels:
    return FaceLabels(faces.boxes[keep], faces.landmarks[keep], faces.ignore[keep], faces.scores[keep])


def _joined(first: FaceLabels, second: FaceLabels) -> FaceLabels:
    return FaceLabels(
        np.concatenate([first.boxes, second.boxes]),
        np.concatenate([first.landmarks, second.landmarks]),
        np.concatenate([first.ignore, second.ignore]),
        np.concatenate([first.scores, second.scores]),
    )
