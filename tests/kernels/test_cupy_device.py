"""The device over CuPy: what it says where something is missing, how it recovers, and what only a GPU can show.

A small stand-in for the package decides what CuPy answers. That the real one is called rightly is the matter of
test_cupy_contract.py, and what any device does that of test_device_protocol.py.
"""

import importlib.metadata
import sys
import time
import types

import numpy as np
import pytest

from retinastream.errors import DeviceMemoryError, MissingPackageError, SetupError, UsageError
from retinastream.kernels import cuda_driver, cupy_device, cupy_package
from retinastream.kernels.cuda_driver import DeviceFacts, DriverState
from retinastream.kernels.cupy_device import CuPyDevice, open_device
from retinastream.kernels.cupy_package import load_cupy
from retinastream.kernels.cupy_streams import CuPyEvent, CuPyStream
from retinastream.kernels.device import CaptureError

GPUS = (
    DeviceFacts(0, "NVIDIA H200", "GPU-0", (9, 0), 141 << 30, 132),
    DeviceFacts(1, "Tesla V100", "GPU-1", (7, 0), 16 << 30, 80),
)


class FakeCudaError(RuntimeError):
    """What CuPy raises for an error of CUDA."""

    def __init__(self, status):
        super().__init__(f"cudaError {status}")
        self.status = status


class FakeOutOfMemoryError(MemoryError):
    """What CuPy's pool raises."""


class FakeStream:
    """A stream that notes what is asked of it, and fails where it is told to."""

    def __init__(self, ptr=0x50, fails=()):
        self.ptr, self.fails, self.calls, self.capturing = ptr, fails, [], False

    def __enter__(self):
        self.calls.append("current")
        return self

    def __exit__(self, *_):
        self.calls.append("no longer")

    def wait_event(self, event):
        self._do("wait")

    def _do(self, call):
        self.calls.append(call)
        if call in self.fails:
            raise FakeCudaError(901)

    def begin_capture(self, mode):
        assert mode == 1
        self._do("begin")
        self.capturing = True

    def end_capture(self):
        self.capturing = False
        self._do("end")
        return self

    def upload(self, stream):
        assert stream is self
        self._do("upload")

    def launch(self, stream):
        assert stream is self
        self._do("launch")


def fake_cupy(version="14.2.0", runtime=13020, **more):
    """The package as far as it is looked at before anything runs on a GPU."""
    cuda = types.SimpleNamespace(
        runtime=types.SimpleNamespace(
            CUDARuntimeError=FakeCudaError,
            is_hip=False,
            runtimeGetVersion=lambda: runtime,
            streamCaptureModeThreadLocal=1,
            eventQuery=lambda ptr: ptr,
        ),
        memory=types.SimpleNamespace(OutOfMemoryError=FakeOutOfMemoryError),
        Event=lambda **_: types.SimpleNamespace(ptr=0),
    )
    module = types.ModuleType("cupy")
    module.__version__, module.cuda, module.__dict__["ndarray"] = version, cuda, np.ma.MaskedArray
    module.__dict__.update(more)
    return module


@pytest.fixture
def installed(monkeypatch):
    """Decides which CuPy is there: a call with its module (None: not installed) and its distributions."""

    def install(module, distributions=("cupy-cuda13x",)):
        def version(name):
            if name in distributions:
                return "14.2.0"
            raise importlib.metadata.PackageNotFoundError(name)

        monkeypatch.setattr(cupy_package.metadata, "version", version)
        monkeypatch.setitem(sys.modules, "cupy", module)

    return install


def test_the_cupy_that_goes_with_the_driver_is_taken(installed):
    module = fake_cupy()
    installed(module)
    assert load_cupy((13, 0)) is module
    assert load_cupy((14, 1)) is module  # drivers serve older versions of CUDA
    assert load_cupy(None) is module


@pytest.mark.parametrize(
    ("driver", "extra"), [((13, 0), "gpu-cu13"), ((14, 0), "gpu-cu13"), ((12, 4), "gpu-cu12"), (None, "gpu-cu13")]
)
def test_without_cupy_the_message_names_the_extra_for_the_driver(installed, driver, extra):
    installed(None, ())
    with pytest.raises(MissingPackageError, match=rf"CuPy is not installed.*pip install 'retinastream\[{extra}\]'"):
        load_cupy(driver)


