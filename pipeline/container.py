"""Opening a video file: every way in which that fails, said in words, and the choice of the stream to decode."""

from __future__ import annotations

import errno
import os
import re
from fractions import Fraction
from pathlib import Path

import av
import av.error
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from retinastream.errors import InputError, UsageError

_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")


def is_address(text: str) -> bool:
    """Whether the text is an address (https://..., rtsp://...) and not a path."""
    return _URL.match(text) is not None


def check_file(path: str | Path, expected: str = "a video file") -> Path:
    """Return the path of an existing, readable, non-empty regular file.

    Raises UsageError for an address (http://..., rtsp://...) and InputError for anything else that is not such a file.
    """
    if is_address(str(path)):
        raise UsageError(f"{path}: live and network sources are not supported yet; give the path of a local file")
    file = Path(path)
    try:
        size = file.stat().st_size
    except OSError as error:
        raise _file_error(file, error) from error
    if file.is_dir():
        raise InputError(f"{file}: is a directory; expected {expected} (give its files, or let discover() find them)")
    if not file.is_file():
        raise InputError(f"{file}: is not a regular file; pipes and devices are not supported, save it to a file first")
    if size == 0:
        raise InputError(f"{file}: is empty (0 bytes); expected {expected}, check that its copy or recording finished")
    try:
        with file.open("rb") as handle:
            handle.read(1)
    except OSError as error:
        raise _file_error(file, error) from error
    return file


def _file_error(file: Path, error: OSError) -> InputError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return InputError(f"{file}: no such file; check the path (relative paths start at {Path.cwd()})")
    if error.errno in (errno.EACCES, errno.EPERM):
        return InputError(f"{file}: permission denied; allow this user to read it, for example with chmod +r")
    if error.errno == errno.ENAMETOOLONG:
        return InputError(f"{file}: the name is too long for the file system; give the path of an existing file")
    return InputError(f"{file}: cannot be read ({error.strerror or error}); check the disk and the file's permissions")


def open_container(file: Path) -> InputContainer:
    """Open a file with FFmpeg's demuxers; ``file:`` and the absolute path keep ``%`` and ``:`` in names literal.

    Raises InputError when the content is not a media file.
    """
    # Tags are not used; the default, strict UTF-8, would refuse files whose old tags are in another encoding.
    url = "file:" + os.path.abspath(file)  # noqa: PTH100 - resolve() would follow links and hide the given name
    try:
        return av.open(url, mode="r", metadata_errors="replace")
    except av.error.InvalidDataError as error:
        raise InputError(f"{file}: {_content_problem(file)}") from error
    except av.error.EOFError as error:
        raise InputError(
            f"{file}: contains no decodable frame (it ends behind its header); record or copy it again"
        ) from error
    except OSError as error:
        raise _file_error(file, error) from error
    except (av.error.FFmpegError, ValueError, RuntimeError) as error:
        raise InputError(f"{file}: FFmpeg cannot open it ({error}); try to play it, then convert it to MP4") from error


def _content_problem(file: Path) -> str:
    """Say why the content is not media, from what the first bytes show."""
    with file.open("rb") as handle:
        head = handle.read(4096)
    if head[4:8] == b"ftyp":
        return (
            "is an MP4 without its index (no moov box): the recording or the copy was cut before its end; "
            "copy it again or repair it with an MP4 recovery tool"
        )
    if _looks_like_text(head):
        return "holds text, not video; expected a media file such as MP4, MKV, MOV, AVI or TS"
    return "is not a media file that FFmpeg recognises; expected MP4, MKV, MOV, AVI, TS or the like"


def _looks_like_text(head: bytes) -> bool:
    try:
        text = head[: head.rfind(b"\n") + 1 or None].decode()
    except UnicodeDecodeError:
        return False
    return all(c.isprintable() or c in "\t\r\n\f" for c in text)


def pick_stream(container: InputContainer, file: Path) -> VideoStream:
    """Return the stream that FFmpeg thinks best among the moving pictures; cover art and thumbnails are no video.

    Raises InputError when there is none, or when this FFmpeg has no decoder for it.
    """
    if not container.streams:
        raise InputError(f"{file}: contains no decodable frame (it holds no streams); record or copy it again")
    still = Disposition.attached_pic | Disposition.timed_thumbnails
    moving = [stream for stream in container.streams.video if not stream.disposition & still]
    if not moving:
        kinds = sorted({stream.type for stream in container.streams})
        found = " and ".join(kinds) or "no streams"
        cover = ", its only pictures being cover art" if container.streams.video else ""
        raise InputError(f"{file}: contains no video (found {found}{cover}); give a file with a video stream")
    best = container.streams.best("video")
    stream = next((s for s in moving if best is not None and s.index == best.index), moving[0])
    if stream.codec_context is None:
        raise InputError(f"{file}: this FFmpeg has no decoder for its video codec; convert the file to H.264 or HEVC")
    return stream


def duration_seconds(container: InputContainer, stream: VideoStream) -> float | None:
    """Return the claimed duration of the video stream, else of the container, in seconds."""
    if stream.duration and stream.time_base:
        return stream.duration * float(stream.time_base)
    if container.duration:
        return container.duration / av.time_base
    return None


def frame_rate(stream: VideoStream) -> Fraction | None:
    """Return the average rate, else FFmpeg's guess, or None; never a falsy rate."""
    for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if rate:
            return Fraction(rate.numerator, rate.denominator)
    return None
