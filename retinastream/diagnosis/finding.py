"""One thing that was looked at, and what it means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "missing", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check.

    ``status`` is "ok"; "missing" for what is optional and absent; "warning" for what works with a drawback; "error" for
    what keeps detection on the CPU from working. ``remedy`` says what to do, empty where there is nothing to do.
    """

    area: str
    name: str
    status: Status
    detail: str
    remedy: str = ""
