"""What one would otherwise run: RetinaFace in the classic manner, to compare against in the same run.

Float32 PyTorch forward of every pixel, anchors built by Python loops for each frame size, boxes decoded with torch,
and the NumPy NMS of the light lineage: the same work in the same order as the scripts in circulation.

    python benchmarks/classic_baseline.py --checkpoint mobilenet0.25_Final.pth --size 1080p --size 4k
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from retinastream.errors import RetinastreamError, UsageError
from retinastream.models.checkpoints import load_checkpoint
from retinastream.models.network import RetinaFace
from retinastream.models.network_heads import Part
from retinastream.models.spec import DetectorSpec

Float32 = npt.NDArray[np.float32]
Image = npt.NDArray[np.uint8]
SAMPLE = Path(__file__).resolve().parent.parent / "tests" / "media" / "sample_4k.mp4"
SIZES = {"1080p": (1920, 1080), "4k": (3840, 2160)}
HEADS: tuple[tuple[Part, int], ...] = (("box", 4), ("class", 2), ("landmark", 10))
STAGES = ("prepare", "forward", "priors", "decode_nms")


class Detections(NamedTuple):
    """Boxes (N, 4) xyxy and landmarks (N, 5, 2) in pixels of the frame, scores (N,), and seconds per stage."""

    boxes: Float32
    scores: Float32
    landmarks: Float32
    seconds: dict[str, float]


def forward_classic(network: RetinaFace, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Run the network on images (1, 3, H, W) of any size; return loc (N, 4), face probability (N,), landms (N, 10).

    The lineage upsamples to the size of the finer map, so unlike the product's own network it needs no padding; and it
    runs three heads per level, each permuted, reshaped and concatenated.
    """
    fine, middle, coarse = network.body(images)
    pyramid = network.fpn
    top = pyramid.output3(coarse)
    lateral = pyramid.output2(middle)
    centre = pyramid.merge2(lateral + functional.interpolate(top, size=lateral.shape[2:], mode="nearest"))
    lateral = pyramid.output1(fine)
    bottom = pyramid.merge1(lateral + functional.interpolate(centre, size=lateral.shape[2:], mode="nearest"))
    levels = (network.ssh1(bottom), network.ssh2(centre), network.ssh3(top))
    loc, conf, landms = (
        torch.cat(
            [
                functional.conv2d(features, *network.head(part, level)).permute(0, 2, 3, 1).reshape(-1, channels)
                for level, features in enumerate(levels)
            ]
        )
        for part, channels in HEADS
    )
    return loc, functional.softmax(conf, dim=-1)[:, 1], landms


def build_priors(spec: DetectorSpec, height: int, width: int) -> Tensor:
    """List every anchor in Python loops: (N, 4) as centre x, centre y, width, height in parts of the frame.

    The inner lists of centres hold one value each; the lineage inherited them from SSD, and the scripts in circulation
    run them for every anchor. They are kept because they are what users wait for: without them this takes 0.4 times
    as long.
    """
    values: list[float] = []
    for (rows, columns), stride, sizes in zip(
        spec.feature_sizes(height, width), spec.strides, spec.anchor_sizes, strict=True
    ):
        for row, column in product(range(rows), range(columns)):
            for size in sizes:
                part_x, part_y = size / width, size / height
                centres_x = [x * stride / width for x in [column + 0.5]]
                centres_y = [y * stride / height for y in [row + 0.5]]
                for y, x in product(centres_y, centres_x):
                    values += [x, y, part_x, part_y]
    return torch.tensor(values).view(-1, 4)


