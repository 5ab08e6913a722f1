"""A file that gets its name when it is finished: until then it grows as ``<name>.part`` beside it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from pathlib import Path

from retinastream.errors import OutputError, UsageError

_BUFFER_BYTES = 1 << 16
_FLUSH_SECONDS = 1.0


def check_target(path: Path, *, overwrite: bool) -> None:
    """Refuse a file that may not be written under this name, before anything is opened.

    Raises UsageError for a directory, for a device or pipe, and for an existing file without ``overwrite``.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise OutputError(f"cannot write {path}: {_reason(error)}") from error
    if stat.S_ISDIR(mode):
        raise UsageError(f"the output {path} is a directory; give the name of a file")
    if not stat.S_ISREG(mode):
        raise UsageError(
            f"the output {path} is not an ordinary file; give a name that is free or names an ordinary file"
        )
    if not overwrite:
        raise UsageError(f"the output {path} exists already; choose another name, or pass --overwrite to replace it")


def part_name(path: Path) -> Path:
    """Where the output ``path`` grows until it is finished."""
    final = Path(os.path.realpath(path))
    return final.with_name(final.name + ".part")


def write_whole(path: Path, data: bytes, *, overwrite: bool = False) -> None:
    """Write a file in one go; its name appears when all of it is there. Raises as ``PartPath`` does."""
    target = PartPath(path, overwrite=overwrite)
    try:
        _write_all(target.fd, data, 0)
    except OSError as error:
        target.release()
        raise target.failure(error) from error
    target.publish()


class PartPath:
    """The right to write ``<name>.part``, and its move to the final name.

    For writers that open a file by its name themselves; ``PartFile`` adds the writing. The part file is created and
    locked at once, so that a name that cannot be written, or that another run is writing, is an error at the start.
    A part file left by a dead run is replaced.

    Raises UsageError as ``check_target`` does, and OutputError where the file or its folder cannot be made.
    """

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        check_target(path, overwrite=overwrite)
        self.path = path
        self._overwrite = overwrite
        # A link is followed: the data belong where it points, and replacing the link itself would lose it.
        self._final = Path(os.path.realpath(path))
        self.part = part_name(path)
        self.fd = -1
        try:
            self._final.parent.mkdir(parents=True, exist_ok=True)
            self.fd = os.open(self.part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {_reason(error)}") from error
        try:
            self._claim()
        except BaseException:
            self.release()
            raise

    def _claim(self) -> None:
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                f"cannot write {self.path}: another run is writing {self.part}; wait for it or choose another name"
            ) from error
        except OSError:
            pass  # some network file systems have no locks; two runs on one name are then the user's to avoid
        try:
            os.ftruncate(self.fd, 0)
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {_reason(error)}") from error

    def failure(self, error: OSError) -> OutputError:
        """Word a failed write: which file, why, and where the part that was written is."""
        return OutputError(f"cannot write {self.path}: {_reason(error)}; what was written so far is in {self.part}")

    def publish(self) -> None:
        """Put the part file under its final name, durably. Raises OutputError and leaves the part file if it cannot."""
        try:
            os.fsync(self.fd)
            taken = not self._overwrite and self._final.exists()
            if not taken:
                self.part.replace(self._final)
        except OSError as error:
            raise self.failure(error) from error
        finally:
            self.release()
        if taken:
            raise OutputError(
                f"{self.path} appeared while it was being made and is left alone; the new result is in {self.part}"
            )
        _sync_folder(self._final.parent)

    def release(self) -> None:
        """Let go of the part file and leave it where it is."""
        if self.fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self.fd)
            self.fd = -1


class PartFile:
    """A text file in UTF-8 that is written as ``<name>.part`` and named when it is closed.

    Each ``write`` is one whole record. Records reach the file at the latest with the first write a second later, so a
    killed process loses about a second. ``tail`` is kept at the end of the file after every flush and overwritten by
    the next: what is on the disk is then a valid document at any time.

    Raises UsageError and OutputError as ``PartPath`` does, and OutputError from every failed write; once a write has
    failed, ``close`` raises the same error again instead of publishing half a file.
    """

    def __init__(self, path: Path, *, overwrite: bool = False, tail: str = "") -> None:
        self._target = PartPath(path, overwrite=overwrite)
        self.path = path
        self.part = self._target.part
        self._tail = tail.encode()
        self._buffer = bytearray()
        self._offset = 0
        self._flushed_at = time.monotonic()
        self._failed: OutputError | None = None
        self._open = True

    def write(self, record: str) -> None:
        """Append one record. Characters that UTF-8 cannot carry (undecodable file names) become question marks."""
        if self._failed is not None:
            raise self._failed
        self._buffer += record.encode("utf-8", "replace")
        if len(self._buffer) >= _BUFFER_BYTES or time.monotonic() - self._flushed_at >= _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Hand everything to the operating system."""
        try:
            _write_all(self._target.fd, bytes(self._buffer) + self._tail, self._offset)
        except OSError as error:
            self._failed = self._target.failure(error)
            raise self._failed from error
        self._offset += len(self._buffer)
        self._buffer.clear()
        self._flushed_at = time.monotonic()

    def close(self) -> None:
        """Write what is left and give the file its name. A second call does nothing."""
        if not self._open:
            return
        self._open = False
        try:
            if self._failed is not None:
                raise self._failed
            self.flush()
        except OutputError:
            self._target.release()
            raise
        self._target.publish()

    def abort(self) -> None:
        """Write what is left if that is possible, and leave the file as ``<name>.part``."""
        if not self._open:
            return
        self._open = False
        if self._failed is None:
            with contextlib.suppress(OutputError):
                self.flush()
        self._target.release()


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


def _sync_folder(folder: Path) -> None:
    # Best effort: the rename is done; some file systems refuse to sync a folder.
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _reason(error: OSError) -> str:
    advice = {
        errno.ENOSPC: "the disk is full; free some room or write elsewhere",
        errno.EDQUOT: "the disk quota is used up; free some room or write elsewhere",
        errno.EROFS: "the file system is read-only; write elsewhere",
        errno.EACCES: "no permission; write elsewhere or change the permissions of the folder",
        errno.EPERM: "not permitted; write elsewhere or change the permissions of the folder",
        errno.ENOTDIR: "a part of the path is a file, not a folder",
        errno.ENAMETOOLONG: "the name is too long for this file system",
        errno.EFBIG: "the file would be larger than the limit of this process or file system",
        errno.ELOOP: "its .part name is a symbolic link; remove it",
    }
    return advice.get(error.errno or 0) or (error.strerror or str(error))
