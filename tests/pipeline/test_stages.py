"""The pipeline of stages: order, back-pressure, errors, early ends, and that no thread outlives it."""

import gc
import random
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest

from retinastream.pipeline.batches import in_batches
from retinastream.pipeline.stages import Pipeline, PipelineStats, Stage
from retinastream.types import Frame

TIMEOUT = 10.0


class BrokenError(Exception):
    pass


def own_threads():
    return [t for t in threading.enumerate() if t.name.startswith("retinastream-")]


@pytest.fixture(autouse=True)
def _no_thread_is_left_behind():
    assert own_threads() == []
    yield
    deadline = time.monotonic() + TIMEOUT
    while own_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert own_threads() == []


@pytest.fixture(autouse=True)
def _watchdog():
    """A deadlock must fail its own test: cancel what runs after some seconds."""
    running = []
    enter = Pipeline.__enter__

    def remember(self):
        running.append(self)
        return enter(self)

    def rescue():
        for pipeline in running:
            for queue in pipeline._queues:
                queue.cancel()

    timer = threading.Timer(TIMEOUT, rescue)
    timer.daemon = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pipeline, "__enter__", remember)
        timer.start()
        yield
        assert timer.is_alive(), "the pipeline did not end by itself"
        timer.cancel()


def finish_within_timeout(work):
    """Call ``work`` in a thread, so that a join without end fails this test instead of hanging the suite."""
    box = []
    thread = threading.Thread(target=lambda: box.append(work()), daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    assert not thread.is_alive(), f"stuck; threads: {[t.name for t in own_threads()]}"
    return box[0]


def collect(pipeline):
    """Run a pipeline to its end: (results, error)."""

    def run():
        results, error = [], None
        try:
            with pipeline:
                for item in pipeline:
                    results.append(item)  # noqa: PERF402 - those before an error must be kept
        except Exception as raised:  # noqa: BLE001 - returned to the test
            error = raised
        return results, error

    return finish_within_timeout(run)


def fail_at(*numbers, wait=0.0):
    def work(n):
        if n in numbers:
            time.sleep(wait)
            raise BrokenError(f"item {n}")
        return n

    return work


def nap(seed=0, longest=0.004):
    rng = random.Random(seed)

    def work(n):
        time.sleep(rng.random() * longest)
        return n

    return work


@pytest.mark.parametrize(
    ("workers", "capacity"),
    [
        pytest.param(1, 1, id="one worker"),
        pytest.param(2, 1, id="two workers on a short queue"),
        pytest.param(5, 3, id="five workers"),
    ],
)
def test_results_keep_the_order_of_their_items(workers, capacity):
    stages = [Stage("double", lambda n: nap(n)(n) * 2, workers, capacity), Stage("plus one", lambda n: n + 1)]
    assert collect(Pipeline(range(60), stages)) == ([2 * n + 1 for n in range(60)], None)


def test_a_slow_item_is_not_overtaken_by_those_behind_it():
    stage = Stage("wait", lambda n: time.sleep(0.1 if n == 0 else 0) or n, workers=4, capacity=4)
    assert collect(Pipeline(range(12), [stage]))[0] == list(range(12))


def test_several_workers_are_at_work_at_the_same_time():
    together = threading.Barrier(3, timeout=TIMEOUT)
    stage = Stage("meet", lambda n: together.wait() * 0 + n, workers=3)
    assert collect(Pipeline(range(3), [stage])) == ([0, 1, 2], None)


def test_a_source_without_items_gives_no_results():
    assert collect(Pipeline([], [Stage("same", lambda n: n, workers=2)])) == ([], None)


def test_without_stages_the_source_comes_through():
    assert collect(Pipeline("abc", [])) == (["a", "b", "c"], None)


def test_the_source_runs_only_a_bounded_number_of_items_ahead():
    taken, ahead = [0], []

    def source():
        for n in range(40):
            taken[0] = n + 1
            yield n

    with Pipeline(source(), [Stage("a", lambda n: n, capacity=2), Stage("b", lambda n: n, capacity=1)]) as pipeline:
        for received, _ in enumerate(pipeline, 1):
            time.sleep(0.003)
            ahead.append(taken[0] - received)
    # queues 2 + 1 + 2, one item in the hands of each of the two stages, one in those of the source
    assert max(ahead) <= 8
    depths = {s.name: s.queue.max_depth for s in pipeline.stats.stages[1:]}
    assert depths["a"] <= 2
    assert depths["b"] <= 1


def test_statistics_name_the_stage_that_held_the_run_up():
    stages = [Stage("quick", lambda n: n), Stage("slow", lambda n: time.sleep(0.02) or n), Stage("after", lambda n: n)]
    pipeline = Pipeline(range(10), stages, source_name="decode")
    assert collect(pipeline)[1] is None
    stats = pipeline.stats
    assert [s.name for s in stats.stages] == ["decode", "quick", "slow", "after"]
    assert [s.items for s in stats.stages] == [10] * 4
    assert stats.bottleneck() == "slow"
    slow, after = stats.stages[2], stats.stages[3]
    assert slow.busy >= 0.2
    assert slow.queue.producer_wait > slow.queue.consumer_wait
    assert after.queue.consumer_wait > 0.1
    plain = stats.to_dict()
    assert plain["bottleneck"] == "slow"
    assert "queue" not in plain["stages"][0]
    assert plain["stages"][2]["queue"]["capacity"] == 2
    assert 0 < plain["stages"][2]["busy_share"] <= 1.01


def test_statistics_of_nothing_say_so():
    assert PipelineStats().bottleneck() == "nothing ran"


@pytest.mark.parametrize("workers", [1, 2, 5], ids=lambda n: f"{n} workers")
@pytest.mark.parametrize("broken", [0, 1, 9, 19], ids=lambda n: f"item {n} fails")
@pytest.mark.parametrize("place", [0, 1, 2], ids=["in the first stage", "in the second stage", "in the third stage"])
def test_results_in_front_of_an_error_are_delivered_and_then_it_is_raised(workers, broken, place):
    stages = [Stage(f"s{k}", fail_at(broken) if k == place else nap(k, 0.001), workers, 2) for k in range(3)]
    results, error = collect(Pipeline(range(20), stages))
    assert isinstance(error, BrokenError)
    assert str(error) == f"item {broken}"
    # what is behind the failed stage is delivered completely; nothing comes after the failed item
    assert results == list(range(broken))


def test_of_two_failures_that_of_the_foremost_item_is_raised():
    def work(n):
        if n == 3:
            time.sleep(0.08)
        if n in (3, 4):
            raise BrokenError(f"item {n}")
        return n

    results, error = collect(Pipeline(range(20), [Stage("both", work, workers=4, capacity=4)]))
    assert (results, str(error)) == ([0, 1, 2], "item 3")


def test_an_error_of_the_source_is_raised_after_the_results_in_front_of_it():
    def source():
        yield from range(5)
        raise BrokenError("disk")

    results, error = collect(Pipeline(source(), [Stage("slow", nap(1), workers=3), Stage("same", lambda n: n)]))
    assert (results, str(error)) == (list(range(5)), "disk")


def test_a_source_that_cannot_be_opened_is_an_error_and_not_a_wait_without_end():
    class Source:
        def __iter__(self):
            raise BrokenError("no such file")

    results, error = collect(Pipeline(Source(), [Stage("same", lambda n: n)]))
    assert (results, str(error)) == ([], "no such file")


def test_an_error_while_the_source_is_closed_is_raised():
    class Source:
        def __iter__(self):
            return self

        def __next__(self):
            raise StopIteration

        def close(self):
            raise BrokenError("close")

    assert str(collect(Pipeline(Source(), [Stage("same", lambda n: n)]))[1]) == "close"


def test_an_interrupt_in_a_worker_reaches_the_consumer():
    def work(n):
        if n == 2:
            raise KeyboardInterrupt
        return n

    def run():
        got = []
        with pytest.raises(KeyboardInterrupt), Pipeline(range(9), [Stage("s", work, workers=2)]) as pipeline:
            for n in pipeline:
                got.append(n)  # noqa: PERF402 - those before the interrupt must be kept
        return got

    assert finish_within_timeout(run) == [0, 1]


@pytest.mark.parametrize("workers", [1, 2, 4], ids=lambda n: f"{n} workers")
@pytest.mark.parametrize("received", [0, 1, 7], ids=lambda n: f"after {n} results")
@pytest.mark.parametrize("pause", [0.0, 0.05], ids=["at once", "when every queue is full"])
def test_leaving_early_ends_the_threads_and_closes_the_source(workers, received, pause):
    closed = threading.Event()

    def source():
        try:
            n = 0
            while True:
                yield n
                n += 1
        finally:
            closed.set()

    def run():
        got = []
        with Pipeline(source(), [Stage("a", lambda n: n, workers, 1), Stage("b", lambda n: n, workers, 1)]) as pipeline:
            results = iter(pipeline)
            got.extend(next(results) for _ in range(received))
            time.sleep(pause)
        return got

    assert finish_within_timeout(run) == list(range(received))
    assert closed.is_set()
    assert own_threads() == []


LEFT_OPEN = """
import itertools, threading
from retinastream.pipeline import stages

stages._PATIENCE = {patience}

def source():
    try:
        for number in itertools.count():
            if {blocks} and number == 3:
                threading.Event().wait()
            yield number
    finally:
        print("closed")

def work(number):
    return number

pipeline = stages.Pipeline(source(), [stages.Stage("work", work)])
results = iter(pipeline.__enter__())
print(next(results), next(results))
"""


@pytest.mark.parametrize("blocks", [False, True])
def test_the_end_of_the_program_ends_the_threads_of_an_iterator_that_is_left_open(blocks):
    script = LEFT_OPEN.format(blocks=blocks, patience=0.1 if blocks else 30.0)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["0", "1"] + ([] if blocks else ["closed"])


def test_a_worker_that_waits_for_its_turn_is_woken_when_the_one_before_it_is_cancelled():
    """Worker 0 waits for room behind it, worker 1 for worker 0; cancelling must reach both."""

    def run():
        with Pipeline(range(100), [Stage("a", lambda n: n, workers=4, capacity=4)]):
            time.sleep(0.1)  # nobody receives, so all of them wait
        return "left"

    assert finish_within_timeout(run) == "left"


def test_a_failing_stage_frees_the_many_workers_in_front_of_it():
    def slow_failure(n):
        time.sleep(0.1)  # until the workers in front wait for room and for each other
        raise BrokenError("late")

    stages = [Stage("many", lambda n: n, workers=4, capacity=4), Stage("late", slow_failure, capacity=1)]
    results, error = collect(Pipeline(range(100), stages))
    assert (results, str(error)) == ([], "late")


def test_an_error_of_the_consumer_ends_the_threads():
    def run():
        with pytest.raises(BrokenError), Pipeline(range(1000), [Stage("a", nap(2), workers=3)]) as pipeline:
            for n in pipeline:
                if n == 4:
                    raise BrokenError
        return own_threads()

    assert finish_within_timeout(run) == []


def test_stop_finishes_and_delivers_what_is_in_flight():
    taken = []

    def source():
        for n in range(10_000):
            taken.append(n)
            yield n

    def run():
        got = []
        with Pipeline(source(), [Stage("a", nap(3), workers=2), Stage("b", lambda n: n)]) as pipeline:
            for n in pipeline:
                got.append(n)
                if n == 5:
                    pipeline.stop()
        return got

    got = finish_within_timeout(run)
    assert got == taken
    assert 6 <= len(got) < 30


def test_a_delivered_item_is_let_go_before_the_next_one_is_there():
    class Item:
        pass

    gate, alive = threading.Event(), []

    def source():
        item = Item()
        alive.append(weakref.ref(item))
        yield item
        del item  # from here on nobody but the pipeline can keep it alive
        gate.wait(TIMEOUT)

    def run():
        with Pipeline(source(), [Stage("a", lambda i: i, workers=2), Stage("b", lambda i: i)]) as pipeline:
            results = iter(pipeline)
            waiter = []
            first = next(results)
            assert isinstance(first, Item)
            del first
            thread = threading.Thread(target=lambda: waiter.extend(results), daemon=True)
            thread.start()
            deadline = time.monotonic() + TIMEOUT / 2
            gone = False
            while not gone and time.monotonic() < deadline:
                time.sleep(0.005)
                gc.collect()
                gone = sum(r() is not None for r in alive) == 0
            gate.set()
            thread.join(TIMEOUT)
            return gone

    assert finish_within_timeout(run)


def test_random_delays_and_failures_never_lock_up():
    rng = random.Random(5)
    for _ in range(40):
        count, broken = rng.randrange(0, 30), rng.randrange(0, 60)
        place = rng.randrange(3)
        stages = [
            Stage(
                f"s{k}",
                lambda n, k=k, broken=broken, place=place: (
                    fail_at(broken)(n) if k == place else nap(n * 3 + k, 0.002)(n)
                ),
                workers=rng.randrange(1, 5),
                capacity=rng.randrange(1, 4),
            )
            for k in range(3)
        ]
        results, error = collect(Pipeline(range(count), stages))
        assert results == list(range(min(count, broken)))
        assert (error is None) == (broken >= count)


@pytest.mark.parametrize(
    ("widths", "size", "groups"),
    [
        pytest.param([], 3, [], id="no frames"),
        pytest.param([8, 8, 8], 1, [[0], [1], [2]], id="one by one"),
        pytest.param([8] * 7, 3, [[0, 1, 2], [3, 4, 5], [6]], id="the last batch may be smaller"),
        pytest.param([8] * 6, 3, [[0, 1, 2], [3, 4, 5]], id="no empty batch at the end"),
        pytest.param([8, 9, 9, 8], 3, [[0], [1, 2], [3]], id="a new size starts a new batch"),
        pytest.param([8, 8, 9, 9], 2, [[0, 1], [2, 3]], id="a new size after a full batch"),
    ],
)
def test_frames_are_grouped_by_size_in_order(widths, size, groups):
    frames = (Frame.from_bgr(np.zeros((4, w, 3), np.uint8), index=n) for n, w in enumerate(widths))
    assert [[f.index for f in group] for group in in_batches(frames, size)] == groups


def test_a_turned_frame_is_grouped_by_its_upright_size():
    frames = [Frame.from_bgr(np.zeros(shape, np.uint8)) for shape in ((4, 8, 3), (8, 4, 3), (8, 4, 3))]
    frames[1].rotation = 90
    assert [len(group) for group in in_batches(frames, 3)] == [2, 1]


def test_leaving_batches_early_closes_the_frames():
    closed = []

    def source():
        try:
            while True:
                yield Frame.from_bgr(np.zeros((4, 8, 3), np.uint8))
        finally:
            closed.append(True)

    batches = in_batches(source(), 2)
    next(batches)
    batches.close()
    assert closed == [True]
