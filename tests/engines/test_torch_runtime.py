"""torch on a GPU: what it makes of buffers, streams and lacking memory; on a host where there is no GPU."""

import ast
import inspect
import threading
import types
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from retinastream.errors import DeviceMemoryError, ModelError, SetupError, UsageError
from retinastream.kernels.device import CaptureError
from retinastream.models.onnx_file import read_onnx

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch_on_host import TorchOnHost  # noqa: E402

from retinastream.engines import torch_cuda, torch_package, torch_runtime  # noqa: E402
from retinastream.engines.torch_cuda import TorchCuda  # noqa: E402
from retinastream.engines.torch_runtime import TorchEngine  # noqa: E402

PRECISIONS = {
    "f32": (np.float32, np.float32, 1e-4),
    "bf16": (np.float32, np.float32, 0.2),
    "fp16": (np.float16, np.float16, 0.02),
}


class Device:
    index, label, name = 0, "cuda:0", "a GPU"

    def __init__(self):
        self.prepared = 0

    def prepare_kernels(self):
        self.prepared += 1


STREAM = types.SimpleNamespace(handle=0x5000)


@pytest.fixture(scope="module")
def model(tiny_model):
    return read_onnx(tiny_model["fused"])


def engine_of(model, **values):
    values.setdefault("cuda", TorchOnHost())
    return TorchEngine(model, Device(), **values)


def arrays_for(engine, batch, height, width, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (batch, 3, height, width)) - 117
    image = np.ascontiguousarray(values, engine.input_dtype)
    shapes = engine.output_shapes(batch, height, width)
    return image, [np.full(shape, np.nan, engine.output_dtype) for shape in shapes]


def by_onnxruntime(model, image):
    ort = pytest.importorskip("onnxruntime", reason="the extra onnxruntime is not installed")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(model.path), options, providers=["CPUExecutionProvider"])
    return session.run(list(model.output_names), {model.input_name: image.astype(np.float32)})