@pytest.mark.parametrize(
    ("module", "distributions", "driver", "message"),
    [
        pytest.param(
            fake_cupy(),
            ("cupy-cuda13x",),
            (11, 8),
            r"serves CUDA up to 11\.8.*525 series",
            id="a driver too old for any",
        ),
        pytest.param(
            fake_cupy(),
            ("cupy-cuda13x",),
            (12, 9),
            r"made for CUDA 13\.2.*up to 12\.9.*580 series.*uninstall -y cupy-cuda13x and pip install .*gpu-cu12",
            id="made for a newer CUDA than the driver serves",
        ),
        pytest.param(
            fake_cupy(runtime=14000),
            ("cupy",),
            (13, 0),
            r"CUDA 14\.0.*install a newer driver",
            id="made for one to come",
        ),
        pytest.param(
            fake_cupy(),
            ("cupy-cuda13x", "cupy-cuda12x"),
            (12, 9),
            r"cupy-cuda13x 14\.2\.0, cupy-cuda12x 14\.2\.0; pip uninstall -y cupy-cuda13x cupy-cuda12x, .*gpu-cu12",
            id="two of them",
        ),
        pytest.param(
            fake_cupy("13.6.0"), ("cupy-cuda12x",), (12, 9), r"CuPy 13\.6\.0 is installed, and 14\.0", id="too old"
        ),
    ],
)
def test_a_cupy_that_cannot_work_is_refused_with_a_remedy(installed, module, distributions, driver, message):
    installed(module, distributions)
    with pytest.raises(SetupError, match=message):
        load_cupy(driver)


def test_a_cupy_for_amd_is_refused(installed):
    module = fake_cupy()
    module.cuda.runtime.is_hip = True
    installed(module, ("cupy-rocm-7-0",))
    with pytest.raises(SetupError, match=r"AMD.*uninstall -y cupy-rocm-7-0"):
        load_cupy((13, 0))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        pytest.param(
            "try:\n    raise OSError('libx.so.13: cannot open')\nexcept OSError as e:\n"
            "    raise ImportError('a page of advice') from e",
            r"OSError: libx\.so\.13: cannot open",
            id="a library is missing",
        ),
        pytest.param("raise OSError('invalid ELF header')", "OSError: invalid ELF header", id="one is damaged"),
        pytest.param("import retinastream.absent", "ModuleNotFoundError.*absent", id="a module is missing"),
        pytest.param("1 / 0", "ZeroDivisionError", id="anything"),
    ],
)
def test_a_cupy_that_does_not_load_is_told_with_the_reason(monkeypatch, tmp_path, installed, source, reason):
    (tmp_path / "cupy.py").write_text(source)
    installed(None)
    monkeypatch.delitem(sys.modules, "cupy")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SetupError, match=rf"cupy-cuda13x 14\.2\.0 does not load: {reason}.*gpu-cu13") as caught:
        load_cupy((13, 0))
    assert not isinstance(caught.value, MissingPackageError)


def test_a_cupy_that_cannot_make_its_folder_is_not_called_broken(monkeypatch, tmp_path, installed):
    (tmp_path / "file").touch()
    (tmp_path / "cupy.py").write_text(f"import os\nos.makedirs({str(tmp_path / 'file' / 'cache')!r})")
    installed(None)
    monkeypatch.delitem(sys.modules, "cupy")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SetupError, match=r"cannot make the folder.*file/cache'; set CUPY_CACHE_DIR") as caught:
        load_cupy((13, 0))
    assert "pip" not in str(caught.value)


def state(monkeypatch, *, error=None, devices=GPUS):
    monkeypatch.setattr(cupy_device, "probe", lambda: DriverState(error, (13, 0), devices))


@pytest.mark.parametrize("text", ["cpu", "cuda:", "cuda:-1", "cuda:1.0", "cuda:0 ", "CUDA:0", "gpu", "", "cuda:99999"])
def test_other_texts_than_cuda_and_a_number_are_refused(text):
    with pytest.raises(UsageError, match=r"allowed here are cuda and cuda:N"):
        open_device(text)


def test_without_a_driver_its_sentence_is_passed_on(monkeypatch):
    state(monkeypatch, error="there is no driver; install one", devices=())
    with pytest.raises(SetupError, match=r"^there is no driver; install one; or run with --device cpu$"):
        open_device("cuda")


