"""How long the pictures of a training step take: planning, and rendering on the CPU and on a device.

    python benchmarks/augmentation.py
    python benchmarks/augmentation.py --labels train/labels.json --batch 64 --size 640

Medians over the repeats, in milliseconds: wall time, and the CPU time of the one thread that does it, which other work
on the machine does not inflate.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from retinastream.errors import RetinastreamError
from retinastream.evaluation.labelled_set import LabelledPicture, read_labelled_set
from retinastream.models.spec import DetectorSpec
from retinastream.training.augmentation import AugmentationSettings
from retinastream.training.batches import Batches
from retinastream.training.cache import PictureCache
from retinastream.training.rendering import network_input, render
from retinastream.training.rendering_device import network_input_on_device, render_on_device

SETTINGS = {
    "light lineage": AugmentationSettings(),
    "everything": AugmentationSettings(
        mosaic=0.3,
        shrink_probability=0.2,
        target_probability=0.3,
        target_heights=(10, 300),
        rotation=15,
        blur=0.1,
        gray=0.1,
    ),
}


def made_up(folder: Path, count: int = 64) -> list[LabelledPicture]:
    """Pictures of 640x480 with eight faces each, for a machine without a labelled set."""
    rng = np.random.default_rng(0)
    pictures = []
    for i in range(count):
        path = folder / f"{i}.png"
        rough = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
        cv2.imwrite(str(path), cv2.resize(rough, (640, 480), interpolation=cv2.INTER_CUBIC))
        side = np.exp(rng.uniform(2.5, 5, (8, 1)))
        corner = rng.random((8, 2)) * (np.array([640, 480]) - side)
        boxes = np.concatenate([corner, corner + side], axis=1).astype(np.float32)
        points = (corner[:, None] + side[:, None] * rng.random((8, 5, 2))).astype(np.float32)
        pictures.append(
            LabelledPicture(path.name, path, 640, 480, boxes, points, np.zeros(8, bool), np.ones(8, np.float32))
        )
    return pictures


def measure(work: Callable[[int], object], repeats: int) -> str:
    """Median wall and CPU milliseconds of one thread, after one call that does not count."""
    wall, cpu = [], []
    for step in range(repeats + 1):
        began, began_cpu = time.perf_counter(), time.thread_time()
        work(step)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        wall.append(time.perf_counter() - began)
        cpu.append(time.thread_time() - began_cpu)
    return f"{1e3 * statistics.median(wall[1:]):8.1f} {1e3 * statistics.median(cpu[1:]):8.1f}"


def report(name: str, batches: Batches, cache: PictureCache, repeats: int, device: str) -> None:
    mean = DetectorSpec().mean
    plans = [batches.plans_at(step) for step in range(repeats + 1)]
    images = render(plans[0], cache, fill=mean)
    flat = cache.to(device)

    def on_device(step: int) -> torch.Tensor:
        return network_input_on_device(render_on_device(plans[step], cache, flat, fill=mean), mean=mean)

    size, count = batches.size_at(0)
    print(f"\n{name}, {count} pictures of {size}x{size}: ms wall, ms CPU")
    print(f"  {'plan':32}", measure(batches.plans_at, repeats))
    print(f"  {'render, OpenCV':32}", measure(lambda step: render(plans[step], cache, fill=mean), repeats))
    print(f"  {'network input, NumPy':32}", measure(lambda _: network_input(images, mean=mean), repeats))
    print(f"  {'whole batch, CPU':32}", measure(batches.batch_at, repeats))
    print(f"  {f'render and input, torch on {device}':32}", measure(on_device, repeats))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=Path, help="a labelled set; without it pictures are made up")
    parser.add_argument("--pictures", type=int, default=256, help="how many of the set are decoded")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = made_up(Path(folder)) if arguments.labels is None else read_labelled_set(arguments.labels).pictures
            pictures = found[:: max(1, len(found) // arguments.pictures)]
            began = time.perf_counter()
            cache = PictureCache(pictures)
        except RetinastreamError as error:
            print(error, file=sys.stderr)
            return error.exit_code
        seconds = time.perf_counter() - began
        print(f"OpenCV {cv2.__version__}, torch {torch.__version__}, one thread")
        print(f"{len(cache)} pictures decoded in {seconds:.1f} s: {cache.nbytes / 1e6:.0f} MB")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        for name, settings in SETTINGS.items():
            batches = Batches(pictures, cache, settings, batch=arguments.batch, size=arguments.size, seed=0)
            report(name, batches, cache, arguments.repeats, device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
