"""Downloads against a small server on this machine: resuming, cut connections, wrong contents."""

import hashlib
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from retinastream.errors import ModelError, OutputError, SetupError
from retinastream.models.download import download

CONTENT = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Behaviour:
    """What the server does, and what it was asked."""

    content: bytes = CONTENT
    etag: str | None = '"v1"'
    ranges: bool = True
    cut_after: int | None = None
    wrong_offset: bool = False
    status: int = 200
    requests: list[dict[str, str | None]] = field(default_factory=list)


@contextmanager
def serving(behaviour):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked = {name: self.headers.get(name) for name in ("Range", "If-Range")}
            behaviour.requests.append(asked)
            if behaviour.status != 200:
                self.send_error(behaviour.status)
                return
            start = int(re.match(r"bytes=(\d+)-", asked["Range"])[1]) if asked["Range"] else 0
            if not behaviour.ranges or asked["If-Range"] not in (None, behaviour.etag):
                start = 0
            if start and start >= len(behaviour.content):
                self.send_error(416)
                return
            body = behaviour.content[start:]
            self.send_response(206 if start else 200)
            if start:
                first = start + 1 if behaviour.wrong_offset else start
                self.send_header(
                    "Content-Range", f"bytes {first}-{len(behaviour.content) - 1}/{len(behaviour.content)}"
                )
            self.send_header("Content-Length", str(len(body)))
            if behaviour.etag:
                self.send_header("ETag", behaviour.etag)
            self.end_headers()
            self.wfile.write(body[: behaviour.cut_after])

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/model.onnx"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def fetch(url, dest, sha256=SHA256, **options):
    return download(url, dest, sha256, timeout=5, **options)


def test_complete_download_is_verified_and_leaves_only_the_file(tmp_path):
    seen = []
    with serving(Behaviour()) as url:
        path = fetch(url, tmp_path / "new" / "model.onnx", progress=lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]


def test_cut_connection_keeps_the_part_and_the_same_call_continues(tmp_path):
    behaviour = Behaviour(cut_after=100_000)
    dest = tmp_path / "model.onnx"
    with serving(behaviour) as url:
        with pytest.raises(SetupError, match=r"100000 of 256000 bytes.*the same command continues"):
            fetch(url, dest)
        assert (tmp_path / "model.onnx.part").stat().st_size == 100_000
        assert not dest.exists()
        behaviour.cut_after = None
        assert fetch(url, dest).read_bytes() == CONTENT
    assert behaviour.requests[1] == {"Range": "bytes=100000-", "If-Range": '"v1"'}
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    ("what", "changes", "requests"),
    [
        ("a server without ranges begins again", {"ranges": False}, 1),
        ("a file changed since, and the tag tells", {"etag": '"v2"'}, 1),
        ("a file changed since, and nothing tells", {"etag": None}, 2),
    ],
)
def test_part_that_does_not_fit_is_replaced(what, changes, requests, tmp_path):
    dest = tmp_path / "model.onnx"
    (tmp_path / "model.onnx.part").write_bytes(b"older" * 1000)
    if changes.get("etag", "") is not None:
        (tmp_path / "model.onnx.part.etag").write_text('"v1"')
    behaviour = Behaviour(**changes)
    with serving(behaviour) as url:
        assert fetch(url, dest).read_bytes() == CONTENT
    assert len(behaviour.requests) == requests


@pytest.mark.parametrize(("what", "extra"), [("complete", b""), ("longer than the file", b"more")])
def test_part_that_has_everything_already_is_checked(what, extra, tmp_path):
    (tmp_path / "model.onnx.part").write_bytes(CONTENT + extra)
    with serving(Behaviour()) as url:
        assert fetch(url, tmp_path / "model.onnx").read_bytes() == CONTENT


def test_complete_part_of_known_size_needs_no_network(tmp_path):
    (tmp_path / "model.onnx.part").write_bytes(CONTENT)
    path = fetch("http://127.0.0.1:9/never-asked", tmp_path / "model.onnx", size=len(CONTENT))
    assert path.read_bytes() == CONTENT


def test_wrong_content_is_removed_and_both_hashes_are_told(tmp_path):
    with serving(Behaviour()) as url, pytest.raises(ModelError, match=SHA256) as raised:
        fetch(url, tmp_path / "model.onnx", sha256="0" * 64)
    assert "0" * 64 in str(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("status", "reason"), [(404, "404 Not Found"), (503, "503 Service Unavailable")])
def test_refusal_of_the_server_is_told_and_keeps_an_older_file(status, reason, tmp_path):
    dest = tmp_path / "model.onnx"
    dest.write_bytes(b"older")
    with serving(Behaviour(status=status)) as url, pytest.raises(SetupError, match=reason):
        fetch(url, dest)
    assert dest.read_bytes() == b"older"


def test_server_that_sends_another_range_is_not_believed(tmp_path):
    (tmp_path / "model.onnx.part").write_bytes(CONTENT[:1000])
    with serving(Behaviour(wrong_offset=True)) as url, pytest.raises(SetupError, match="another range"):
        fetch(url, tmp_path / "model.onnx")


def test_unreachable_server_is_a_matter_of_the_network(tmp_path):
    with serving(Behaviour()) as url:
        pass
    with pytest.raises(SetupError, match=r"could not be fetched: .*refused"):
        fetch(url, tmp_path / "model.onnx")


def test_address_of_a_file_is_refused(tmp_path):
    with pytest.raises(ModelError, match="cannot be downloaded"):
        fetch("file:///etc/hostname", tmp_path / "model.onnx")


def test_folder_that_cannot_be_made_is_an_output_error(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OutputError, match="RETINASTREAM_CACHE"):
        fetch("http://127.0.0.1:9/never-asked", tmp_path / "taken" / "model.onnx")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_full_disk_is_an_output_error(tmp_path):
    (tmp_path / "model.onnx.part").symlink_to("/dev/full")
    with serving(Behaviour()) as url, pytest.raises(OutputError, match=r"No space left on device; free some room"):
        fetch(url, tmp_path / "model.onnx")


def test_second_process_is_told_to_wait(tmp_path):
    import fcntl

    with (tmp_path / "model.onnx.part").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(SetupError, match="another process is downloading"):
            fetch("http://127.0.0.1:9/never-asked", tmp_path / "model.onnx")
