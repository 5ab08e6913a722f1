"""Every benchmark can be started: what it imports is there."""

import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
_IMPORT_ALL = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    print(name)
"""


def test_every_script_finds_what_it_imports():
    names = sorted(path.stem for path in BENCHMARKS.glob("*.py"))
    assert "classic_baseline" in names
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT_ALL, *names],
        cwd=BENCHMARKS,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.split() == names, done.stderr
