"""The command line, called as a person calls it."""

import os
import subprocess
import sys

import pytest


@pytest.fixture
def retinastream(monkeypatch, capfd, tmp_path):
    """Run the command in this process, in an empty directory: returns (exit code, stdout, stderr)."""
    from retinastream.cli import main

    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    monkeypatch.chdir(work)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["retinastream", *map(str, arguments)])
        capfd.readouterr()
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capfd.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return call


@pytest.fixture
def start(tmp_path):
    """Start the command as a process of its own: returns the Popen; what still runs at the end is killed."""
    running = []

    def begin(*arguments, **environment):
        process = subprocess.Popen(
            [sys.executable, "-m", "retinastream", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        )
        running.append(process)
        return process

    yield begin
    for process in running:
        if process.poll() is None:
            process.kill()
        process.wait(10)