@pytest.mark.parametrize("index", [2, 7, -1])
def test_a_device_that_does_not_exist_is_told_from_those_that_do(monkeypatch, index):
    state(monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(
        UsageError, match=rf"cuda:{index} does not exist.*cuda:0 \(NVIDIA H200\), cuda:1 \(Tesla V100\)$"
    ):
        CuPyDevice(index)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    with pytest.raises(UsageError, match=r"CUDA_VISIBLE_DEVICES='4,5' may hide others"):
        CuPyDevice(index)


def test_a_device_older_than_the_kernels_is_refused(monkeypatch):
    state(monkeypatch)
    with pytest.raises(SetupError, match=r"cuda:1 \(Tesla V100\) has compute capability 7\.0, .* 7\.5 or newer"):
        open_device("cuda:1")


@pytest.mark.skipif(cuda_driver.probe().error is None, reason="there is a GPU")
def test_a_machine_without_a_gpu_is_told_so():
    with pytest.raises(SetupError, match="--device cpu"):
        open_device("cuda:0")


def fake_device(**more):
    device = CuPyDevice.__new__(CuPyDevice)
    device._cupy = fake_cupy(**more)
    device._runtime = device._cupy.cuda.runtime
    device.label, device.name = "cuda:0", "NVIDIA H200"
    return device


@pytest.mark.parametrize("succeeds", [True, False])
def test_memory_that_is_short_is_looked_for_once_more(monkeypatch, succeeds):
    calls = []

    def empty(shape, dtype):
        calls.append("empty")
        if succeeds and "free" in calls:
            return "array"
        raise FakeOutOfMemoryError

    pool = types.SimpleNamespace(free_all_blocks=lambda: calls.append("free"))
    torch = types.SimpleNamespace(is_initialized=lambda: True, empty_cache=lambda: calls.append("free torch's"))
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=torch))
    device = fake_device(empty=empty, get_default_memory_pool=lambda: pool)
    monkeypatch.setattr(device, "memory", lambda: (3_000_000, 16_000_000_000), raising=False)
    if succeeds:
        assert device.empty((1000, 1000), np.float16) == "array"
    else:
        with pytest.raises(
            DeviceMemoryError,
            match=r"2\.0 MB were asked for on cuda:0 \(NVIDIA H200\), and 3\.0 MB of 16,000\.0 MB are free; take a ",
        ):
            device.empty((1000, 1000), np.float16)
    assert calls == ["empty", "free", "free torch's", "empty"]


def test_a_torch_that_keeps_its_memory_while_it_records_is_no_further_error(monkeypatch):
    def refuse():
        raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")

    def empty(shape, dtype):
        raise FakeOutOfMemoryError

    torch = types.SimpleNamespace(is_initialized=lambda: True, empty_cache=refuse)
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=torch))
    pool = types.SimpleNamespace(free_all_blocks=lambda: None)
    device = fake_device(empty=empty, get_default_memory_pool=lambda: pool)
    monkeypatch.setattr(device, "memory", lambda: (0, 16), raising=False)
    with pytest.raises(DeviceMemoryError, match="were asked for"):
        device.empty((2, 3), np.float16)


def test_memory_for_a_stream_comes_from_what_the_pool_keeps_for_it():
    stream = FakeStream()
    device = fake_device(empty=lambda shape, dtype: stream.calls.append("empty"))
    device.empty((2, 3), np.float16, CuPyStream(device._cupy, stream))
    assert stream.calls == ["current", "empty", "no longer"]
    with pytest.raises(UsageError, match=r"wrap it with Device\.foreign_stream"):
        device.empty((2, 3), np.float16, stream)


def test_a_pinned_array_is_the_beginning_of_a_longer_buffer():
    device = fake_device()
    device._cupy.cuda.alloc_pinned_memory = lambda size: bytearray(512)
    array = device.empty_pinned((3, 5), np.float32)
    assert (array.shape, array.dtype, array.flags.c_contiguous, array.flags.writeable) == ((3, 5), "f4", True, True)
    assert device.empty_pinned((0, 5), np.float32).shape == (0, 5)


@pytest.mark.parametrize(("status", "expected"), [(2, DeviceMemoryError), (700, FakeCudaError)])
def test_only_a_lack_of_memory_is_called_that(status, expected):
    def fail(size):
        raise FakeCudaError(status)

    device = fake_device()
    device._cupy.cuda.alloc_pinned_memory = fail
    with pytest.raises(expected, match="page-locked" if status == 2 else "700"):
        device.empty_pinned((3, 5), np.float32)


