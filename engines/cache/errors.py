"""What can be wrong with an engine that was kept."""

from __future__ import annotations

from retinastream.errors import SetupError


class UntrustedPlanError(SetupError):
    """A plan, its sidecar or their folder could have been written by somebody else; it is not loaded."""


class DamagedPlanError(SetupError):
    """A plan or its sidecar is not what was written: truncated, changed, or another file altogether."""


class PlanRejectedError(SetupError):
    """A plan is intact, and TensorRT does not take it; the message holds what TensorRT said."""


class EngineMissingError(SetupError):
    """No engine for this key is kept, and building one was not allowed."""
