"""Downloads that resume, and that get their name only when their content is the one expected."""

from __future__ import annotations

import errno
import fcntl
import http.client
import logging
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from retinastream.errors import ModelError, OutputError, RetinastreamError, SetupError
from retinastream.models.onnx_graph import file_sha256

logger = logging.getLogger(__name__)

Progress = Callable[[int, int | None], None]
_BLOCK = 1 << 16
_USER_AGENT = "retinastream"


def download(
    url: str,
    dest: Path,
    sha256: str,
    *,
    size: int | None = None,
    progress: Progress | None = None,
    timeout: float = 30.0,
) -> Path:
    """Fetch ``url`` to ``dest``, continuing what an earlier call left in ``dest`` + ".part".

    ``timeout`` is in seconds, for every single wait on the network. ``progress`` is called with the bytes that are
    there and the total, or None where the server does not say it.

    Raises SetupError when the network or the server fails (the part is kept), OutputError when the file cannot be
    written, ModelError when the content has another SHA-256 (the part is removed).
    """
    if not url.startswith(("http://", "https://")):
        raise ModelError(f"the address {url} cannot be downloaded; expected one that begins with https:// or http://")
    with _Part(dest) as part:
        resumed = part.length > 0
        _fetch(url, part, size, progress, timeout)
        if resumed and part.sha256() != sha256:
            logger.warning("what an earlier download left of %s does not fit; starting again", dest.name)
            part.clear()
            _fetch(url, part, size, progress, timeout)
        actual = part.sha256()
        if actual != sha256:
            part.remove()
            raise ModelError(
                f"{url} has the sha256 {actual}, expected {sha256}; the download was removed. The file was changed by "
                "its publisher or on the way: try again, or from another network"
            )
        part.finish(dest)
    return dest


class _Part:
    """The incomplete file beside the destination, held by one process at a time.

    Failures of the disk become OutputError here, so that they are not mistaken for failures of the network.
    """

    def __init__(self, dest: Path) -> None:
        self.path = dest.with_name(dest.name + ".part")
        self._etag = dest.with_name(dest.name + ".part.etag")

    def __enter__(self) -> _Part:
        self._file: BinaryIO = self._disk(self._open)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise SetupError(f"another process is downloading {self.path}; wait until it has finished") from error
        self.length = self._file.seek(0, os.SEEK_END)
        return self

    def __exit__(self, *exception: object) -> None:
        self._disk(self._file.close)

    def append(self, block: bytes) -> None:
        """Add what has arrived."""
        self._disk(lambda: self._file.write(block))
        self.length += len(block)

    def clear(self) -> None:
        """Begin again from nothing."""
        self._disk(lambda: self._file.truncate(0))
        self._etag.unlink(missing_ok=True)
        self.length = 0

    def sha256(self) -> str:
        """Return the hash of what has arrived."""
        self._disk(self._file.flush)
        return file_sha256(self.path)

    def remove(self) -> None:
        """Leave nothing behind."""
        self._etag.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def finish(self, dest: Path) -> None:
        """Give the complete file its name."""
        self._etag.unlink(missing_ok=True)
        self._disk(lambda: self.path.replace(dest))

    @property
    def etag(self) -> str | None:
        """The version of the file at the server that this is a part of."""
        return self._etag.read_text(encoding="utf-8") if self._etag.is_file() else None

    @etag.setter
    def etag(self, value: str) -> None:
        # Only strong tags promise the same bytes, and only those may be used to continue.
        if value.startswith('"'):
            self._disk(lambda: self._etag.write_text(value, encoding="utf-8"))
        else:
            self._etag.unlink(missing_ok=True)

    def _open(self) -> BinaryIO:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self.path.open("ab")

    def _disk(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            hint = "free some room" if full else "make it writable, or set RETINASTREAM_CACHE to a folder that is"
            raise OutputError(f"the download could not be written to {self.path}: {error.strerror}; {hint}") from error


def _fetch(url: str, part: _Part, size: int | None, progress: Progress | None, timeout: float) -> None:
    """Append to ``part`` what is missing; afterwards it is complete, but its content is not checked."""
    if size is not None and part.length == size:
        return
    try:
        with urllib.request.urlopen(_request(url, part), timeout=timeout) as response:
            _receive(response, part, size, progress)
    except RetinastreamError:
        raise
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and part.length:
            # Either everything is there already, which the hash decides, or what is there is too long.
            logger.debug("%s has nothing after byte %d", url, part.length)
            return
        raise SetupError(
            f"{url} answered {error.code} {error.reason}; try again later. A file fetched another way can be used by "
            "its path"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise SetupError(
            f"{url} could not be fetched: {reason}. What has arrived is kept in {part.path}; the same command "
            "continues there"
        ) from error


def _request(url: str, part: _Part) -> urllib.request.Request:
    headers = {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity"}
    if part.length:
        headers["Range"] = f"bytes={part.length}-"
        if part.etag is not None:
            headers["If-Range"] = part.etag
    return urllib.request.Request(url, headers=headers)


def _receive(response: Any, part: _Part, size: int | None, progress: Progress | None) -> None:
    if part.length and not _continues(response, part.length):
        part.clear()
    part.etag = response.headers.get("ETag", "")
    length = response.headers.get("Content-Length")
    total = size if length is None else part.length + int(length)
    while block := response.read(_BLOCK):
        part.append(block)
        if progress is not None:
            progress(part.length, total)
    if total is not None and part.length < total:
        # http.client reports an early end only to those who read everything at once.
        raise http.client.HTTPException(f"the connection ended after {part.length} of {total} bytes")


def _continues(response: Any, offset: int) -> bool:
    """Whether the response begins at ``offset``; a server may ignore the range and begin at 0 again."""
    if response.status != http.client.PARTIAL_CONTENT:
        return False
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    if match is None or int(match[1]) != offset:
        raise http.client.HTTPException(f"the server sent another range than the one from byte {offset} on")
    return True
