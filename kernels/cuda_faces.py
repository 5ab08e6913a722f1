"""From head maps to faces by the CUDA kernels: their structures, their buffers, and the order in which they run.

Nothing here knows what executes a kernel: ``Launch`` does, on a GPU or on the host, and arrays are those of its memory.
The reference is decode.py and postprocess.py, of which it gives the counts too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from retinastream.errors import UsageError
from retinastream.kernels.decode import level_offsets, score_logit
from retinastream.kernels.postprocess import PRE_NMS_LIMIT
from retinastream.kernels.sizing import Placement
from retinastream.models.spec import DetectorSpec

# Of anchors.cuh, candidates.cuh and nms.cu.
MAX_LEVELS, MAX_SIZES, MAX_PASSES = 5, 3, 4
FAST_CANDIDATES, MAX_CANDIDATES, MAX_FACES = 1024, 16384, 4096
ROW, TILE = 16, 64
MAX_ANCHORS = 1 << 28

LEVEL = np.dtype(
    [
        ("stride", "i4"),
        ("sizes", "i4"),
        ("rows", "i4"),
        ("columns", "i4"),
        ("first_anchor", "i4"),
        ("size", "f4", (MAX_SIZES,)),
    ]
)
PASS = np.dtype(
    [
        ("maps", "u8", (MAX_LEVELS,)),
        ("levels", LEVEL, (MAX_LEVELS,)),
        ("level_count", "i4"),
        ("anchors", "i4"),
        ("layout", "i4"),
        ("is_half", "i4"),
        ("threshold", "f4"),
        ("near_variance", "f4"),
        ("size_variance", "f4"),
        ("number", "i4"),
    ]
)
PLACED = np.dtype(
    [
        ("width", "i4"),
        ("height", "i4"),
        ("item", "i4", (MAX_PASSES,)),
        ("scale_x", "f4", (MAX_PASSES,)),
        ("scale_y", "f4", (MAX_PASSES,)),
    ]
)
SETTINGS = np.dtype(
    [
        ("capacity", "i4"),
        ("limit", "i4"),
        ("max_faces", "i4"),
        ("fast_limit", "i4"),
        ("iou", "f4"),
        ("plus_one", "i4"),
        ("clip", "i4"),
    ]
)
# Columns of the counts, one row per frame.
FOUND, NOT_A_NUMBER, FACES, OVERFLOW = range(4)
# Bits of the overflow count: keys lost at random, candidates beyond the limit, faces beyond the most.
LIST_FULL, BEYOND_LIMIT, BEYOND_MAX_FACES = 1, 2, 4

Layout = Literal["fused", "classic", "decoded"]
_LAYOUTS = {"fused": 0, "classic": 1, "decoded": 2}
_FIND_THREADS, _PER_THREAD = 256, 4


class Launch(Protocol):
    """Queues one kernel: arrays of its own memory become pointers, NumPy scalars and structures go by value."""

    def __call__(self, name: str, grid: tuple[int, int], block: int, arguments: Sequence[Any]) -> None:
        """Queue kernel ``name`` of decode.cu or nms.cu."""


@dataclass(frozen=True, slots=True)
class FaceLimits:
    """What bounds the candidates and faces of a frame, and how overlap is counted (see ``final_faces``).

    ``capacity`` keys fit a frame's list: with one for every anchor of all passes nothing is lost at random, ever, and
    more than ``limit`` candidates leave the best of them, as in the reference. Frames of up to ``fast_limit``
    candidates take the way of one block; both ways give the same faces.
    """

    capacity: int
    limit: int = PRE_NMS_LIMIT
    max_faces: int = 750
    iou: float = 0.4
    plus_one: bool = False
    clip: bool = True
    fast_limit: int = FAST_CANDIDATES

    def __post_init__(self) -> None:
        """Refuse what the kernels' shared memory does not hold."""
        for name, value, most in (
            ("limit", self.limit, MAX_CANDIDATES),
            ("max_faces", self.max_faces, MAX_FACES),
            ("capacity", self.capacity, MAX_ANCHORS * MAX_PASSES),
        ):
            if not 1 <= value <= most:
                raise UsageError(f"{name} {value} is out of range; the CUDA kernels take 1 to {most}")
        if not 0 <= self.fast_limit <= FAST_CANDIDATES:
            raise UsageError(f"fast_limit {self.fast_limit} is out of range; allowed are 0 to {FAST_CANDIDATES}")

    def structure(self) -> npt.NDArray[np.void]:
        """Return the kernels' NmsSettings."""
        values = (self.capacity, self.limit, self.max_faces, self.fast_limit, self.iou, self.plus_one, self.clip)
        return np.array(values, SETTINGS)

    def buffers(self, frames: int) -> dict[str, tuple[tuple[int, ...], npt.DTypeLike]]:
        """Shapes and dtypes of the buffers of a batch, by name; results are ``rows`` and ``counts``.

        ``rows`` (frames, max_faces, 16) float32: box xyxy, score, five landmarks, and as an int32 the anchor index plus
        2**28 times the pass; sorted by score, zero after the last face. ``counts`` (frames, 4) int32.
        """
        tiles = -(-self.limit // TILE)
        return {
            "rows": ((frames, self.max_faces, ROW), np.float32),
            "counts": ((frames, 4), np.int32),
            "lists": ((frames, self.capacity), np.uint64),
            "ordered": ((frames, 1 << (self.limit - 1).bit_length()), np.uint64),
            "boxes": ((frames, tiles * TILE, 4), np.float32),
            "alive": ((frames, tiles * TILE // 32), np.uint32),
            "overlap_bits": ((frames, self.limit, tiles), np.uint64),
        }


def pass_structure(
    spec: DetectorSpec,
    height: int,
    width: int,
    threshold: float,
    maps: Sequence[int],
    *,
    half: bool,
    number: int = 0,
    layout: Layout | None = None,
) -> npt.NDArray[np.void]:
    """Return the kernels' Pass: one run of the network over a batch of (height, width) inputs.

    ``maps`` are addresses: of one map per level for "fused", else of loc, conf and landms. UsageError for more levels,
    sizes or anchors than the kernels are made for.
    """
    layout = layout or spec.output_layout
    expected = len(spec.strides) if layout == "fused" else 3
    if len(maps) != expected:
        raise UsageError(f"{len(maps)} output tensors were given; the {layout} layout has {expected}")
    if len(spec.strides) > MAX_LEVELS or max(map(len, spec.anchor_sizes)) > MAX_SIZES:
        raise UsageError(
            f"the spec has strides {spec.strides} and anchor sizes {spec.anchor_sizes}; "
            f"the CUDA kernels take up to {MAX_LEVELS} levels of up to {MAX_SIZES} sizes"
        )
    if not 0 <= number < MAX_PASSES:
        raise UsageError(f"pass {number} is out of range; the CUDA kernels take {MAX_PASSES} passes of a frame")
    if spec.anchor_count(height, width) > MAX_ANCHORS:
        raise UsageError(f"an input of {width}x{height} has too many anchors; allowed are {MAX_ANCHORS}")
    result = np.zeros((), PASS)
    result["maps"][: len(maps)] = maps
    sizes = spec.feature_sizes(height, width)
    for level, (rows, columns) in enumerate(sizes):
        target = result["levels"][level]
        target["stride"], target["rows"], target["columns"] = spec.strides[level], rows, columns
        target["sizes"] = len(spec.anchor_sizes[level])
        target["size"][: len(spec.anchor_sizes[level])] = spec.anchor_sizes[level]
        target["first_anchor"] = level_offsets(spec, height, width)[level]
    result["level_count"], result["anchors"] = len(sizes), spec.anchor_count(height, width)
    result["layout"], result["is_half"], result["number"] = _LAYOUTS[layout], half, number
    result["threshold"] = score_logit(threshold) if layout == "fused" else threshold
    result["near_variance"], result["size_variance"] = spec.variances
    return result


def placed_structures(
    frames: Sequence[Sequence[tuple[int, Placement] | None]],
) -> npt.NDArray[np.void]:
    """Return the kernels' Placed of every frame: per pass its item in that pass's batch and its placement, or None."""
    result = np.zeros(len(frames), PLACED)
    result["item"] = -1
    result["scale_x"] = result["scale_y"] = 1.0
    for target, passes in zip(result, frames, strict=True):
        for number, found in enumerate(passes):
            if found is None:
                continue
            item, placement = found
            target["width"], target["height"] = placement.source_width, placement.source_height
            target["item"][number] = item
            target["scale_x"][number], target["scale_y"][number] = placement.scale_x, placement.scale_y
    return result


def queue_faces(
    launch: Launch,
    passes: Sequence[npt.NDArray[np.void]],
    placed: Any,
    buffers: dict[str, Any],
    limits: FaceLimits,
) -> None:
    """Queue all kernels of a batch; ``rows`` and ``counts`` of ``buffers`` are then its faces.

    ``placed`` lies in the kernels' memory, and so do the buffers; ``counts`` must be zero before. Nothing waits.
    """
    frames = len(placed)
    counts, lists = buffers["counts"], buffers["lists"]
    for one in passes:
        launch(
            _find_kernel(one),
            (_find_blocks(one), frames),
            _FIND_THREADS,
            [one, placed, counts, lists, np.int32(limits.capacity)],
        )
    table = np.zeros(MAX_PASSES, PASS)
    for one in passes:
        table[int(one["number"])] = one
    together = table.view([("pass", PASS, (MAX_PASSES,))]).reshape(())
    settings = limits.structure()
    ordered, boxes, alive, bits = (buffers[name] for name in ("ordered", "boxes", "alive", "overlap_bits"))
    rows = buffers["rows"]
    launch("faces_of_few", (1, frames), 1024, [together, placed, lists, counts, rows, settings])
    if min(limits.capacity, sum(int(one["anchors"]) for one in passes)) <= limits.fast_limit:
        return
    launch("order_candidates", (1, frames), 1024, [lists, counts, ordered, settings])
    blocks = min(32, -(-limits.limit // 256))
    launch("decode_candidates", (blocks, frames), 256, [together, placed, ordered, counts, boxes, alive, settings])
    blocks = min(64, -(-limits.limit // TILE))
    launch("overlap_candidates", (blocks, frames), 256, [boxes, counts, bits, settings])
    launch("faces_of_many", (1, frames), 1024, [together, placed, ordered, alive, bits, counts, rows, settings])


def _find_kernel(one: npt.NDArray[np.void]) -> str:
    layout = "fused" if one["layout"] == _LAYOUTS["fused"] else "classic"
    return f"find_{layout}_{'half' if one['is_half'] else 'float'}"


def _find_blocks(one: npt.NDArray[np.void]) -> int:
    """Blocks over all scores of one frame: each takes a run of one level's one size."""
    run = _FIND_THREADS * _PER_THREAD
    if one["layout"] != _LAYOUTS["fused"]:
        return math.ceil(int(one["anchors"]) / run)
    levels = one["levels"][: int(one["level_count"])]
    return sum(math.ceil(int(v["rows"]) * int(v["columns"]) / run) * int(v["sizes"]) for v in levels)
