"""Where the weights of a run start: random, an ImageNet backbone, or a whole network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from retinastream.errors import ModelError
from retinastream.models.checkpoints import read_state
from retinastream.training.checkpoint import check_fits

# What a classifier has and a detector has not.
_CLASSIFIER = ("fc.", "classifier.", "avgpool.")


@dataclass(frozen=True, slots=True)
class StartReport:
    """Which tensors of a network came from a file: names in the network's spelling."""

    path: Path
    taken: tuple[str, ...]
    dropped: tuple[str, ...]
    untouched: tuple[str, ...]

    def __str__(self) -> str:
        """One sentence for the log of a run."""
        dropped = f", {len(self.dropped)} of the file not used ({', '.join(self.dropped)})" if self.dropped else ""
        return f"weights from {self.path}: {len(self.taken)} tensors taken{dropped}; {len(self.untouched)} start random"


def load_backbone(network: nn.Module, path: str | Path) -> StartReport:
    """Fill the backbone of ``network`` from a classification checkpoint; heads and pyramid are left as they are.

    Names may carry ``module.`` or ``model.``; the classifier is dropped. Raises ModelError for a missing or unreadable
    file, and where backbone and file do not fit: the first tensor that differs is named.
    """
    path = Path(path)
    state = read_state(path)
    if any(name.startswith("body.") for name in state):
        raise ModelError(f"{path} holds a whole detector, no backbone alone; give it as model.weights")
    found = {f"body.{name.removeprefix('model.')}": value for name, value in state.items()}
    dropped = [name for name in found if name.removeprefix("body.").startswith(_CLASSIFIER)]
    kept = {name: value for name, value in found.items() if name not in dropped}
    wanted = {name: value for name, value in network.state_dict().items() if name.startswith("body.")}
    # Files of old PyTorch versions lack this counter, which only matters for a momentum of None.
    kept.update({n: v for n, v in wanted.items() if n.endswith("num_batches_tracked") and n not in kept})
    _take(path, kept, wanted)
    plain = tuple(name.removeprefix("body.") for name in dropped)
    untouched = tuple(name for name in network.state_dict() if name not in wanted)
    return StartReport(path, tuple(kept), plain, untouched)


def load_network(network: nn.Module, path: str | Path) -> StartReport:
    """Fill the whole of ``network`` from a checkpoint of the same architecture.

    It is one of this trainer, whose moving average is taken, or a plain state dict.
    Raises ModelError for a missing or unreadable file, or another architecture: the first tensor that differs is named.
    """
    if Path(path).suffix == ".onnx":
        raise ModelError(f"{path} is ONNX, whose weights are merged for use; give the checkpoint (.pth) it was made of")
    state = read_state(Path(path))
    _take(Path(path), state, network.state_dict())
    return StartReport(Path(path), tuple(state), (), ())


def _take(path: Path, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Copy into the tensors of ``wanted``, which share the memory of the network's."""
    check_fits(str(path), state, wanted)
    with torch.no_grad():
        for name, value in wanted.items():
            value.copy_(state[name])
