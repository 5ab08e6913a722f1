"""What a detector finds in a video or in pictures that nobody labelled: by running it, or from an earlier run."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

from retinastream.errors import InputError
from retinastream.pipeline.discover import Input, discover
from retinastream.pipeline.sinks.jsonl import read_jsonl
from retinastream.pipeline.source import MediaInfo
from retinastream.types import Faces, Frame

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with how many frames are done, and how many there are as far as is known."""


class Streams(Protocol):
    """What finds the faces of frames as they come: ``Detector``, ``AugmentedDetector``."""

    def stream(self, frames: Iterable[Frame]) -> Iterator[Faces]:
        """Yield the faces of every frame, in order."""
        ...


def find_media(path: str | Path) -> Input:
    """Return the video or the set of pictures that ``path`` means.

    Raises InputError where there is none, or several: a folder of videos, or of videos and pictures.
    """
    found = discover([path])
    if found.failures:
        raise found.failures[0][1]
    if len(found.inputs) != 1:
        names = ", ".join(item.name for item in found.inputs[:5])
        raise InputError(
            f"{path} holds {len(found.inputs)} inputs ({names}, ...); expected one video, or pictures only"
        )
    return found.inputs[0]


def predict_media(
    detector: Streams,
    media: Input,
    *,
    stride: int = 1,
    max_frames: int | None = None,
    progress: Progress | None = None,
) -> list[Faces]:
    """Find the faces of every ``stride``-th frame, of ``max_frames`` at most.

    Pictures that cannot be read are logged and left out. Raises InputError where none can be read.
    """
    results: list[Faces] = []
    with media.open(stride=stride, max_frames=max_frames) as source:
        expected = _expected(source.info, stride, max_frames)
        for faces in detector.stream(source):
            results.append(faces)
            if progress is not None:
                progress(len(results), max(expected, len(results)))
        for name, error in source.failures:
            logger.warning("%s is left out: %s", name, error)
    if not results:
        raise InputError(f"{media.name}: no picture could be read; check the files")
    return results


def read_media_predictions(path: Path) -> list[Faces]:
    """Read all frames of a .faces.jsonl file that ``retinastream detect`` wrote.

    Raises InputError for a file that is not one, or that an interrupted run left incomplete.
    """
    with warnings.catch_warnings():
        # What is cut off is an error here, and one message about it is enough.
        warnings.simplefilter("ignore")
        _, records = read_jsonl(path)
        results = list(records)
    if records.end is None or not records.end.get("complete"):
        raise InputError(f"{path} is not complete: its run was cut off; detect again, with --overwrite")
    return results


def _expected(info: MediaInfo, stride: int, max_frames: int | None) -> int:
    whole = info.promised_frames or round((info.duration or 0.0) * (info.fps or 0.0))
    frames = -(-whole // stride)
    return frames if max_frames is None else min(frames, max_frames)
