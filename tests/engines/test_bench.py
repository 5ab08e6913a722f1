"""What is measured is what ran: the same figures from known times, whatever the runtime."""

import itertools
import signal
import threading

import numpy as np
import pytest
from host_device import HostDevice
from host_engine import EngineFailure, HostEngine

from retinastream.engines import bench_cpu, bench_device
from retinastream.engines.bench import BenchSettings, Measured, NothingMeasuredError, Query, summarise
from retinastream.engines.bench_clock import CuPyClock, clock_of
from retinastream.engines.bench_contenders import Contender, run_contenders
from retinastream.engines.bench_cpu import bench_engine, fill
from retinastream.engines.bench_device import bench_device_engine
from retinastream.engines.bench_statistics import Spread, percentile, variation
from retinastream.engines.engine import EngineInfo
from retinastream.engines.select import create_engine
from retinastream.errors import DeviceMemoryError, UsageError
from retinastream.models.onnx_file import read_onnx

INFO = EngineInfo("test", "1", "cuda:0", "a GPU", "fp16", 0, 1)


def settings(**changes):
    values = {"batch": 1, "height": 64, "width": 96, "warm_up": 0, "duration": 0, "iterations": 6}
    return BenchSettings(**{**values, **changes})


# Figures.


def test_a_series_is_summarised_as_by_hand():
    spread = Spread.of([5, 1, 4, 2, 3])
    assert (spread.min, spread.max, spread.mean, spread.median) == (1, 5, 3, 3)
    hundred = Spread.of(list(range(1, 101)))
    assert (hundred.p90, hundred.p95, hundred.p99, hundred.median) == (90, 95, 99, 50.5)
    assert Spread.of([7.0]) == Spread(7, 7, 7, 7, 7, 7, 7)


@pytest.mark.parametrize(("percent", "expected"), [(0, 1), (1, 1), (50, 2), (51, 3), (75, 3), (76, 4), (100, 4)])
def test_a_percentile_is_a_value_that_was_measured(percent, expected):
    assert percentile([1, 2, 3, 4], percent) == expected


def test_variation_is_the_deviation_in_relation_to_the_mean():
    assert variation([9, 11]) == pytest.approx(0.1)
    assert variation([3, 3, 3]) == variation([3]) == variation([0, 0]) == 0


def test_the_summary_is_written_as_trtexec_does():
    assert str(Spread.of([1.5, 2.5])) == (
        "min = 1.5 ms, max = 2.5 ms, mean = 2 ms, median = 2 ms, "
        "percentile(90%) = 2.5 ms, percentile(95%) = 2.5 ms, percentile(99%) = 2.5 ms"
    )


def test_throughput_counts_queries_over_the_host_time_and_pictures_by_the_batch():
    measured = Measured(tuple(Query(10.0, 1.0, 8.0) for _ in range(20)), 0.5, cuda_graph=True)
    result = summarise(measured, INFO, settings(batch=4))
    assert result.throughput == 40
    assert result.compute_seconds == pytest.approx(0.16)
    plain = result.to_dict()
    assert (plain["throughput_qps"], plain["pictures_per_second"], plain["iterations"]) == (40, 160, 20)
    assert plain["times_ms"]["latency"]["median"] == 10
    assert sorted(plain["times_ms"]) == ["compute", "enqueue", "latency"]


@pytest.mark.parametrize(
    ("enqueue", "compute", "graph", "said"),
    [
        pytest.param(2.0, 2.1, False, "a CUDA graph", id="bound, without a graph"),
        pytest.param(2.0, 2.1, True, "a larger batch gives", id="bound, with a graph"),
        pytest.param(0.1, 2.1, False, "", id="not bound"),
    ],
)
def test_a_hint_is_given_where_queueing_takes_as_long_as_computing(enqueue, compute, graph, said):
    measured = Measured(tuple(Query(compute, enqueue, compute) for _ in range(9)), 1.0, cuda_graph=graph)
    notes = " ".join(summarise(measured, INFO, settings()).notes)
    assert ("bound by the enqueue time" in notes) == bool(said)
    assert said in notes


def test_unsteady_clocks_are_remarked():
    measured = Measured(tuple(Query(c, 0.01, c) for c in (1.0, 1.2, 1.0, 1.2)), 1.0, cuda_graph=True)
    assert "coefficient of variation is 9.1 %" in summarise(measured, INFO, settings()).notes[0]
    steady = Measured(tuple(Query(c, 0.01, c) for c in (1.0, 1.001)), 1.0, cuda_graph=True)
    assert summarise(steady, INFO, settings()).notes == ()


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"streams": 0}, {"iterations": 0}, {"duration": -1}, {"warm_up": -1}])
def test_settings_that_measure_nothing_are_refused(wrong):
    with pytest.raises(UsageError, match=f"{next(iter(wrong))} was given as"):
        settings(**wrong)


