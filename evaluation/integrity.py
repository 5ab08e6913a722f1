"""Are the pictures of a labelled set all there, whole, and of the size that their labels were made for?"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from retinastream.errors import InputError, UsageError
from retinastream.evaluation.integrity_report import IntegrityReport, listed, pairs
from retinastream.evaluation.labelled_set import LabelledPicture, LabelledSet, LabelProblem
from retinastream.evaluation.labels_clean import clean_faces
from retinastream.evaluation.picture_header import PictureHeader, read_header
from retinastream.pipeline.images import read_picture

__all__ = ["IntegrityReport", "check_pictures"]


@dataclass(frozen=True, slots=True)
class _Opened:
    """What became of one picture file: its header, or why there is none ("missing", or a reason)."""

    header: PictureHeader | None
    failure: str | None = None
    digest: bytes = b""


def check_pictures(
    found: LabelledSet,
    *,
    missing_limit: float = 0.01,
    decode: bool = False,
    threads: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[LabelledSet, IntegrityReport]:
    """Open every picture of ``found``; return the set of those that can be used, and a report to print.

    Headers are read, and files that are cut short are found; ``decode`` decodes every picture instead, in ``threads``
    threads, and finds all damage. A returned picture has its size, and its boxes are clipped to it. A picture of
    another size than its labels say is left out: nobody knows whether to scale the labels. ``progress`` gets
    (done, all).

    Raises InputError, with the first names, where more than ``missing_limit`` (a share, 0..1) of the pictures are
    missing or not usable, and where no face to be found is left; UsageError for a limit outside 0..1.
    """
    if not 0.0 <= missing_limit <= 1.0:
        raise UsageError(f"missing_limit is {missing_limit}; expected a share of the pictures, 0 to 1")
    if threads < 1:
        raise UsageError(f"threads is {threads}; expected 1 or more")
    opened = list(_open_all(found.pictures, decode, threads, progress))
    usable: list[LabelledPicture] = []
    problems: list[LabelProblem] = list(found.problems)
    resized: list[tuple[str, str]] = []
    for picture, file in zip(found.pictures, opened, strict=True):
        if file.header is None:
            continue
        difference = _size_difference(picture, file.header)
        if difference:
            resized.append((picture.name, difference))
            continue
        usable.append(_fit(picture, file.header, problems))
    checked = replace(found, pictures=tuple(usable), problems=tuple(problems))
    report = _report(found, checked, opened, resized, decode)
    _refuse(report, missing_limit, found.pictures)
    return checked, report


def _open_all(
    pictures: Sequence[LabelledPicture], decode: bool, threads: int, progress: Callable[[int, int], None] | None
) -> Iterator[_Opened]:
    with ThreadPoolExecutor(threads, thread_name_prefix="check-pictures") as pool:
        for done, opened in enumerate(pool.map(lambda picture: _open(picture.path, decode), pictures), start=1):
            if progress is not None:
                progress(done, len(pictures))
            yield opened


def _open(path: Path, decode: bool) -> _Opened:
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return _Opened(None, "missing")
    except OSError as error:
        return _Opened(None, f"cannot be read ({error.strerror or error})")
    try:
        header = read_header(content)
        if decode or header is None:
            height, width = read_picture(path).shape[:2]
            header = PictureHeader(width, height, header.orientation if header else 1)
    except InputError as error:
        return _Opened(None, str(error).removeprefix(f"{path}: "))
    return _Opened(header, None, hashlib.sha256(content).digest())


def _size_difference(picture: LabelledPicture, header: PictureHeader) -> str:
    """Say how the size of the file differs from the labels'; empty where it does not."""
    if picture.width is None or (picture.width, picture.height) == (header.width, header.height):
        return ""
    text = f"is {header.width}x{header.height}, its labels are for {picture.width}x{picture.height}"
    if (picture.height, picture.width) == (header.width, header.height):
        turned = f"its EXIF orientation is {header.orientation}" if header.orientation > 1 else "it was turned"
        text += f"; {turned}: label it upright"
    return text


def _fit(picture: LabelledPicture, header: PictureHeader, problems: list[LabelProblem]) -> LabelledPicture:
    """Give a picture whose labels did not say its size that of its file."""
    if picture.width is not None:
        return picture
    size = (header.width, header.height)
    faces, found = clean_faces(picture.name, size, picture.boxes, picture.landmarks, picture.ignore, picture.scores)
    problems.extend(found)
    return replace(
        picture,
        width=header.width,
        height=header.height,
        boxes=faces.boxes,
        landmarks=faces.landmarks,
        ignore=faces.ignore,
        scores=faces.scores,
    )


def _report(
    found: LabelledSet, checked: LabelledSet, opened: list[_Opened], resized: list[tuple[str, str]], decode: bool
) -> IntegrityReport:
    named = [(picture.name, file) for picture, file in zip(found.pictures, opened, strict=True)]
    sizes = np.array([(p.width, p.height) for p in checked.pictures], np.int64).reshape(-1, 2)
    heights = np.concatenate([np.zeros(0), *((p.boxes[:, 3] - p.boxes[:, 1])[~p.ignore] for p in checked.pictures)])
    percentiles = [round(float(v), 1) for v in np.percentile(heights, (5, 50, 95))] if len(heights) else None
    groups: defaultdict[bytes, list[str]] = defaultdict(list)
    for name, file in named:
        if file.digest:
            groups[file.digest].append(name)
    return IntegrityReport(
        name=found.name,
        path=str(found.path),
        format=found.format,
        sha256=found.sha256,
        listed=len(found),
        usable=len(checked),
        faces=checked.faces,
        ignored=checked.ignored,
        landmarked=checked.landmarked,
        backgrounds=sum(bool(p.ignore.all()) for p in checked.pictures),
        missing=tuple(name for name, file in named if file.failure == "missing"),
        undecodable=tuple((name, file.failure) for name, file in named if file.failure not in (None, "missing")),
        resized=tuple(resized),
        same_bytes=tuple(tuple(names) for names in groups.values() if len(names) > 1),
        turned=tuple(name for name, file in named if file.header is not None and file.header.orientation > 1),
        sizes=(*sizes.min(axis=0).tolist(), *sizes.max(axis=0).tolist()) if len(sizes) else None,
        face_heights=(percentiles[0], percentiles[1], percentiles[2]) if percentiles else None,
        decoded=decode,
        problems=checked.problems,
    )


def _refuse(report: IntegrityReport, missing_limit: float, pictures: Sequence[LabelledPicture]) -> None:
    if report.unusable > missing_limit * report.listed:
        lines = [*listed("missing", report.missing), *pairs("not readable", report.undecodable)]
        lines += pairs("of another size", report.resized)
        folder = pictures[0].path.parent
        hint = f"; the picture folder {folder} does not exist: name it with images=" if not folder.is_dir() else ""
        raise InputError(
            f"{report.path}: {report.unusable} of {report.listed} pictures cannot be used, more than the limit of "
            f"{missing_limit:g} of them{hint}; bring them back, or raise missing_limit\n" + "\n".join(lines)
        )
    if not report.faces:
        raise InputError(
            f"{report.path} has no face to be found: read as {report.format!r}, {report.usable} pictures, "
            f"{report.ignored} ignored faces, {len(report.problems)} problems; expected a set with faces"
        )
