"""A case of a GPU benchmark: named work on a stream and the bytes that it must move."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpu_predictions import compare
from gpu_timing import Queue, Timer, measure_work

from retinastream.kernels.device import Device, Stream


@dataclass(frozen=True)
class Sizes:
    """How much is measured: frames of ``width`` x ``height``, ``batch`` at once, with ``faces`` faces each."""

    width: int = 3840
    height: int = 2160
    batch: int = 8
    faces: int = 100
    runs: int = 50
    copy_bytes: int = 256 << 20
    reduced_side: int = 1280
    most_faces: int = 750
    cache_bytes: int = 128 << 20
    face_side: int = 100

    @property
    def is_full(self) -> bool:
        """Whether it is what the predictions are made for."""
        return (self.width, self.height, self.batch, self.faces) == (3840, 2160, 8, 100)


@dataclass(frozen=True)
class Case:
    """Work of one batch: each of ``turns`` does it once on memory of its own.

    ``check`` returns what the work has found, for the report, and raises AssertionError where that is wrong. ``keep``
    holds what the queued work uses.
    """

    name: str
    nbytes: int
    turns: Sequence[Queue]
    repeats: int = 1
    check: Callable[[], dict[str, Any]] = dict
    keep: tuple[Any, ...] = field(default=(), repr=False)


def measure_case(
    case: Case, device: Device, timer: Timer, stream: Stream, sizes: Sizes, bandwidth: float
) -> dict[str, Any]:
    """Time a case: a row for JSON, with its part of the bandwidth of a copy and its prediction."""
    times = measure_work(device, timer, stream, case.turns, runs=sizes.runs, repeats=case.repeats)
    rate = case.nbytes / max(times.median, 1e-12)
    return {
        "name": case.name,
        **times.as_row(),
        "bytes": case.nbytes,
        "gb_per_s": rate / 1e9,
        "of_copy_bandwidth": rate / bandwidth,
        **compare(case.name, times.median * 1e6, device.name, full_size=sizes.is_full),
        **case.check(),
    }


def describe_row(row: dict[str, Any]) -> str:
    """One line for a person."""
    text = f"{row['name']}: {row['median_us']:.1f} us ({row['least_us']:.1f} to {row['most_us']:.1f})"
    if row["bytes"]:
        text += f", {row['bytes'] / 1e6:.1f} MB, {row['of_copy_bandwidth']:.0%} of the copy's bandwidth"
    if row.get("faces") is not None:
        text += f", {row['faces']} faces of {row['candidates']} candidates"
    if row["predicted_us"] is not None:
        least, most = row["predicted_us"]
        text += f"; predicted {least:g}-{most:g} us"
    return text if row["graph"] else text + "; not in a graph, so with what the host took"
