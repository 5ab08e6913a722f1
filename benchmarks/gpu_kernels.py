"""Every CUDA kernel of the detector at its full size, against the bandwidth of a copy and against docs/kernels.md.

    python benchmarks/gpu_kernels.py --output benchmarks/results

A batch of 8 frames of 3840x2160 with 100 faces each: medians by CUDA events of work launched as a graph, on memory that
has left the cache; the bytes that must move, and the part of a copy's bandwidth, measured in the same run, that this
makes; the prediction of docs/kernels.md beside it where the GPU is the one that it was made for.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from typing import Any

from gpu_cases import Sizes, describe_row, measure_case
from gpu_face_cases import face_cases
from gpu_picture_cases import picture_cases
from gpu_report import report, run_script
from gpu_timing import Timer, copy_bandwidth

from retinastream.kernels.device import Device

AIM_PREPROCESS, AIM_FACES_US = 0.6, 1000.0


def measure(device: Device, timer: Timer, sizes: Sizes) -> dict[str, Any]:
    """Measure all cases, and the bandwidth of a copy before and after them."""
    stream = device.stream()
    bandwidth = copy_bandwidth(device, timer, stream, sizes.copy_bytes, sizes.runs)
    rows = []
    for case in itertools.chain(picture_cases(device, stream, sizes), face_cases(device, stream, sizes)):
        rows.append(measure_case(case, device, timer, stream, sizes, bandwidth))
        del case  # its memory is free before the next one asks for some
    after = copy_bandwidth(device, timer, stream, sizes.copy_bytes, sizes.runs)
    settings = {name: getattr(sizes, name) for name in Sizes.__dataclass_fields__}
    copies = {"copy_gb_per_s": bandwidth / 1e9, "copy_gb_per_s_after": after / 1e9}
    return report("gpu_kernels", device, timer, settings, {**copies, "rows": rows, "aims": aims(rows)})


def aims(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Whether the aims are met: preprocessing at 60 % of a copy, decode and NMS within 1 ms."""
    native = [row for row in rows if row["name"].startswith("preprocess NV12 -> fp16, native, ")]
    faces = [row for row in rows if row["name"].startswith("decode + NMS")]
    return [
        {"name": row["name"], "aim": f"{AIM_PREPROCESS:.0%} of a copy's bandwidth",
         "met": row["of_copy_bandwidth"] >= AIM_PREPROCESS}
        for row in native
    ] + [
        {"name": row["name"], "aim": f"{AIM_FACES_US:g} us a batch", "met": row["median_us"] <= AIM_FACES_US}
        for row in faces
    ]  # fmt: skip


def describe(result: dict[str, Any]) -> list[str]:
    """Lines for a person."""
    lines = [
        f"{result['device']['name']}: a copy moves {result['copy_gb_per_s']:.0f} GB/s, "
        f"{result['copy_gb_per_s_after']:.0f} GB/s at the end",
        *(describe_row(row) for row in result["rows"]),
    ]
    return lines + [f"{'met' if a['met'] else 'NOT MET'}: {a['name']}, {a['aim']}" for a in result["aims"]]


def _measure(device: Device, timer: Timer, options: argparse.Namespace) -> dict[str, Any]:
    return measure(device, timer, Sizes(runs=options.runs))


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, default=50, help="measurements of every case")


if __name__ == "__main__":
    sys.exit(run_script("gpu_kernels", __doc__ or "", _measure, describe, _options))
