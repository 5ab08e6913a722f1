"""The packets of one video stream, read to the end however the file is damaged."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

import av.error
from av.packet import Packet
from av.video.stream import VideoStream

from retinastream.errors import InputError
from retinastream.pipeline.container import open_container, pick_stream

logger = logging.getLogger(__name__)

# A string: the class takes its parameter in the stubs only.
VideoPacket: TypeAlias = "Packet[VideoStream]"

# A demuxer that reports bad data goes on behind it when asked again; this many refusals in a row mean that it cannot.
_MAX_REFUSALS = 16


class Demuxer:
    """An open file and its video stream; ``packets()`` continues where the previous iteration stopped.

    ``count`` is the number of packets read. Raises InputError as ``open_container`` and ``pick_stream`` do.
    """

    def __init__(self, file: Path, warnings: list[str]) -> None:
        self.count = 0
        self._file = file
        self._warnings = warnings
        self.container = open_container(file)
        try:
            self.stream = pick_stream(self.container, file)
        except InputError:
            self.container.close()
            raise
        base = self.stream.time_base
        self.time_base = Fraction(base.numerator, base.denominator) if base else Fraction(1, 1000)

    def __enter__(self) -> Self:
        """Return this demuxer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file; pictures that were decoded stay valid."""
        self.container.close()

    def packets(self) -> Iterator[VideoPacket]:
        """Yield the packets that carry data; bad data is passed over, with a warning where nothing follows it.

        Raises InputError when the disk or the network share fails.
        """
        refusals = 0
        while refusals < _MAX_REFUSALS:
            try:
                for packet in self.container.demux(self.stream):
                    # An empty packet means "drain" to a decoder; some files hold empty ones in the middle.
                    if packet.size:
                        refusals = 0
                        self.count += 1
                        yield packet
            except OSError as error:
                raise InputError(
                    f"{self._file}: reading failed after {self.count} video packets "
                    f"({error.strerror or error}); check the disk or the network share, then try again"
                ) from error
            except (av.error.FFmpegError, ValueError) as error:
                refusals += 1
                logger.debug("%s: bad data after packet %d: %s", self._file, self.count, error)
            else:
                return
        line = f"the container is damaged: nothing could be read behind packet {self.count}"
        if line not in self._warnings:
            self._warnings.append(line)
