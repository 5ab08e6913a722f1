"""The bounded queue: order, back-pressure, counting of waits, and its two ways to end."""

import gc
import threading
import time
import weakref

import pytest

from retinastream.pipeline.queues import BoundedQueue, Cancelled

TIMEOUT = 10.0


def start(work):
    """Run ``work`` in a thread; returns a function that joins it and gives its result or raises its error."""
    box = {}

    def run():
        try:
            box["result"] = work()
        except BaseException as error:  # noqa: BLE001 - handed to the test
            box["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def join():
        thread.join(TIMEOUT)
        assert not thread.is_alive(), "the thread is stuck"
        if "error" in box:
            raise box["error"]
        return box["result"]

    return join


def fill(queue, items):
    for item in items:
        queue.put(item)
    queue.close()


def wait_until(condition):
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


@pytest.mark.parametrize("capacity", [1, 2, 7], ids=lambda n: f"a queue of {n}")
def test_items_come_out_in_order_and_never_more_than_fit_are_waiting(capacity):
    queue = BoundedQueue(capacity)
    join = start(lambda: fill(queue, range(200)))
    assert list(queue) == list(range(200))
    join()
    assert queue.stats.items == 200
    assert 1 <= queue.stats.max_depth <= capacity
    assert 0 <= queue.stats.mean_depth < capacity


def test_a_full_queue_holds_its_producer_until_there_is_room():
    queue = BoundedQueue(2)
    put = []
    join = start(lambda: [(queue.put(n), put.append(n)) for n in range(4)])
    wait_until(lambda: len(put) == 2)
    time.sleep(0.05)
    assert put == [0, 1]
    items = iter(queue)
    assert next(items) == 0
    wait_until(lambda: len(put) == 3)
    assert [next(items) for _ in range(3)] == [1, 2, 3]
    join()


def test_only_the_side_that_waits_is_charged_for_it():
    slow_consumer = BoundedQueue(1)
    join = start(lambda: fill(slow_consumer, range(4)))
    wait_until(lambda: slow_consumer.stats.items == 1)
    for _ in slow_consumer:
        time.sleep(0.04)
    join()
    assert slow_consumer.stats.producer_wait > 0.06
    assert slow_consumer.stats.consumer_wait < slow_consumer.stats.producer_wait

    slow_producer = BoundedQueue(1)
    join = start(lambda: list(slow_producer))
    for n in range(4):
        time.sleep(0.04)
        slow_producer.put(n)
    slow_producer.close()
    assert join() == [0, 1, 2, 3]
    assert slow_producer.stats.consumer_wait > 0.1
    assert slow_producer.stats.producer_wait < slow_producer.stats.consumer_wait


def test_nobody_waits_where_there_is_always_room_and_always_an_item():
    queue = BoundedQueue(10)
    fill(queue, range(10))
    assert list(queue) == list(range(10))
    assert (queue.stats.producer_wait, queue.stats.consumer_wait) == (0.0, 0.0)
    assert queue.stats.mean_depth == 4.5


def test_a_queue_that_nothing_passed_has_a_mean_depth_of_zero():
    assert BoundedQueue(3).stats.mean_depth == 0.0


def test_closing_delivers_what_is_in_the_queue():
    queue = BoundedQueue(5)
    fill(queue, "abc")
    assert list(queue) == ["a", "b", "c"]
    assert list(queue) == []


def test_closing_wakes_every_waiting_consumer():
    queue = BoundedQueue(1)
    joins = [start(lambda: list(queue)) for _ in range(3)]
    queue.put("only one")
    queue.close()
    assert sorted(map(len, (join() for join in joins))) == [0, 0, 1]


def test_cancelling_drops_everything_and_wakes_both_sides():
    full, empty = BoundedQueue(1), BoundedQueue(1)
    full.put(0)
    producer, consumer = start(lambda: full.put(1)), start(lambda: next(iter(empty)))
    full.cancel()
    empty.cancel()
    for join in (producer, consumer):
        with pytest.raises(Cancelled):
            join()
    with pytest.raises(Cancelled):
        next(iter(full))
    with pytest.raises(Cancelled):
        empty.put(2)


def test_several_consumers_share_the_items_without_losing_or_doubling_one():
    queue = BoundedQueue(3)
    joins = [start(lambda: list(queue)) for _ in range(4)]
    fill(queue, range(500))
    parts = [join() for join in joins]
    assert all(part == sorted(part) for part in parts)
    assert sorted(n for part in parts for n in part) == list(range(500))


def test_a_consumer_that_waits_for_the_next_item_keeps_none_of_the_last_alive():
    class Item:
        pass

    queue = BoundedQueue(2)
    seen = threading.Event()

    def consume():
        for item in queue:
            del item
            seen.set()

    join = start(consume)
    item = Item()
    gone = weakref.ref(item)
    queue.put(item)
    del item
    assert seen.wait(TIMEOUT)
    gc.collect()
    wait_until(lambda: gone() is None)
    queue.close()
    join()
