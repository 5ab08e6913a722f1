"""What to build: shapes and builder settings, as plain immutable values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from retinastream.errors import UsageError
from retinastream.models.onnx_file import OnnxModel

Shape = tuple[int, int, int, int]
HardwareCompatibility = Literal["none", "same-cc", "ampere+"]

DEFAULT_WORKSPACE = 4 << 30
MAX_BATCH = 64
_SIZE = re.compile(r"(\d+)\s*[xX×]\s*(\d+)")
_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


@dataclass(frozen=True, slots=True)
class ShapeProfile:
    """The shapes (batch, 3, height, width) that one optimisation profile takes, and the one that it is tuned for."""

    minimum: Shape
    optimum: Shape
    maximum: Shape

    def __post_init__(self) -> None:
        """Refuse shapes that are out of order."""
        for shape in self._shapes():
            if len(shape) != 4 or min(shape) < 1:
                raise UsageError(
                    f"the shape {_text(shape)} is not allowed; expected BATCHx3xHEIGHTxWIDTH, such as 1x3x736x1280"
                )
        for low, high, names in (
            (self.minimum, self.optimum, "smallest and best"),
            (self.optimum, self.maximum, "best and largest"),
        ):
            if any(a > b for a, b in zip(low, high, strict=True)):
                raise UsageError(
                    f"the {names} shapes of a profile are {_text(low)} and {_text(high)}; expected smallest <= best "
                    "<= largest in every dimension"
                )

    def __str__(self) -> str:
        """Write it like ``1x3x736x1280..8x3x736x1280``."""
        low, high = _text(self.minimum), _text(self.maximum)
        return low if low == high else f"{low}..{high}"

    def _shapes(self) -> tuple[Shape, Shape, Shape]:
        return self.minimum, self.optimum, self.maximum


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """Everything that TensorRT's builder is told; ``workspace`` in bytes.

    ``optimization_level`` is 0 to 5: how long to search. ``hardware_compatibility`` "same-cc" makes a plan that other
    GPUs of the same compute capability take, "ampere+" all GPUs from Ampere on, both at some cost in speed.
    ``version_compatible`` lets newer versions of TensorRT load it. ``max_aux_streams`` None leaves the number of extra
    streams to TensorRT. ``tf32`` lets float32 layers round their factors to 10 bits.
    """

    profiles: tuple[ShapeProfile, ...] = ()
    workspace: int = DEFAULT_WORKSPACE
    optimization_level: int = 3
    hardware_compatibility: HardwareCompatibility = "none"
    version_compatible: bool = False
    max_aux_streams: int | None = None
    tf32: bool = False

    def __post_init__(self) -> None:
        """Refuse values that the builder does not take."""
        if not 0 <= self.optimization_level <= 5:
            raise UsageError(
                f"builder optimisation level {self.optimization_level} is out of range; allowed are 0 to 5"
            )
        if self.hardware_compatibility not in get_args(HardwareCompatibility):
            raise UsageError(
                f"hardware compatibility {self.hardware_compatibility!r} is not known; allowed are "
                f"{', '.join(get_args(HardwareCompatibility))}"
            )
        if self.workspace < 1 << 20:
            raise UsageError(f"a workspace of {self.workspace} bytes was given; expected at least 1 MiB")
        if self.max_aux_streams is not None and not 0 <= self.max_aux_streams <= 7:
            raise UsageError(f"{self.max_aux_streams} auxiliary streams were asked for; allowed are 0 to 7")

    def builder_values(self) -> dict[str, Any]:
        """Return all but the shapes, as JSON can hold it."""
        values = asdict(self)
        del values["profiles"]
        return values

    @classmethod
    def checked(cls, **values: Any) -> BuildOptions:
        """Make options of values that nobody has looked at, such as those of a command line; UsageError names them."""
        return cls(**values)

    @classmethod
    def from_values(
        cls,
        values: Mapping[str, Any],
        profiles: tuple[ShapeProfile, ...],
        hardware_compatibility: HardwareCompatibility,
    ) -> BuildOptions:
        """Make options of what ``builder_values`` returned; names of another version are left out."""
        known = {name: value for name, value in values.items() if name in cls.__dataclass_fields__}
        return cls(**{**known, "profiles": profiles, "hardware_compatibility": hardware_compatibility})


def profile_for(height: int, width: int, batches: Sequence[int]) -> ShapeProfile:
    """Make the profile of one picture size; ``batches`` is one, or smallest and largest, or with the best between."""
    if not 1 <= len(batches) <= 3:
        raise UsageError(
            f"{len(batches)} batches were given; expected one, or smallest,largest, or smallest,best,largest"
        )
    if not all(1 <= batch <= MAX_BATCH for batch in batches):
        raise UsageError(f"batches {list(batches)} are out of range; allowed are 1 to {MAX_BATCH}")
    low, best, high = (batches[0], batches[len(batches) // 2], batches[-1])
    return ShapeProfile((low, 3, height, width), (best, 3, height, width), (high, 3, height, width))


def profiles_for(
    model: OnnxModel, sizes: Sequence[tuple[int, int]], batches: Sequence[int]
) -> tuple[ShapeProfile, ...]:
    """Make one profile per picture size (width, height), padded to a multiple of the model's largest stride.

    Sizes that are the same once padded share a profile. UsageError for a size that a model of fixed size does not take.
    """
    step = model.spec.max_stride
    padded = dict.fromkeys((-(-height // step) * step, -(-width // step) * step) for width, height in sizes)
    profiles = tuple(profile_for(height, width, batches) for height, width in padded)
    for profile in profiles:
        check_fits(model, profile)
    return profiles


def check_fits(model: OnnxModel, profile: ShapeProfile) -> None:
    """Refuse a profile with other sizes than those that a model fixes."""
    for name, fixed, low, high in zip(
        ("batch", "channels", "height", "width"), model.input_shape, profile.minimum, profile.maximum, strict=True
    ):
        if fixed is not None and (low != fixed or high != fixed):
            raise UsageError(
                f"the model {model.name} has a fixed {name} of {fixed} and the profile {profile} was asked for; "
                f"give {name} {fixed}, or export the model with free sizes"
            )


def parse_size(text: str) -> tuple[int, int]:
    """Read "3840x2160" as (width, height)."""
    found = _SIZE.fullmatch(text.strip())
    if not found or not (int(found[1]) and int(found[2])):
        raise UsageError(f"the size {text!r} is not understood; expected WIDTHxHEIGHT, such as 3840x2160")
    return int(found[1]), int(found[2])


def parse_batches(text: str) -> tuple[int, ...]:
    """Read "1,8,16" as smallest, best and largest batch; UsageError where they are out of order."""
    try:
        batches = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"the batch {text!r} is not understood; expected numbers, such as 8 or 1,8,16") from None
    if list(batches) != sorted(batches):
        raise UsageError(f"the batches {text!r} are out of order; expected smallest,best,largest, such as 1,8,16")
    return batches


def parse_profile(minimum: str, optimum: str, maximum: str, input_name: str) -> ShapeProfile:
    """Read the shapes as trtexec writes them: "images:1x3x736x1280", or without the name."""
    return ShapeProfile(*(_parse_shape(text, input_name) for text in (minimum, optimum, maximum)))


def parse_bytes(text: str) -> int:
    """Read "4G", "512M" or a plain number of bytes; units are powers of 1024."""
    found = _BYTES.fullmatch(text.strip())
    if not found:
        raise UsageError(
            f"the amount of memory {text!r} is not understood; expected a number and K, M or G, such as 4G"
        )
    return int(float(found[1]) * (1 << _UNITS[found[2].upper()]))


def _parse_shape(text: str, input_name: str) -> Shape:
    name, separator, dimensions = text.strip().rpartition(":")
    if separator and name.strip("'\"") != input_name:
        raise UsageError(f"the shape {text!r} is for an input {name!r}; the model's input is {input_name!r}")
    try:
        batch, channels, height, width = (int(part) for part in dimensions.lower().split("x"))
    except ValueError:
        raise UsageError(
            f"the shape {text!r} is not understood; expected BATCHx3xHEIGHTxWIDTH, such as {input_name}:1x3x736x1280"
        ) from None
    return batch, channels, height, width


def _text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
