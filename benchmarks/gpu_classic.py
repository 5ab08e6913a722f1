"""Our decode and NMS, and our preprocessing, against the usual way on the same inputs in the same run.

    python benchmarks/gpu_classic.py --output benchmarks/results

By the host's clock, from the call until the faces are on the host: that is what a user waits for, and the usual way
spends much of it there. The aim is 10 times. The network is not part of it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gpu_cases import Sizes
from gpu_face_cases import THRESHOLD, FaceBatch, padded
from gpu_inputs import classic_tensors, device_frame, host_frame
from gpu_picture_cases import Preprocess
from gpu_report import report, run_script
from gpu_timing import Timer, in_one_launch, measure_wall
from gpu_upload import Upload

from retinastream.errors import MissingPackageError, SetupError
from retinastream.kernels.cuda_faces import FACES
from retinastream.kernels.device import Device
from retinastream.models.spec import DetectorSpec

AIM = 10.0
IOU = 0.4


def measure(device: Device, timer: Timer, sizes: Sizes, torch_device: str) -> dict[str, Any]:
    """Measure all; ``torch_device`` is where the usual way computes."""
    from gpu_usual import find_nms

    stream = device.stream()
    settings = {**vars_of(sizes), "nms": find_nms()[1], "aim": AIM, "torch_device": torch_device}
    rows = [
        *_compare_faces(device, stream, sizes, torch_device, per_face=9),
        *_compare_faces(device, stream, sizes, torch_device, per_face=40),
        *_compare_inputs(device, stream, sizes, torch_device),
    ]
    return report("gpu_classic", device, timer, settings, {"rows": rows})


def vars_of(sizes: Sizes) -> dict[str, Any]:
    """The sizes, for JSON."""
    return {name: getattr(sizes, name) for name in Sizes.__dataclass_fields__}


def _compare_faces(device: Device, stream: Any, sizes: Sizes, torch_device: str, *, per_face: int) -> list[dict]:
    import torch
    from gpu_usual import WAYS, usual_faces

    spec = DetectorSpec()
    height, width = padded(sizes, spec)
    batch = FaceBatch(device, stream, sizes, dtype=np.float16, faces=sizes.faces, per_face=per_face)
    outputs = [
        torch.from_numpy(part).to(torch_device).expand(sizes.batch, *part.shape).contiguous()
        for part in classic_tensors(spec, batch.host_maps)
    ]

    def queue() -> None:
        batch.queue()
        batch.fetch()

    launch, _ = in_one_launch(device, stream, queue)

    def ours() -> None:
        launch()
        stream.synchronize()

    def usual(way: str) -> list[np.ndarray]:
        found = usual_faces(outputs, spec, height, width, way=way, threshold=THRESHOLD, iou=IOU)
        _wait(torch_device)
        return found

    our_times = measure_wall(ours, sizes.runs)
    counts = batch.results["counts"][:, FACES].tolist()
    rows = []
    for way in WAYS:
        found = usual(way)
        assert [len(f) for f in found] == counts, "the usual way finds other faces than ours"
        rows.append(
            _row(f"decode + NMS, {sizes.faces} faces of {per_face} candidates", way, our_times.median,
                 lambda way=way: usual(way), sizes.runs)
        )  # fmt: skip
    return rows


def _compare_inputs(device: Device, stream: Any, sizes: Sizes, torch_device: str) -> list[dict]:
    from gpu_usual import usual_input

    spec = DetectorSpec()
    height, width = padded(sizes, spec)
    frames = [host_frame("nv12", sizes.width, sizes.height, seed=k) for k in range(sizes.batch)]
    pictures = [_one_array(frame.planes) for frame in frames]
    on_device = [device_frame(device, stream, frame) for frame in frames]
    resident = Preprocess(device, stream, on_device, np.float16)
    upload = Upload(device, stream, frames)
    uploaded = Preprocess(device, stream, upload.frames, np.float16)

    def from_surfaces() -> None:
        resident.queue()
        stream.synchronize()

    def from_host() -> None:
        upload.fill()
        upload.queue()
        uploaded.queue()
        stream.synchronize()

    def usual() -> None:
        usual_input(pictures, spec, height, width, torch_device)
        _wait(torch_device)

    runs = max(2, sizes.runs // 10)
    name = "NV12 to network input"
    return [
        _row(f"{name}, ours from surfaces on the device", "OpenCV on the host",
             measure_wall(from_surfaces, sizes.runs).median, usual, runs),
        _row(f"{name}, ours from pictures on the host", "OpenCV on the host",
             measure_wall(from_host, runs).median, usual, runs),
    ]  # fmt: skip


def _row(name: str, way: str, ours: float, usual: Callable[[], Any], runs: int) -> dict[str, Any]:
    seconds = measure_wall(usual, max(2, runs // 5)).median
    return {
        "name": name,
        "usual": way,
        "ours_ms": ours * 1e3,
        "usual_ms": seconds * 1e3,
        "times": seconds / max(ours, 1e-12),
        "aim": AIM,
    }


def _one_array(planes: Sequence[Any]) -> np.ndarray:
    """Luma above interleaved chroma, as OpenCV takes NV12."""
    luma, chroma = planes
    return np.concatenate([luma, chroma.reshape(len(chroma), -1)])


def _wait(torch_device: str) -> None:
    if torch_device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()


def describe(result: dict[str, Any]) -> list[str]:
    """Lines for a person."""
    return [f"{result['device']['name']}; the usual way's NMS is {result['settings']['nms']}"] + [
        f"{row['name']}: {row['ours_ms']:.3f} ms, usual ({row['usual']}) {row['usual_ms']:.2f} ms: "
        f"{row['times']:.1f} times as fast, aim {row['aim']:g}"
        for row in result["rows"]
    ]


def _measure(device: Device, timer: Timer, options: argparse.Namespace) -> dict[str, Any]:
    try:
        import torch
    except ImportError as error:
        raise MissingPackageError("the usual way is torch's, and torch is not installed: pip install torch") from error
    if not torch.cuda.is_available():
        raise SetupError(f"the usual way is torch's, and torch {torch.__version__} sees no GPU; see docs/gpu.md")
    return measure(device, timer, Sizes(runs=options.runs), "cuda")


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, default=50, help="measurements of ours; the usual way gets a fifth")


if __name__ == "__main__":
    sys.exit(run_script("gpu_classic", __doc__ or "", _measure, describe, _options))
