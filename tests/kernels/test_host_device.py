"""The device of the tests does what CUDA may do at worst, and refuses what CUDA would let pass."""

import threading

import numpy as np
import pytest
from host_device import HostDevice, UseAfterFree
from host_memory import FREED, FRESH

from retinastream.errors import DeviceMemoryError, SetupError, UsageError
from retinastream.kernels.device import CaptureError


@pytest.fixture
def device():
    made = HostDevice()
    with made.current():
        yield made


def pinned(device, values):
    array = device.empty_pinned(np.shape(values), np.float32)
    array[...] = values
    return array


def poison(shape, byte=FRESH):
    return np.full(np.prod(shape) * 4, byte, np.uint8).view(np.float32).reshape(shape)


def test_a_copy_happens_when_it_is_waited_for_and_not_before(device):
    stream, event = device.stream(), device.event()
    source, middle, result = pinned(device, [1, 2]), device.empty((2,), np.float32), device.empty_pinned((2,), "f4")
    assert event.done  # before the first record
    device.copy_in(middle, source, stream)
    device.copy_out(result, middle, stream)
    stream.record(event)
    assert not event.done
    np.testing.assert_array_equal(result.view("u4"), poison((2,)).view("u4"))
    source[...] = (3, 4)  # too early: the copy has not read it
    event.synchronize()
    assert event.done
    np.testing.assert_array_equal(result, [3, 4])
    assert (device.copies_in, device.copies_out, device.bytes_in, device.bytes_out) == (1, 1, 8, 8)
    assert device.synchronizations == 1
    device.check()


def test_an_eager_device_runs_everything_at_once():
    device = HostDevice("eager")
    with device.current():
        stream, event = device.stream(), device.event()
        array, result = device.upload(np.arange(6, dtype=np.float32)), device.empty_pinned((6,), np.float32)
        device.copy_out(result, array, stream)
        stream.record(event)
        assert event.done
        np.testing.assert_array_equal(result, np.arange(6))
        device.clear(array, stream)
        assert not array.any()
        device.check()


def test_waiting_runs_what_an_event_needs_and_nothing_else(device):
    first, second, third = (device.stream() for _ in range(3))
    events = [device.event() for _ in range(3)]
    ran = []
    device.call(first, lambda: ran.append("a"))
    first.record(events[0])
    device.call(first, lambda: ran.append("after a"))
    second.wait(events[0])
    device.call(second, lambda: ran.append("b"))
    second.record(events[1])
    device.call(third, lambda: ran.append("c"))
    third.record(events[2])
    events[1].synchronize()
    assert ran == ["a", "b"]
    device.drain()
    assert sorted(ran[2:]) == ["after a", "c"]


def test_without_an_event_between_them_a_stream_does_not_wait_for_another(device):
    writer, reader = device.stream(), device.stream()
    array, result = device.empty((2,), np.float32), device.empty_pinned((2,), np.float32)
    device.copy_in(array, pinned_source := pinned(device, [5, 6]), writer)
    device.copy_out(result, array, reader)
    reader.synchronize()
    np.testing.assert_array_equal(result.view("u4"), poison((2,)).view("u4"))
    device.drain()
    assert pinned_source[0] == array[0] == 5


def test_a_wait_is_for_the_record_that_was_there_when_it_was_queued(device):
    first, second, event, ran = device.stream(), device.stream(), device.event(), []
    second.wait(event)  # never recorded: no wait
    device.call(first, lambda: ran.append(1))
    first.record(event)
    second.wait(event)
    device.call(first, lambda: ran.append(2))
    first.record(event)
    second.synchronize()
    assert ran == [1]


def test_shuffling_keeps_the_order_that_events_demand_and_no_other():
    orders = {shuffled_order(seed) for seed in range(30)}
    for order in orders:
        assert order.index("a") < order.index("b") < order.index("c")
        assert order.index("x") < order.index("y")
    assert len(orders) > 3


def shuffled_order(seed):
    device, ran = HostDevice(shuffle=seed), []
    with device.current():
        first, second, third, event = *(device.stream() for _ in range(3)), device.event()
        for stream, name in ((first, "a"), (first, "b"), (third, "x"), (third, "y")):
            device.call(stream, lambda name=name: ran.append(name))
        first.record(event)
        second.wait(event)
        device.call(second, lambda: ran.append("c"))
        third.synchronize()
        device.check()
    return "".join(ran)