# A runtime on the CPU.


class Clock:
    """Time that goes by when somebody works, and not otherwise."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now


class Slot:
    def __init__(self, engine, size):
        self.input = np.zeros((*size, 3), np.uint8)
        self._engine = engine

    def run(self):
        self._engine.run()
        return ()


class FakeEngine:
    """Each run takes the next of the given times, in seconds, on a clock of its own."""

    info = INFO
    input_kind = "bgr-u8-nhwc"

    def __init__(self, clock, times):
        self.clock, self.count, self.slots = clock, 0, []
        self._times = itertools.cycle(times)

    def slot(self, batch, height, width, *, steady=False):
        assert steady
        self.slots.append(Slot(self, (batch, height, width)))
        return self.slots[-1]

    def run(self):
        self.count += 1
        self.clock.now += next(self._times)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(bench_cpu, "time", clock)
    return clock


def test_times_are_those_of_the_runs_and_the_first_run_does_not_count(clock):
    engine = FakeEngine(clock, [9.0, 0.01, 0.03, 0.02])
    result = bench_engine(engine, settings(iterations=3))
    assert (result.iterations, engine.count) == (3, 4)
    assert result.times["latency"].max == pytest.approx(30)
    assert result.times["latency"].median == pytest.approx(20)
    assert result.seconds == pytest.approx(0.06)
    assert list(result.times) == ["latency"]
    assert result.cuda_graph is None


def test_what_begins_in_the_warm_up_does_not_count(clock):
    engine = FakeEngine(clock, [0.01])
    result = bench_engine(engine, settings(warm_up=95, iterations=5))
    assert result.iterations == 5
    assert engine.count == 1 + 10 + 5


def test_duration_and_iterations_are_both_lower_bounds(clock):
    assert bench_engine(FakeEngine(clock, [0.01]), settings(duration=0.1, iterations=3)).iterations == 10
    assert bench_engine(FakeEngine(clock, [0.01]), settings(duration=0.1, iterations=30)).iterations == 30


def test_every_stream_has_a_slot_and_noise_of_its_own(clock):
    engine = FakeEngine(clock, [0.01])
    bench_engine(engine, settings(streams=3, batch=2))
    assert [slot.input.shape for slot in engine.slots] == [(2, 64, 96, 3)] * 3
    assert len({slot.input.tobytes() for slot in engine.slots}) == 3


def test_a_run_that_fails_ends_the_others_with_its_error(clock):
    class Failing(FakeEngine):
        def run(self):
            super().run()
            if self.count == 20:
                raise DeviceMemoryError("enough")

    with pytest.raises(DeviceMemoryError):
        bench_engine(Failing(clock, [0.01]), settings(streams=2, iterations=10**5))


@pytest.mark.parametrize("when", [20, 20_000], ids=["while the threads are started", "while they run"])
def test_an_interrupt_of_the_waiting_thread_ends_the_measuring_ones(clock, when):
    class Interrupting(FakeEngine):
        def run(self):
            super().run()
            if self.count >= when and not self.sent:
                self.sent = True
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

        sent = False

    engine = Interrupting(clock, [0.01])
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        bench_engine(engine, settings(streams=2, iterations=10**6))
    for thread in threading.enumerate():
        if thread.name.startswith("bench"):
            thread.join(5)
    assert threading.active_count() == before
    assert engine.count < 10**6


def test_stopping_gives_what_was_measured_or_says_that_there_is_nothing(clock):
    stop = threading.Event()

    class Stopping(FakeEngine):
        def run(self):
            super().run()
            if self.count == 8:
                stop.set()

    assert bench_engine(Stopping(clock, [0.01]), settings(iterations=10**5), stop=stop).iterations == 7
    with pytest.raises(NothingMeasuredError):
        bench_engine(FakeEngine(clock, [0.01]), settings(), stop=stop)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.float16, np.float32])
def test_inputs_are_noise_over_the_whole_range(dtype):
    buffer = np.zeros((3, 64, 64), dtype)
    fill(buffer, 1)
    low, high = (0, 255) if dtype == np.uint8 else (-128, 127)
    assert (buffer.min(), buffer.max()) == (low, high)
    assert np.isfinite(buffer.astype(np.float64)).all()


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime", "torch"])
def test_every_runtime_of_a_cpu_is_measured(runtime, tiny_model):
    pytest.importorskip(runtime, reason=f"{runtime} is not installed")
    engine = create_engine(read_onnx(tiny_model["fused"]), runtime=runtime, threads=1, streams=2)
    try:
        result = bench_engine(engine, settings(streams=2, iterations=8, batch=2))
    finally:
        engine.close()
    assert result.iterations >= 8
    assert 0 < result.times["latency"].min <= result.times["latency"].p99
    assert result.info.runtime == runtime


# A runtime on a device.


class ScriptedClock:
    """Marks that know their moment from a script: a copy in takes 1 ms, computing 8, a copy out 2."""

    def __init__(self):
        self.moment = 0.0
        self.made = 0

    def mark(self):
        clock = self
        step = (0.0, 1.0, 8.0, 2.0)[self.made % 4]
        self.made += 1

        class Mark:
            def record(self, stream):
                clock.moment += step
                self.at = clock.moment

            def milliseconds_since(self, earlier):
                return self.at - earlier.at

        return Mark()


@pytest.fixture(params=["late", "eager"])
def device(request):
    device = HostDevice() if request.param == "late" else HostDevice("eager")
    yield device
    device.check()


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model["fused"]


def test_a_device_runs_what_was_counted_and_releases_it(device, model):
    engine = HostEngine(model, device)
    result = bench_device_engine(engine, settings(iterations=6, streams=2))
    assert result.cuda_graph is True
    assert result.iterations == 6
    assert engine.runs == 2 + 6
    assert device.graph_launches == 6
    assert device.copies_out == 0
    assert sorted(result.times) == ["enqueue", "latency"]
    engine.close()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
def test_inputs_of_every_type_are_bound(device, model, dtype):
    engine = HostEngine(model, device, dtype=dtype, input_scale=0.5 if dtype == np.int8 else None)
    assert bench_device_engine(engine, settings(batch=2)).iterations == 6
    engine.close()


def test_without_a_graph_every_query_is_queued_plainly(device, model):
    engine = HostEngine(model, device)
    result = bench_device_engine(engine, settings(cuda_graph=False))
    assert (result.cuda_graph, result.notes, device.graph_launches, engine.runs) == (False, (), 0, 7)


def test_what_cannot_be_captured_is_measured_plainly_and_said(device, model):
    engine = HostEngine(model, device, can_capture=False)
    result = bench_device_engine(engine, settings(streams=2))
    assert result.cuda_graph is False
    assert result.notes == ("without a CUDA graph: this engine refuses",)


def test_the_clock_of_the_gpu_gives_compute_time_and_latency_is_the_sum_with_transfers(device, model):
    engine = HostEngine(model, device)
    plain = bench_device_engine(engine, settings(), clock=ScriptedClock())
    assert plain.times["compute"].median == plain.times["latency"].median == 8
    assert "copy_in" not in plain.times
    assert plain.compute_seconds == pytest.approx(6 * 0.008)
    before = device.copies_in, device.copies_out
    full = bench_device_engine(engine, settings(transfers=True), clock=ScriptedClock())
    spreads = full.times
    assert [spreads[n].median for n in ("copy_in", "compute", "copy_out", "latency")] == [1, 8, 2, 11]
    assert device.copies_in - before[0] == 6 + 1
    assert device.copies_out - before[1] == 6 * len(engine.output_shapes(1, 64, 96))
    assert full.to_dict()["transfers"] is True


def test_warm_up_on_a_device_does_not_count(model, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(bench_device, "time", clock)
    device = HostDevice("eager")

    class Slow(HostEngine):
        def infer(self, image):
            clock.now += 0.01
            return super().infer(image)

    engine = Slow(model, device)
    result = bench_device_engine(engine, settings(warm_up=45, duration=0.1, iterations=3))
    assert engine.runs == 1 + 5 + 10
    assert result.iterations == 10
    assert result.seconds == pytest.approx(0.1)
    assert result.times["latency"].median == pytest.approx(10)
    assert result.times["enqueue"].median == pytest.approx(10)


def test_a_size_that_does_not_fit_is_the_engines_error_and_nothing_stays_bound(device, model):
    engine = HostEngine(model, device, most_items=2)
    with pytest.raises(DeviceMemoryError):
        bench_device_engine(engine, settings(batch=4))
    assert engine.open_slots == 0


def test_a_run_that_fails_leaves_nothing_bound(model):
    device = HostDevice()
    engine = HostEngine(model, device, fail_at=4)
    with pytest.raises(EngineFailure):
        bench_device_engine(engine, settings(streams=2))
    assert engine.open_slots == 0


def test_stopping_on_a_device_before_anything_counts(device, model):
    stop = threading.Event()
    stop.set()
    with pytest.raises(NothingMeasuredError):
        bench_device_engine(HostEngine(model, device), settings(), stop=stop)


def test_the_host_has_no_clock_of_a_gpu():
    assert clock_of(HostDevice()) is None


@pytest.mark.gpu
def test_the_clock_of_a_gpu_measures_a_copy():
    from retinastream.kernels.cupy_device import CuPyDevice

    device = CuPyDevice()
    with device.current():
        assert isinstance(clock_of(device), CuPyClock)
        first, second = (clock_of(device).mark() for _ in range(2))
        stream = device.stream()
        array, source = device.empty((64 << 20,), np.uint8), device.empty_pinned((64 << 20,), np.uint8)
        first.record(stream)
        device.copy_in(array, source, stream)
        second.record(stream)
        stream.synchronize()
        assert 0.1 < second.milliseconds_since(first) < 1000


# Several of them.


@pytest.mark.parametrize(
    ("text", "precision", "expected"),
    [
        ("tensorrt", None, Contender("tensorrt")),
        ("tensorrt:int8", None, Contender("tensorrt", "int8")),
        ("tensorrt:int8", "fp16", Contender("tensorrt", "int8")),
        ("torch", "fp16", Contender("torch", "fp16")),
    ],
)
def test_a_contender_is_a_runtime_and_perhaps_a_precision(text, precision, expected):
    assert Contender.parse(text, precision) == expected


def test_contenders_run_one_after_the_other_and_each_is_closed(model, monkeypatch):
    events = []
    real = create_engine

    def watched(*arguments, **named):
        engine = real(*arguments, **named)
        events.append(f"open {engine.info.runtime}")
        close = engine.close
        engine.close = lambda: (events.append(f"close {engine.info.runtime}"), close())
        return engine

    monkeypatch.setattr("retinastream.engines.select.create_engine", watched)
    started = []
    results = list(
        run_contenders(
            read_onnx(model),
            [Contender("openvino"), Contender("onnxruntime")],
            settings(),
            device="cpu",
            on_start=lambda info: started.append(info.runtime),
        )
    )
    assert [result.info.runtime for result in results] == started == ["openvino", "onnxruntime"]
    assert events == ["open openvino", "close openvino", "open onnxruntime", "close onnxruntime"]


def test_nothing_begins_after_a_stop(model):
    stop = threading.Event()
    contenders = [Contender("openvino"), Contender("onnxruntime")]
    results = []
    for result in run_contenders(read_onnx(model), contenders, settings(), device="cpu", stop=stop):
        results.append(result)
        stop.set()
    assert len(results) == 1
    assert list(run_contenders(read_onnx(model), contenders, settings(), device="cpu", stop=stop)) == []


def test_stopped_before_anything_counts_there_is_no_result(model):
    stop = threading.Event()
    contenders = [Contender("openvino"), Contender("onnxruntime")]
    started = []

    def start(info):
        started.append(info.runtime)
        stop.set()

    assert not list(run_contenders(read_onnx(model), contenders, settings(), device="cpu", stop=stop, on_start=start))
    assert started == ["openvino"]


def test_a_gpu_contender_is_measured_on_the_device_that_was_chosen(model, monkeypatch):
    device = HostDevice()
    engine = HostEngine(model, device)
    asked = {}

    def create(given, on, **named):
        asked.update(named)
        assert on is device
        return engine

    monkeypatch.setattr(
        "retinastream.engines.select.choose_device",
        lambda text, runtime: type("Choice", (), {"kind": "cuda", "index": 1, "reason": f"{text} {runtime}"})(),
    )
    monkeypatch.setattr("retinastream.engines.select.create_device_engine", create)
    monkeypatch.setattr("retinastream.kernels.cupy_device.CuPyDevice", lambda index: device if index == 1 else None)
    monkeypatch.setattr("retinastream.engines.bench_device.clock_of", lambda _: None)
    (result,) = run_contenders(read_onnx(model), [Contender("tensorrt", "int8")], settings(), device="cuda:1")
    assert result.info.runtime == "host onnxruntime"
    assert asked == {"runtime": "tensorrt", "precision": "int8", "batch": 1, "reason": "cuda:1 tensorrt"}
    assert engine.is_closed
