"""Commands that fetch packages: bounded in time, and skipped where the index of packages cannot be reached."""

import os
import re
import subprocess

import pytest

# What pip says of an index that it cannot reach, as opposed to a version that is not there.
_OUT_OF_REACH = re.compile(r"Failed to establish a new connection|Max retries exceeded|NewConnectionError|timed out")


def run_with_packages(command, *, what, environment=None, seconds=280, **options):
    """Run a command that calls pip; AssertionError with its words where it fails for another reason."""
    environment = {**(environment or os.environ), "PIP_RETRIES": "1", "PIP_TIMEOUT": "15"}
    try:
        done = subprocess.run(
            command, env=environment, timeout=seconds, capture_output=True, text=True, check=False, **options
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"NOT TESTED: {what} did not arrive within {seconds} s")
    said = done.stdout + done.stderr
    if done.returncode and _OUT_OF_REACH.search(said):
        pytest.skip(f"NOT TESTED: {what} cannot be fetched here, the index of packages is out of reach")
    assert done.returncode == 0, f"{command}\n{said}"
