"""One builder at a time: a lock that dies with its process, so that a killed build blocks nobody."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from retinastream.engines.cache import durable
from retinastream.errors import SetupError

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
_NOT_WRITABLE = {errno.EROFS, errno.EACCES, errno.EPERM}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@dataclass(frozen=True, slots=True)
class Hold:
    """A lock that is held: whether there was somebody to wait for, and whether it really keeps others out."""

    waited: bool
    is_exclusive: bool


@contextmanager
def held(
    path: Path,
    what: str,
    *,
    on_wait: Callable[[str], None] | None = None,
    stop: threading.Event | None = None,
) -> Iterator[Hold]:
    """Hold the lock ``path``.

    ``what`` is what the holder does, as in "building this engine". ``on_wait`` is given one sentence when a wait
    begins, by default it is logged as a warning. Raises SetupError when ``stop`` is set while waiting, and OutputError
    where the lock file cannot be made. Where the file system knows no locks, that is logged and nothing is held.
    """
    descriptor, hold = _acquire(path, what, on_wait or logger.warning, stop or threading.Event())
    try:
        _sign(descriptor)
        yield hold
    finally:
        os.close(descriptor)


def is_free(path: Path) -> bool:
    """Whether nobody holds the lock at this moment."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    except OSError as error:
        # Not a sign of a holder: whoever takes it next is told why that cannot be.
        return error.errno in _NOT_WRITABLE
    try:
        return _try_lock(descriptor) == "held"
    finally:
        os.close(descriptor)


def _acquire(path: Path, what: str, on_wait: Callable[[str], None], stop: threading.Event) -> tuple[int, Hold]:
    waited = False
    while True:
        descriptor = _open(path)
        with _closed_on_error(descriptor):
            state = _try_lock(descriptor)
            if state != "taken" and _is_current(descriptor, path):
                return descriptor, Hold(waited, is_exclusive=state == "held")
            if state == "taken":
                if not waited:
                    on_wait(f"another process{_holder(descriptor)} is {what}; waiting for it to finish")
                    waited = True
                _pause(stop, what)
        # Opened anew each time: the file may have been removed, and a lock on a removed file locks nobody out.
        os.close(descriptor)


@contextmanager
def _closed_on_error(descriptor: int) -> Iterator[None]:
    try:
        yield
    except BaseException:
        os.close(descriptor)
        raise


def _pause(stop: threading.Event, what: str) -> None:
    if stop.wait(_POLL_SECONDS):
        raise SetupError(f"stopped while another process is {what}")


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise durable.failure(path, error) from error


def _try_lock(descriptor: int) -> Literal["held", "taken", "unknown"]:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "taken"
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning("the file system of the engine cache has no locks: two processes may build the same engine")
        return "unknown"
    return "held"


def _is_current(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _sign(descriptor: int) -> None:
    """Say who holds it, for those who wait; not worth failing for."""
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": os.uname().nodename}).encode(), 0)


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f" ({int(holder['pid'])} on {holder['host']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
