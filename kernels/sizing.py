"""At which size a picture is shown to the network, and how coordinates map back.

No policy resizes silently: the caller names one, and what it means for a picture is a list of placements, one per pass.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from retinastream.errors import UsageError

# The reduced pass of `pyramid`. At 640 px on the long side the largest anchor, 512 px, spans most of the picture
# whatever its resolution, and the pass costs under 3 % of a native 4K one.
PYRAMID_LONG_SIDE = 640

_ALLOWED = "native, fit:<long side>, short:<short side>,max:<long side>, pyramid or auto"


@dataclass(frozen=True, slots=True)
class Placement:
    """One pass of one picture through the network.

    The upright source of ``source_width`` x ``source_height`` pixels is resampled to ``width`` x ``height``, put at the
    top left of the input and padded at the right and bottom to ``padded_width`` x ``padded_height``.
    """

    source_width: int
    source_height: int
    width: int
    height: int
    padded_width: int
    padded_height: int

    @property
    def scale_x(self) -> float:
        """Network pixels per source pixel along x; positions divide by it."""
        return self.width / self.source_width

    @property
    def scale_y(self) -> float:
        """Network pixels per source pixel along y."""
        return self.height / self.source_height


@dataclass(frozen=True, slots=True)
class SizePolicy:
    """A parsed size policy.

    native
        every pixel as it is: finds the small faces of a 4K frame;
    fit:L
        reduced so that the long side is at most L, never enlarged;
    short:S,max:L
        the rule of the RetinaFace lineage: the short side becomes S, unless the long side would exceed L; enlarges too;
    pyramid
        native and a pass at 640 px, merged before NMS: also finds faces beyond the largest anchor.
    """

    kind: Literal["native", "fit", "short", "pyramid"]
    long_side: int = 0
    short_side: int = 0

    @classmethod
    def parse(cls, text: str) -> SizePolicy:
        """Parse ``native``, ``fit:1280``, ``short:800,max:1200`` or ``pyramid``; UsageError otherwise."""
        plain = text.strip().lower()
        if plain in ("native", "pyramid"):
            return cls(plain)  # type: ignore[arg-type]
        if match := re.fullmatch(r"fit:(\d+)", plain):
            return cls("fit", long_side=_side(text, match[1]))
        if match := re.fullmatch(r"short:(\d+),max:(\d+)", plain):
            policy = cls("short", long_side=_side(text, match[2]), short_side=_side(text, match[1]))
            if policy.long_side < policy.short_side:
                raise UsageError(f"size {text!r}: the long side's limit is below the short side; expected short <= max")
            return policy
        raise UsageError(f"size {text!r} is not known; allowed are {_ALLOWED}")

    def __str__(self) -> str:
        """Return the text form that ``parse`` reads."""
        if self.kind == "fit":
            return f"fit:{self.long_side}"
        if self.kind == "short":
            return f"short:{self.short_side},max:{self.long_side}"
        return self.kind

    def scale(self, width: int, height: int) -> float:
        """Network pixels per source pixel of the first pass, before rounding to whole pixels."""
        long_side, short_side = max(width, height), min(width, height)
        if self.kind == "fit":
            return min(1.0, self.long_side / long_side)
        if self.kind == "short":
            return min(self.short_side / short_side, self.long_side / long_side)
        return 1.0

    def placements(
        self, width: int, height: int, stride: int, fixed: tuple[int, int] | None = None
    ) -> tuple[Placement, ...]:
        """Passes for an upright picture of this size, padded to multiples of ``stride``.

        A network that takes one size only pads to ``fixed``, its (width, height); UsageError where a pass is larger.
        """
        scales = [self.scale(width, height)]
        if self.kind == "pyramid" and max(width, height) > PYRAMID_LONG_SIDE:
            scales.append(PYRAMID_LONG_SIDE / max(width, height))
        placed = tuple(_place(width, height, scale, stride) for scale in scales)
        return placed if fixed is None else tuple(self._pad_to(p, *fixed) for p in placed)

    def _pad_to(self, placement: Placement, width: int, height: int) -> Placement:
        if placement.width > width or placement.height > height:
            raise UsageError(
                f"a picture of {placement.source_width}x{placement.source_height} at size {self} is "
                f"{placement.width}x{placement.height}, but the model takes {width}x{height} only; choose "
                f"--size fit:{min(width, height)}, or export the model with dynamic height and width"
            )
        return replace(placement, padded_width=width, padded_height=height)


def _side(text: str, digits: str) -> int:
    value = int(digits)
    if not 32 <= value <= 16384:
        raise UsageError(f"size {text!r}: {value} is out of range; a side is 32 to 16384 pixels")
    return value


def _place(width: int, height: int, scale: float, stride: int) -> Placement:
    w, h = max(1, round(width * scale)), max(1, round(height * scale))
    return Placement(width, height, w, h, -(-w // stride) * stride, -(-h // stride) * stride)
