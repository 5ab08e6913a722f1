"""``retinastream model``: what it prints, writes and refuses."""

import hashlib
import io
import json
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from retinastream.cli import model as model_command
from retinastream.cli.model import app
from retinastream.errors import ModelError, UsageError
from retinastream.models import zoo as zoo_module
from retinastream.models import zoo_entries
from retinastream.models.spec import DetectorSpec


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RETINASTREAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def checkpoint(tmp_path):
    """Return a checkpoint with random weights."""
    torch = pytest.importorskip("torch", reason="the export extra is not installed")
    pytest.importorskip("onnx", reason="the export extra is not installed")
    from retinastream.models.network import RetinaFace

    path = tmp_path / "my net.pth"
    torch.save(RetinaFace(seed=8).state_dict(), path)
    return path


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def test_list_shows_one_line_for_every_model_and_whether_it_is_here(cache):
    cache.mkdir(parents=True)
    (cache / "uniface-r18.onnx").write_bytes(b"x")
    lines = run("list").stdout.splitlines()
    found = {line.split()[0]: line.split()[1] for line in lines[1 : len(zoo_entries.zoo()) + 1]}
    assert found == {name: "yes" if name in ("mnet025", "uniface-r18") else "no" for name in zoo_entries.zoo()}
    assert "part of the package" in lines[1]
    assert "90.7 / 88.1 / 73.8" in lines[2]
    assert str(cache) in lines[-1]


def test_list_as_json_holds_hash_licence_and_path(cache):
    rows = {row["name"]: row for row in json.loads(run("list", "--json").stdout)}
    assert rows["biubug6-mnet025"]["sha256"].startswith("2979b33f")
    assert rows["biubug6-mnet025"]["here"] is False
    assert rows["mnet025"]["here"] is True
    assert rows["arcface-mbf"]["path"] == str(cache / "arcface-mbf.onnx")


def test_export_writes_where_it_is_told_and_never_over_an_existing_file(checkpoint, tmp_path):
    out = tmp_path / "новый файл.onnx"
    result = run("export", checkpoint, "-o", out, "--spec", "retinaface-light", "--layout", "classic")
    assert result.stdout.strip() == str(out)
    before = out.read_bytes()
    with pytest.raises(UsageError, match="exists; give --overwrite"):
        run("export", checkpoint, "-o", out, "--spec", "retinaface-light")
    assert out.read_bytes() == before
    run("export", checkpoint, "-o", out, "--spec", "retinaface-light", "--overwrite")
    assert out.read_bytes() != before


def test_export_without_output_goes_to_the_working_directory(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("export", checkpoint, "--spec", "retinaface-light").stdout == "my net-fused.onnx\n"
    assert (tmp_path / "my net-fused.onnx").is_file()


def test_export_of_an_unknown_checkpoint_asks_for_the_spec(checkpoint, tmp_path):
    with pytest.raises(ModelError, match="--spec"):
        run("export", checkpoint, "-o", tmp_path / "net.onnx")
    assert not (tmp_path / "net.onnx").exists()


def test_inspect_says_layout_spec_and_operators(checkpoint, tmp_path):
    out = tmp_path / "net.onnx"
    run("export", checkpoint, "-o", out, "--spec", "retinaface-light-10-20")
    shown = run("inspect", out).stdout
    for text in (
        "layout       fused",
        "anchor_sizes ((10.0, 20.0)",
        "head_32 float32 [?, 32, ?, ?]",
        "50 Conv",
        "opset        17",
    ):
        assert text in shown
    described = json.loads(run("inspect", out, "--json").stdout)
    assert described["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert described["outputs"][0].startswith("head_8")
    assert described["metadata"]["retinastream.source_sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()


def test_pull_says_the_licence_first_and_prints_the_path(tmp_path, cache, monkeypatch):
    content = bytes(3_000_000)
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "net.onnx").write_bytes(content)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "served")))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    entry = zoo_entries.zoo()["uniface-r18"].model_copy(
        update={
            "url": f"http://127.0.0.1:{server.server_port}/net.onnx",
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    )
    monkeypatch.setattr(zoo_module, "zoo", lambda: {entry.name: entry})
    try:
        result = run("pull", "uniface-r18")
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
    assert result.stdout == f"{cache / 'uniface-r18.onnx'}\n"
    lines = result.stderr.splitlines()
    assert lines[0] == "uniface-r18: licence: MIT"
    assert lines[-1] == "uniface-r18: 3.0 of 3.0 MB"
    assert 3 <= len(lines) <= 13
    assert (cache / "uniface-r18.onnx").read_bytes() == content


def test_progress_on_a_terminal_is_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with model_command._Progress("uniface-r18") as report:
        report(1_000_000, 4_000_000)
        report(4_000_000, 4_000_000)
    assert "uniface-r18" in terminal.getvalue()
    assert "4.0/4.0 MB" in terminal.getvalue()


def test_importing_the_command_brings_in_nothing_heavy():
    heavy = "numpy", "yaml", "pydantic", "torch", "onnx", "openvino", "cv2", "av", "urllib.request"
    # Run as a file, so that the modules of the other commands do not count.
    code = f"import runpy, sys; runpy.run_path(sys.argv[1]); print([m for m in {heavy} if m in sys.modules])"
    shown = subprocess.run(
        [sys.executable, "-c", code, model_command.__file__], capture_output=True, text=True, check=True, timeout=60
    )
    assert shown.stdout.strip() == "[]"


def test_default_spec_is_the_one_that_the_documentation_names():
    assert DetectorSpec().anchor_sizes == ((16, 32), (64, 128), (256, 512))
