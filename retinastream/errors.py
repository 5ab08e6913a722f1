"""The errors of this package, one class per thing that a caller may want to do about it.

A message says what was given, what is allowed, and what to do next. ``exit_code`` is what the command line returns.
"""

from typing import ClassVar


class RetinastreamError(Exception):
    """Base of every error that this package raises on purpose."""

    exit_code: ClassVar[int] = 1


class UsageError(RetinastreamError, ValueError):
    """A value that is not allowed, or two that do not go together; nothing was started."""

    exit_code = 2


class ModelError(UsageError):
    """A model file that is missing, unreadable, unknown or not a face detector."""


class SetupError(RetinastreamError):
    """This machine lacks something: a package, a runtime, a device, room on the disk, the right to write."""

    exit_code = 3


class MissingPackageError(SetupError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


class DeviceMemoryError(SetupError, MemoryError):
    """A device has not enough memory free; the message says what was asked for and what was free."""


class EngineError(SetupError):
    """TensorRT could not build, load or run an engine; the message holds what TensorRT said."""


class EngineBuildStoppedError(EngineError):
    """The build of an engine was stopped before its end, as it was asked to be."""


class OutputError(SetupError, OSError):
    """An output could not be written; what had been written before is still there."""


class InputError(RetinastreamError):
    """One input could not be read; the others of the same run are not affected."""

    exit_code = 1


class TrainingError(RetinastreamError):
    """A training run could not go on: a loss that is no number, or a state that cannot be continued from."""

    exit_code = 1
