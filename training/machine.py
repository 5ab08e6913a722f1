"""Where a run computes: device, precision and, under torchrun, this process's place among the others."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

from retinastream.errors import SetupError, UsageError
from retinastream.training.config import RunConfig

_TYPES = {"f32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# The others wait while the first process evaluates and saves.
_PATIENCE = timedelta(hours=2)
# Without these instructions bf16 is emulated and several times slower than float32.
_BF16_FLAGS = {"avx512_bf16", "amx_bf16"}


@dataclass(frozen=True, slots=True)
class World:
    """This process among those that torchrun started; alone it is rank 0 of 1."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether ``flag`` is set in any process; all of them must ask."""
        if self.size == 1:
            return flag
        found = torch.tensor([float(flag)], device=device)
        distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
        return bool(found.item())


@dataclass(frozen=True, slots=True)
class Machine:
    """Device and precision of a run, and why they were chosen."""

    device: torch.device
    precision: str
    reason: str
    world: World

    @property
    def dtype(self) -> torch.dtype | None:
        """The type that layers compute in, or None for float32."""
        return _TYPES[self.precision]

    def autocast(self) -> AbstractContextManager[None]:
        """Compute in the run's precision; weights and losses stay float32."""
        return torch.autocast(self.device.type, dtype=self.dtype or torch.bfloat16, enabled=self.dtype is not None)

    def describe(self) -> str:
        """One line for the start of a run."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        among = f", {self.world.size} processes" if self.world.size > 1 else ""
        return f"{self.device} ({name}), {self.precision} ({self.reason}), {torch.get_num_threads()} threads{among}"


def join_world(device: str, environment: Mapping[str, str] | None = None) -> World:
    """Join the processes of torchrun, which names them in RANK, WORLD_SIZE and LOCAL_RANK; alone without those.

    The processes talk through NCCL on CUDA and through Gloo on the CPU. Raises UsageError for values that are no
    numbers.
    """
    values = os.environ if environment is None else environment
    try:
        world = World(
            *(int(values.get(name, d)) for name, d in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")))
        )
    except ValueError:
        raise UsageError("RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers, as torchrun sets them") from None
    if world.size > 1 and not distributed.is_initialized():
        backend = "nccl" if _device_kind(device) == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=_PATIENCE)
    return world


def leave_world(world: World) -> None:
    """Part from the other processes."""
    if world.size > 1 and distributed.is_initialized():
        distributed.destroy_process_group()


def choose_machine(config: RunConfig, world: World) -> Machine:
    """Choose what the configuration leaves open. Raises SetupError for a device or precision that is not there."""
    kind = _device_kind(config.device)
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise SetupError(
                "run.device is cuda and torch sees no CUDA device; install a CUDA build of torch, or use cpu"
            )
        device = torch.device("cuda", world.local_rank)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        if config.threads:
            torch.set_num_threads(config.threads)
    precision, reason = _choose_precision(config.precision, kind)
    return Machine(device, precision, reason, world)


def _device_kind(wanted: str) -> str:
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted


def _choose_precision(wanted: str, kind: str) -> tuple[str, str]:
    if wanted == "fp16" and kind == "cpu":
        raise UsageError("run.precision fp16 is for CUDA; on the CPU choose f32, bf16 or auto")
    if wanted != "auto":
        return wanted, "as configured"
    if kind == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "the GPU computes in it"
        return "fp16", "the GPU has no bf16"
    found = _BF16_FLAGS & _processor_flags()
    return ("bf16", f"the processor has {sorted(found)[0]}") if found else ("f32", "the processor has no bf16")


def _processor_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return set()
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return set(line.partition(":")[2].split())
