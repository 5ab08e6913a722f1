"""The whole detector on a GPU, from surfaces of 3840x2160 to faces on the host, at several sizes of batches.

    python benchmarks/gpu_detector.py --output benchmarks/results

Frames per second with surfaces on the device (as a hardware decoder leaves them) and with pictures in host memory (as a
software decoder does); how long the host takes to submit a batch, and how long one batch takes alone from submitting to
faces; how often the host waits per batch, which is to be once; and how much memory of the device is taken. By the
host's clock: that is what a user gets.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from clips import SAMPLE_4K
from gpu_inputs import device_frame
from gpu_report import report, run_script
from gpu_timing import Timer
from gpu_waits import counted_waits, profiled_waits

from retinastream import Detector, open_video
from retinastream.kernels.device import Device
from retinastream.types import PIXEL_FORMATS, Frame

BATCHES = (1, 4, 8, 16)
# Every slot of the ring is bound, then recorded as a CUDA graph, then replayed.
WARM_UP_ROUNDS = 3


@dataclass(frozen=True)
class Load:
    """How much is run: ``frames`` per round, ``rounds`` of them, ``single`` batches one by one."""

    batches: Sequence[int] = BATCHES
    frames: int = 192
    rounds: int = 5
    single: int = 20


def measure(
    device: Device,
    timer: Timer,
    make: Callable[[int], Detector],
    pictures: Sequence[Frame],
    load: Load,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Measure a detector of every size of batch that ``make`` returns, on ``pictures`` in host memory."""
    stream = device.stream()
    resident = [device_frame(device, stream, picture) for picture in pictures]
    rows = [row for batch in load.batches for row in _measure_batch(device, make, resident, pictures, batch, load)]
    width, height = pictures[0].upright_size
    sizes = {"width": width, "height": height, "format": pictures[0].format.name, "batches": list(load.batches)}
    return report("gpu_detector", device, timer, settings | sizes, {"rows": rows})


def _measure_batch(
    device: Device,
    make: Callable[[int], Detector],
    resident: Sequence[Frame],
    pictures: Sequence[Frame],
    batch: int,
    load: Load,
) -> Iterator[dict[str, Any]]:
    before, _ = device.memory()
    with make(batch) as detector:
        faces = set()
        for place, frames in (("device", resident), ("host", pictures)):
            row, found = _measure_place(device, detector, frames, batch, load)
            faces.add(found)
            free, _ = device.memory()
            info = detector.info
            yield {
                "name": f"batch {batch}, pictures on the {place}", "batch": batch, "pictures_on": place, **row,
                "memory_mb": (before - free) / 1e6, "runtime": info.runtime, "runtime_version": info.runtime_version,
                "precision": info.precision, "size": str(detector.size), **detector.execution,
            }  # fmt: skip
    assert len(faces) == 1, f"surfaces and pictures in host memory have other faces: {faces}"


def _measure_place(
    device: Device, detector: Detector, frames: Sequence[Frame], batch: int, load: Load
) -> tuple[dict[str, Any], int]:
    count = max(1, load.frames // batch)

    def batches(number: int) -> list[list[Frame]]:
        endless = itertools.cycle(frames)
        return [list(itertools.islice(endless, batch)) for _ in range(number)]

    def run(number: int = count) -> int:
        return sum(len(faces) for group in detector.backend.detect(batches(number)) for faces in group)

    slots = int(detector.execution["slots"])
    run(slots * WARM_UP_ROUNDS)
    seconds = [_timed(run)[0] for _ in range(load.rounds)]
    few = slots * 2
    with counted_waits(device) as waits:
        run(few)
    profiled = profiled_waits(lambda: run(few))
    submits, singles = zip(*(_one_by_one(detector, group) for group in batches(load.single)), strict=True)
    median = statistics.median(seconds)
    return {
        "fps": count * batch / median,
        "batch_ms": median / count * 1e3,
        "least_ms": min(seconds) / count * 1e3,
        "most_ms": max(seconds) / count * 1e3,
        "submit_ms": statistics.median(submits) * 1e3,
        "alone_ms": statistics.median(singles) * 1e3,
        "waits_per_batch": waits.total() / few,
        "profiled_waits_per_batch": None if profiled is None else {k: v / few for k, v in profiled.items()},
        "rounds": load.rounds,
        "batches_per_round": count,
    }, run(len(frames))


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def _one_by_one(detector: Detector, group: Sequence[Frame]) -> tuple[float, float]:
    """Seconds to submit a batch to an idle device, and until its faces are there."""
    backend: Any = detector.backend
    submit, job = _timed(lambda: backend.submit(group))
    wait, _ = _timed(lambda: backend.collect(job))
    return submit, submit + wait


def sample_pictures(count: int) -> list[Frame]:
    """Frames of the 4K sample, spread over it, as NV12 in host memory."""
    with open_video(SAMPLE_4K) as source:
        frames = list(itertools.islice(source, 0, None, 4))
    return [as_nv12(frame) for frame in itertools.islice(itertools.cycle(frames), count)]


def as_nv12(frame: Frame) -> Frame:
    """The same picture of 4:2:0 with U and V next to each other, as hardware decoders write it."""
    luma, u, v = frame.planes
    planes = (np.ascontiguousarray(luma), np.stack([u, v], -1))
    return replace(frame, planes=planes, format=PIXEL_FORMATS["nv12"])


def describe(result: dict[str, Any]) -> list[str]:
    """Lines for a person."""
    first = result["rows"][0]
    lines = [
        f"{result['device']['name']}, {first['runtime']} {first['runtime_version']}, {first['precision']}, "
        f"{result['settings']['width']}x{result['settings']['height']} at size {first['size']}"
    ]
    for row in result["rows"]:
        base = next(r for r in result["rows"] if r["pictures_on"] == row["pictures_on"])
        lines.append(
            f"{row['name']}: {row['fps']:.0f} fps ({row['fps'] / base['fps']:.2f} times batch {base['batch']}), "
            f"{row['batch_ms']:.2f} ms a batch, of which the host takes {row['submit_ms']:.3f} ms to submit; alone "
            f"{row['alone_ms']:.2f} ms; {row['waits_per_batch']:g} waits a batch; {row['memory_mb']:,.0f} MB; "
            f"CUDA graph {row['cuda_graph']}"
        )
    return lines


def _measure(device: Device, timer: Timer, options: argparse.Namespace) -> dict[str, Any]:
    def make(batch: int) -> Detector:
        return Detector(
            options.model, device=device.label, runtime=options.runtime, precision=options.precision,
            size=options.size, batch=batch, torch_compile=options.torch_compile,
        )  # fmt: skip

    load = Load(tuple(options.batches))
    return measure(device, timer, make, sample_pictures(max(load.batches)), load, {"model": options.model})


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="mnet025")
    parser.add_argument("--runtime", default="torch", help="torch | tensorrt | auto")
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--size", default="native")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--torch-compile", action="store_true")


if __name__ == "__main__":
    sys.exit(run_script("gpu_detector", __doc__ or "", _measure, describe, _options))
