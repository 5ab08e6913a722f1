"""A plan is code: TensorRT runs what is in it. So only files that nobody else could have written are read.

The folder is opened first and the files relative to it, without following links, and what is checked is what is open:
there is no moment between looking and reading in which somebody could put another file there.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from retinastream.engines.cache.errors import UntrustedPlanError
from retinastream.errors import SetupError

_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_WHY = "an engine is code that runs with your rights, so only what nobody else can write is loaded"


@contextmanager
def open_folder(folder: Path) -> Iterator[int]:
    """Open the cache's folder; yields its descriptor.

    Raises FileNotFoundError where there is none, UntrustedPlanError where it is a link, somebody else's, or writable by
    others, SetupError where it cannot be opened.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except NotADirectoryError:
        what = "a symbolic link" if folder.is_symlink() else "no folder"
        raise UntrustedPlanError(
            f"the engine cache {folder} is {what}; {_WHY}. Remove it, or set RETINASTREAM_CACHE"
        ) from None
    except FileNotFoundError:
        raise
    except OSError as error:
        raise SetupError(f"the engine cache {folder} cannot be read: {error.strerror}. {_TAKE}") from error
    try:
        check_owner(os.fstat(descriptor), f"the engine cache {folder}", f"chmod go-w '{folder}'")
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def open_trusted(folder: int, name: str, shown: Path) -> Iterator[BinaryIO]:
    """Open a file of the folder for reading; ``shown`` is its path in messages.

    Raises FileNotFoundError where there is none, UntrustedPlanError where it is a link or no ordinary file, somebody
    else's, writable by others, or not to be opened by this user.
    """
    try:
        # Without O_NONBLOCK the opening of a pipe that somebody left there would wait for ever.
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
    except OSError as error:
        if shown.is_symlink():
            raise UntrustedPlanError(f"{shown} is a symbolic link; {_WHY}. Remove it; {_INSTEAD}") from error
        if not isinstance(error, PermissionError):
            raise
        # As a command that was run by sudo leaves it in the folder of the user.
        raise UntrustedPlanError(f"{shown} cannot be opened by this user: {error.strerror}. Remove it") from error
    with os.fdopen(descriptor, "rb") as file:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise UntrustedPlanError(f"{shown} is not an ordinary file; {_WHY}. Remove it; {_INSTEAD}")
        check_owner(state, str(shown), f"chmod go-w '{shown}', if you know that nobody has")
        yield file


def check_owner(state: os.stat_result, what: str, remedy: str) -> None:
    """Raise UntrustedPlanError unless it belongs to this user and nobody else can write it."""
    user = os.geteuid()
    if state.st_uid != user:
        raise UntrustedPlanError(f"{what} belongs to user {state.st_uid}, this process is user {user}; {_WHY}. {_TAKE}")
    if state.st_mode & _WRITABLE_BY_OTHERS:
        mode = f"{stat.S_IMODE(state.st_mode):04o}"
        raise UntrustedPlanError(f"{what} can be written by others (mode {mode}); {_WHY}. To keep it: {remedy}")


_INSTEAD = "an engine from elsewhere comes in by `retinastream engine import FILE --trust`"
_TAKE = f"Set RETINASTREAM_CACHE to a folder of your own; {_INSTEAD}"
