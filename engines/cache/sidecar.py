"""What lies beside a plan and says what it is: readable by a person, checked before the plan is loaded."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import Field, JsonValue, ValidationError

from retinastream import __version__
from retinastream.engines.cache.errors import DamagedPlanError
from retinastream.engines.cache.key import EngineKey, Sha256, ShapeRange, _Record, canonical_json

_FORMAT = 1
_SEAL = "sha256"


class TensorFacts(_Record):
    """One input or output of an engine; -1 in ``shape`` is a free size. ``profiles`` holds the ranges of an input."""

    name: str
    mode: Literal["input", "output"]
    dtype: str
    shape: tuple[int, ...]
    profiles: tuple[ShapeRange, ...] = ()


class BuildRecord(_Record):
    """How an engine was made, and what was found out about it.

    ``model`` is its name for people, ``log_tail`` the last lines of the builder's log, ``accuracy`` the report of the
    accuracy check, ``accepted_loss`` a sentence on the loss that the user accepted, if any.
    """

    model: str
    build_seconds: float
    tensors: tuple[TensorFacts, ...] = ()
    log_tail: tuple[str, ...] = ()
    accuracy: dict[str, JsonValue] | None = None
    accepted_loss: str | None = None
    notes: dict[str, JsonValue] = Field(default_factory=dict)


class Sidecar(_Record):
    """The file beside a plan: its key, how it was built, and the size and SHA-256 of the plan."""

    format: Literal[1] = 1
    key: EngineKey
    build: BuildRecord
    plan_sha256: Sha256
    plan_size: int
    created: str
    tool_version: str

    def to_text(self) -> str:
        """Return it as indented JSON, sealed with the SHA-256 of its own content."""
        values: dict[str, Any] = self.model_dump(mode="json")
        return json.dumps({**values, _SEAL: _seal(values)}, indent=2, sort_keys=True) + "\n"


def write_sidecar(key: EngineKey, build: BuildRecord, plan_sha256: str, plan_size: int) -> Sidecar:
    """Describe a plan that has just been built."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return Sidecar(
        key=key,
        build=build,
        plan_sha256=plan_sha256,
        plan_size=plan_size,
        created=created,
        tool_version=__version__,
    )


def read_sidecar(text: bytes, name: str) -> Sidecar:
    """Read what ``to_text`` wrote; ``name`` is for messages.

    Raises DamagedPlanError where it is no sidecar, of another format, or not as it was written.
    """
    try:
        values = json.loads(text)
    except ValueError as error:  # not JSON, or not text at all
        raise DamagedPlanError(f"{name} is not JSON ({error}); {_AGAIN}") from None
    if not isinstance(values, dict) or values.get("format") != _FORMAT:
        found = values.get("format") if isinstance(values, dict) else type(values).__name__
        raise DamagedPlanError(f"{name} has the format {found!r}, this version reads {_FORMAT}; {_AGAIN}")
    seal = values.pop(_SEAL, None)
    if seal != _seal(values):
        raise DamagedPlanError(f"{name} was changed after it had been written: its own SHA-256 differs; {_AGAIN}")
    try:
        return Sidecar.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DamagedPlanError(f"{name}: {where}: {first['msg']}; {_AGAIN}") from None


_AGAIN = "build the engine again"


def _seal(values: dict[str, Any]) -> str:
    try:
        text = canonical_json(values)
    except ValueError:  # NaN, which is none of ours
        return ""
    return hashlib.sha256(text.encode()).hexdigest()
