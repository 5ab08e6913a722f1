"""All GPU benchmarks, one after the other, each in a process of its own.

    python benchmarks/gpu_all.py --output benchmarks/results

Writes a JSON file per benchmark and ``gpu_all.json``, which says how each ended. Exit code 3 where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu_report import NO_GPU, describe_gpus, open_gpu, versions

from retinastream.errors import SetupError

HERE = Path(__file__).resolve().parent
SCRIPTS = ("gpu_kernels", "gpu_upload", "gpu_classic", "gpu_detector")
SECONDS = 300


def run_all(scripts: Sequence[str], output: Path, seconds: float = SECONDS) -> dict[str, Any]:
    """Run scripts of this folder; what each printed goes to this process's output."""
    ends = []
    for name in scripts:
        print(f"== {name}", flush=True)
        began = time.perf_counter()
        command = [sys.executable, str(HERE / f"{name}.py"), "--output", str(output)]
        try:
            code = subprocess.run(command, check=False, timeout=seconds).returncode
        except subprocess.TimeoutExpired:
            code = None
            print(f"{name} was stopped after {seconds:g} s", file=sys.stderr)
        ends.append({"name": name, "exit_code": code, "wall_s": time.perf_counter() - began})
    return {"benchmark": "gpu_all", "runs": ends, "gpus_after": describe_gpus(), "versions": versions()}


def conclude(folder: Path) -> dict[str, float]:
    """What takes two benchmarks to say: decode and NMS as a part of a batch of 8, where both were measured."""
    try:
        kernels, detector = (
            json.loads((folder / f"{name}.json").read_text()) for name in ("gpu_kernels", "gpu_detector")
        )
    except FileNotFoundError:
        return {}
    batch = next((r for r in detector["rows"] if (r["batch"], r["pictures_on"]) == (8, "device")), None)
    steps = {r["name"]: r["median_us"] for r in kernels["rows"] if r["name"].startswith("decode + NMS")}
    return {} if batch is None else {name: us / 1e3 / batch["batch_ms"] for name, us in steps.items()}


def main() -> int:
    """Run all; the exit code is 1 where one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE / "results", metavar="FOLDER")
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, default=SCRIPTS, help="which to run")
    options = parser.parse_args()
    try:
        open_gpu()
    except SetupError as error:
        print(f"gpu_all needs a CUDA GPU, and none can be used here: {error}", file=sys.stderr)
        return NO_GPU
    result = {**run_all(options.only, options.output), "part_of_batch": conclude(options.output)}
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "gpu_all.json").write_text(json.dumps(result, indent=1) + "\n")
    for name, part in result["part_of_batch"].items():
        print(f"{name}: {part:.1%} of a batch of 8, aim 3%")
    return 0 if all(end["exit_code"] == 0 for end in result["runs"]) else 1


if __name__ == "__main__":
    sys.exit(main())
