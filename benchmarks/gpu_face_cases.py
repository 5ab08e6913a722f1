"""Decode and NMS: head maps with a known number of faces, and the kernels that find them, together and one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from gpu_cases import Case, Sizes
from gpu_inputs import fused_maps, records_on_device
from gpu_timing import turns_beyond_cache

from retinastream.kernels.cuda_faces import FACES, FOUND, FaceLimits, pass_structure, placed_structures, queue_faces
from retinastream.kernels.device import Device, Stream
from retinastream.kernels.sizing import Placement
from retinastream.models.spec import DetectorSpec

THRESHOLD = 0.5


def padded(sizes: Sizes, spec: DetectorSpec) -> tuple[int, int]:
    """Height and width of the network's input."""
    stride = spec.max_stride
    return -(-sizes.height // stride) * stride, -(-sizes.width // stride) * stride


class FaceBatch:
    """Head maps of a batch on the device, several times over so that they do not stay in the cache, and all buffers."""

    def __init__(self, device: Device, stream: Stream, sizes: Sizes, *, dtype: Any, faces: int, per_face: int) -> None:
        self.device, self.stream, self.spec = device, stream, DetectorSpec()
        self.faces, self.per_face, self.batch = faces, per_face, sizes.batch
        height, width = padded(sizes, self.spec)
        self.host_maps = fused_maps(self.spec, height, width, faces=faces, per_face=per_face)
        self.anchors = self.spec.anchor_count(height, width)
        self.value_bytes = np.dtype(dtype).itemsize
        half = self.value_bytes == 2
        turns = turns_beyond_cache(self.score_bytes, sizes.cache_bytes)
        by_level = [self._batched(level.astype(dtype), turns) for level in self.host_maps]
        self.maps = list(zip(*by_level, strict=True))
        self.passes = [
            pass_structure(self.spec, height, width, THRESHOLD, [_address(v) for v in maps], half=half)
            for maps in self.maps
        ]
        placement = Placement(sizes.width, sizes.height, sizes.width, sizes.height, width, height)
        self.placed = records_on_device(
            device, stream, placed_structures([[(k, placement)] for k in range(sizes.batch)])
        )
        self.limits = FaceLimits(capacity=self.anchors, max_faces=sizes.most_faces)
        self.buffers = {
            name: device.empty(shape, kind) for name, (shape, kind) in self.limits.buffers(sizes.batch).items()
        }
        self.results = {
            name: device.empty_pinned(self.buffers[name].shape, self.buffers[name].dtype) for name in ("rows", "counts")
        }

    @property
    def score_bytes(self) -> int:
        """Bytes of the two scores of every anchor of the batch."""
        return 2 * self.anchors * self.batch * self.value_bytes

    def _batched(self, level: np.ndarray, turns: int) -> list[Any]:
        pinned = self.device.empty_pinned((self.batch, *level.shape), level.dtype)
        pinned[...] = level
        targets = [self.device.empty(pinned.shape, pinned.dtype) for _ in range(turns)]
        for target in targets:
            self.device.copy_in(target, pinned, self.stream)
        self.stream.synchronize()
        return targets

    def queue(self, turn: int = 0, only: Sequence[str] | None = None) -> None:
        """Queue decode and NMS of a batch, or of its kernels only those whose names begin like one of ``only``."""

        def launch(name: str, grid: tuple[int, int], block: int, arguments: Sequence[Any]) -> None:
            if only is None or name.startswith(tuple(only)):
                self.device.launch(self.stream, name, grid, block, arguments)

        if only is None or "find" in only:
            self.device.clear(self.buffers["counts"], self.stream)
        queue_faces(launch, [self.passes[turn]], self.placed, self.buffers, self.limits)

    def fetch(self) -> None:
        """Queue the copy of the results to the host."""
        for name, target in self.results.items():
            self.device.copy_out(target, self.buffers[name], self.stream)

    def check(self) -> dict[str, Any]:
        """How many candidates and faces were found; AssertionError where it is not what was put in."""
        self.fetch()
        self.stream.synchronize()
        counts = self.results["counts"]
        assert (counts[:, FOUND] == self.faces * self.per_face).all(), counts
        assert (counts[:, FACES] == self.faces).all(), counts
        return {"faces": self.faces, "candidates": self.faces * self.per_face}

    def case(self, name: str, only: Sequence[str] | None = None, nbytes: int = 0, *, checked: bool = True) -> Case:
        """The whole, or some of its kernels, as a case."""
        turns = [lambda turn=turn: self.queue(turn, only) for turn in range(len(self.maps))]
        return Case(name, nbytes, turns, check=self.check if checked else dict, keep=(self,))


def face_cases(device: Device, stream: Stream, sizes: Sizes) -> Iterator[Case]:
    """All cases, each built when its turn comes."""
    crowd = sizes.faces
    for dtype, text in ((np.float16, "fp16"), (np.float32, "fp32")):
        batch = FaceBatch(device, stream, sizes, dtype=dtype, faces=crowd, per_face=9)
        yield batch.case(f"find, fused {text} maps", ["find"], batch.score_bytes, checked=False)
        yield batch.case(f"decode + NMS, {text}, {crowd} faces of 9 candidates", None, batch.score_bytes)
        if dtype is np.float16:
            yield batch.case(f"faces_of_few, {crowd} faces of 9 candidates", ["faces_of_few"])
            results = sum(v.nbytes for v in batch.results.values())
            yield Case("copy of the results to pinned memory", results, [batch.fetch], repeats=4, keep=(batch,))
    yield from _large_faces(device, stream, sizes)
    yield from _many(device, stream, sizes)


def _large_faces(device: Device, stream: Stream, sizes: Sizes) -> Iterator[Case]:
    few = min(7, sizes.faces)
    batch = FaceBatch(device, stream, sizes, dtype=np.float16, faces=few, per_face=57)
    yield batch.case(f"decode + NMS, fp16, {few} faces of 57 candidates", None, batch.score_bytes)
    yield batch.case(f"faces_of_few, {few} faces of 57 candidates", ["faces_of_few"])


def _many(device: Device, stream: Stream, sizes: Sizes) -> Iterator[Case]:
    crowd = sizes.faces
    batch = FaceBatch(device, stream, sizes, dtype=np.float16, faces=crowd, per_face=40)
    yield batch.case(f"decode + NMS, fp16, {crowd} faces of 40 candidates", None, batch.score_bytes)
    # Each works on what those before it have left, so that it can be repeated alone.
    for kernel in ("order_candidates", "decode_candidates", "overlap_candidates"):
        yield batch.case(f"{kernel}, {crowd * 40:,}", [kernel], checked=False)
    yield batch.case(f"faces_of_many, {crowd} faces of 40 candidates", ["faces_of_many"])


def _address(array: Any) -> int:
    interface = getattr(array, "__cuda_array_interface__", None) or array.__array_interface__
    return int(interface["data"][0])