def decode(loc: Tensor, landms: Tensor, priors: Tensor, variances: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Turn the offsets of all anchors into boxes (N, 4) xyxy and landmarks (N, 5, 2) in parts of the frame."""
    centres = priors[:, :2] + loc[:, :2] * variances[0] * priors[:, 2:]
    sizes = priors[:, 2:] * torch.exp(loc[:, 2:] * variances[1])
    boxes = torch.cat([centres - sizes / 2, centres + sizes / 2], dim=1)
    points = priors[:, None, :2] + landms.view(-1, 5, 2) * variances[0] * priors[:, None, 2:]
    return boxes, points


def suppress(boxes: Float32, scores: Float32, iou: float) -> list[int]:
    """Greedy NMS in NumPy, best score first; widths count whole pixels (x2 - x1 + 1) as in the lineage."""
    areas = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    order = scores.argsort()[::-1]
    kept: list[int] = []
    while order.size:
        best, rest = int(order[0]), order[1:]
        kept.append(best)
        sides = np.minimum(boxes[best, 2:], boxes[rest, 2:]) - np.maximum(boxes[best, :2], boxes[rest, :2]) + 1
        shared = np.maximum(sides, 0).prod(axis=1)
        order = rest[shared / (areas[best] + areas[rest] - shared) <= iou]
    return kept


@torch.inference_mode()
def detect_classic(
    network: RetinaFace,
    spec: DetectorSpec,
    frame: Image,
    *,
    threshold: float = 0.02,
    iou: float = 0.4,
    top: int = 5000,
    keep: int = 750,
) -> Detections:
    """Find the faces of one frame (H, W, 3) uint8 in BGR with the settings of the lineage, and time each stage."""
    height, width = frame.shape[:2]
    marks = [time.perf_counter()]
    samples = frame.astype(np.float32) - np.array(spec.mean, np.float32)
    images = torch.from_numpy(np.ascontiguousarray(samples.transpose(2, 0, 1))).unsqueeze(0)
    marks.append(time.perf_counter())
    loc, probability, landms = forward_classic(network, images)
    marks.append(time.perf_counter())
    priors = build_priors(spec, height, width)
    marks.append(time.perf_counter())
    size = torch.tensor([width, height], dtype=torch.float32)
    parts, points = decode(loc, landms, priors, spec.variances)
    boxes = (parts * size.repeat(2)).numpy()
    landmarks = (points * size).numpy()
    scores = probability.numpy()
    above = np.flatnonzero(scores > threshold)
    above = above[scores[above].argsort()[::-1][:top]]
    above = above[suppress(boxes[above], scores[above], iou)[:keep]]
    marks.append(time.perf_counter())
    seconds = {stage: end - start for stage, start, end in zip(STAGES, marks, marks[1:], strict=False)}
    return Detections(boxes[above], scores[above], landmarks[above], seconds)


def run_classic(frames_bgr: list[Image], checkpoint: Path, threads: int) -> dict[str, Any]:
    """Time the classic pipeline on frames (H, W, 3) uint8 in BGR, all of one size, after one warm-up frame.

    Returns width, height, frames, threads, the medians prepare_ms, forward_ms, priors_ms, decode_nms_ms and total_ms,
    fps (1000 / total_ms), the faces with a score of at least 0.5 in each frame, and the version of torch. ``threads``
    0 leaves the number of threads to torch. Raises UsageError without frames or with frames of several sizes, and
    ModelError for a checkpoint that cannot be used.
    """
    shapes = {f.shape for f in frames_bgr}
    if len(shapes) != 1:
        raise UsageError(f"{len(frames_bgr)} frames of {len(shapes)} sizes were given; expected frames of one size")
    height, width = frames_bgr[0].shape[:2]
    loaded = load_checkpoint(checkpoint)
    before = torch.get_num_threads()
    if threads > 0:
        torch.set_num_threads(threads)
    try:
        detect_classic(loaded.network, loaded.spec, frames_bgr[0])
        results = [detect_classic(loaded.network, loaded.spec, f) for f in frames_bgr]
        used = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    medians = {f"{s}_ms": 1000 * statistics.median(r.seconds[s] for r in results) for s in STAGES}
    total = 1000 * statistics.median(sum(r.seconds.values()) for r in results)
    return {
        "width": width,
        "height": height,
        "frames": len(frames_bgr),
        "threads": used,
        **medians,
        "total_ms": total,
        "fps": 1000 / total,
        "faces": [int(np.count_nonzero(r.scores >= 0.5)) for r in results],
        "torch": torch.__version__,
    }


def read_frames(video: Path, count: int, size: tuple[int, int]) -> list[Image]:
    """Decode ``count`` frames spread over a clip, as BGR of ``size`` (width, height)."""
    import av
    import cv2

    try:
        container = av.open(str(video))
    except av.FFmpegError as error:
        raise UsageError(f"{video} cannot be opened ({error.strerror}); name a video with --video") from error
    with container:
        if not container.streams.video:
            raise UsageError(f"{video} has no video stream; name a video with --video")
        stream = container.streams.video[0]
        every = max(1, (stream.frames or count) // count)
        frames: list[Image] = []
        for n, frame in enumerate(container.decode(stream)):
            if n % every == 0:
                picture = np.asarray(frame.to_ndarray(format="bgr24"), np.uint8)
                if (frame.width, frame.height) != size:
                    picture = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
                frames.append(picture)
            if len(frames) == count:
                break
    return frames


def describe(result: dict[str, Any]) -> str:
    """One line for people."""
    return (
        f"classic {result['width']}x{result['height']}, {result['threads']} threads, {result['frames']} frames: "
        f"prepare {result['prepare_ms']:.0f} ms, forward {result['forward_ms']:.0f} ms, "
        f"priors {result['priors_ms']:.0f} ms, decode+NMS {result['decode_nms_ms']:.0f} ms, "
        f"total {result['total_ms']:.0f} ms = {result['fps']:.2f} fps"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the medians per frame size."""
    parser = argparse.ArgumentParser(description="Time RetinaFace in the classic PyTorch and NumPy manner.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="a checkpoint (.pth) that the zoo knows")
    parser.add_argument("--video", type=Path, default=SAMPLE, help="where the frames come from (default: the sample)")
    parser.add_argument("--size", action="append", choices=list(SIZES), help="may be repeated (default: both)")
    parser.add_argument("--frames", type=int, default=5, help="frames to time per size (default: 5)")
    parser.add_argument("--threads", type=int, default=0, help="threads of torch (default: its own choice)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per size instead of a sentence")
    options = parser.parse_args(arguments)
    if options.frames < 1 or options.threads < 0:
        parser.error("--frames must be at least 1 and --threads at least 0")
    try:
        for size in options.size or list(SIZES):
            frames = read_frames(options.video, options.frames, SIZES[size])
            result = run_classic(frames, options.checkpoint, options.threads)
            print(json.dumps(result) if options.json else describe(result), flush=True)
    except RetinastreamError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
