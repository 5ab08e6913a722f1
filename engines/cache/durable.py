"""Files that appear whole or not at all, whatever stops the process or the machine."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from retinastream.engines.cache.entry import PART_SUFFIX
from retinastream.errors import OutputError

_PRIVATE_FILE = 0o600
_PRIVATE_FOLDER = 0o700
_BLOCK = 1 << 24
# What a cache needs besides the plan: sidecar, locks, the file system's own book-keeping.
_RESERVE = 1 << 20

_ADVICE = {
    errno.ENOSPC: "the disk is full: free some room (`retinastream engine prune` removes engines that are not needed)",
    errno.EDQUOT: "the disk quota is used up: free some room (`retinastream engine prune` removes engines)",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "no permission",
    errno.EPERM: "not permitted",
}
_ELSEWHERE = "RETINASTREAM_CACHE puts models and engines into another folder"


def make_private_folder(folder: Path) -> None:
    """Make a folder that only this user can enter, with the folders above it; raises OutputError where it cannot."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=_PRIVATE_FOLDER)
    except OSError as error:
        raise failure(folder, error) from error


def check_room(folder: Path, room: int) -> None:
    """Raise OutputError unless files can be made in the folder and ``room`` bytes are free."""
    probe = folder / f".{secrets.token_hex(4)}{PART_SUFFIX}"
    try:
        os.close(_create(probe))
        probe.unlink()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise failure(folder, error) from error
    if free < room + _RESERVE:
        raise OutputError(
            f"the engine cache {folder} has {free / 1e6:.1f} MB free and about {(room + _RESERVE) / 1e6:.1f} MB are "
            f"needed; free some room (`retinastream engine prune` removes engines), or: {_ELSEWHERE}"
        )


def write_durably(path: Path, data: bytes | memoryview, elsewhere: str = _ELSEWHERE) -> None:
    """Write a file under a temporary name, flush it to the disk and then give it its name, replacing what is there.

    Raises OutputError where that fails; nothing of it is left then.
    """
    with written_part(path, data, elsewhere) as part:
        try:
            part.rename(path)
            sync_folder(path.parent)
        except OSError as error:
            raise failure(path, error, elsewhere) from error


@contextlib.contextmanager
def written_part(path: Path, data: bytes | memoryview, elsewhere: str = _ELSEWHERE) -> Iterator[Path]:
    """Write what will become ``path`` under a temporary name beside it and flush it to the disk; yields that name.

    What still has the temporary name at the end is removed. Raises OutputError where it cannot be written.
    """
    part = temporary_name(path)
    try:
        try:
            descriptor = _create(part)
            try:
                _write(descriptor, memoryview(data).cast("B"))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise failure(path, error, elsewhere) from error
        yield part
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def temporary_name(path: Path) -> Path:
    """Return a name beside ``path`` that nobody else uses."""
    return path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}{PART_SUFFIX}")


def sync_folder(folder: Path) -> None:
    """Flush a folder's names to the disk; without it a name may be lost although its file is there."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems do not know it for folders
            raise
    finally:
        os.close(descriptor)


def failure(path: Path, error: OSError, elsewhere: str = _ELSEWHERE) -> OutputError:
    """Word a failed write: which file, why, what to do; ``elsewhere`` says how to write in another place."""
    reason = _ADVICE.get(error.errno or 0) or error.strerror or str(error)
    return OutputError(f"cannot write {path}: {reason}; {elsewhere}")


def _create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, _PRIVATE_FILE)


def _write(descriptor: int, data: memoryview) -> None:
    for start in range(0, len(data), _BLOCK):
        block = data[start : start + _BLOCK]
        while block:
            block = block[os.write(descriptor, block) :]
