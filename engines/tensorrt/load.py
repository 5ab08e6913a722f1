"""Getting at TensorRT: the driver first, because without one TensorRT fails in ways that explain nothing."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from retinastream.engines.tensorrt.log import RING, process_logger
from retinastream.engines.tensorrt.messages import failure_text
from retinastream.errors import EngineError, MissingPackageError, SetupError
from retinastream.kernels import cuda_driver

if TYPE_CHECKING:
    import tensorrt as trt

logger = logging.getLogger(__name__)

OLDEST = (10, 12)
_INSTALL = "pip install 'retinastream[tensorrt-cu13]', or 'retinastream[tensorrt-cu12]' for drivers before 580"


def require_tensorrt() -> str:
    """Make sure that TensorRT can be used, and return its version with all its numbers.

    Raises SetupError where there is no driver or GPU, and where TensorRT is too old; MissingPackageError where it is
    not installed or does not load.
    """
    state = cuda_driver.probe()
    if state.error is not None:
        raise SetupError(f"TensorRT cannot be used: {state.error}")
    return tensorrt_version()


def tensorrt_version() -> str:
    """Return the version of the TensorRT that is installed; nothing of the driver is touched."""
    try:
        import tensorrt as trt
    except ImportError as error:
        raise MissingPackageError(f"the runtime tensorrt cannot be imported ({error}): {_INSTALL}") from error
    except Exception as error:  # the package loads its libraries when it is imported, which fails in any way
        raise MissingPackageError(f"tensorrt is installed and does not load ({error}): {_INSTALL}") from error
    version: str = trt.__version__
    if version_numbers(version)[:2] < OLDEST:
        raise SetupError(f"TensorRT {version} is installed; {OLDEST[0]}.{OLDEST[1]} or newer is needed: {_INSTALL}")
    return version


def version_numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version: (11, 4, 0, 106)."""
    return tuple(int(number) for number in version.split(".") if number.isdigit())


def create_builder() -> trt.Builder:
    """Create a builder, or raise EngineError with what TensorRT said; ``require_tensorrt`` comes first."""
    import tensorrt as trt

    mark = RING.mark()
    try:
        return trt.Builder(process_logger())
    except TypeError as error:  # the binding's word for a null pointer
        raise EngineError(failure_text("TensorRT's builder does not start", RING.since(mark))) from error


def create_runtime() -> trt.Runtime:
    """Create a runtime, or raise EngineError with what TensorRT said; ``require_tensorrt`` comes first."""
    import tensorrt as trt

    mark = RING.mark()
    try:
        return trt.Runtime(process_logger())
    except TypeError as error:
        raise EngineError(failure_text("TensorRT's runtime does not start", RING.since(mark))) from error
