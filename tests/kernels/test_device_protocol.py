"""What every device does: the one of the tests, and a GPU through CuPy. The two run the same tests."""

import threading

import numpy as np
import pytest
from cuda_host import load
from host_device import HostDevice
from numpy.testing import assert_array_equal

from retinastream.errors import DeviceMemoryError, UsageError
from retinastream.kernels.device import CaptureError


@pytest.fixture(params=["host", pytest.param("cupy", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "host":
        opened = HostDevice()
        with opened.current():
            yield opened
            opened.check()
        return
    from retinastream.kernels.cupy_device import open_device

    pytest.importorskip("cupy", reason="NOT TESTED: CuPy is not installed")
    opened = open_device("cuda")
    with opened.current():
        opened.release_unused()  # what other tests left in the pool would be given out without asking the driver
        yield opened


def pinned(device, values):
    values = np.asarray(values)
    array = device.empty_pinned(values.shape, values.dtype)
    array[...] = values
    return array


def uploaded(device, values, stream):
    host = pinned(device, values)
    array = device.empty(host.shape, host.dtype)
    device.copy_in(array, host, stream)
    stream.synchronize()
    return array


def downloaded(device, array, stream):
    host = device.empty_pinned(array.shape, array.dtype)
    device.copy_out(host, array, stream)
    stream.synchronize()
    return np.array(host, subok=False)


class SlowWork:
    """Copies that take a while on a GPU (0.15 s at 55 GB/s); the host's device runs nothing before it has to.

    All memory is there before anything is queued: allocating may wait for the device.
    """

    def __init__(self, device):
        size, self.times = (1 << 10, 1) if isinstance(device, HostDevice) else (64 << 20, 128)
        self.device, self.host = device, device.empty_pinned((size,), np.uint8)
        self.array = device.empty((size,), np.uint8)

    def queue(self, stream):
        for _ in range(self.times):
            self.device.copy_in(self.array, self.host, stream)


def layout_on_host(length=64):
    """What the kernel describe_layout writes into int32 values that were -7."""
    expected = np.full(length, -7, np.int32)
    load("preprocess.cu").launch("describe_layout", 1, 1, [expected])
    return expected


@pytest.mark.parametrize("dtype", ["u1", "i1", "f2", "f4", "i4", "u4", "u8"])
@pytest.mark.parametrize("shape", [(5,), (3, 7, 2), (0, 4), ()])
def test_arrays_of_any_kind_come_back_as_they_went(device, shape, dtype):
    stream = device.stream()
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    values = np.frombuffer(np.random.default_rng(0).bytes(count), np.uint8).view(dtype).reshape(shape)
    array = uploaded(device, values, stream)
    assert (array.shape, array.dtype, array.flags.c_contiguous) == (shape, np.dtype(dtype), True)
    assert downloaded(device, array, stream).tobytes() == values.tobytes()
    device.clear(array, stream)
    assert downloaded(device, array, stream).tobytes() == bytes(count)


def test_every_kernel_compiles_and_one_writes_what_it_writes_alone(device):
    device.prepare_kernels()
    stream = device.stream()
    output = uploaded(device, np.full(64, -7, np.int32), stream)
    device.launch(stream, "describe_layout", (1,), 1, [output])
    assert_array_equal(downloaded(device, output, stream), layout_on_host())


def test_a_kernel_that_does_not_exist_is_refused(device):
    with pytest.raises(UsageError, match="no CUDA kernel 'describe'"):
        device.launch(device.stream(), "describe", (1,), 1, [])


@pytest.mark.parametrize(
    "argument", [3, 0.5, [1, 2], np.zeros(4, np.int32)], ids=["int", "float", "list", "host array"]
)
def test_what_has_no_size_or_is_not_on_the_device_cannot_be_passed(device, argument):
    with pytest.raises((TypeError, UsageError)):
        device.launch(device.stream(), "describe_layout", (1,), 1, [argument])


def test_copies_do_not_wait_and_events_order_streams(device):
    first, second, copied = device.stream(), device.stream(), device.event()
    array, result = device.empty((4,), np.int32), device.empty_pinned((4,), np.int32)
    source, slow = pinned(device, np.arange(4, dtype=np.int32)), SlowWork(device)
    result[...] = -1
    assert copied.done  # nothing was recorded
    device.clear(array, second)
    second.synchronize()
    slow.queue(first)
    device.copy_in(array, source, first)
    first.record(copied)
    second.wait(copied)
    device.copy_out(result, array, second)
    assert not copied.done  # nothing so far waited
    assert (result == -1).all()
    second.synchronize()
    assert copied.done
    assert_array_equal(result, source)


def test_streams_wait_neither_for_each_other_nor_for_the_default_stream(device):
    busy, quick, legacy = device.stream(), device.stream(), device.foreign_stream(0)
    array, copied, slow = device.empty((4,), np.int32), device.event(), SlowWork(device)
    slow.queue(busy)
    busy.record(copied)
    for stream in (quick, legacy):
        device.clear(array, stream)
        stream.synchronize()
        assert not copied.done
    copied.synchronize()
    assert copied.done


def test_an_event_can_be_recorded_again(device):
    stream, event, slow = device.stream(), device.event(), SlowWork(device)
    stream.record(event)
    event.synchronize()
    slow.queue(stream)
    stream.record(event)
    assert not event.done
    event.synchronize()
    assert event.done


def test_what_was_captured_runs_again_with_new_content(device):
    stream = device.stream()
    source = pinned(device, np.arange(16, dtype=np.int32))
    array, result = device.empty((16,), np.int32), device.empty_pinned((16,), np.int32)
    layout = uploaded(device, np.full(64, -7, np.int32), stream)
    result[...] = -1

    def queue():
        device.copy_in(array, source, stream)
        device.launch(stream, "describe_layout", (1,), 1, [layout])
        device.copy_out(result, array, stream)

    launch = device.capture(stream, queue)
    stream.synchronize()
    assert (result == -1).all()  # recorded, not run
    assert (downloaded(device, layout, stream) == -7).all()
    for shift in (0, 100):
        source[...] = np.arange(16) + shift
        launch()
        stream.synchronize()
        assert_array_equal(result, np.arange(16) + shift)
    assert_array_equal(downloaded(device, layout, stream), layout_on_host())


def wait_within(device, stream):
    stream.synchronize()


def allocate_within(device, stream):
    device.empty((512 << 20,), np.uint8)  # more than a pool has left


FORKED = []


def leave_another_stream_unjoined(device, stream):
    fork, other = device.event(), device.stream()
    stream.record(fork)
    other.wait(fork)
    device.clear(device.empty((4,), np.int32), other)
    FORKED.append(other)  # to destroy it within the capture would be another mistake


@pytest.mark.parametrize("mistake", [wait_within, allocate_within, leave_another_stream_unjoined])
def test_a_capture_that_fails_leaves_the_stream_usable(device, mistake):
    stream, array = device.stream(), device.empty((4,), np.int32)
    device.empty((4,), np.int32)
    with pytest.raises(CaptureError):
        device.capture(stream, lambda: mistake(device, stream))
    values = np.arange(4, dtype=np.int32)
    array = uploaded(device, values, stream)
    assert_array_equal(downloaded(device, array, stream), values)
    device.capture(stream, lambda: device.clear(array, stream))()
    assert_array_equal(downloaded(device, array, stream), np.zeros(4))


def test_an_error_of_the_caller_passes_through_a_capture(device):
    stream, array = device.stream(), device.empty((4,), np.int32)

    def queue():
        device.clear(array, stream)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        device.capture(stream, queue)
    device.capture(stream, lambda: device.clear(array, stream))()
    assert_array_equal(downloaded(device, array, stream), np.zeros(4))


def test_another_thread_works_on_during_a_capture(device):
    stream, array, done = device.stream(), device.empty((4,), np.int32), []

    def work():
        with device.current():
            other = device.stream()
            done.append(downloaded(device, uploaded(device, np.arange(1 << 20), other), other).sum())

    def queue():
        device.clear(array, stream)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(60)
        device.clear(array, stream)

    device.capture(stream, queue)()
    stream.synchronize()
    assert done == [sum(range(1 << 20))]


def test_more_memory_than_there_is_is_refused_and_less_is_given_afterwards(device):
    free, total = device.memory()
    assert 0 < free <= total
    with pytest.raises(DeviceMemoryError, match=rf"were asked for on {device.label}.* are free") as caught:
        device.empty((2 * total,), np.uint8)
    assert isinstance(caught.value, MemoryError)
    assert device.empty((1 << 20,), np.uint8).nbytes == 1 << 20


def test_foreign_streams_are_wrapped_and_left_alone(device):
    own, values = device.stream(), np.arange(4, dtype=np.int32)
    wrapped = device.foreign_stream(own.handle)
    assert wrapped.handle == own.handle
    assert_array_equal(downloaded(device, uploaded(device, values, wrapped), wrapped), values)
    del wrapped
    assert_array_equal(downloaded(device, uploaded(device, values, own), own), values)
    for handle in (0, 1, 2):
        stream = device.foreign_stream(handle)
        assert_array_equal(downloaded(device, uploaded(device, values, stream), stream), values)


def test_the_device_of_memory_is_known(device):
    assert device.device_of(device.empty((4,), np.int32)) == device.index
    assert device.device_of(np.zeros(3)) == device.device_of(device.empty_pinned((4,), np.int32)) == -1


def test_copies_of_arrays_that_differ_or_have_gaps_are_refused(device):
    stream, array = device.stream(), device.empty((4, 6), np.int32)
    for host in (device.empty_pinned((6, 4), np.int32), device.empty_pinned((4, 6), np.float32)):
        with pytest.raises(UsageError, match="asked for"):
            device.copy_in(array, host, stream)
        with pytest.raises(UsageError, match="asked for"):
            device.copy_out(host, array, stream)
    with pytest.raises(UsageError, match="contiguous"):
        device.copy_in(array[:, :2], device.empty_pinned((4, 2), np.int32), stream)
    with pytest.raises(UsageError, match="contiguous"):
        device.clear(array[:, :2], stream)


def test_the_device_can_be_made_current_again_and_on_other_threads(device):
    results = []

    def work(value):
        with device.current(), device.current():
            stream = device.stream()
            results.append(downloaded(device, uploaded(device, np.full(9, value), stream), stream).tolist())

    threads = [threading.Thread(target=work, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(results) == [[value] * 9 for value in range(4)]
