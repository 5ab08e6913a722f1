"""Software-decoded pictures on their way to the device: ordinary memory, page-locked memory, the device.

    python benchmarks/gpu_upload.py --output benchmarks/results

GB/s and 4K frames a second of each step alone and of both together with two buffers in turn, page-locked against
ordinary memory, as YUV and as BGR. Steps on the host by the host's clock, steps on the device by CUDA events.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from gpu_cases import Sizes
from gpu_inputs import host_frame
from gpu_report import report, run_script
from gpu_timing import Timer, Times, measure_wall, measure_work

from retinastream.kernels.device import Device, Stream
from retinastream.types import Frame

FORMATS = ("yuv420p", "yuv420p10", "bgr24")


class Upload:
    """A batch of pictures in ordinary memory, page-locked memory for them and memory of the device."""

    def __init__(self, device: Device, stream: Stream, frames: Sequence[Frame]) -> None:
        self.device, self.stream = device, stream
        self.sources = [plane for frame in frames for plane in frame.planes]
        self.nbytes = sum(plane.nbytes for plane in self.sources)
        self.pinned = [device.empty_pinned(plane.shape, plane.dtype) for plane in self.sources]
        self.targets = [device.empty(plane.shape, plane.dtype) for plane in self.sources]
        planes = iter(self.targets)
        self.frames = [
            Frame(
                tuple(next(planes) for _ in frame.planes),
                frame.format, frame.width, frame.height, frame.matrix, frame.full_range, frame.rotation,
            )
            for frame in frames
        ]  # fmt: skip

    def fill(self) -> None:
        """Copy ordinary memory to page-locked memory, on this thread."""
        for target, source in zip(self.pinned, self.sources, strict=True):
            np.copyto(target, source)

    def queue(self) -> None:
        """Queue the copies from page-locked memory to the device."""
        for target, source in zip(self.targets, self.pinned, strict=True):
            self.device.copy_in(target, source, self.stream)

    def queue_pageable(self, timer: Timer) -> None:
        """Copy ordinary memory to the device as it is."""
        for target, source in zip(self.targets, self.sources, strict=True):
            timer.copy_pageable(target, source, self.stream)


def measure(device: Device, timer: Timer, sizes: Sizes) -> dict[str, Any]:
    """Measure all formats."""
    rows = [row for fmt in FORMATS for row in _measure_format(device, timer, sizes, fmt)]
    settings = {name: getattr(sizes, name) for name in Sizes.__dataclass_fields__}
    return report("gpu_upload", device, timer, settings, {"rows": rows})


def _measure_format(device: Device, timer: Timer, sizes: Sizes, fmt: str) -> list[dict[str, Any]]:
    frames = [host_frame(fmt, sizes.width, sizes.height, seed=k) for k in range(sizes.batch)]
    uploads = [Upload(device, device.stream(), frames) for _ in range(2)]
    first = uploads[0]

    def pageable() -> None:
        first.queue_pageable(timer)
        first.stream.synchronize()

    def fill_and_copy(turns: int) -> None:
        # While one buffer is filled, the other is on its way.
        for turn in range(turns):
            upload = uploads[turn % 2]
            upload.stream.synchronize()
            upload.fill()
            upload.queue()
        for upload in uploads:
            upload.stream.synchronize()

    runs = max(2, sizes.runs // 5)
    both = measure_wall(lambda: fill_and_copy(4), runs)
    steps = {
        "ordinary to page-locked memory, one thread": measure_wall(first.fill, runs),
        "page-locked memory to device": measure_work(device, timer, first.stream, [first.queue], runs=runs),
        "ordinary memory to device": measure_wall(pageable, runs),
        "both steps, two buffers in turn": Times(tuple(s / 4 for s in both.seconds), graph=False),
    }
    slow = steps["ordinary memory to device"].median
    return [
        {
            "name": step,
            "format": fmt,
            **times.as_row(),
            "bytes": first.nbytes,
            "gb_per_s": first.nbytes / max(times.median, 1e-12) / 1e9,
            "fps": sizes.batch / max(times.median, 1e-12),
            "times_pageable": slow / max(times.median, 1e-12),
        }
        for step, times in steps.items()
    ]


def describe(result: dict[str, Any]) -> list[str]:
    """Lines for a person."""
    sizes = result["settings"]
    head = f"{result['device']['name']}, batches of {sizes['batch']} pictures of {sizes['width']}x{sizes['height']}"
    return [head] + [
        f"{row['format']}, {row['name']}: {row['gb_per_s']:.1f} GB/s = {row['fps']:.0f} fps, "
        f"{row['times_pageable']:.1f} times ordinary memory to device"
        for row in result["rows"]
    ]


def _measure(device: Device, timer: Timer, options: argparse.Namespace) -> dict[str, Any]:
    return measure(device, timer, Sizes(runs=options.runs))


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, default=50, help="measurements; a fifth of it per step")


if __name__ == "__main__":
    sys.exit(run_script("gpu_upload", __doc__ or "", _measure, describe, _options))
