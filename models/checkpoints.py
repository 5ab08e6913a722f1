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

from retinastream.errors import ModelError
from retinastream.models.network import ARCHITECTURES, RetinaFace
from retinastream.models.onnx_graph import file_sha256
from retinastream.models.spec import DetectorSpec
from retinastream.models.spec_registry import DEFAULT_SPEC, SPECS
from retinastream.models.zoo_entries import find_by_sha256

StateDict = Mapping[str, Tensor]

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

    network: RetinaFace
    spec: DetectorSpec
    architecture: str
    sha256: str


def load_checkpoint(
    path: str | Path, spec: DetectorSpec | None = None, architecture: str | None = None
) -> LoadedCheckpoint:
    """Load a RetinaFace checkpoint; the zoo knows the spec of a file by its SHA-256.

    ``spec`` must be given for files the zoo does not know. ``architecture`` is inferred from the shapes of the weights
    and, when given, must agree with them.

    Raises ModelError when the file is missing, is no checkpoint, holds another network, or is unknown and no spec was
    given.
    """
    path = Path(path)
    state = _read_state(path)
    inferred = _infer_architecture(path, state)
    if architecture is not None and architecture != inferred:
        allowed = "" if architecture in ARCHITECTURES else f" (known are {', '.join(ARCHITECTURES)})"
        raise ModelError(
            f"{path} holds weights of {inferred}, and {architecture!r}{allowed} was asked for; leave it out"
        )
    sha256 = file_sha256(path)
    network = _network(path, state, inferred)
    return LoadedCheckpoint(network, _choose_spec(path, sha256, spec), inferred, sha256)


def _choose_spec(path: Path, sha256: str, given: DetectorSpec | None) -> DetectorSpec:
    entry = find_by_sha256(sha256)
    known = None if entry is None else entry.detector_spec
    if entry is None or known is None:
        if given is not None:
            return given
        raise ModelError(
            f"{path} (sha256 {sha256}) is not a checkpoint of the zoo, so its anchors are unknown: files of the same "
            "name and shape trained with other anchors (10/20, 32/64, 128/256) circulate and would give wrong boxes. "
            f"Say what it was trained with: --spec {DEFAULT_SPEC} (16/32, 64/128, 256/512), another of "
            f"{', '.join(SPECS)}, or a YAML or JSON file"
        )
    if given is not None and replace(given, output_layout=known.output_layout) != known:
        raise ModelError(
            f"{path} is {entry.name} of the zoo, trained with anchors {known.anchor_sizes}; another spec was given: "
            "leave it out"
        )
    return known


def _read_state(path: Path) -> StateDict:
    """Read the tensors of a file without running any code that it may hold."""
    try:
        with path.open("rb") as file:
            content = _unpickle(path, file)
    except FileNotFoundError as error:
        raise ModelError(f"checkpoint {path} does not exist") from error
    except IsADirectoryError as error:
        raise ModelError(f"{path} is a directory; expected a PyTorch checkpoint (.pth)") from error
    except OSError as error:
        raise ModelError(f"checkpoint {path} cannot be read: {error.strerror or error}") from error
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
    stem = state.get("body.stage1.0.0.weight")
    if stem is not None:
        found = {8: "mobilenetv1-x0.25", 16: "mobilenetv1-x0.5", 32: "mobilenetv1"}.get(len(stem))
    elif "body.layer1.0.conv3.weight" in state:
        found = "resnet50"
    else:
        blocks = {match[1] for key in state if (match := re.match(r"body\.layer3\.(\d+)\.", key))}
        found = {2: "resnet18", 6: "resnet34"}.get(len(blocks))
    if found is None or "fpn.output1.0.weight" not in state or "ClassHead.0.conv1x1.weight" not in state:
        raise ModelError(
            f"{path} holds {len(state)} tensors ({', '.join(list(state)[:3])}, ...), which are not those of a "
            f"RetinaFace; expected one with a backbone of {', '.join(ARCHITECTURES)}"
        )
    return found


def _network(path: Path, state: StateDict, architecture: str) -> RetinaFace:
    try:
        network = RetinaFace(
            architecture,
            anchors_per_cell=len(state["ClassHead.0.conv1x1.weight"]) // 2,
            pyramid_channels=len(state["fpn.output1.0.weight"]),
        )
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        reasons = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        raise ModelError(f"the weights in {path} do not fit a RetinaFace with {architecture}: {reasons[0]}") from error
    return network.eval()
