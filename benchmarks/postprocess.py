"""Anchor decode and NMS at 4K: 340,320 anchors of which few pass, and 5,000 candidates through NMS.

python benchmarks/postprocess.py
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from retinastream.kernels.decode import decode_fused
from retinastream.kernels.nms import nms
from retinastream.models.spec import DetectorSpec


def median_ms(work: Callable[[], Any], repeats: int = 25) -> float:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e3


def plain_nms(boxes: np.ndarray, iou: float) -> list[int]:
    """The usual NumPy loop, as a baseline."""
    x1, y1, x2, y2 = boxes.T
    areas = (x2 - x1) * (y2 - y1)
    order, keep = np.arange(len(boxes)), []
    while len(order):
        first, rest = order[0], order[1:]
        keep.append(int(first))
        width = np.maximum(0, np.minimum(x2[first], x2[rest]) - np.maximum(x1[first], x1[rest]))
        height = np.maximum(0, np.minimum(y2[first], y2[rest]) - np.maximum(y1[first], y1[rest]))
        shared = width * height
        order = rest[shared / (areas[first] + areas[rest] - shared) <= iou]
    return keep


def main() -> None:
    spec, rng = DetectorSpec(), np.random.default_rng(0)
    # Taken in turn, so that the maps come from memory as after an inference, and not from the cache.
    frames = [
        [rng.normal(-4, 1.2, (32, *size)).astype(np.float32) for size in spec.feature_sizes(2160, 3840)]
        for _ in range(6)
    ]
    for level in itertools.chain(*frames):
        level[0:4:2] = 4  # background logits, so that few anchors pass
    turn = itertools.cycle(frames)
    for threshold in (0.001, 0.02, 0.5):
        found = len(decode_fused(frames[0], spec, 2160, 3840, threshold, 5000))
        ms = median_ms(lambda t=threshold: decode_fused(next(turn), spec, 2160, 3840, t, 5000))
        print(f"decode, {spec.anchor_count(2160, 3840)} anchors, {found} pass at {threshold}: {ms:.2f} ms")
    for spread in (300, 1000, 3800):
        centres, halves = rng.uniform(0, spread, (5000, 2)), rng.uniform(8, 60, (5000, 1))
        boxes = np.hstack([centres - halves, centres + halves]).astype(np.float32)
        kept = nms(boxes, 0.4)
        assert list(kept) == plain_nms(boxes, 0.4)
        plain, ours = median_ms(lambda b=boxes: plain_nms(b, 0.4), 5), median_ms(lambda b=boxes: nms(b, 0.4), 9)
        capped = median_ms(lambda b=boxes: nms(b, 0.4, limit=750), 9)
        print(
            f"NMS, 5000 candidates over {spread} px, {len(kept)} kept: {ours:.1f} ms, {capped:.1f} ms with 750 wanted; "
            f"plain loop {plain:.1f} ms, {plain / ours:.1f}x"
        )


if __name__ == "__main__":
    main()
