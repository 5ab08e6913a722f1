"""The sound of the source, copied packet by packet into the annotated video, neither decoded nor re-encoded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import av
import av.error
from av.audio.stream import AudioStream
from av.bitstream import BitStreamFilterContext
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import Discard

from retinastream.pipeline.sinks.timeline import Timeline

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    # A type parameter for the checker only: the class itself takes none at run time.
    AudioPacket = Packet[AudioStream]

# Seeking aims this far before the start, in seconds: packets before it are skipped one by one anyway.
_SEEK_MARGIN = Fraction(1)


@dataclass(frozen=True, slots=True)
class _Track:
    """One audio stream on its way: where it goes, its clock, and what strips a framing that MP4 does not have."""

    target: AudioStream
    timeline: Timeline
    unframe: BitStreamFilterContext | None


class AudioCopy:
    """Every audio stream of ``source`` that MP4 can carry, added to ``output`` before its header is written.

    What cannot be copied is told through ``warn`` and left out; nothing is raised for it. Packets come in the order of
    the file, one held at a time. Timestamps are those of the source, in seconds of the same clock as the video's.
    """

    def __init__(self, source: Path, output: OutputContainer, warn: Callable[[str], None]) -> None:
        self._source = source
        self._output = output
        self._warn = warn
        self._container: InputContainer | None = None
        self._streams: dict[int, _Track] = {}
        self._packets: Iterator[AudioPacket] = iter(())
        self._next: tuple[Fraction, AudioPacket] | None = None
        self._since: Fraction | None = None
        self._refused = 0
        try:
            self._open()
        except (av.error.FFmpegError, OSError) as error:
            warn(f"the sound of {source} could not be opened and is left out: {error}")
            self.close()

    @property
    def clocks(self) -> list[int]:
        """Ticks per second of the streams that are copied."""
        return [track.timeline.time_base.denominator for track in self._streams.values()]

    def _open(self) -> None:
        self._container = container = av.open(str(self._source))
        for stream in container.streams:
            template = self._template(stream) if stream.type == "audio" else None
            if template is None:
                stream.discard = Discard.all
                continue
            time_base = stream.time_base or Fraction(1, 48000)
            self._streams[stream.index] = _Track(template, Timeline(time_base, time_base), _unframe(stream))

    def _template(self, stream: Any) -> AudioStream | None:
        codec = stream.codec_context.codec.canonical_name if stream.codec_context is not None else "unknown"
        if codec in self._output.supported_codecs:
            try:
                template = self._output.add_stream_from_template(cast(AudioStream, stream))
            except (av.error.FFmpegError, ValueError) as error:
                codec = f"{codec} ({error})"
            else:
                if "language" in stream.metadata:
                    template.metadata["language"] = stream.metadata["language"]
                return template
        self._warn(f"the sound of {self._source} is {codec}, which MP4 cannot carry: it is left out")
        return None

    def begin(self, since: Fraction | None) -> None:
        """Start reading: from ``since`` (seconds) on, or from the beginning."""
        if self._container is None or not self._streams:
            return
        self._since = since
        if since is not None and since > _SEEK_MARGIN:
            try:
                self._container.seek(int((since - _SEEK_MARGIN) * av.time_base))
            except av.error.FFmpegError:
                logger.debug("%s: seeking for sound failed; reading from the beginning", self._source)
        wanted = [self._container.streams[index] for index in self._streams]
        self._packets = cast("Iterator[AudioPacket]", self._container.demux(*wanted))
        self._advance()

    def copy_until(self, limit: Fraction | None, write: Callable[[AudioPacket], None]) -> None:
        """Write the packets that start before ``limit`` (seconds), or all that are left."""
        while self._next is not None and (limit is None or self._next[0] < limit):
            try:
                write(self._next[1])
            except (av.error.InvalidDataError, av.error.ArgumentError) as error:
                self._refuse(error)
            self._advance()

    def close(self) -> None:
        """Close the source."""
        self._next = None
        self._packets = iter(())
        if self._container is not None:
            self._container.close()
            self._container = None

    def _refuse(self, error: Exception) -> None:
        if not self._refused:
            self._warn(f"some sound of {self._source} is damaged and is left out: {error}")
        self._refused += 1

    def _advance(self) -> None:
        """Hold the next packet of the selection, or None at the end."""
        self._next = None
        try:
            for packet in self._packets:
                self._next = self._prepare(packet)
                if self._next is not None:
                    return
        except av.error.FFmpegError as error:
            self._warn(f"the sound of {self._source} could not be read to its end: {error}")

    def _prepare(self, packet: AudioPacket) -> tuple[Fraction, AudioPacket] | None:
        """Return the packet for the output and its time, or None for one that is not part of it."""
        if packet.dts is None or packet.size == 0:
            return None
        track = self._streams[packet.stream.index]
        time_base = track.timeline.time_base
        end = (packet.dts + (packet.duration or 0)) * time_base
        if self._since is not None and end <= self._since:
            return None
        self._since = None
        placed = track.timeline.place(packet.dts)
        late = 0 if packet.pts is None else packet.pts - packet.dts
        if track.unframe is not None:
            try:
                packet = cast("AudioPacket", track.unframe.filter(packet)[0])
            except (av.error.FFmpegError, IndexError) as error:
                self._refuse(error)
                return None
        packet.pts, packet.dts, packet.time_base = placed + late, placed, time_base
        packet.stream = track.target
        return placed * time_base, packet


def _unframe(stream: Any) -> BitStreamFilterContext | None:
    """AAC of a transport stream carries its setup in every packet; MP4 wants it once. The muxer does not see to it."""
    if stream.codec_context.codec.canonical_name == "aac" and not stream.codec_context.extradata:
        return BitStreamFilterContext("aac_adtstoasc", stream)
    return None