def test_copies_go_from_the_source_to_the_target_on_the_stream_that_was_named():
    device, calls = fake_device(), []
    device._runtime.__dict__.update(
        memcpyHostToDevice=1,
        memcpyDeviceToHost=2,
        memcpyAsync=lambda *arguments: calls.append(arguments),
        memsetAsync=lambda *arguments: calls.append(arguments),
    )
    host, stream = np.zeros((4, 6), np.int32), CuPyStream(device._cupy, FakeStream(0x77))
    array = types.SimpleNamespace(
        shape=host.shape, dtype=host.dtype, nbytes=96, flags=host.flags, data=types.SimpleNamespace(ptr=0x100)
    )
    device.copy_in(array, host, stream)
    device.copy_out(host, array, stream)
    device.clear(array, stream)
    address = host.ctypes.data
    assert calls == [(0x100, address, 96, 1, 0x77), (address, 0x100, 96, 2, 0x77), (0x100, 0, 96, 0x77)]


@pytest.mark.parametrize(("status", "done"), [(0, True), (600, False)])
def test_an_event_is_done_or_not(status, done):
    event = CuPyEvent(fake_cupy())
    event.cupy.ptr = status
    assert event.done is done


def test_an_event_after_a_fault_is_not_pending_for_ever():
    event = CuPyEvent(fake_cupy())
    event.cupy.ptr = 700
    with pytest.raises(FakeCudaError, match="700"):
        _ = event.done


def test_a_capture_gives_what_launches_the_graph():
    stream = FakeStream()
    launch = CuPyStream(fake_cupy(), stream).capture(lambda: stream.calls.append("queued"))
    assert stream.calls == ["begin", "queued", "end", "upload"]
    launch()
    launch()
    assert stream.calls[4:] == ["launch", "launch"]


@pytest.mark.parametrize(
    ("fails", "calls"),
    [
        pytest.param(("begin",), ["begin"], id="it does not begin, and what runs already is left alone"),
        pytest.param(("queue",), ["begin", "queue", "end"], id="something cannot be captured"),
        pytest.param(("queue", "end"), ["begin", "queue", "end"], id="which invalidates the capture"),
        pytest.param(("end",), ["begin", "queue", "end"], id="it does not end"),
        pytest.param(("upload",), ["begin", "queue", "end", "upload"], id="the graph does not fit"),
    ],
)
def test_a_capture_that_fails_is_ended(fails, calls):
    stream = FakeStream(fails=fails)
    with pytest.raises(CaptureError, match="cudaError 901") as caught:
        CuPyStream(fake_cupy(), stream).capture(lambda: stream._do("queue"))
    assert isinstance(caught.value.__cause__, FakeCudaError)
    assert stream.calls == calls
    assert not stream.capturing


@pytest.mark.parametrize("error", [CaptureError("of an engine"), UsageError("a mistake"), KeyboardInterrupt()])
def test_other_errors_pass_through_a_capture_and_end_it(error):
    stream = FakeStream(fails=("end",))

    def queue():
        raise error

    with pytest.raises(type(error)) as caught:
        CuPyStream(fake_cupy(), stream).capture(queue)
    assert caught.value is error
    assert not stream.capturing


def test_a_stream_of_another_device_class_is_refused():
    with pytest.raises(UsageError, match=r"a stream of FakeStream was given; wrap it with Device\.foreign_stream"):
        fake_device().launch(FakeStream(), "draw", (1,), 32, [])
    with pytest.raises(UsageError, match=r"an event of object was given; expected one of Device\.event"):
        CuPyStream(fake_cupy(), FakeStream()).wait(object())


# What only a GPU can show.


@pytest.fixture
def device():
    pytest.importorskip("cupy", reason="NOT TESTED: CuPy is not installed")
    opened = open_device("cuda")
    with opened.current():
        yield opened
        opened.release_unused()  # for the other packages in this process


@pytest.mark.gpu
def test_the_device_is_the_one_of_the_driver(device):
    facts = cuda_driver.probe().devices[0]
    assert (device.index, device.label, device.name, device.facts) == (0, "cuda:0", facts.name, facts)
    assert device.kernels.architecture == "sm_{}{}".format(*facts.compute_capability)
    free, total = device.memory()
    assert 0 < free <= total
    assert abs(total - facts.total_memory) < 0.02 * total


