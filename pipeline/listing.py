"""Media files in directories and numbered sequences, in the order in which a person counts."""

from __future__ import annotations

import os
import re
from pathlib import Path

from retinastream.errors import InputError, UsageError
from retinastream.pipeline.images import PICTURE_EXTENSIONS

# What is picked up in a directory. A file that is named may have any extension: FFmpeg looks at its content.
# fmt: off
VIDEO_EXTENSIONS = frozenset((
    ".264", ".265", ".3g2", ".3gp", ".asf", ".av1", ".avi", ".dv", ".f4v", ".flv", ".gif", ".h264", ".h265", ".hevc",
    ".ivf", ".m2t", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf",
    ".nut", ".obu", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m",
))
# fmt: on

_NUMBER = re.compile(r"%(?:0(\d+))?d")
_TS_SYNC = 0x47


def natural_key(name: str | os.PathLike[str]) -> tuple[list[tuple[int, str]], str]:
    """Sort key that counts: frame2 before frame10, and case decides last."""
    text = os.fspath(name)
    parts = re.split(r"([0-9]+)", text.casefold())
    return [(int(p), "") if p.isascii() and p.isdigit() else (-1, p) for p in parts], text


def media_files(directory: Path, *, recursive: bool) -> list[Path]:
    """Return the videos and pictures of a directory in natural order, its subdirectories after its files.

    Hidden files are left out; links are followed, each directory once. Raises InputError where ``directory`` cannot be
    listed; subdirectories that cannot be are left out.
    """
    return _walk(directory, {os.path.realpath(directory)}, recursive=recursive)


def _walk(directory: Path, visited: set[str], *, recursive: bool) -> list[Path]:
    try:
        entries = sorted((e for e in directory.iterdir() if not e.name.startswith(".")), key=natural_key)
    except OSError as error:
        raise InputError(
            f"{directory}: cannot be listed ({error.strerror or error}); check the directory's permissions"
        ) from error
    files = [entry for entry in entries if _is_media(entry)]
    if not recursive:
        return files
    for entry in entries:
        real = os.path.realpath(entry)
        if entry.is_dir() and real not in visited:
            visited.add(real)
            try:
                files += _walk(entry, visited, recursive=True)
            except InputError:
                continue
    return files


def _is_media(file: Path) -> bool:
    extension = file.suffix.lower()
    if extension not in VIDEO_EXTENSIONS | PICTURE_EXTENSIONS or not file.is_file():
        return False
    return extension != ".ts" or _is_transport_stream(file)


def _is_transport_stream(file: Path) -> bool:
    """Tell MPEG transport streams from TypeScript, which shares their extension."""
    try:
        with file.open("rb") as handle:
            head = handle.read(5)
    except OSError:
        return True  # let the run say why it cannot be read
    return len(head) == 5 and _TS_SYNC in (head[0], head[4])


def is_sequence(pattern: str) -> bool:
    """Whether the file name holds a number in printf style: ``%d`` or ``%04d``."""
    return _NUMBER.search(os.path.basename(pattern)) is not None  # noqa: PTH119 - Path would drop a trailing slash


def expand_sequence(pattern: str) -> list[Path]:
    """Return the existing files of a numbered sequence such as ``shots/frame_%04d.png`` in the order of their numbers.

    ``%04d`` takes numbers of at least four digits with leading zeros, ``%d`` any. Gaps are allowed. Raises UsageError
    for a pattern with more than one number and InputError where no file matches.
    """
    path = Path(pattern)
    numbers = _NUMBER.findall(path.name)
    if len(numbers) != 1:
        raise UsageError(f"{pattern}: has {len(numbers)} numbers; expected exactly one, such as frame_%04d.png")
    before, after = _NUMBER.split(path.name)[0], _NUMBER.split(path.name)[-1]
    width = int(numbers[0] or 1)
    name = re.compile(f"{re.escape(before)}([0-9]{{{width},}}){re.escape(after)}")
    try:
        files = [(entry, name.fullmatch(entry.name)) for entry in path.parent.iterdir()]
    except OSError as error:
        raise InputError(
            f"{pattern}: the directory {path.parent} cannot be listed ({error.strerror or error}); check the path"
        ) from error
    matching = [(int(match[1]), entry) for entry, match in files if match is not None]
    if not matching:
        raise InputError(f"{pattern}: no file of this numbered sequence exists; check the name and the count of digits")
    return [entry for _, entry in sorted(matching)]
