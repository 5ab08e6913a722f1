"""What TensorRT learned while it timed kernels: one cache per GPU and version, so that the next build is quicker.

It may hold compiled kernels, so it is read under the same rules as a plan, and begins with the SHA-256 of the rest: one
file cannot be half of an old and half of a new state.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from retinastream.engines.cache import durable
from retinastream.engines.cache.errors import UntrustedPlanError
from retinastream.engines.cache.key import Machine, canonical_json
from retinastream.engines.cache.trust import open_folder, open_trusted
from retinastream.errors import OutputError

logger = logging.getLogger(__name__)

TIMING_SUFFIX = ".timing"
_MAGIC = b"retinastream timing 1\n"
_SHA_BYTES = 32
_NAME_DIGITS = 16


def timing_path(folder: Path, machine: Machine) -> Path:
    """Return where the timings of this GPU model under this TensorRT lie."""
    bound = machine.model_dump(mode="json", exclude={"driver_cuda"})
    name = hashlib.sha256(canonical_json(bound).encode()).hexdigest()[:_NAME_DIGITS]
    return folder / f"{name}{TIMING_SUFFIX}"


def read_timings(folder: Path, machine: Machine) -> bytes:
    """Return what was kept; empty where there is nothing, or nothing to be trusted, which is logged."""
    path = timing_path(folder, machine)
    try:
        with open_folder(folder) as descriptor, open_trusted(descriptor, path.name, path) as file:
            content = file.read()
    except FileNotFoundError:
        return b""
    except (OSError, UntrustedPlanError) as error:
        logger.warning("the timings of earlier builds are not used: %s", error)
        return b""
    start = len(_MAGIC) + _SHA_BYTES
    if not content.startswith(_MAGIC) or hashlib.sha256(content[start:]).digest() != content[len(_MAGIC) : start]:
        logger.warning("the timings of earlier builds are not used: %s is damaged", path)
        return b""
    return content[start:]


def write_timings(folder: Path, machine: Machine, data: bytes | memoryview) -> None:
    """Keep the timings of a build, in place of older ones; a failure only costs time later, and is logged."""
    data = bytes(data)
    try:
        durable.make_private_folder(folder)
        durable.write_durably(timing_path(folder, machine), _MAGIC + hashlib.sha256(data).digest() + data)
    except OutputError as error:
        logger.warning("the timings of this build are not kept: %s", error)
