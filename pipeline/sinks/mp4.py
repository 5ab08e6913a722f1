"""Fragmented MP4 on an open file: pictures through an encoder, sound between them in the order of time."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from retinastream.pipeline.sinks.audio import AudioCopy
from retinastream.pipeline.sinks.encoder import EncoderName, encoder_options, tag_colours

# A fragment per second, each complete on the disk: what a killed process leaves can be played. delay_moov, because
# empty_moov shifts sound against picture by the priming of AAC. The interleaver otherwise holds back up to 10 s of
# video when the sound ends first.
_MUXER = {
    "movflags": "frag_keyframe+delay_moov+default_base_moof",
    "frag_duration": "1000000",
    "flush_packets": "1",
    "max_interleave_delta": "1000000",
}


@dataclass(frozen=True, slots=True)
class VideoSettings:
    """What the video stream is: size in pixels (even), seconds per tick, frames per second, quality, threads."""

    width: int
    height: int
    time_base: Fraction
    rate: Fraction
    crf: int
    preset: str
    threads: int


class FileWriter:
    """What the muxer writes into; keeps the first error, which the muxer's own report would blur."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write all of the data at the current position."""
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            self.error = self.error or error
            raise
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move the position."""
        return os.lseek(self._fd, offset, whence)

    def tell(self) -> int:
        """Return the position."""
        return os.lseek(self._fd, 0, os.SEEK_CUR)

    def restart(self) -> None:
        """Empty the file."""
        os.lseek(self._fd, 0, os.SEEK_SET)
        os.ftruncate(self._fd, 0)


class Mp4Writer:
    """One H.264 stream, and the sound of ``sound_source`` if given.

    ``warn`` is told what sound cannot be copied. Raises FFmpegError (av) or ValueError where encoder or container do
    not open, and FFmpegError or OSError from every later call that fails.
    """

    def __init__(
        self,
        file: FileWriter,
        encoder: EncoderName,
        settings: VideoSettings,
        *,
        sound_source: Path | None,
        warn: Callable[[str], None],
    ) -> None:
        self._file = file
        self._audio: AudioCopy | None = None
        self._container: OutputContainer | None = av.open(file, "w", format="mp4", options=_MUXER)
        try:
            self._stream = self._add_video(self._container, encoder, settings)
            clocks = [settings.time_base.denominator]
            if sound_source is not None:
                self._audio = AudioCopy(sound_source, self._container, warn)
                clocks += self._audio.clocks
            self._container.options["movie_timescale"] = str(_common_clock(clocks))
            self._container.start_encoding()
        except BaseException:
            self.abandon()
            raise

    def begin_sound(self, since: Fraction | None) -> None:
        """Start copying sound: from ``since`` (seconds) on, or from its beginning."""
        if self._audio is not None:
            self._audio.begin(since)

    def write(self, picture: VideoFrame) -> None:
        """Encode a picture whose pts and time base are set; its pts must be later than the one before."""
        for packet in self._stream.encode(picture):
            self._mux(packet)

    def finish(self, sound_until: Fraction | None) -> None:
        """Write what is left: the last pictures, the sound before ``sound_until`` (seconds) or all of it, the end."""
        for packet in self._stream.encode(None):
            self._mux(packet)
        assert self._container is not None
        if self._audio is not None:
            self._audio.copy_until(sound_until, self._container.mux_one)
            self._audio.close()
        container, self._container = self._container, None
        container.close()
        if self._file.error is not None:
            raise self._file.error

    def abandon(self) -> None:
        """Close without the last pictures; what was written stays playable. Never raises."""
        if self._audio is not None:
            self._audio.close()
        if self._container is not None:
            with contextlib.suppress(av.error.FFmpegError, OSError, ValueError):
                self._container.close()
            self._container = None

    def _add_video(self, container: OutputContainer, encoder: EncoderName, settings: VideoSettings) -> VideoStream:
        options = encoder_options(encoder, settings.crf, settings.preset)
        stream: VideoStream = container.add_stream(encoder, rate=settings.rate, options=options)
        context: Any = stream.codec_context
        context.width, context.height = settings.width, settings.height
        context.pix_fmt = "yuv420p"
        context.time_base = settings.time_base
        context.gop_size = max(1, round(2 * settings.rate))
        context.thread_count = settings.threads
        tag_colours(context, settings.height)
        return stream

    def _mux(self, packet: Any) -> None:
        """Write a video packet, after the sound that belongs before it."""
        assert self._container is not None
        if self._audio is not None and packet.dts is not None:
            self._audio.copy_until(packet.dts * packet.time_base, self._container.mux_one)
        self._container.mux_one(packet)


def _common_clock(clocks: list[int]) -> int:
    """Ticks per second in which every track can start exactly; the muxer's own choice is rounded to milliseconds."""
    common = math.lcm(*clocks)
    return common if common < 2**31 else clocks[0]
