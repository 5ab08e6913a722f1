"""Start-up: importing the package, and `retinastream --help`, against a bare interpreter.

python benchmarks/startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time


def median_s(command: list[str], repeats: int = 15) -> float:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    bare = median_s([sys.executable, "-c", "pass"])
    for name, command in (
        ("import retinastream", [sys.executable, "-c", "import retinastream"]),
        ("import retinastream.Faces", [sys.executable, "-c", "from retinastream import Faces"]),
        ("retinastream --help", [sys.executable, "-m", "retinastream", "--help"]),
        ("retinastream detect --help", [sys.executable, "-m", "retinastream", "detect", "--help"]),
    ):
        seconds = median_s(command)
        print(f"{name}: {seconds:.3f} s, of which the bare interpreter {bare:.3f} s")


if __name__ == "__main__":
    main()
