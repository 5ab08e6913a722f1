"""What came of a run: every input, every frame, every output."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from retinastream.errors import RetinastreamError, SetupError, UsageError
from retinastream.pipeline.source import SourceCounts
from retinastream.pipeline.stages import PipelineStats

Status = Literal["waiting", "running", "done", "failed", "interrupted"]


@dataclass(slots=True, eq=False)
class InputReport:
    """One input's fate.

    ``source`` counts what was read; ``detected`` the frames that went through the detector, ``written`` those that
    every output has. ``lost`` frames were read but not written, which only a failure can cause. Always:
    read == decoded + corrupt, decoded == skipped + written + lost.
    """

    name: str
    kind: Literal["video", "images"] = "video"
    status: Status = "waiting"
    error: RetinastreamError | None = None
    outputs: list[str] = field(default_factory=list)
    source: SourceCounts = field(default_factory=SourceCounts)
    promised: int | None = None
    detected: int = 0
    written: int = 0
    faces: int = 0
    seconds: float = 0.0
    warnings: list[str] = field(default_factory=list)
    failures: list[tuple[str, RetinastreamError]] = field(default_factory=list)
    stats: PipelineStats | None = None

    @property
    def lost(self) -> int:
        """Frames that were decoded and wanted but did not reach every output."""
        return self.source.delivered - self.written

    @property
    def fps(self) -> float:
        """Frames written per second of wall time, opening and closing included."""
        return self.written / self.seconds if self.seconds > 0 else 0.0

    @property
    def failed(self) -> bool:
        """Whether this input, or a part of it, could not be processed."""
        return self.status == "failed" or bool(self.failures)

    def counts(self) -> dict[str, int | None]:
        """Every count by name, for the end record of outputs and for the summary."""
        return {
            "promised": self.promised,
            "packets": self.source.packets,
            "read": self.source.read,
            "decoded": self.source.decoded,
            "corrupt": self.source.corrupt,
            "damaged": self.source.damaged,
            "skipped": self.source.skipped,
            "detected": self.detected,
            "written": self.written,
            "lost": self.lost,
            "faces": self.faces,
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            "kind": self.kind,
            "status": self.status,
            "error": str(self.error) if self.error else None,
            "outputs": self.outputs,
            "frames": self.counts(),
            "seconds": round(self.seconds, 3),
            "fps": round(self.fps, 3),
            "warnings": self.warnings,
            "failures": [{"name": name, "error": str(error)} for name, error in self.failures],
            "stats": self.stats.to_dict() if self.stats else None,
        }


@dataclass(slots=True, eq=False)
class RunReport:
    """The fate of all inputs of one call, remarks on how they were named, and what ran them (empty if nothing did)."""

    inputs: list[InputReport] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    detector: dict[str, Any] = field(default_factory=dict)
    interrupted: bool = False
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """0 all done, 1 some inputs failed, 2 all were wrong usage, 3 the environment failed, 130 interrupted."""
        if self.interrupted:
            return 130
        errors = [r.error for r in self.inputs if r.error] + [e for r in self.inputs for _, e in r.failures]
        if any(isinstance(e, SetupError) for e in errors):
            return 3
        if errors and all(isinstance(r.error, UsageError) for r in self.inputs):
            return 2
        return 1 if errors else 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: the one object that ``--json`` prints."""
        return {
            "exit_code": self.exit_code,
            "interrupted": self.interrupted,
            "seconds": round(self.seconds, 3),
            "detector": self.detector,
            "notes": self.notes,
            "inputs": [r.to_dict() for r in self.inputs],
            "failed": sum(r.failed for r in self.inputs),
        }
