"""What all GPU benchmarks share around the measuring: finding the GPU, saying what it is, writing the results.

A script that finds no GPU says so in one sentence and exits with code 3.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gpu_timing import CudaTimer, Timer

from retinastream.errors import SetupError
from retinastream.kernels.device import Device

NO_GPU = 3
PACKAGES = ("retinastream", "numpy", "cupy-cuda13x", "cupy-cuda12x", "torch", "torchvision", "tensorrt", "av")
QUERY = (
    *("index", "name", "driver_version", "pstate", "clocks.sm", "clocks.mem", "clocks.max.sm"),
    *("clocks.max.mem", "temperature.gpu", "power.draw", "power.limit", "memory.total", "memory.used"),
    *("ecc.mode.current", "mig.mode.current", "pcie.link.gen.current", "pcie.link.width.current"),
)


def open_gpu() -> tuple[Device, Timer]:
    """The first GPU and a timer for it; SetupError where there is none or its packages are missing."""
    from retinastream.kernels.cupy_device import open_device

    device = open_device("cuda")
    with device.current():
        device.prepare_kernels()
        return device, CudaTimer()


def describe_gpus() -> list[dict[str, str]]:
    """What nvidia-smi says about every GPU now: clocks, temperature, power; empty where it is not there.

    A field that it does not know is left out.
    """
    found = _query(QUERY)
    if found is not None:
        return found
    columns = [answer for name in QUERY if (answer := _query((name,))) is not None]
    return [{k: v for answer in row for k, v in answer.items()} for row in zip(*columns, strict=True)]


def _query(names: Sequence[str]) -> list[dict[str, str]] | None:
    if (path := shutil.which("nvidia-smi")) is None:
        return None
    command = [path, f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0:
        return None
    rows = csv.reader(done.stdout.splitlines(), skipinitialspace=True)
    return [dict(zip(names, row, strict=False)) for row in rows if row]


def versions() -> dict[str, str]:
    """Versions of the packages that are installed, and of Python."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def report(name: str, device: Device, timer: Timer, settings: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    """The whole of what one script writes."""
    return {
        "benchmark": name,
        "clock": timer.clock,
        "device": {"label": device.label, "name": device.name},
        "gpus_after": describe_gpus(),
        "versions": versions(),
        "machine": {"system": platform.platform(), "processor": platform.machine()},
        "settings": settings,
        **body,
    }


def run_script(
    name: str,
    description: str,
    measure: Callable[[Device, Timer, argparse.Namespace], dict[str, Any]],
    describe: Callable[[dict[str, Any]], list[str]],
    add_options: Callable[[argparse.ArgumentParser], None] | None = None,
) -> int:
    """Be the command line of a GPU benchmark: measure, print one line per row, write ``NAME.json``; the exit code."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, metavar="FOLDER", help=f"write {name}.json into this folder")
    if add_options is not None:
        add_options(parser)
    options = parser.parse_args()
    try:
        device, timer = open_gpu()
        before, began = describe_gpus(), time.perf_counter()
        with device.current():
            result = measure(device, timer, options)
    except SetupError as error:
        print(f"{name} needs a CUDA GPU, and cannot run here: {error}", file=sys.stderr)
        return NO_GPU
    result = {**result, "gpus_before": before, "wall_s": time.perf_counter() - began}
    print("\n".join(describe(result)))
    if options.output is not None:
        print(f"written to {write(result, options.output)}")
    return 0


def write(result: dict[str, Any], folder: Path) -> Path:
    """Write a result as JSON, under its benchmark's name."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result['benchmark']}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path
