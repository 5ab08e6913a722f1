"""What every output is: a header known before the first frame, one call per frame, and an end that says how it went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from retinastream.types import Faces, Frame

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class RunHeader:
    """How the faces of one output came about; written before the first frame, the same for every format that has room.

    ``width`` and ``height`` are pixels of the upright picture (0 where they differ from picture to picture or are not
    known), ``fps`` is the average rate the container claims. ``threshold``, ``iou`` and ``max_faces`` are the settings
    of the detector. Texts that do not apply stay empty.
    """

    source: str
    kind: Literal["video", "images"] = "video"
    width: int = 0
    height: int = 0
    fps: float | None = None
    decoder: str = ""
    model: str = ""
    model_sha256: str = ""
    runtime: str = ""
    runtime_version: str = ""
    precision: str = ""
    device: str = ""
    size_policy: str = ""
    threshold: float = 0.0
    iou: float = 0.0
    max_faces: int = 0
    tool_version: str = ""
    schema_version: int = SCHEMA_VERSION


class Sink(Protocol):
    """One output of one input; used by one thread at a time.

    ``needs_frame`` says whether ``write`` must be given the picture. ``close`` puts the output under its final name,
    also when the run was interrupted (``complete=False``); ``abort`` leaves what was written under ``<name>.part``.
    Every method but ``abort`` raises OutputError when the output cannot be written.
    """

    needs_frame: bool
    path: Path

    @property
    def warnings(self) -> Sequence[str]:
        """What a person should know about this output; complete after ``close``."""
        ...

    def write(self, faces: Faces, frame: Frame | None) -> None:
        """Add one frame; ``frame`` may be None unless ``needs_frame``."""
        ...

    def close(self, *, complete: bool, summary: Mapping[str, Any]) -> None:
        """Finish the output and give it its name. A second call does nothing."""
        ...

    def abort(self) -> None:
        """Give up; what was written so far stays under ``<name>.part``. Never raises."""
        ...
