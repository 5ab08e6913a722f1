"""From a checkpoint file to a network with its weights, recognised by content and never by name."""

from __future__ import annotations

import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from retinastream.errors import ModelError, UsageError
from retinastream.models.architectures import ALL_ARCHITECTURES, create_network
from retinastream.models.network_heads import DetectorNetwork
from retinastream.models.network_paper import PAPER_ARCHITECTURES
from retinastream.models.onnx_graph import file_sha256
from retinastream.models.spec import DetectorSpec
from retinastream.models.spec_registry import DEFAULT_SPEC, SPECS
from retinastream.models.zoo_entries import find_by_sha256

StateDict = Mapping[str, Tensor]

# What tells the two pyramids apart; its length is the number of their channels.
_LIGHT_PYRAMID, _PAPER_PYRAMID = "fpn.output1.0.weight", "fpn.lateral.0.0.weight"
_CLASS_HEAD = "ClassHead.0.conv1x1.weight"

# Everything that unpickling bytes which are no checkpoint, or only part of one, has been seen to raise.
_UNPICKLING_ERRORS = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    OverflowError,
    AssertionError,
    ImportError,
)


class LoadedCheckpoint(NamedTuple):
    """A network in evaluation mode, what it detects with, and where it came from."""

    network: DetectorNetwork
    spec: DetectorSpec
    architecture: str
    sha256: str


def load_checkpoint(
    path: str | Path, spec: DetectorSpec | None = None, architecture: str | None = None
) -> LoadedCheckpoint:
    """Load a RetinaFace checkpoint: a state dict, or one of a training run of this package (its moving average).

    The zoo knows the spec of a file by its SHA-256, and a training run writes it into its checkpoints; for others
    ``spec`` must be given. ``architecture`` is inferred from the shapes of the weights and, when given, must agree with
    them.

    Raises ModelError when the file is missing, is no checkpoint, holds another network, or does not say its spec and
    none was given.
    """
    path = Path(path)
    content = _read_content(path)
    state = _state_of(path, content)
    inferred = _infer_architecture(path, state)
    if architecture is not None and architecture != inferred:
        allowed = "" if architecture in ALL_ARCHITECTURES else f" (known are {', '.join(ALL_ARCHITECTURES)})"
        raise ModelError(
            f"{path} holds weights of {inferred}, and {architecture!r}{allowed} was asked for; leave it out"
        )
    sha256 = file_sha256(path)
    network = _network(path, state, inferred)
    written = _written_spec(path, content)
    return LoadedCheckpoint(network, _choose_spec(path, sha256, inferred, written, spec), inferred, sha256)


def read_state(path: Path) -> StateDict:
    """Read the weights of a file without running any code that it may hold; of a training run its moving average.

    Raises ModelError when the file is missing, is no checkpoint, or holds numbers that are not finite.
    """
    return _state_of(path, _read_content(path))


def _choose_spec(
    path: Path, sha256: str, architecture: str, written: DetectorSpec | None, given: DetectorSpec | None
) -> DetectorSpec:
    entry = find_by_sha256(sha256)
    known = written if entry is None else entry.detector_spec
    if known is None:
        if given is not None:
            return given
        raise ModelError(_unknown_anchors(path, sha256, architecture))
    if given is not None and replace(given, output_layout=known.output_layout) != known:
        origin = "a checkpoint of a training run" if entry is None else f"{entry.name} of the zoo"
        raise ModelError(
            f"{path} is {origin}, trained with anchors {known.anchor_sizes}; another spec was given: leave it out"
        )
    return known


def _unknown_anchors(path: Path, sha256: str, architecture: str) -> str:
    unknown = f"{path} (sha256 {sha256}) is not a checkpoint of the zoo, so its anchors are unknown"
    if architecture in PAPER_ARCHITECTURES:
        usual = "--spec retinaface-paper (three sizes per cell, 16 to 406, at strides 4 to 64)"
        return f"{unknown}. Say what it was trained with: {usual}, or a YAML or JSON file"
    return (
        f"{unknown}: files of the same "
        "name and shape trained with other anchors (10/20, 32/64, 128/256) circulate and would give wrong boxes. "
        f"Say what it was trained with: --spec {DEFAULT_SPEC} (16/32, 64/128, 256/512), another of "
        f"{', '.join(SPECS)}, or a YAML or JSON file"
    )


