"""The benchmarks are scripts that import each other by their names; they run here with the device of other tests."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests" / "pipeline")]