@pytest.mark.parametrize("what", ["source", "target", "kernel", "structure"])
def test_memory_that_is_freed_before_its_work_ran_is_a_fault(device, what):
    from retinastream.kernels.cuda_faces import PASS

    stream, source, target = device.stream(), pinned(device, [1, 2]), device.empty((2,), np.float32)
    if what in ("source", "target"):
        device.copy_in(target, source, stream)
    else:
        structure = np.zeros((), PASS)
        structure["maps"][0] = target.ctypes.data
        others = [device.empty((64,), np.int32) for _ in range(3)]
        if what == "kernel":
            structure["maps"][0] = 0
        device.launch(stream, "find_fused_float", (1, 1), 256, [structure, *others, np.int32(1)])
        if what == "kernel":
            del others
    if what == "source":
        del source
    if what in ("target", "structure"):
        del target
    with pytest.raises(UseAfterFree, match="was freed before it ran"):
        stream.synchronize()
    with pytest.raises(AssertionError, match="UseAfterFree"):
        device.check()


def test_freed_memory_that_queued_work_may_still_read_holds_no_old_values(device):
    stream = device.stream()
    array = device.upload(np.ones(4, np.float32))
    seen, view = [], np.frombuffer((np.ctypeslib.ctypes.c_uint8 * 16).from_address(array.ctypes.data), np.uint8)
    device.call(stream, lambda: seen.append(view.copy()))
    del array
    stream.synchronize()
    assert (seen[0] == FREED).all()


def test_a_write_beside_an_array_is_found(device):
    array = device.empty((5,), np.uint8)
    beyond = np.frombuffer((np.ctypeslib.ctypes.c_uint8 * 6).from_address(array.ctypes.data), np.uint8)
    beyond[:5] = 1
    device.check()
    beyond[5] = 1
    with pytest.raises(AssertionError, match="beside a block of 5 bytes"):
        device.check()
    del array, beyond
    with pytest.raises(AssertionError, match="beside a block of 5 bytes"):
        device.check()


def test_memory_is_aligned_poisoned_counted_and_limited():
    device = HostDevice(memory_limit=1 << 20)
    with device.current():
        array = device.empty((100, 1024), np.float32)
        assert array.ctypes.data % 256 == 0
        assert (array.view(np.uint8) == FRESH).all()
        assert device.memory() == ((1 << 20) - 409600, 1 << 20)
        with pytest.raises(
            DeviceMemoryError, match=r"0.7 MB were asked for on cuda:0 \(NumPy\), and 0.6 MB of 1.0 MB are"
        ):
            device.empty((700, 1024), np.uint8)
        del array
        assert device.memory()[0] == 1 << 20
        assert device.empty((0, 4), np.float32).shape == (0, 4)
        with pytest.raises(TypeError, match="CuPy has numbers only"):
            device.empty((2,), np.dtype([("a", "i4")]))


def test_it_knows_its_arrays_from_others(device):
    other = HostDevice(index=1)
    with other.current():
        array = other.empty((4, 4), np.int32)
    assert other.device_of(array[1:, :2]) == device.device_of(array) == 1
    assert device.device_of(device.empty((3,), np.int8)) == 0
    for host in (np.zeros(3), device.empty_pinned((3,), np.int8), array * 2, [1, 2]):
        assert device.device_of(host) == -1
    stream = device.stream()
    with pytest.raises(UsageError, match="an array of cuda:1 was given to cuda:0"):
        device.clear(array, stream)
    with other.current(), pytest.raises(UsageError, match="a stream of cuda:0, not of cuda:1"):
        other.clear(array, stream)


