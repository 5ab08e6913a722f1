"""A video file as a source of frames: in presentation order, every picture accounted for."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from itertools import chain, takewhile
from pathlib import Path
from types import TracebackType
from typing import Self

from av.video.frame import VideoFrame

from retinastream.errors import InputError, RetinastreamError, UsageError
from retinastream.pipeline.container import check_file, duration_seconds, frame_rate
from retinastream.pipeline.decoding import PacketDecoder
from retinastream.pipeline.demuxing import Demuxer
from retinastream.pipeline.pixels import FrameBuilder
from retinastream.pipeline.source import MediaInfo, Selection, SourceCounts
from retinastream.pipeline.timeline import Approach, PlacedPicture, Timeline, approach
from retinastream.types import Frame

# A file whose first pictures cannot be decoded is looked at for this many packets before the attempt is left to the
# run itself: half a minute of video, so that opening stays quick.
_PROBE_PACKETS = 1000

# These hide packets that are decoded but never shown, so that packets cannot be counted as pictures.
_CODECS_WITH_HIDDEN_PICTURES = {"vp8"}

# These store no presentation times, so that packets cannot be told apart by time.
_FORMATS_WITHOUT_TIMES = {"avi"}


def open_video(
    path: str | os.PathLike[str],
    *,
    start: float | None = None,
    end: float | None = None,
    stride: int = 1,
    max_frames: int | None = None,
    threads: int = 0,
) -> VideoSource:
    """Open a video file and decode its first picture, so that what cannot be read is known before the run.

    ``start`` (included) and ``end`` (excluded) are seconds from the first picture; of the pictures between them every
    ``stride``-th is delivered, at most ``max_frames``. ``threads`` are the decoder's, 0 meaning one per core.
    Raises UsageError for values that are not allowed and for addresses, InputError for a file that is no video.
    """
    selection = Selection(start, end, stride, max_frames)
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 0:
        raise UsageError(f"threads was given as {threads!r}; expected a whole number, 0 (one per core) or more")
    if not isinstance(path, str | os.PathLike):
        raise UsageError(f"a video was given as {type(path).__name__}; expected the path of a file")
    return VideoSource(check_file(os.fspath(path)), selection, threads=threads)


class VideoSource:
    """The frames of one video file; a Source. Made by ``open_video``.

    Every ``iter()`` opens the file anew and resets ``counts``. A frame's ``index`` is its place among the decoded
    pictures of the whole file: with ``start``, the packets before it are read and counted but not decoded, so that the
    index equals that of a run from the beginning (unless packets before the start are broken).
    """

    def __init__(self, file: Path, selection: Selection, *, threads: int = 0) -> None:
        self.path = file
        self.selection = selection
        self.counts = SourceCounts()
        self.warnings: list[str] = []
        self.failures: list[tuple[str, RetinastreamError]] = []
        self._threads = threads
        self._closed = False
        self._running: Generator[Frame, None, None] | None = None
        self.info = self._probe()

    def __enter__(self) -> Self:
        """Return this source."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file and stop the decoder; an iteration in another thread ends before its next packet."""
        self._closed = True
        running, self._running = self._running, None
        if running is None:
            return
        try:
            running.close()
        except ValueError:  # executing in another thread, which will see the flag and close the file itself
            return

    def __iter__(self) -> Iterator[Frame]:
        """Start a pass from the beginning, ending the one before it.

        Raises UsageError after ``close`` and, at the end, where ``start`` lies behind the last picture; InputError
        where nothing can be decoded or the disk fails.
        """
        if self._closed:
            raise UsageError(f"{self.path}: the source is closed; call open_video again to read it once more")
        if self._running is not None:
            self._running.close()
        self.counts = SourceCounts()
        self._running = self._frames(self.counts)
        return self._running

    def _probe(self) -> MediaInfo:
        """Describe the file from its header and its first decodable picture."""
        with Demuxer(check_file(self.path), []) as demuxer:
            picture, is_whole_file = _first_picture(demuxer)
            if picture is None and is_whole_file:
                raise self._nothing_decodable(demuxer.count)
            stream = demuxer.stream
            width, height = stream.width, stream.height
            if picture is not None:
                wrapped = FrameBuilder(str(self.path)).to_frame(picture, index=0, pts=None, time_base=None)
                width, height = wrapped.upright_size
            rate = frame_rate(stream)
            return MediaInfo(
                name=self.path.name,
                kind="video",
                width=width,
                height=height,
                fps=float(rate) if rate else None,
                duration=duration_seconds(demuxer.container, stream),
                promised_frames=stream.frames or None,
                codec=stream.codec_context.codec.canonical_name,
                pixel_format=picture.format.name if picture is not None else stream.pix_fmt or "",
                decoder=f"{stream.codec_context.name} (CPU)",
                has_audio=bool(demuxer.container.streams.audio),
            )

    def _frames(self, counts: SourceCounts) -> Generator[Frame, None, None]:
        """One pass: choose, wrap and deliver."""
        builder = FrameBuilder(str(self.path), self.warnings)
        selection = self.selection
        selected = 0
        with closing(self._pictures(counts)) as pictures:
            for placed in pictures:
                counts.decoded += 1
                if selection.is_past_end(placed.since_first):
                    counts.skipped += 1
                    return
                # Once reached, the start stays reached, also where timestamps jump back in mid-stream.
                is_wanted = selected > 0 or not selection.is_before_start(placed.since_first)
                selected += is_wanted
                if not is_wanted or (selected - 1) % selection.stride:
                    counts.skipped += 1
                    continue
                frame = builder.to_frame(placed.picture, index=placed.index, pts=placed.pts, time_base=placed.time_base)
                counts.damaged += frame.corrupt
                yield frame
                if counts.delivered == selection.max_frames:
                    return
        if not selected and not self._closed:
            raise self._nothing_selected(counts)

    def _pictures(self, counts: SourceCounts) -> Generator[PlacedPicture, None, None]:
        """Decode from the last keyframe before the start to the end of the file, and place every picture."""
        with ExitStack() as files:
            demuxer, way = self._begin(files)
            timeline = Timeline(demuxer.time_base, _picture_distance(demuxer), way)
            decoder = PacketDecoder(demuxer.stream, threads=self._threads)
            for packet in chain(way.held, map(timeline.note, demuxer.packets())):
                if self._closed:
                    return
                for picture in decoder.decode(packet):
                    yield timeline.place(picture)
                counts.packets, counts.corrupt = demuxer.count, decoder.corrupt
            for picture in decoder.flush():
                yield timeline.place(picture)
            counts.corrupt = decoder.corrupt
            self._tell_how_it_ended(demuxer.count, timeline)

    def _begin(self, files: ExitStack) -> tuple[Demuxer, Approach]:
        """Open the file and read up to the start without decoding, where the timestamps allow that."""
        demuxer = files.enter_context(Demuxer(check_file(self.path), self.warnings))
        start = self.selection.start
        hides_pictures = demuxer.stream.codec_context.codec.canonical_name in _CODECS_WITH_HIDDEN_PICTURES
        if not start or hides_pictures or demuxer.container.format.name in _FORMATS_WITHOUT_TIMES:
            return demuxer, Approach()
        packets = takewhile(lambda _: not self._closed, demuxer.packets())
        way = approach(packets, start, demuxer.time_base)
        if way is not None:
            return demuxer, way
        demuxer.close()
        return files.enter_context(Demuxer(self.path, self.warnings)), Approach()

    def _tell_how_it_ended(self, packets: int, timeline: Timeline) -> None:
        if timeline.invented:
            self._warn_once("the file gives no timestamps for some pictures; they are counted on at its frame rate")
        promised = self.info.promised_frames
        if promised is not None and packets < promised:
            self._warn_once(f"{timeline.next_index} of {promised} promised frames exist (file is cut short)")

    def _warn_once(self, line: str) -> None:
        if line not in self.warnings:
            self.warnings.append(line)

    def _nothing_decodable(self, packets: int) -> InputError:
        reason = f"none of its {packets} packets could be decoded" if packets else "its video stream holds no packets"
        return InputError(
            f"{self.path}: contains no decodable frame ({reason}); check that its recording or copy finished"
        )

    def _nothing_selected(self, counts: SourceCounts) -> RetinastreamError:
        if self.selection.start is None or not counts.packets:
            return self._nothing_decodable(counts.packets)
        length = f", which is {self.info.duration:.3f} s long" if self.info.duration else ""
        return UsageError(
            f"{self.path}: start ({self.selection.start:g} s) lies behind the end of the video{length}; "
            "give an earlier start"
        )


def _first_picture(demuxer: Demuxer) -> tuple[VideoFrame | None, bool]:
    """Return the first picture that can be decoded (or None) and whether the whole file was read for it."""
    decoder = PacketDecoder(demuxer.stream, threads=1)
    for packet in demuxer.packets():
        for picture in decoder.decode(packet):
            return picture, False
        if demuxer.count >= _PROBE_PACKETS:
            return None, False
    return next(decoder.flush(), None), True


def _picture_distance(demuxer: Demuxer) -> int | None:
    """Return the distance of two pictures in units of the time base, where the stream knows its rate."""
    rate = frame_rate(demuxer.stream)
    return max(1, round(1 / (rate * demuxer.time_base))) if rate else None
