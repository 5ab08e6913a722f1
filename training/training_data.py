"""The labelled sets of a run, read, checked and joined."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace

from retinastream.errors import InputError
from retinastream.evaluation.integrity import IntegrityReport, check_pictures
from retinastream.evaluation.labelled_set import LabelledPicture, LabelledSet, read_labelled_set
from retinastream.training.config import DataSource


@dataclass(frozen=True, slots=True, eq=False)
class TrainingData:
    """Pictures of all sets, how often an epoch shows each, and what the check of every set found.

    ``sha256`` changes with the labels, with which pictures are usable, and with their weights.
    """

    pictures: tuple[LabelledPicture, ...]
    weights: tuple[float, ...]
    reports: tuple[IntegrityReport, ...]
    sha256: str

    @property
    def faces(self) -> int:
        """Faces to be found, all sets together, every picture once."""
        return sum(report.faces for report in self.reports)


def read_training_data(sources: Iterable[DataSource], missing_limit: float) -> TrainingData:
    """Read and check every set. Raises InputError for one that cannot be used, or too much of which is missing."""
    pictures: list[LabelledPicture] = []
    weights: list[float] = []
    reports = []
    digest = hashlib.sha256()
    for source in sources:
        usable, report = check_pictures(read_source(source), missing_limit=missing_limit)
        pictures += usable.pictures
        weights += [source.weight] * len(usable.pictures)
        reports.append(report)
        names = [picture.name for picture in usable.pictures]
        digest.update(json.dumps([usable.sha256, source.weight, names]).encode())
    return TrainingData(tuple(pictures), tuple(weights), tuple(reports), digest.hexdigest())


def read_evaluation_data(source: DataSource, count: int | None, missing_limit: float) -> LabelledSet:
    """Read and check the set that is evaluated on; the first ``count`` pictures of it, or all.

    Raises InputError where it cannot be used or no face is left to be found.
    """
    usable, _ = check_pictures(read_source(source), missing_limit=missing_limit)
    if count is None:
        return usable
    pictures = usable.pictures[:count]
    if not any((~picture.ignore).any() for picture in pictures):
        raise InputError(f"the first {count} pictures of {source.labels} show no face to be found; evaluate on more")
    return LabelledSet(usable.name, usable.path, usable.format, usable.sha256, pictures, usable.problems)


def read_source(source: DataSource) -> LabelledSet:
    """Read the labels of one entry of the configuration, or the part of them that it asks for.

    Raises InputError where the part is empty.
    """
    found = read_labelled_set(
        source.labels,
        format=source.format,
        images=source.images,
        categories=source.categories,
        missed_as_faces=source.missed_as_faces,
        one_based=source.one_based,
    )
    if source.part == "all":
        return found
    wanted = source.part == "held-out"
    pictures = tuple(p for p in found.pictures if is_held_out(p.name, source.held_out) == wanted)
    if not pictures:
        raise InputError(
            f"{source.labels} has {len(found.pictures)} pictures, and none is in the part {source.part!r} of a split "
            f"that holds out {source.held_out:g}; change held_out"
        )
    return replace(found, name=f"{found.name} ({source.part})", pictures=pictures)


def is_held_out(name: str, share: float) -> bool:
    """Whether a picture is held out: decided by its name alone, so that adding or losing others moves nothing."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") < share * 2**64
