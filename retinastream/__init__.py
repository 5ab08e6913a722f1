"""Finds faces in video at full 4K resolution.

The public names are resolved on first use (PEP 562), so that importing the package, or one of its rooms, never brings
in a runtime, a decoder or a framework that is not used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retinastream.errors import RetinastreamError
    from retinastream.models.spec import DetectorSpec
    from retinastream.pipeline.detector import Detector
    from retinastream.pipeline.video import open_video
    from retinastream.types import Faces, Frame

__version__ = "0.1.0"

_HOME = {
    "Detector": "retinastream.pipeline.detector",
    "DetectorSpec": "retinastream.models.spec",
    "Faces": "retinastream.types",
    "Frame": "retinastream.types",
    "RetinastreamError": "retinastream.errors",
    "open_video": "retinastream.pipeline.video",
}

__all__ = ["Detector", "DetectorSpec", "Faces", "Frame", "RetinastreamError", "__version__", "open_video"]


def __getattr__(name: str) -> Any:
    """Import a public name from its room on first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'retinastream' has no attribute {name!r}; it has {', '.join(sorted(_HOME))}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted(__all__)
