"""The complete state of a run on disk: written whole or not at all, and checked before it is taken over."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retinastream.errors import ModelError, OutputError, TrainingError, UsageError

FORMAT = 1
_NAME = re.compile(r"step-(\d{8})\.pth")
_REQUIRED = ("format", "step", "config", "architecture", "data_sha256", "network", "state_dict", "optimiser", "rng")


def checkpoint_name(step: int) -> str:
    """Name the checkpoint after ``step`` finished steps."""
    return f"step-{step:08d}.pth"


def saved_steps(folder: Path) -> list[tuple[int, Path]]:
    """List the numbered checkpoints of a folder, oldest first."""
    found = [(int(match[1]), path) for path in folder.glob("step-*.pth") if (match := _NAME.fullmatch(path.name))]
    return sorted(found)


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` so that ``path`` holds either what it held before or all of it, also after a power cut.

    Raises OutputError where the disk is full or the folder cannot be written; an older file stays.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        with contextlib.suppress(OSError):
            partial.unlink()
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"checkpoint {path} could not be written: {reason}; older ones are untouched") from error


def prune(folder: Path, keep: int) -> None:
    """Remove all but the ``keep`` latest numbered checkpoints."""
    for _, path in saved_steps(folder)[:-keep]:
        path.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this trainer to the CPU, without running code that it may hold.

    Raises UsageError where the file is missing, damaged, or something else.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UsageError(f"checkpoint {path} does not exist") from error
    except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, OSError, EOFError, ValueError) as error:
        raise UsageError(
            f"checkpoint {path} cannot be read ({_first_line(error)}); remove it to resume from the one before"
        ) from error
    missing = [name for name in _REQUIRED if name not in content] if isinstance(content, dict) else list(_REQUIRED)
    if missing:
        raise UsageError(f"{path} is no checkpoint of a training run: it lacks {', '.join(missing)}")
    if content["format"] != FORMAT:
        raise UsageError(f"{path} has format {content['format']}; this version reads format {FORMAT}")
    return dict(content)


def check_fits(origin: str, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Compare names and shapes with those of a network; ModelError names the first tensor that differs."""
    for name, value in wanted.items():
        if name not in state:
            raise ModelError(f"{origin} is of another architecture: it lacks {name} of shape {tuple(value.shape)}")
        if state[name].shape != value.shape:
            raise ModelError(
                f"{origin} is of another architecture: {name} has shape {tuple(state[name].shape)} there and "
                f"{tuple(value.shape)} in this network"
            )
    extra = next((name for name in state if name not in wanted), None)
    if extra is not None:
        raise ModelError(
            f"{origin} is of another architecture: it holds {extra} of shape {tuple(state[extra].shape)}, which this "
            "network does not have"
        )


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Hash names and values of a state dict on the CPU, the same however its tensors lie in memory."""
    digest = hashlib.sha256()
    for name, value in state.items():
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def rng_state() -> dict[str, Any]:
    """Return the state of torch's generators, CPU and every CUDA device."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def restore_rng(state: Mapping[str, Any]) -> None:
    """Take over what ``rng_state`` returned; TrainingError where the number of CUDA devices is another."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.is_available():
        if len(state["cuda"]) != torch.cuda.device_count():
            raise TrainingError(
                f"the checkpoint was written with {len(state['cuda'])} CUDA devices in sight and there are "
                f"{torch.cuda.device_count()}; set CUDA_VISIBLE_DEVICES as before"
            )
        torch.cuda.set_rng_state_all(state["cuda"])


def _sync_folder(folder: Path) -> None:
    """Make a rename last: on Linux the folder has its own cache."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]
