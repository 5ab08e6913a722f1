"""Writing a model file so that its name never stands for half of one."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

from retinastream.errors import OutputError

logger = logging.getLogger(__name__)


def save_model_file(data: bytes, out: Path) -> Path:
    """Write a model's bytes to ``out``, which gets its name when it is whole; raises OutputError."""
    partial = out.with_name(f"{out.name}.{os.getpid()}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        partial.replace(out)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise OutputError(f"the model could not be written to {out}: {error.strerror or error}") from error
    logger.debug("wrote %s (%d bytes)", out, len(data))
    return out
