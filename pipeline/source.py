"""What a source is: something that yields frames in order, counts every one, and says what it could not read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

from retinastream.errors import RetinastreamError, UsageError
from retinastream.types import Frame

# Times are typed and printed with six decimals at most, while pictures sit at fractions such as 1/3 s; half of the last
# decimal as tolerance lets a printed time select the picture it was printed for.
_HALF_MICROSECOND = Fraction(1, 2_000_000)


@dataclass(slots=True)
class SourceCounts:
    """What happened to the packets and pictures of one pass over a source.

    ``packets``: packets of the chosen stream that were read (for pictures: files). ``decoded``: pictures that came out
    of the decoder. ``corrupt``: packets (files) that the decoder refused. ``damaged``: delivered frames that the
    decoder flagged as damaged. ``skipped``: decoded pictures that start, end, stride or max_frames left out.
    Always: ``read == decoded + corrupt`` and ``decoded == skipped + delivered``.
    """

    packets: int = 0
    decoded: int = 0
    corrupt: int = 0
    damaged: int = 0
    skipped: int = 0

    @property
    def read(self) -> int:
        """Pictures that the source tried to decode."""
        return self.decoded + self.corrupt

    @property
    def delivered(self) -> int:
        """Frames handed to whoever iterates."""
        return self.decoded - self.skipped


@dataclass(frozen=True, slots=True)
class MediaInfo:
    """What is known about a source before its frames are read.

    ``width`` and ``height`` are those of the upright picture, 0 if unknown. ``fps`` is the container's average and
    ``promised_frames`` its claim; both can be wrong in a damaged file. ``duration`` is in seconds. ``decoder`` names
    the decoder and the device that it runs on.
    """

    name: str
    kind: Literal["video", "images"]
    width: int = 0
    height: int = 0
    fps: float | None = None
    duration: float | None = None
    promised_frames: int | None = None
    codec: str = ""
    pixel_format: str = ""
    decoder: str = ""
    has_audio: bool = False


class Source(Protocol):
    """A context manager that yields frames in presentation order; every ``iter()`` starts a fresh pass.

    ``counts`` belong to the latest pass. ``warnings`` are sentences for a person, each said once. ``failures`` are the
    parts (name, error) that could not be read although the rest could.
    """

    path: Path
    info: MediaInfo
    counts: SourceCounts
    warnings: list[str]
    failures: list[tuple[str, RetinastreamError]]

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def __iter__(self) -> Iterator[Frame]: ...
    def close(self) -> None:
        """Release the files and the decoder; a running iteration ends at its next frame."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which pictures of a source are delivered: those in [start, end), of these every ``stride``-th, at most so many.

    ``start`` and ``end`` are seconds counted from the first picture of the source. Raises UsageError for values that
    are not allowed.
    """

    start: float | None = None
    end: float | None = None
    stride: int = 1
    max_frames: int | None = None

    def __post_init__(self) -> None:
        """Refuse values that select nothing or make no sense."""
        for name in ("start", "end"):
            seconds = getattr(self, name)
            if seconds is None:
                continue
            if not _is_number(seconds) or not 0 <= seconds < float("inf"):
                raise UsageError(f"{name} was given as {seconds!r}; expected seconds from the first picture, 0 or more")
        if self.start is not None and self.end is not None and self.end <= self.start:
            raise UsageError(f"end ({self.end:g} s) is not after start ({self.start:g} s); expected end > start")
        if not _is_count(self.stride):
            raise UsageError(f"stride was given as {self.stride!r}; expected a whole number, 1 (every picture) or more")
        if self.max_frames is not None and not _is_count(self.max_frames):
            raise UsageError(
                f"max_frames was given as {self.max_frames!r}; expected a whole number, 1 or more, or None"
            )

    def is_before_start(self, seconds: Fraction | None) -> bool:
        """Whether a picture at this time since the first picture lies before the selection."""
        return self.start is not None and seconds is not None and seconds < _exact(self.start)

    def is_past_end(self, seconds: Fraction | None) -> bool:
        """Whether a picture at this time since the first picture lies after the selection."""
        return self.end is not None and seconds is not None and seconds >= _exact(self.end)


def _exact(seconds: float) -> Fraction:
    # repr gives the decimal that was typed: 0.1 means one tenth, not the binary number slightly above it.
    return Fraction(repr(float(seconds))) - _HALF_MICROSECOND


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
