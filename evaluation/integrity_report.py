"""What the check of a labelled set found, to print and to keep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from retinastream.evaluation.labels_raw import LabelProblem

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class IntegrityReport:
    """Counts and lists of one set.

    ``listed`` pictures are in the labels, of which ``usable`` are left; the others are ``missing``, ``undecodable`` or
    ``resized`` (of another size than their labels say), the last two as (name, reason). ``faces``, ``ignored`` and
    ``landmarked`` count in the usable ones, ``backgrounds`` those without a face to be found. ``same_bytes`` groups
    names whose files are equal, ``turned`` names pictures with an EXIF orientation: labels count upright. ``sizes`` is
    (smallest width, smallest height, largest width, largest height); ``face_heights`` the 5th, 50th and 95th percentile
    in pixels. ``decoded``: every picture was decoded, not only its header read. ``problems`` are those of the labels.
    """

    name: str
    path: str
    format: str
    sha256: str
    listed: int
    usable: int
    faces: int
    ignored: int
    landmarked: int
    backgrounds: int
    missing: tuple[str, ...]
    undecodable: tuple[tuple[str, str], ...]
    resized: tuple[tuple[str, str], ...]
    same_bytes: tuple[tuple[str, ...], ...]
    turned: tuple[str, ...]
    sizes: tuple[int, int, int, int] | None
    face_heights: tuple[float, float, float] | None
    decoded: bool
    problems: tuple[LabelProblem, ...]

    @property
    def unusable(self) -> int:
        """How many pictures were listed, but cannot be used."""
        return self.listed - self.usable

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        plain = asdict(self)
        plain["problem_counts"] = dict(Counter(problem.kind for problem in self.problems))
        return plain

    def __str__(self) -> str:
        """Return the report as lines of text."""
        return "\n".join(_lines(self))


def _lines(report: IntegrityReport) -> Iterator[str]:
    how = "decoded" if report.decoded else "headers read"
    yield f"{report.name} ({report.format}, {report.path}, sha256 {report.sha256[:12]})"
    yield f"  {report.usable} of {report.listed} pictures usable ({how}), {report.backgrounds} without a face"
    yield f"  {report.faces} faces, {report.landmarked} with landmarks; {report.ignored} ignored"
    if report.sizes is not None:
        low_w, low_h, high_w, high_h = report.sizes
        yield f"  width {low_w} to {high_w}, height {low_h} to {high_h} px"
    if report.face_heights is not None:
        low, middle, high = report.face_heights
        yield f"  face height {middle:g} px in the median, 5th to 95th percentile {low:g} to {high:g} px"
    yield from listed("missing", report.missing)
    yield from pairs("not readable", report.undecodable)
    yield from pairs("of another size", report.resized)
    yield from listed("equal files", [" = ".join(names) for names in report.same_bytes])
    yield from listed("turned by EXIF, labels must be upright", report.turned)
    for kind, count in Counter(problem.kind for problem in report.problems).most_common():
        first = next(problem for problem in report.problems if problem.kind == kind)
        yield f"  labels, {kind}: {count}, the first: {first}"


def pairs(title: str, entries: Sequence[tuple[str, str]]) -> list[str]:
    """Return ``listed`` of (name, reason)."""
    return listed(title, [f"{name} {reason}" for name, reason in entries])


def listed(title: str, entries: Sequence[str]) -> list[str]:
    """Return one line with the count and the first of ``entries``, or none where there are none."""
    if not entries:
        return []
    more = f", and {len(entries) - _SHOWN} more" if len(entries) > _SHOWN else ""
    return [f"  {title}: {len(entries)}: {'; '.join(entries[:_SHOWN])}{more}"]