@pytest.mark.gpu
def test_the_device_is_current_where_it_was_made_so(device):
    assert device._cupy.cuda.Device().id == device.index


@pytest.mark.gpu
def test_arrays_are_aligned(device):
    arrays = [device.empty((size,), np.uint8) for size in (1, 3, 255, 257, 511, 1000)]
    assert all(array.data.ptr % 256 == 0 for array in arrays)


@pytest.mark.gpu
def test_memory_freed_with_work_queued_is_given_out_on_its_own_stream_alone(device):
    first, other = device.stream(), device.stream()
    array = device.empty((1 << 20,), np.uint8, first)
    address = array.data.ptr
    del array
    assert device.empty((1 << 20,), np.uint8, other).data.ptr != address
    assert device.empty((1 << 20,), np.uint8).data.ptr != address
    assert device.empty((1 << 20,), np.uint8, first).data.ptr == address


@pytest.mark.gpu
def test_waiting_leaves_the_processor_to_others(device):
    stream = device.stream()
    host, array = device.empty_pinned((256 << 20,), np.uint8), device.empty((256 << 20,), np.uint8)
    for _ in range(100):  # half a second where 60 GB/s pass the bus
        device.copy_in(array, host, stream)
    began, used = time.perf_counter(), time.thread_time()
    stream.synchronize()
    waited, used = time.perf_counter() - began, time.thread_time() - used
    assert waited > 0.05
    assert used < 0.2 * waited


@pytest.mark.gpu
def test_work_on_two_streams_that_join_is_one_graph(device):
    stream, other = device.stream(), device.stream()
    fork, join = device.event(), device.event()
    array, result = device.empty((4,), np.int32), device.empty_pinned((4,), np.int32)
    source = device.empty_pinned((4,), np.int32)
    source[...] = range(4)

    def queue():
        device.copy_in(array, source, stream)
        stream.record(fork)
        other.wait(fork)
        device.copy_out(result, array, other)
        other.record(join)
        stream.wait(join)

    launch = device.capture(stream, queue)
    launch()
    stream.synchronize()
    assert result.tolist() == [0, 1, 2, 3]


@pytest.mark.gpu
def test_the_default_stream_cannot_be_captured(device):
    with pytest.raises(CaptureError, match="nothing can be captured"):
        device.capture(device.foreign_stream(0), lambda: None)


@pytest.mark.gpu
def test_memory_of_the_pool_counts_as_free_and_is_given_back_when_short(device):
    before, _ = device.memory()
    array = device.empty((int(before * 0.6),), np.uint8)
    assert device.memory()[0] <= before - int(before * 0.59)
    del array
    assert abs(device.memory()[0] - before) < 256 << 20
    assert device.empty((int(before * 0.8),), np.uint8).nbytes  # takes what the pool kept, and more


@pytest.mark.gpu
def test_the_device_of_foreign_memory_is_known(device):
    managed, pinned = device._cupy.cuda.malloc_managed(64), device.empty_pinned((64,), np.uint8)
    foreign = [
        types.SimpleNamespace(__cuda_array_interface__={"data": (address, False)})
        for address in (device.empty((64,), np.uint8).data.ptr, managed.ptr, pinned.ctypes.data)
    ]
    assert [device.device_of(array) for array in foreign] == [0, 0, -1]


@pytest.mark.gpu
def test_a_tensor_of_torch_shares_streams_and_memory(device):
    torch = pytest.importorskip("torch", reason="NOT TESTED: torch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("NOT TESTED: torch is a build for CPUs")
    stream = device.stream()
    tensor = torch.full((64,), -7, dtype=torch.int32, device="cuda:0")
    torch.cuda.synchronize()
    assert device.device_of(tensor) == 0
    device.launch(stream, "describe_layout", (1,), 1, [tensor])
    with torch.cuda.stream(torch.cuda.ExternalStream(stream.handle)):
        first = tensor[:1].cpu()
    assert first.item() == 128  # bytes of a descriptor


@pytest.mark.gpu
def test_a_device_beyond_the_last_does_not_exist(device):
    with pytest.raises(UsageError, match="does not exist"):
        open_device(f"cuda:{len(cuda_driver.probe().devices)}")
