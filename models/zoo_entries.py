"""The models known by name: what they are, where they come from and on which terms (``configs/zoo.yaml``)."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from retinastream.models.spec import DetectorSpec
from retinastream.models.spec_registry import SPECS


class AveragePrecision(BaseModel):
    """Published AP on WIDER FACE val in per cent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    easy: float
    medium: float
    hard: float


class ZooEntry(BaseModel):
    """One model of the zoo; ``bundled``, ``url`` or ``manual`` says where it is or how to get it.

    ``bundled`` is the name of a file in ``models/weights``, which is part of the package.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    kind: Literal["detector", "embedder"]
    description: str
    format: Literal["onnx", "checkpoint"]
    bundled: str | None = None
    url: str | None = None
    manual: str | None = None
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int | None = Field(default=None, gt=0)
    licence: str
    architecture: str | None = None
    spec: str | None = None
    average_precision: AveragePrecision | None = None

    @model_validator(mode="after")
    def _is_complete(self) -> ZooEntry:
        ways = [way for way in (self.bundled, self.url, self.manual) if way is not None]
        if len(ways) != 1:
            raise ValueError(f"{self.name}: give one of bundled, url and manual, not {len(ways)}")
        if self.bundled is not None and self.format != "onnx":
            raise ValueError(f"{self.name}: only an onnx file can be bundled")
        if self.spec is not None and self.spec not in SPECS:
            raise ValueError(f"{self.name}: unknown spec {self.spec!r}; known are {', '.join(SPECS)}")
        if self.kind == "detector" and self.spec is None:
            raise ValueError(f"{self.name}: a detector needs a spec")
        return self

    @property
    def detector_spec(self) -> DetectorSpec | None:
        """The spec of a detector, None for an embedder."""
        return None if self.spec is None else SPECS[self.spec]


def parse_zoo(text: str) -> dict[str, ZooEntry]:
    """Build the zoo from YAML; raises ValueError for unknown or missing keys."""
    table: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return {name: ZooEntry(name=name, **values) for name, values in table.items()}


@cache
def zoo() -> dict[str, ZooEntry]:
    """All models that ship with a name, in the order of the list."""
    return parse_zoo(resources.files("retinastream.configs").joinpath("zoo.yaml").read_text(encoding="utf-8"))


def find_by_sha256(sha256: str) -> ZooEntry | None:
    """Return the entry whose file has this hash."""
    return next((entry for entry in zoo().values() if entry.sha256 == sha256), None)