def test_host_arrays_are_refused_where_the_devices_belong(device):
    stream, array = device.stream(), device.empty((2, 3), np.float32)
    with pytest.raises(UsageError, match="a ndarray was given where a pinned array belongs"):
        device.copy_in(array, np.zeros((2, 3), np.float32), stream)
    with pytest.raises(UsageError, match="a PinnedArray was given where memory of cuda:0 belongs"):
        device.clear(device.empty_pinned((3,), np.float32), stream)
    with pytest.raises(UsageError, match="both must be the same"):
        device.copy_in(array, device.empty_pinned((3, 2), np.float32), stream)
    with pytest.raises(UsageError, match="not C-contiguous"):
        device.clear(array[:, 1:], stream)
    for wrong in (np.zeros(3, np.int32), 3, None):
        with pytest.raises(UsageError, match="kernels take device arrays and NumPy values"):
            device.launch(stream, "describe_layout", (1,), 1, [wrong])
    with pytest.raises(UsageError, match="there is no CUDA kernel 'nonsense'"):
        device.launch(stream, "nonsense", (1,), 1, [])
    with pytest.raises(UsageError, match="grid of"):
        device.launch(stream, "describe_layout", (1, 70000), 1, [array])
    assert device.pending == 0
    assert device.launches == 0


def test_kernels_run_in_their_turn_and_are_counted(device):
    from retinastream.kernels.descriptors import FRAME_DESCRIPTOR

    stream, out = device.stream(), device.empty((32,), np.int32)
    device.launch(stream, "describe_layout", (1,), 1, [out])
    assert (device.launches, device.executed) == (1, {})
    assert out[0] != FRAME_DESCRIPTOR.itemsize
    stream.synchronize()
    assert out[0] == FRAME_DESCRIPTOR.itemsize
    assert device.executed == {"describe_layout": 1}


def test_a_capture_records_and_its_graph_runs_as_often_as_it_is_launched(device):
    stream, array = device.stream(), device.upload(np.zeros(1, np.float32))

    def queue():
        device.call(stream, lambda: np.add(array, 1, out=array), array)

    launch = device.capture(stream, queue)
    stream.synchronize()
    assert array[0] == 0
    assert device.calls == 0
    launch()
    launch()
    assert array[0] == 0
    stream.synchronize()
    assert array[0] == 2
    assert device.graph_launches == 2


@pytest.mark.parametrize("what", ["event", "stream", "record", "other stream", "allocation", "capture"])
def test_what_cannot_be_captured_is_refused_and_leaves_the_stream_usable(device, what):
    stream, other, event = device.stream(), device.stream(), device.event()
    array, ran = device.empty((32,), np.int32), []
    queued = {
        "event": event.synchronize,
        "stream": stream.synchronize,
        "record": lambda: stream.record(event),
        "other stream": lambda: device.clear(array, other),
        "allocation": lambda: device.empty((1,), np.int8),
        "capture": lambda: device.capture(stream, list),
    }[what]

    def queue():
        device.call(stream, lambda: ran.append(1))
        queued()

    with pytest.raises(CaptureError):
        device.capture(stream, queue)
    device.call(stream, lambda: ran.append(2))
    stream.synchronize()
    assert ran == [2]


def test_the_device_has_to_be_current_on_each_thread(device):
    errors = []

    def on_another_thread():
        try:
            device.stream()
        except SetupError as error:
            errors.append(str(error))

    thread = threading.Thread(target=on_another_thread)
    thread.start()
    thread.join(10)
    assert errors == ["cuda:0 is not current on this thread; use it within 'with device.current():'"]


def test_streams_of_others_are_known_by_their_handle(device):
    assert device.foreign_stream(0) is device.foreign_stream(1)
    assert device.foreign_stream(77).handle == 77
    ours = device.stream()
    assert device.foreign_stream(ours.handle) is ours
    assert device.foreign_stream(2) is not device.foreign_stream(0)


def test_threads_with_streams_of_their_own_do_not_disturb_each_other():
    device, wrong = HostDevice(shuffle=3), []

    def work(number):
        with device.current():
            stream, event = device.stream(), device.event()
            for turn in range(20):
                source, result = pinned(device, [number, turn]), device.empty_pinned((2,), np.float32)
                array = device.empty((2,), np.float32)
                device.copy_in(array, source, stream)
                device.copy_out(result, array, stream)
                stream.record(event)
                event.synchronize()
                if result.tolist() != [number, turn]:
                    wrong.append((number, turn, result.tolist()))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert wrong == []
    assert device.copies_in == device.synchronizations == 80
    device.check()
    with device.current():
        assert device.memory()[0] == device.memory()[1]