def _written_spec(path: Path, content: Any) -> DetectorSpec | None:
    """Return the spec that a training run wrote beside its weights."""
    if not isinstance(content, Mapping) or not isinstance(content.get("spec"), Mapping):
        return None
    try:
        return DetectorSpec.from_dict({**content["spec"], "output_layout": "fused"})
    except (UsageError, TypeError, ValueError) as error:
        raise ModelError(
            f"the spec inside {path} cannot be read ({error}); it was written by another version: give its state dict "
            "alone, with --spec"
        ) from error


def _read_content(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return _unpickle(path, file)
    except FileNotFoundError as error:
        raise ModelError(f"checkpoint {path} does not exist") from error
    except IsADirectoryError as error:
        raise ModelError(f"{path} is a directory; expected a PyTorch checkpoint (.pth)") from error
    except OSError as error:
        raise ModelError(f"checkpoint {path} cannot be read: {error.strerror or error}") from error


def _state_of(path: Path, content: Any) -> StateDict:
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ModelError(f"{path} holds no state dict of tensors; expected the checkpoint of a RetinaFace network")
    state = {str(key).removeprefix("module."): value for key, value in content.items()}
    if not all(bool(torch.isfinite(value).all()) for value in state.values()):
        raise ModelError(f"{path} holds weights that are infinite or not a number; fetch or train it again")
    return state


def _unpickle(path: Path, file: BinaryIO) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except _UNPICKLING_ERRORS as error:
        raise ModelError(_refusal(path, error)) from error


def _refusal(path: Path, error: BaseException) -> str:
    if "Unsupported global" in str(error) or "Unsupported class" in str(error):
        return (
            f"{path} holds Python code beside its weights and is not loaded, because loading would run it; save the "
            "state dict alone (torch.save(network.state_dict(), path))"
        )
    if path.stat().st_size == 0:
        return f"{path} is empty; expected a PyTorch checkpoint (.pth)"
    return f"{path} is not a complete PyTorch checkpoint; fetch it again, or give an .onnx file to read it as ONNX"


def _infer_architecture(path: Path, state: StateDict) -> str:
    backbone = _infer_backbone(state)
    paper = _PAPER_PYRAMID in state
    found = f"paper-{backbone}" if paper else backbone
    pyramid = _PAPER_PYRAMID if paper else _LIGHT_PYRAMID
    if found not in ALL_ARCHITECTURES or pyramid not in state or _CLASS_HEAD not in state:
        raise ModelError(
            f"{path} holds {len(state)} tensors ({', '.join(list(state)[:3])}, ...), which are not those of a "
            f"RetinaFace; expected one of {', '.join(ALL_ARCHITECTURES)}"
        )
    return found


def _infer_backbone(state: StateDict) -> str:
    """Name the backbone by the width of its first layer or the number of its blocks; empty where there is none."""
    stem = state.get("body.stage1.0.0.weight")
    if stem is not None:
        return {8: "mobilenetv1-x0.25", 16: "mobilenetv1-x0.5", 32: "mobilenetv1"}.get(len(stem), "")
    blocks = len({match[1] for key in state if (match := re.match(r"body\.layer3\.(\d+)\.", key))})
    if "body.layer1.0.conv3.weight" in state:
        return {6: "resnet50", 23: "resnet101", 36: "resnet152"}.get(blocks, "")
    return {2: "resnet18", 6: "resnet34"}.get(blocks, "")


def _network(path: Path, state: StateDict, architecture: str) -> DetectorNetwork:
    pyramid = _PAPER_PYRAMID if architecture in PAPER_ARCHITECTURES else _LIGHT_PYRAMID
    try:
        network = create_network(
            architecture,
            anchors_per_cell=len(state[_CLASS_HEAD]) // 2,
            pyramid_channels=len(state[pyramid]),
            deformable=any(".offsets." in key for key in state),
        )
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        reasons = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        raise ModelError(f"the weights in {path} do not fit a RetinaFace with {architecture}: {reasons[0]}") from error
    return network.eval()
