"""Several processes and one cache: they build once, wait for each other, and a killed one leaves nothing in the way."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from kept_engines import keep, key, plan

from retinastream.engines.cache import lock
from retinastream.engines.cache.match import Found, Miss
from retinastream.engines.cache.store import EngineCache
from retinastream.errors import SetupError

HERE = Path(__file__).resolve().parent
WAIT = 30.0

# Builds when nobody else has; says on its output what it does, and finishes when its input is closed.
CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from kept_engines import key, plan, record
from retinastream.engines.cache.store import EngineCache

def say(text):
    print(text, flush=True)

cache = EngineCache(Path(sys.argv[1]))
with cache.building(key(), gpu=sys.argv[3], on_wait=lambda text: say("waits: " + text)) as build:
    if build.found is not None:
        say("found " + build.found.digest)
    else:
        (build.scratch / "half.bin").write_bytes(bytes(1000))
        (build.scratch.parent / (build.scratch.name.replace(".part", ".x.part"))).write_bytes(plan()[:2000])
        say("builds")
        sys.stdin.read()
        build.publish(plan(int(sys.argv[4])), record())
        say("built")
"""


@pytest.fixture
def cache(tmp_path):
    return EngineCache(tmp_path / "engines")


@pytest.fixture
def child(cache):
    running = []

    def start(seed=0, gpu=""):
        command = [sys.executable, "-c", CHILD, str(cache.folder), str(HERE), gpu, str(seed)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        running.append(process)
        return process

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=WAIT)


def finish(process):
    out, _ = process.communicate(timeout=WAIT)
    assert process.returncode == 0
    return out.split("\n")


def test_two_processes_build_once_and_the_second_says_that_it_waits(cache, child):
    first = child(seed=1)
    assert first.stdout.readline() == "builds\n"
    second = child(seed=2)
    waiting = second.stdout.readline()
    assert waiting.startswith(f"waits: another process ({first.pid} on ")
    assert "is building this engine; waiting for it to finish" in waiting
    assert isinstance(cache.find(key()), Miss)
    assert "built" in finish(first)
    assert f"found {key().digest}" in finish(second)
    assert cache.read_verified_plan(cache.find(key()).entry) == plan(1)
    assert not list(cache.folder.glob("*.part"))


def test_killed_in_the_middle_of_a_build_the_next_one_begins_clean(cache, child):
    killed = child()
    assert killed.stdout.readline() == "builds\n"
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait(WAIT)
    assert len(list(cache.folder.glob("*.part"))) == 2
    assert isinstance(cache.find(key()), Miss)
    heard = []
    with cache.building(key(), on_wait=heard.append) as build:
        assert (build.found, build.waited, heard) == (None, False, [])
        assert not list(cache.folder.glob("*.part"))
    keep(cache)
    assert isinstance(cache.find(key()), Found)


def test_the_waiting_process_takes_over_from_a_killed_one(cache, child):
    killed = child(seed=1)
    assert killed.stdout.readline() == "builds\n"
    second = child(seed=2)
    assert second.stdout.readline().startswith("waits")
    killed.kill()
    assert second.stdout.readline() == "builds\n"
    assert "built" in finish(second)
    assert cache.read_verified_plan(cache.find(key()).entry) == plan(2)


def test_builds_on_one_gpu_follow_each_other_and_on_two_they_do_not_wait(cache, child):
    first = child(gpu="GPU-1")
    assert first.stdout.readline() == "builds\n"
    with cache.building(key(precision="int8"), gpu="GPU-2", on_wait=pytest.fail):
        pass
    heard = []
    stop = threading.Event()

    def wait_no_longer(text):
        heard.append(text)
        stop.set()

    with (
        pytest.raises(SetupError, match="stopped while another process is building an engine on this GPU"),
        cache.building(key(precision="int8"), gpu="GPU-1", on_wait=wait_no_longer, stop=stop),
    ):
        pytest.fail("two builds on one GPU")
    assert len(heard) == 1


# Publishes a second plan in a forked process that kills itself at its N-th look at the file system, for every N.
KILLED_EVERYWHERE = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from kept_engines import keep, key, plan
from retinastream.engines.cache.match import Found
from retinastream.engines.cache.store import EngineCache

cache = EngineCache(Path(sys.argv[1]))
left = -1

def count(event, arguments):
    global left
    if left > 0 and event in ("open", "os.rename", "os.remove", "os.mkdir", "os.listdir", "fcntl.flock", "os.utime"):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(count)
moment, outcomes, status = 0, [], 1
while status:
    moment += 1
    keep(cache, content=plan(0))
    child = os.fork()
    if child == 0:
        left = moment
        keep(cache, content=plan(1, size=9000))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    found = cache.find(key())
    content = cache.read_verified_plan(found.entry) if isinstance(found, Found) else None
    outcomes.append({plan(0): "old", plan(1, size=9000): "new", None: "none"}[content])
    with cache.building(key()) as build:
        assert isinstance(found, Found) == (build.found is not None), found
        assert not list(cache.folder.glob("*.part")), moment
        assert build.found is not None or not list(cache.folder.glob("*.plan")), moment
print(*outcomes)
"""


def test_killed_at_any_moment_the_old_engine_is_there_or_none_or_the_new_one(cache):
    command = [sys.executable, "-c", KILLED_EVERYWHERE, str(cache.folder), str(HERE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=False)
    assert done.returncode == 0, done.stderr
    outcomes = done.stdout.split()
    assert outcomes == sorted(outcomes, key=["old", "none", "new"].index)
    assert set(outcomes) == {"old", "none", "new"}
    assert len(outcomes) > 8


def test_a_lock_whose_file_goes_while_it_is_taken_is_taken_anew(tmp_path, monkeypatch):
    path = tmp_path / "x.lock"
    real = lock.fcntl.flock
    taken = []

    def pruned_just_before(descriptor, how):
        if not taken:
            path.unlink()
        taken.append(descriptor)
        real(descriptor, how)

    monkeypatch.setattr(lock.fcntl, "flock", pruned_just_before)
    with lock.held(path, "testing"):
        assert len(taken) == 2
        assert not lock.is_free(path)


def test_a_lock_whose_file_was_removed_meanwhile_is_waited_for_anew(tmp_path):
    path = tmp_path / "x.lock"
    order = []
    waiting = threading.Event()

    def second():
        with lock.held(path, "testing", on_wait=lambda _: waiting.set()):
            order.append("second")
            assert not lock.is_free(path)

    with lock.held(path, "testing"):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(WAIT)
        path.unlink()
        order.append("first")
    thread.join(WAIT)
    assert order[-1] == "second"
    assert lock.is_free(path)


def test_without_locks_in_the_file_system_a_build_goes_on_and_touches_no_other_build(cache, monkeypatch, caplog):
    keep(cache)
    other = cache.folder / f"{key().digest[:32]}.plan.1-2.part"
    other.write_bytes(b"of another process")

    def no_locks(*_):
        raise OSError(lock.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", no_locks)
    keep(cache, content=plan(4))
    assert "has no locks" in caplog.text
    assert other.exists()
    assert cache.read_verified_plan(cache.find(key()).entry) == plan(4)
