"""Whether peak memory grows with the length of a 4K file: `retinastream detect` on 10 s and on 60 s, default settings.

python benchmarks/memory.py --model mnet025.onnx
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from clips import SAMPLE_4K, looped


def peak_mb(clip: Path, model: str, output: Path, extra: list[str]) -> tuple[float, dict]:
    """Peak resident memory of one whole run, in MB, and its summary."""
    command = [sys.executable, "-m", "retinastream", "detect", str(clip), "--model", model, "--output", str(output)]
    process = subprocess.Popen(
        [*command, "--quiet", "--json", "--overwrite", *extra], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"the run failed: {text}")
    return usage.ru_maxrss / 1024, json.loads(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--seconds", type=float, nargs=2, default=(10.0, 60.0))
    parser.add_argument("extra", nargs="*", help="further options for detect, after --")
    options = parser.parse_args()
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        for seconds in options.seconds:
            clip = looped(SAMPLE_4K, seconds, Path(folder) / f"{seconds:g}s.mp4")
            peak, report = peak_mb(clip, options.model, Path(folder), options.extra)
            frames = report["inputs"][0]["frames"]["written"]
            print(
                f"{seconds:g} s, {frames} frames: peak {peak:.0f} MB, {report['inputs'][0]['fps']:.1f} fps", flush=True
            )
            peaks.append(peak)
    print(f"ratio {peaks[1] / peaks[0]:.3f}")


if __name__ == "__main__":
    main()
