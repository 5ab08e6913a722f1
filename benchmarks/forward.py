"""The network alone: VGA on one thread and HD on all threads, the paper's two CPU figures, per runtime and precision.

The paper reports 60 fps for VGA on one thread and 20 fps for HD on many (arXiv 1905.00641, table 5).

    python benchmarks/forward.py --model mnet025.onnx
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from retinastream.engines.cpu import cpu_count, cpu_name, has_fast_bf16
from retinastream.engines.select import create_engine
from retinastream.models.zoo import resolve_model


def median_ms(model: str, runtime: str, precision: str, threads: int, height: int, width: int, repeats: int) -> float:
    engine = create_engine(resolve_model(model), runtime=runtime, precision=precision, threads=threads)
    slot = engine.slot(1, height, width, steady=True)
    slot.input[...] = np.random.default_rng(0).integers(0, 256, slot.input.shape)
    slot.run()
    slot.run()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        slot.run()
        times.append(time.perf_counter() - began)
    engine.close()
    return statistics.median(times) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--repeats", type=int, default=21)
    options = parser.parse_args()
    print(f"{cpu_name()}, medians of {options.repeats}")
    kinds = [("onnxruntime", "f32"), ("openvino", "f32")] + ([("openvino", "bf16")] if has_fast_bf16() else [])
    for name, threads, height, width, paper in (
        ("VGA 640x480, 1 thread", 1, 480, 640, 60.0),
        ("HD 1920x1088, 1 thread", 1, 1088, 1920, None),
        (f"HD 1920x1088, {cpu_count()} threads", 0, 1088, 1920, 20.0),
    ):
        base = None
        for runtime, precision in kinds:
            ms = median_ms(options.model, runtime, precision, threads, height, width, options.repeats)
            base = base or ms
            against = f", {1000 / ms / paper:.1f}x the paper's {paper:g} fps" if paper else ""
            print(f"{name}: {runtime} {precision} {ms:.1f} ms = {1000 / ms:.1f} fps, {base / ms:.2f}x ORT{against}")


if __name__ == "__main__":
    main()
