"""The annotated video: the pictures of the source with the faces drawn in, at their times, with the sound."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av.error

from retinastream.errors import OutputError, UsageError
from retinastream.pipeline.sinks.draw import draw
from retinastream.pipeline.sinks.encoder import ColourConverter, EncoderChoice, EncoderName, choose_encoder
from retinastream.pipeline.sinks.fit import UInt8, even_picture, even_size, letterbox, own_picture
from retinastream.pipeline.sinks.mp4 import FileWriter, Mp4Writer, VideoSettings
from retinastream.pipeline.sinks.part_file import PartPath
from retinastream.pipeline.sinks.sink import RunHeader
from retinastream.pipeline.sinks.timeline import Timeline
from retinastream.types import Faces, Frame

logger = logging.getLogger(__name__)

_FALLBACK_RATE = Fraction(25)
_FALLBACK_TIME_BASE = Fraction(1, 90000)
_FINEST_TIME_BASE = Fraction(1, 10_000_000)


class AnnotatedVideoSink:
    """Writes H.264 in fragmented MP4. ``write`` needs the frame.

    The first picture decides the size (made even by repeating the last row or column); later pictures of another size
    are scaled into it, keeping their shape. Frame times are those of the source, exactly, also with a variable frame
    rate; where they are missing or run backwards they are mended, which is said once. With ``source_path`` the sound
    of that file is copied: all of it, or, where ``from_start`` or ``to_end`` is False, only along the frames written.
    ``crf`` and ``preset`` are those of libx264; ``encoder`` "auto" takes NVENC where it opens. ``threads`` are the
    encoder's, 0 meaning one per core. ``warnings`` are sentences for a person.

    Raises UsageError and OutputError as ``PartPath`` does, UsageError for an encoder that is not available, and
    OutputError when encoding or writing fails.
    """

    needs_frame = True

    def __init__(
        self,
        path: Path,
        header: RunHeader,
        *,
        overwrite: bool = False,
        source_path: Path | None = None,
        from_start: bool = True,
        to_end: bool = True,
        encoder: EncoderChoice = "auto",
        crf: int = 21,
        preset: str = "veryfast",
        threads: int = 0,
    ) -> None:
        self.path = path
        self.warnings: list[str] = []
        self._encoder: EncoderName = choose_encoder(encoder, *even_size(header.width or 256, header.height or 256))
        self._choice, self._crf, self._preset, self._threads = encoder, crf, preset, threads
        self._rate = Fraction(header.fps).limit_denominator(1001) if header.fps else _FALLBACK_RATE
        self._source_path, self._from_start, self._to_end = source_path, from_start, to_end
        self._converter = ColourConverter()
        self._writer: Mp4Writer | None = None
        self._timeline = Timeline(_FALLBACK_TIME_BASE, 1 / self._rate)
        self._size = (0, 0)
        self._shape_changed = False
        self._failed: OutputError | None = None
        self._target = PartPath(path, overwrite=overwrite)
        self._file = FileWriter(self._target.fd)

    @property
    def encoder(self) -> EncoderName:
        """The encoder in use."""
        return self._encoder

    def write(self, faces: Faces, frame: Frame | None) -> None:
        """Draw the faces on the frame and encode it."""
        if frame is None:
            raise UsageError(f"{self.path} is a video: write() needs the frame, not only its faces")
        if self._failed is not None:
            raise self._failed
        picture = even_picture(own_picture(frame))
        try:
            writer = self._writer or self._open(picture, frame)
            picture, faces = self._fit(picture, faces)
            draw(picture, faces)
            image = self._converter.convert(picture)
            image.pts, image.time_base = self._place(frame), self._timeline.time_base
            writer.write(image)
        except OutputError as error:
            self._failed = error
            raise
        except (av.error.FFmpegError, OSError) as error:
            raise self._fail(error) from error

    def close(self, *, complete: bool, summary: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Finish the video and name it; a video without a single picture is not written, with a warning."""
        if self._target.fd < 0:
            return
        if self._failed is not None:
            self.abort()
            raise self._failed
        if self._writer is None or self._timeline.last is None:
            self._warn(f"{self.path} is not written: there was no picture to put into it")
            self._target.part.unlink(missing_ok=True)
            self._target.release()
            return
        end = self._timeline.last * self._timeline.time_base + 1 / self._rate
        try:
            self._writer.finish(None if complete and self._to_end else end)
        except (av.error.FFmpegError, OSError) as error:
            failure = self._fail(error)
            self.abort()
            raise failure from error
        self._target.publish()

    def abort(self) -> None:
        """Leave what was encoded, playable, as ``<name>.part``."""
        if self._writer is not None:
            self._writer.abandon()
        self._target.release()

    def _open(self, picture: UInt8, frame: Frame) -> Mp4Writer:
        """Open encoder and container; without sound, or with the other encoder, where that is what fails."""
        height, width = picture.shape[:2]
        self._size = (width, height)
        time_base = frame.time_base
        if time_base is None or time_base < _FINEST_TIME_BASE:
            time_base = _FALLBACK_TIME_BASE
        self._timeline = Timeline(time_base, 1 / self._rate)
        settings = VideoSettings(width, height, time_base, self._rate, self._crf, self._preset, self._threads)
        encoders: list[EncoderName] = [self._encoder]
        if self._choice == "auto" and self._encoder != "libx264":
            encoders.append("libx264")
        reason = ""
        for encoder in encoders:
            for sound in (self._source_path, None):
                try:
                    writer = Mp4Writer(self._file, encoder, settings, sound_source=sound, warn=self._warn)
                except (av.error.FFmpegError, ValueError) as error:
                    if self._file.error is not None:
                        raise
                    reason = str(error)
                    self._file.restart()
                    continue
                if sound is None and self._source_path is not None:
                    self._warn(f"the sound of {self._source_path} does not fit into MP4 and is left out: {reason}")
                self._encoder, self._writer = encoder, writer
                writer.begin_sound(None if self._from_start else frame_time(frame))
                return writer
        raise OutputError(
            f"cannot write {self.path}: {encoders[-1]} does not take pictures of {width}x{height} ({reason}); "
            "leave out the annotated video, or use a smaller input"
        )

    def _fit(self, picture: UInt8, faces: Faces) -> tuple[UInt8, Faces]:
        """Bring a picture of another size than the first to that size."""
        width, height = self._size
        h, w = picture.shape[:2]
        if (w, h) == self._size:
            return picture, faces
        if not self._shape_changed:
            self._shape_changed = True
            self._warn(
                f"{self.path}: pictures change from {width}x{height} to {w}x{h}; they are scaled to the first size"
            )
        return letterbox(picture, faces, width, height)

    def _place(self, frame: Frame) -> int:
        """Return the timestamp of a frame in the video."""
        seconds, mended = frame_time(frame), self._timeline.mended
        ticks = self._timeline.place(None if seconds is None else round(seconds / self._timeline.time_base))
        if mended == 0 and self._timeline.mended:
            self._warn(
                f"{self.path}: from frame {frame.index} on, some timestamps are missing or run backwards; "
                "the video continues at its nominal frame rate there"
            )
        return ticks

    def _fail(self, error: Exception) -> OutputError:
        if self._file.error is not None:
            self._failed = self._target.failure(self._file.error)
        else:
            self._failed = OutputError(
                f"cannot write {self.path}: the encoder {self._encoder} failed ({error}); "
                f"what was written so far is in {self._target.part}"
            )
        return self._failed

    def _warn(self, sentence: str) -> None:
        if sentence not in self.warnings:
            self.warnings.append(sentence)
            logger.warning("%s", sentence)


def frame_time(frame: Frame) -> Fraction | None:
    """Exact presentation time in seconds, or None."""
    return None if frame.pts is None or frame.time_base is None else frame.pts * frame.time_base
