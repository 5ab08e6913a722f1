"""The torch package, imported where its runtimes need it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from retinastream.errors import MissingPackageError, UsageError

# Of files: weights in half precision are numbers like others, and follow the precision of the network.
_READABLE = ("f32", "fp16")

if TYPE_CHECKING:
    import torch

    from retinastream.models.onnx_file import OnnxModel
    from retinastream.models.torch_graph import TorchGraph


def load_torch() -> Any:
    """Import torch; MissingPackageError where it is not installed or does not load."""
    try:
        import torch
    except ImportError as error:
        raise MissingPackageError("the runtime torch is not installed: pip install torch") from error
    except OSError as error:  # its libraries, when they do not fit together
        raise MissingPackageError(f"torch does not load ({error}): install it again, see pytorch.org") from error
    return torch


def load_network(model: OnnxModel, dtype: torch.dtype) -> TorchGraph:
    """Read a model into a torch module on the CPU in a precision, channels last.

    Raises UsageError for a quantised file, ModelError for one with operators that have no translation.
    """
    if model.precision not in _READABLE:
        raise UsageError(
            f"{model.path} is {model.precision}, and runtime torch runs files in {' and '.join(_READABLE)}; give the "
            "float32 model, or use the runtime tensorrt on a GPU, onnxruntime on the CPU"
        )
    from retinastream.models.torch_graph import load_torch_graph

    network: Any = load_torch_graph(model).eval()
    # Convolutions read channels last without reordering, on tensor cores and in oneDNN alike.
    network.to(dtype=dtype).to(memory_format=load_torch().channels_last)
    ready: TorchGraph = network
    return ready
