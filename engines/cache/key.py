"""Everything that a TensorRT plan depends on, as one key.

Two keys with the same digest may share a plan. The driver is in the key and not in the digest: an update of the driver
does not normally invalidate a plan, so it is a warning and not a miss.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

# Raised whenever the way in which this package builds an engine changes.
BUILDER_SCHEMA = 1

HardwareCompatibility = Literal["none", "same-cc", "ampere+"]
_AMPERE = (8, 0)
_GIB = 2**30

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# Hex digits of the digest that name the files; 128 bits are plenty to tell engines apart.
NAME_DIGITS = 32


class _Record(BaseModel):
    """Immutable, and strict about what it holds."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DeviceFacts(Protocol):
    """What a GPU says about itself; ``total_memory`` in bytes."""

    @property
    def name(self) -> str:
        """The model, as the driver calls it."""
        ...

    @property
    def compute_capability(self) -> tuple[int, int]:
        """Major and minor number."""
        ...

    @property
    def total_memory(self) -> int:
        """Bytes of device memory."""
        ...

    @property
    def multiprocessors(self) -> int:
        """Number of streaming multiprocessors that are visible (a MIG slice has fewer)."""
        ...


def this_system() -> str:
    """Return operating system and processor architecture, like "linux-x86_64"."""
    return f"{sys.platform}-{platform.machine().lower()}"


class Machine(_Record):
    """What a plan is bound to: the GPU, TensorRT, CUDA and the system.

    ``memory_gib`` is the GPU's memory rounded to whole GiB, because the driver's reserve varies. ``driver_cuda`` is the
    newest CUDA version that the driver serves, ``cuda_major`` the major version of the CUDA runtime in use.
    """

    tensorrt: str
    gpu: str
    compute_capability: tuple[int, int]
    multiprocessors: int
    memory_gib: int
    driver_cuda: str
    cuda_major: int
    system: str = Field(default_factory=this_system)

    @classmethod
    def of(cls, device: DeviceFacts, *, driver_cuda: tuple[int, int], tensorrt: str, cuda_major: int) -> Machine:
        """Describe a GPU of this machine with the versions that are installed."""
        return cls(
            tensorrt=tensorrt,
            gpu=device.name,
            compute_capability=device.compute_capability,
            multiprocessors=device.multiprocessors,
            memory_gib=round(device.total_memory / _GIB),
            driver_cuda=f"{driver_cuda[0]}.{driver_cuda[1]}",
            cuda_major=cuda_major,
        )


class ShapeRange(_Record):
    """The shapes of one input that a profile takes, and the one that it is tuned for."""

    minimum: tuple[int, ...]
    optimum: tuple[int, ...]
    maximum: tuple[int, ...]

    def __str__(self) -> str:
        """Write it like ``1x3x736x1280..4x3x736x1280``, or as one shape where there is only one."""
        low, high = ("x".join(map(str, shape)) for shape in (self.minimum, self.maximum))
        return low if low == high else f"{low}..{high}"


def _sorted_tuple(values: Any) -> Any:
    return tuple(sorted(values)) if isinstance(values, list | tuple | set | frozenset) else values


class EngineKey(_Record):
    """Everything that the bytes of a plan depend on.

    ``onnx_sha256`` is of the graph that the parser is given, external weights included. ``recipe`` says how the
    precision was made (block lists, tools and their versions), ``builder`` holds flags and levels, ``profiles`` one
    mapping of input name to shapes per optimisation profile, ``plugins`` the SHA-256 of plugin libraries.
    """

    onnx_sha256: Sha256
    precision: str
    recipe: dict[str, JsonValue] = Field(default_factory=dict)
    calibration_sha256: str = Field("", pattern=r"^([0-9a-f]{64})?$")
    profiles: tuple[dict[str, ShapeRange], ...]
    builder: dict[str, JsonValue] = Field(default_factory=dict)
    hardware_compatibility: HardwareCompatibility = "none"
    plugins: Annotated[tuple[Sha256, ...], BeforeValidator(_sorted_tuple)] = ()
    machine: Machine
    builder_schema: int = BUILDER_SCHEMA

    @property
    def canonical(self) -> str:
        """The key as text that is the same for equal keys, whatever order their parts were given in."""
        return canonical_json(self.model_dump(mode="json"))

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical text without what does not bind the plan, in hexadecimal digits.

        That is the driver, and for a plan that was built to be carried between GPUs what its level of compatibility
        leaves free.
        """
        return hashlib.sha256(canonical_json(self.identity()).encode()).hexdigest()

    def identity(self) -> dict[str, Any]:
        """Return the values that bind the plan, as JSON holds them."""
        values: dict[str, Any] = self.model_dump(mode="json")
        machine = values["machine"]
        for name in self.free_fields():
            del machine[name]
        if self.hardware_compatibility == "ampere+":
            machine["ampere_or_newer"] = self.machine.compute_capability >= _AMPERE
        return values

    def free_fields(self) -> tuple[str, ...]:
        """Return the fields of ``machine`` in which a plan of this key may differ from the machine that runs it."""
        if self.hardware_compatibility == "none":
            return ("driver_cuda",)
        free = ("driver_cuda", "gpu", "multiprocessors", "memory_gib")
        return free if self.hardware_compatibility == "same-cc" else (*free, "compute_capability")


def canonical_json(value: Any) -> str:
    """Return JSON that is the same for equal values: sorted names, no spaces, ASCII, no NaN or infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
