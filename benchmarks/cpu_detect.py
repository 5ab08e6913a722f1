"""How close the whole pipeline comes to its slowest part on this CPU, and how it compares with the classic way.

For a 1080p and a 4K clip: decoding alone, inference alone (the same threads and streams) and end to end (decode,
preprocess, inference, anchors, NMS), repeated in turn so that a busy machine touches all alike; medians and ratios.
Each under two budgets. "shared": network and decoder may each use every core, so that together they cannot reach the
slower one alone (the bound is 1 / (1/decode + 1/inference)). "split": the network has all cores but one, the decoder
one; each is measured alone with the threads that it has end to end.
With --classic CHECKPOINT, the classic PyTorch implementation runs on frames of the same clips in the same run.

    python benchmarks/cpu_detect.py --model mnet025.onnx
    python benchmarks/cpu_detect.py --model mnet025.onnx --classic mobilenet0.25_Final.pth --json result.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clips import SAMPLE_4K, reduced

from retinastream import Detector, open_video
from retinastream.engines.cpu import cpu_count, cpu_name, has_fast_bf16
from retinastream.pipeline.batches import in_batches
from retinastream.pipeline.stages import Pipeline


def decode_only(clip: Path, threads: int) -> float:
    """Frames per second of the decoder, frames thrown away."""
    with open_video(clip, threads=threads) as source:
        began = time.perf_counter()
        count = sum(1 for _ in source)
        return count / (time.perf_counter() - began)


def inference_only(detector: Detector, clip: Path, frames: int) -> float:
    """Frames per second of the network on input that is ready, every stream kept busy."""
    with open_video(clip, max_frames=1) as source:
        frame = next(iter(source))
    workers = next(stage.workers for stage in detector.stages() if stage.name == "inference")
    jobs = [detector.backend.prepare([frame], steady=True) for _ in range(workers)]
    for job in jobs:
        detector.backend.infer(job)
    share = max(1, frames // len(jobs))

    def work(job: Any) -> None:
        for _ in range(share):
            detector.backend.infer(job)

    threads = [threading.Thread(target=work, args=(job,)) for job in jobs]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    for job in jobs:
        detector.backend.finish(job)
    return share * len(jobs) / seconds


def end_to_end(detector: Detector, clip: Path, threads: int, frames: int) -> tuple[float, float, int]:
    """Frames per second from file to faces, the share of that time that postprocessing computed, and the faces."""
    with open_video(clip, threads=threads, max_frames=frames) as source:
        pipeline = Pipeline(in_batches(source, detector.batch), detector.stages(steady=True), source_name="decode")
        faces = count = 0
        with pipeline:
            for _, found in pipeline:
                count += len(found)
                faces += sum(len(f) for f in found)
        stats = pipeline.stats
    post = next(stage for stage in stats.stages if stage.name == "postprocess")
    return count / stats.wall, post.cpu / stats.wall, faces


@dataclass(frozen=True)
class Case:
    """One line of the result: what runs, on which threads."""

    clip: Path
    size: str
    precision: str
    budget: str
    inference_threads: int
    decode_threads: int


def measure(case: Case, model: str, repeats: int, frames: int) -> dict[str, Any]:
    """Run the three in turn and return their medians."""
    rows: dict[str, list[float]] = {"decode": [], "inference": [], "end_to_end": [], "post_share": []}
    faces = 0
    with Detector(
        model, size=case.size, precision=case.precision, threads=case.inference_threads, streams=0
    ) as detector:
        for _ in range(repeats):
            rows["decode"].append(decode_only(case.clip, case.decode_threads))
            rows["inference"].append(inference_only(detector, case.clip, frames))
            fps, share, faces = end_to_end(detector, case.clip, case.decode_threads, frames)
            rows["end_to_end"].append(fps)
            rows["post_share"].append(share)
        streams = detector.info.streams
    medians = {name: statistics.median(values) for name, values in rows.items()}
    slower = min(medians["decode"], medians["inference"])
    bound = slower
    if case.budget == "shared":
        # On the same cores no schedule can beat the sum of the two costs.
        bound = 1 / (1 / medians["decode"] + 1 / medians["inference"])
    return {
        "clip": case.clip.name, "size": case.size, "precision": case.precision, "budget": case.budget,
        "inference_threads": case.inference_threads, "decode_threads": case.decode_threads, "streams": streams,
        "decode_fps": medians["decode"], "inference_fps": medians["inference"], "end_to_end_fps": medians["end_to_end"],
        "of_slower": medians["end_to_end"] / slower, "of_bound": medians["end_to_end"] / bound,
        "postprocess_share": medians["post_share"], "faces": faces,
    }  # fmt: skip


def describe(row: dict[str, Any]) -> str:
    """One line for a person."""
    text = (
        f"{row['clip']} {row['size']} {row['precision']} {row['budget']}: decode {row['decode_fps']:.1f} fps, "
        f"inference {row['inference_fps']:.1f}, end to end {row['end_to_end_fps']:.2f} = "
        f"{row['of_slower']:.0%} of the slower"
    )
    if row["budget"] == "shared":
        text += f", {row['of_bound']:.0%} of the bound"
    text += f"; postprocess {row['postprocess_share']:.1%} of the time"
    return text + (f"; {row['times_classic']:.1f}x classic" if "times_classic" in row else "")


def classic(clip: Path, checkpoint: Path, threads: int, count: int) -> dict[str, Any]:
    """Run the classic PyTorch implementation on the first frames of a clip."""
    from classic_baseline import run_classic

    from retinastream.kernels.colour import to_bgr

    with open_video(clip, max_frames=count) as source:
        pictures = [to_bgr(frame).copy() for frame in source]
    return dict(run_classic(pictures, checkpoint, threads))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="zoo name or .onnx file")
    parser.add_argument("--classic", type=Path, help="checkpoint for the classic PyTorch implementation")
    parser.add_argument("--clip-1080p", type=Path, help="default: the 4K sample, encoded anew at 1080p")
    parser.add_argument("--clip-4k", type=Path, default=SAMPLE_4K)
    parser.add_argument("--threads", type=int, default=cpu_count())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--frames", type=int, default=40, help="frames per end-to-end run")
    parser.add_argument("--sizes", default="native,fit:1280")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args()
    budgets = [("shared", options.threads, options.threads), ("split", max(1, options.threads - 1), 1)]
    precisions = ["f32", "bf16"] if has_fast_bf16() else ["f32"]
    print(f"{cpu_name()}, {options.threads} threads, medians of {options.repeats}")
    results: dict[str, Any] = {"cpu": cpu_name(), "threads": options.threads, "rows": [], "classic": {}}
    with tempfile.TemporaryDirectory() as folder:
        clip_1080p = options.clip_1080p or reduced(SAMPLE_4K, 1920, 1080, Path(folder) / "sample_1080p.mp4")
        for clip in (clip_1080p, options.clip_4k):
            baseline = None
            if options.classic:
                found = classic(clip, options.classic, options.threads, 5)
                results["classic"][clip.name] = found
                baseline = found["fps"]
                print(f"{clip.name}: classic PyTorch, native: {json.dumps(found)}")
            for size, precision, budget in itertools.product(options.sizes.split(","), precisions, budgets):
                case = Case(clip, size, precision, *budget)
                row = measure(case, options.model, options.repeats, options.frames)
                if baseline:
                    row["times_classic"] = row["end_to_end_fps"] / baseline
                results["rows"].append(row)
                print(describe(row), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