@pytest.mark.parametrize("layout", ["fused", "classic"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_is_written_is_what_onnxruntime_computes_to_the_precision(tiny_model, layout, precision):
    model = read_onnx(tiny_model[layout])
    engine = engine_of(model, precision=precision)
    takes, returns, tolerance = PRECISIONS[precision]
    assert (engine.input_dtype, engine.output_dtype, engine.input_scale) == (takes, returns, None)
    assert engine.info.precision == precision
    for size in ((1, 64, 96), (2, 32, 64), (1, 64, 96)):
        image, outputs = arrays_for(engine, *size)
        engine.bind(image, outputs, STREAM).run()
        for one, other in zip(outputs, by_onnxruntime(model, image), strict=True):
            np.testing.assert_allclose(one, other, atol=tolerance * max(1.0, np.abs(other).max()))


def test_half_precision_is_the_default(model):
    info = engine_of(model, reason="because").info
    assert (info.runtime, info.precision, info.device, info.device_name) == ("torch", "fp16", "cuda:0", "a GPU")
    assert (info.runtime_version, info.reason) == (torch.__version__, "because")


def test_a_slot_reads_and_writes_the_arrays_themselves(model):
    engine = engine_of(model, precision="f32")
    image, outputs = arrays_for(engine, 1, 32, 32)
    slot = engine.bind(image, outputs, STREAM)
    before = [output.copy() for output in outputs]
    image[...] = arrays_for(engine, 1, 32, 32, seed=1)[0]
    slot.run()
    assert all(not np.allclose(one, other) for one, other in zip(outputs, before, strict=True))
    np.testing.assert_allclose(outputs[0], by_onnxruntime(model, image)[0], atol=1e-3)


def test_binding_runs_the_network_twice_and_waits_for_it(model):
    engine = engine_of(model)
    engine.bind(*arrays_for(engine, 1, 32, 32), STREAM)
    assert (engine._cuda.queued, engine._cuda.synchronised) == (2, 1)


def test_slots_of_one_size_share_a_graph_and_all_share_the_weights(model):
    engine = engine_of(model)
    slots = [engine.bind(*arrays_for(engine, 1, side, 32), STREAM) for side in (32, 64, 32)]
    assert slots[0]._network is slots[2]._network is not slots[1]._network
    addresses = [{p.data_ptr() for p in slot._network.parameters()} for slot in slots]
    assert addresses[0] == addresses[1]


def test_compiled_networks_are_made_once_for_every_size(model, monkeypatch):
    made = []

    def compiler(network, **options):
        made.append(options)
        return network

    monkeypatch.setattr(torch, "compile", compiler)
    engine = engine_of(model, compiled=True)
    for side in (32, 64, 32):
        engine.bind(*arrays_for(engine, 1, side, 32), STREAM)
    assert made == [{"dynamic": False, "fullgraph": True}] * 2
    assert engine.info.runtime_version.endswith(", compiled")


def test_lacking_memory_is_tried_again_once_with_empty_pools(model):
    cuda = TorchOnHost()
    engine = engine_of(model, cuda=cuda)
    cuda.failures = [DeviceMemoryError("full")]
    engine.bind(*arrays_for(engine, 1, 32, 32), STREAM)
    cuda.failures = [DeviceMemoryError("full"), DeviceMemoryError("still full")]
    with pytest.raises(DeviceMemoryError, match="still full"):
        engine.bind(*arrays_for(engine, 1, 64, 32), STREAM)


def test_a_capture_prepares_the_kernels_and_records_the_slots(model):
    engine = engine_of(model)
    slot = engine.bind(*arrays_for(engine, 1, 32, 32), STREAM)
    assert engine.capture(STREAM, lambda: (slot.run(), slot.run()))() == 2
    assert engine.device.prepared == 1


def test_a_thread_runs_a_shape_before_it_records_it(model):
    """torch remembers per thread how cuDNN convolves; finding out while recording would end the recording."""
    engine = engine_of(model)
    slot = engine.bind(*arrays_for(engine, 1, 32, 32), STREAM)
    gone = engine.bind(*arrays_for(engine, 1, 96, 32), STREAM)
    other = engine.bind(*arrays_for(engine, 1, 64, 32), types.SimpleNamespace(handle=0x6000))
    gone.close()
    counts = []

    def record():
        for _ in range(2):
            before = engine._cuda.queued
            recorded = engine.capture(STREAM, slot.run)()
            counts.append((engine._cuda.queued - before, recorded))

    thread = threading.Thread(target=record)
    thread.start()
    thread.join()
    assert counts == [(2, 1), (0, 1)]
    record()
    assert counts[2:] == [(0, 1), (0, 1)]
    assert other.is_open and not gone.is_open


def test_a_closed_engine_says_so_and_gives_its_memory_back(model):
    engine = engine_of(model)
    arrays = arrays_for(engine, 1, 32, 32)
    slot = engine.bind(*arrays, STREAM)
    slot.close()
    engine.close()
    engine.close()
    assert engine._cuda.released == 1
    with pytest.raises(UsageError, match="closed"):
        engine.bind(*arrays, STREAM)


@pytest.mark.parametrize(
    ("image", "outputs", "handle", "words"),
    [
        pytest.param((1, 3, 32, 32), None, 0, ["default stream", "create one"], id="the default stream"),
        pytest.param((1, 3, 32, 32), None, 2, ["default stream"], id="the default stream of the thread"),
        pytest.param((1, 4, 32, 32), None, 5, ["(1, 4, 32, 32)", "(batch, 3, height, width)"], id="four channels"),
        pytest.param((3, 32, 32), None, 5, ["(3, 32, 32)", "(batch, 3, height, width)"], id="no batch"),
        pytest.param((1, 3, 32, 32), (1, 3, 64, 32), 5, ["(1, 32, 8, 4)", "writes"], id="outputs of another size"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_with_what_is_expected(model, image, outputs, handle, words):
    engine = engine_of(model)
    targets = [np.zeros(s, np.float16) for s in engine.output_shapes(1, *(outputs or (1, 3, 32, 32))[2:])]
    with pytest.raises(UsageError) as caught:
        engine.bind(np.zeros(image, np.float16), targets, types.SimpleNamespace(handle=handle))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("which", ["input", "outputs"])
def test_arrays_of_another_type_are_refused(model, which):
    engine = engine_of(model)
    image, outputs = arrays_for(engine, 1, 32, 32)
    if which == "input":
        image = image.astype(np.float32)
    else:
        outputs = [output.astype(np.float32) for output in outputs]
    with pytest.raises(UsageError, match=r"float32 .*float16"):
        engine.bind(image, outputs, STREAM)


def test_a_model_of_fixed_size_takes_that_size_alone(model):
    engine = engine_of(replace(model, input_shape=(1, 3, 64, 64)))
    with pytest.raises(UsageError, match=r"\(1, 3, 32, 64\), and .* takes \(1, 3, 64, 64\) alone"):
        engine.bind(*arrays_for(engine, 1, 32, 64), STREAM)


def test_bf16_is_refused_on_a_gpu_without_it(model):
    cuda = TorchOnHost()
    cuda.has_bfloat16 = False
    with pytest.raises(UsageError, match=r"cuda:0 \(a GPU\) has no bfloat16 .* use fp16 or f32"):
        engine_of(model, cuda=cuda, precision="bf16")


def test_a_precision_that_torch_does_not_have_is_refused(model):
    with pytest.raises(UsageError, match="'int8' is not available on torch on a GPU"):
        engine_of(model, precision="int8")


def test_a_quantised_file_is_refused_with_what_runs_it(model):
    for precision in ("int8", "fp8"):
        with pytest.raises(
            UsageError, match=rf"is {precision}, and runtime torch runs files in f32 and fp16; .*tensorrt"
        ):
            engine_of(replace(model, precision=precision), precision="fp16")


@pytest.mark.parametrize("precision", ["f32", "fp16"])
def test_a_file_in_half_precision_runs_in_the_one_that_was_chosen(tiny_model, tmp_path, precision):
    pytest.importorskip("onnx", reason="the extra export is not installed")
    from retinastream.engines.precision.half import to_fp16

    to_fp16(tiny_model["fused"], tmp_path / "half.onnx", outside="round")
    found = read_onnx(tmp_path / "half.onnx")
    assert found.precision == "fp16"
    engines = [engine_of(found, precision=precision), engine_of(read_onnx(tiny_model["fused"]), precision=precision)]
    results = []
    for engine in engines:
        image, outputs = arrays_for(engine, 1, 64, 96)
        engine.bind(image, outputs, STREAM).run()
        results.append(outputs)
    for half, single in zip(*results, strict=True):
        np.testing.assert_allclose(half, single, atol=0.02)


def test_a_model_that_torch_cannot_run_is_named(model, tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"nothing")
    with pytest.raises(ModelError, match=r"broken\.onnx"):
        engine_of(replace(model, path=path))


@pytest.mark.parametrize("precision", ["f32", "fp16"])
def test_a_detector_over_torch_finds_what_the_cpu_finds(precision):
    """From frames to faces, kernels as host C++: preprocessing writes the input of torch, decoding reads its maps."""
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed, and pictures are read with it")
    from host_device import HostDevice

    from retinastream.models.zoo import resolve_model
    from retinastream.pipeline.detector import Detector

    video = cv2.VideoCapture(str(Path(__file__).resolve().parents[1] / "media" / "sample_4k.mp4"))
    picture = cv2.resize(video.read()[1], (640, 360), interpolation=cv2.INTER_AREA)
    model, device = resolve_model("mnet025"), HostDevice()
    with Detector("mnet025", device="cpu", size="native") as detector:
        expected = detector(picture)
    with device.current():
        engine = TorchEngine(model, device, precision=precision, cuda=TorchOnHost(device))
        with Detector.from_engine(engine, size="native", cuda_graph=False) as detector:
            found = detector(picture)
    device.check()
    assert len(expected) > 0
    assert len(found) == len(expected)
    pixels, scores = (0.05, 1e-3) if precision == "f32" else (1.0, 5e-3)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=pixels)
    np.testing.assert_allclose(found.landmarks, expected.landmarks, atol=pixels)
    np.testing.assert_allclose(found.scores, expected.scores, atol=scores)


# -- torch's side: what it is called with, and what becomes of its errors


def test_everything_used_of_torch_is_there_with_the_parameters_it_is_given():
    """Reads the source: what begins with ``torch.`` exists in the torch that is installed and takes these keywords."""
    seen = set()
    for module in (torch_cuda, torch_runtime, torch_package):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))):
            name = _dotted(node)
            if name is not None and name.startswith("torch."):
                _resolve(name)
                seen.add(name)
            if isinstance(node, ast.Call) and (called := _dotted(node.func)) and called.startswith("torch."):
                _check_call(called, node)
    assert {"torch.cuda.graph", "torch.cuda.ExternalStream", "torch.cuda.stream", "torch.backends.cudnn.flags"} <= seen
    assert {"torch.cuda.OutOfMemoryError", "torch.cuda.empty_cache", "torch.cuda.CUDAGraph", "torch.as_tensor"} <= seen
    assert callable(torch.cuda.CUDAGraph.replay)
    assert callable(torch.cuda.ExternalStream.synchronize)


def _dotted(node):
    """The name that an expression spells, with ``self._torch`` as ``torch``."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = _dotted(node.value)
        return "torch" if before == "self" and node.attr == "_torch" else f"{before}.{node.attr}" if before else None
    return None


def _resolve(name):
    found = torch
    for part in name.split(".")[1:]:
        found = getattr(found, part)
    return found


def _check_call(name, node):
    try:
        signature = inspect.signature(_resolve(name))
    except ValueError:  # written in C, without a signature
        return
    signature.bind(*node.args, **{keyword.arg: keyword.value for keyword in node.keywords})


class FakeTorch:
    """As much of torch as ``TorchCuda`` uses; ``log`` holds in which order things were entered and left."""

    class cuda:  # noqa: N801
        class OutOfMemoryError(RuntimeError):
            pass

    def __init__(self, *, capture_ends_with=None, copies=False):
        self.log = []
        self.__version__ = "2.13.0+cu130"
        self.version = types.SimpleNamespace(cuda="13.0")
        self.backends = types.SimpleNamespace(cudnn=types.SimpleNamespace(flags=self._context("cudnn")))
        self.inference_mode = self._context("inference")
        self.device = lambda kind, index: f"{kind}:{index}"
        self.as_tensor = lambda array, device: types.SimpleNamespace(data_ptr=lambda: 4096 + copies)
        self.capturing = False
        self.capture_ends_with = capture_ends_with
        real = type(self).cuda
        self.cuda = types.SimpleNamespace(
            OutOfMemoryError=real.OutOfMemoryError,
            is_available=lambda: True,
            device_count=lambda: 1,
            ExternalStream=lambda handle, device: f"stream {handle:#x} of {device}",
            stream=self._context("stream"),
            CUDAGraph=lambda: types.SimpleNamespace(replay=lambda: self.log.append("replay")),
            graph=self._graph,
            is_current_stream_capturing=lambda: self.capturing,
            empty_cache=lambda: self.log.append("empty_cache"),
            mem_get_info=lambda device: (2_000_000, 8_000_000),
        )

    def _context(self, name):
        @contextmanager
        def context(*given, **options):
            self.log.append(f"+{name} {' '.join(map(str, given))}".strip())
            self.options = {**getattr(self, "options", {}), name: options}
            try:
                yield
            finally:
                self.log.append(f"-{name}")

        return context

    @contextmanager
    def _graph(self, graph, **options):
        self.options["graph"] = options
        self.capturing = True
        try:
            yield
        finally:
            self.capturing = False
            if self.capture_ends_with is not None:
                raise self.capture_ends_with


@pytest.fixture
def fake(monkeypatch):
    def make(**values):
        torch = FakeTorch(**values)
        monkeypatch.setattr(torch_cuda, "load_torch", lambda: torch)
        monkeypatch.setattr(torch_cuda, "_FAILED_GRAPHS", [])
        return torch, TorchCuda(0)

    return make


def lock_is_free():
    taken = []
    thread = threading.Thread(target=lambda: taken.append(torch_cuda._LOCK.acquire(timeout=5)))
    thread.start()
    thread.join()
    return taken == [True]


@pytest.fixture(autouse=True)
def _new_lock(monkeypatch):
    monkeypatch.setattr(torch_cuda, "_LOCK", threading.RLock())


def test_work_is_queued_on_the_stream_given_with_settings_that_are_put_back(fake):
    torch, cuda = fake()
    with cuda.queueing(0x5000):
        torch.log.append("work")
    assert torch.log == [
        "+cudnn", "+inference", "+stream stream 0x5000 of cuda:0", "work", "-stream", "-inference", "-cudnn",
    ]  # fmt: skip
    expected = {"enabled": True, "benchmark": True, "deterministic": False, "allow_tf32": False}
    assert torch.options["cudnn"] == expected
    assert lock_is_free()


def test_a_graph_is_recorded_on_the_stream_and_replayed_there(fake):
    torch, cuda = fake()
    launch = cuda.capture(0x5000, lambda: torch.log.append("queue"))
    assert torch.options["graph"] == {"stream": "stream 0x5000 of cuda:0", "capture_error_mode": "thread_local"}
    torch.log.clear()
    launch()
    assert torch.log == ["+stream stream 0x5000 of cuda:0", "replay", "-stream"]
    assert torch_cuda._FAILED_GRAPHS == []


def fails_with(error):
    def queue():
        raise error

    return queue


def test_what_cannot_be_recorded_leaves_everything_as_it_was(fake):
    torch, cuda = fake(capture_ends_with=RuntimeError("operation failed due to a previous error\nmore"))
    with pytest.raises(CaptureError, match=r"captured as a CUDA graph: operation failed due to a previous error$"):
        cuda.capture(0x5000, fails_with(RuntimeError("operation not permitted when stream is capturing")))
    assert torch.log.count("+stream stream 0x5000 of cuda:0") == torch.log.count("-stream") == 1
    assert lock_is_free()
    assert len(torch_cuda._FAILED_GRAPHS) == 1


@pytest.mark.parametrize("error", [CaptureError("no"), UsageError("no"), KeyboardInterrupt()])
def test_other_errors_while_recording_are_passed_on_as_they_are(fake, error):
    _, cuda = fake()
    with pytest.raises(type(error)) as caught:
        cuda.capture(0x5000, fails_with(error))
    assert caught.value is error
    assert lock_is_free()


def test_lacking_memory_empties_both_pools_and_says_what_is_free(fake, monkeypatch):
    torch, cuda = fake()
    freed = []
    pool = types.SimpleNamespace(free_all_blocks=lambda: freed.append(True))
    monkeypatch.setitem(__import__("sys").modules, "cupy", types.SimpleNamespace(get_default_memory_pool=lambda: pool))
    with pytest.raises(DeviceMemoryError) as caught, cuda.memory_errors():
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\ndetails")
    for word in ("cuda:0", "Tried to allocate 9 GiB", "2 of 8 MB", "smaller batch"):
        assert word in str(caught.value)
    assert "details" not in str(caught.value)
    assert (freed, torch.log) == ([True], ["empty_cache"])


def test_a_torch_that_keeps_its_memory_does_not_hide_what_was_wrong(fake, monkeypatch):
    torch, cuda = fake()
    freed, asked = [], []

    def refuse():
        asked.append(lock.held)
        raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")

    pool = types.SimpleNamespace(free_all_blocks=lambda: freed.append(True))
    monkeypatch.setitem(__import__("sys").modules, "cupy", types.SimpleNamespace(get_default_memory_pool=lambda: pool))
    monkeypatch.setattr(torch.cuda, "empty_cache", refuse, raising=False)
    monkeypatch.setattr(torch_cuda, "_LOCK", lock := CountingLock())
    with pytest.raises(DeviceMemoryError, match="Tried to allocate 9 GiB"), cuda.memory_errors():
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
    assert (freed, asked, lock.held) == ([True], [1], 0)


class CountingLock:
    """Knows how often it is held."""

    held = 0

    def __enter__(self):
        self.held += 1

    def __exit__(self, *_):
        self.held -= 1


@pytest.mark.parametrize("ending", [None, RuntimeError("capture was invalidated")])
def test_lacking_memory_while_recording_is_not_mistaken_for_work_that_cannot_be_recorded(fake, ending):
    """The pools are emptied after the recording has ended, not in it; what ended it must not cover up the cause."""
    torch, cuda = fake(capture_ends_with=ending)

    def queue():
        with cuda.queueing(0x5000), cuda.memory_errors():
            torch.log.append("work")
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(DeviceMemoryError):
        cuda.capture(0x5000, queue)
    assert torch.log.index("empty_cache") > max(i for i, entry in enumerate(torch.log) if entry == "-stream")


def test_an_array_that_torch_copied_is_an_error(fake):
    array = types.SimpleNamespace(__cuda_array_interface__={"data": (4096, False)})
    assert fake()[1].tensor(array).data_ptr() == 4096
    with pytest.raises(SetupError, match="copied an array instead of viewing it"):
        fake(copies=True)[1].tensor(array)


def test_a_gpu_that_torch_does_not_see_is_refused(fake):
    fake()
    with pytest.raises(SetupError, match=r"torch 2\.13\.0\+cu130 \(CUDA 13\.0\) does not see cuda:3"):
        TorchCuda(3)


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_a_torch_for_cpus_is_refused_by_name(model):
    with pytest.raises(SetupError, match=r"is a build for CPUs: install one with CUDA"):
        TorchEngine(model, Device())


# -- on a GPU


@pytest.fixture(scope="module")
def gpu():
    pytest.importorskip("cupy", reason="CuPy is not installed")
    from retinastream.kernels.cupy_device import CuPyDevice

    device = CuPyDevice(0)
    with device.current():
        yield device


def on_gpu(device, engine, image, stream):
    import cupy

    target = cupy.asarray(image)
    cupy.cuda.Device().synchronize()  # what follows is on another stream
    outputs = [device.empty(shape, engine.output_dtype) for shape in engine.output_shapes(len(image), *image.shape[2:])]
    return target, outputs, engine.bind(target, outputs, stream)


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("layout", ["fused", "classic"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_gpu_computes_what_onnxruntime_does(gpu, tiny_model, layout, precision, compiled):
    model = read_onnx(tiny_model[layout])
    engine = TorchEngine(model, gpu, precision=precision, compiled=compiled)
    stream = gpu.stream()
    image, _ = arrays_for(engine, 2, 96, 64)
    _, outputs, slot = on_gpu(gpu, engine, image, stream)
    slot.run()
    stream.synchronize()
    for one, other in zip(outputs, by_onnxruntime(model, image), strict=True):
        np.testing.assert_allclose(one.get(), other, atol=PRECISIONS[precision][2] * max(1.0, np.abs(other).max()))


@pytest.mark.gpu
def test_a_graph_with_work_of_cupy_and_torch_gives_what_plain_queueing_gives(gpu, model):
    import cupy

    engine, stream = TorchEngine(model, gpu, precision="fp16"), gpu.stream()
    image, _ = arrays_for(engine, 1, 96, 64)
    target, outputs, slot = on_gpu(gpu, engine, image, stream)
    slot.run()
    stream.synchronize()
    plain = [output.get() for output in outputs]

    def queue():
        gpu.clear(outputs[0], stream)
        slot.run()

    launch = engine.capture(stream, queue)
    for _ in range(3):
        target[...] = 0
        cupy.cuda.Device().synchronize()
        launch()
        stream.synchronize()
        assert not np.array_equal(outputs[0].get(), plain[0])
        target[...] = cupy.asarray(image)
        cupy.cuda.Device().synchronize()
        launch()
        stream.synchronize()
        for one, other in zip(outputs, plain, strict=True):
            np.testing.assert_array_equal(one.get(), other)


@pytest.mark.gpu
def test_a_stream_is_usable_after_a_capture_that_failed(gpu, model):
    engine, stream = TorchEngine(model, gpu, precision="fp16"), gpu.stream()
    image, _ = arrays_for(engine, 1, 32, 32)
    _, outputs, slot = on_gpu(gpu, engine, image, stream)
    plain = [output.get() for output in outputs]

    def queue():
        slot.run()
        torch.cuda.synchronize()

    with pytest.raises(CaptureError):
        engine.capture(stream, queue)
    for output in outputs:
        gpu.clear(output, stream)
    slot.run()
    stream.synchronize()
    for one, other in zip(outputs, plain, strict=True):
        np.testing.assert_array_equal(one.get(), other)
    launch = engine.capture(stream, slot.run)
    launch()
    stream.synchronize()


@pytest.mark.gpu
def test_a_full_gpu_is_a_memory_error_and_the_next_input_runs(gpu, model):
    engine, stream = TorchEngine(model, gpu, precision="fp16"), gpu.stream()
    image, shape = gpu.empty((1, 3, 2176, 3840), np.float16), (1, 2176, 3840)
    outputs = [gpu.empty(size, engine.output_dtype) for size in engine.output_shapes(*shape)]
    gpu.clear(image, stream)
    stream.synchronize()
    ballast = gpu.empty((gpu.memory()[0] - (100 << 20),), np.uint8)
    with pytest.raises(DeviceMemoryError, match="smaller batch"):
        engine.bind(image, outputs, stream)
    del ballast
    engine.bind(image, outputs, stream).run()
    stream.synchronize()
