"""TensorRT itself on a GPU: everything that the tests with the fake can only assume. One command: pytest -m gpu."""

import threading
from pathlib import Path

import numpy as np
import pytest
from fake_tensorrt.fixtures import random_image, run_onnx

from retinastream.engines.cache.errors import PlanRejectedError
from retinastream.engines.cache.plan_header import describe_plan
from retinastream.engines.cache.store import EngineCache
from retinastream.engines.precision_graph import precision_graph
from retinastream.engines.tensorrt.build import build_plan
from retinastream.engines.tensorrt.inspect_plan import describe_layers
from retinastream.engines.tensorrt.loaded_plan import load_plan
from retinastream.engines.tensorrt.options import BuildOptions, profile_for
from retinastream.engines.tensorrt.plan_source import GivenPlan
from retinastream.engines.tensorrt_runtime import TensorRtEngine
from retinastream.errors import EngineBuildStoppedError, ModelError, UsageError
from retinastream.models.onnx_file import read_onnx
from retinastream.models.zoo import resolve_model

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

SAMPLE = Path(__file__).resolve().parents[1] / "media" / "sample_4k.mp4"
HEIGHT, WIDTH = 256, 320
PROFILES = (profile_for(HEIGHT, WIDTH, (1, 2, 4)),)
# Share of the largest value that outputs may differ by from ONNX Runtime on the same graph.
TOLERANCE = {"f32": 1e-3, "fp16": 2e-2, "int8": 0.15}


@pytest.fixture(scope="module", autouse=True)
def tensorrt():
    return pytest.importorskip("tensorrt", reason="NOT TESTED: tensorrt is not installed")


@pytest.fixture(scope="module")
def device():
    pytest.importorskip("cupy", reason="NOT TESTED: CuPy is not installed")
    from retinastream.kernels.cupy_device import open_device

    return open_device("cuda")


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """The model in all precisions."""
    from retinastream.engines.precision.quantise import quantise
    from retinastream.pipeline.calibration_frames import CalibrationFrames

    model = resolve_model("mnet025")
    folder = tmp_path_factory.mktemp("graphs")
    frames = CalibrationFrames([SAMPLE], model, size="fit:640", count=16)
    int8 = quantise(model.path, folder / "int8.onnx", frames, outside="round", force=True).path
    made = {precision: precision_graph(model, precision, folder) for precision in ("f32", "fp16")}
    return {**made, "int8": precision_graph(read_onnx(int8), "int8")}


@pytest.fixture(scope="module")
def built(graphs, device):
    """A plan per precision, with the progress that was reported."""
    made = {}
    for precision, graph in graphs.items():
        progress = []
        options = BuildOptions(PROFILES, optimization_level=1)
        made[precision] = (build_plan(graph.model.path, options, device, progress.append), progress)
    return made


def engine_of(graph, plan, device):
    return TensorRtEngine(graph.model, device, precision=graph.precision, plans=GivenPlan(graph.model, plan.plan))


def bind(engine, device, batch, stream, seed=0):
    image = device.empty((batch, 3, HEIGHT, WIDTH), engine.input_dtype)
    fill(device, image, stream, seed)
    outputs = [device.empty(shape, engine.output_dtype) for shape in engine.output_shapes(batch, HEIGHT, WIDTH)]
    return engine.bind(image, outputs, stream), image, outputs


def fill(device, image, stream, seed):
    """Give an input new content."""
    pinned = device.empty_pinned(image.shape, image.dtype)
    pinned[...] = random_image(image.shape, image.dtype, seed)
    device.copy_in(image, pinned, stream)
    stream.synchronize()


def on_host(device, array, stream):
    pinned = device.empty_pinned(array.shape, array.dtype)
    device.copy_out(pinned, array, stream)
    stream.synchronize()
    return np.array(pinned)


def check(graph, device, stream, image, outputs):
    expected = run_onnx(graph.model.path, on_host(device, image, stream))
    for name, output in zip(graph.model.output_names, outputs, strict=True):
        largest = float(np.abs(expected[name]).max())
        np.testing.assert_allclose(
            on_host(device, output, stream), expected[name], atol=TOLERANCE[graph.precision] * largest
        )


@pytest.mark.parametrize("precision", ["f32", "fp16", "int8"])
def test_a_plan_says_what_it_is(built, precision):
    plan, progress = built[precision]
    assert describe_plan(plan.plan).tensorrt == plan.version
    assert {tensor.name: tensor.dtype for tensor in plan.tensors if tensor.mode == "output"}
    assert plan.layers["count"] > 10
    wanted = {"f32": "FP32", "fp16": "FP16", "int8": "INT8"}[precision]
    assert plan.layers["precisions"].get(wanted, 0) > 0, plan.layers
    fractions = [moment.fraction for moment in progress]
    assert fractions == sorted(fractions)
    assert any(moment.phase for moment in progress), "TensorRT reported no phase"
    assert plan.timing_cache


@pytest.mark.parametrize("precision", ["f32", "fp16", "int8"])
@pytest.mark.parametrize("batch", [1, 3])
def test_it_computes_what_onnx_runtime_computes(graphs, built, device, precision, batch):
    graph = graphs[precision]
    with device.current():
        engine = engine_of(graph, built[precision][0], device)
        stream = device.stream()
        slot, image, outputs = bind(engine, device, batch, stream)
        slot.run()
        check(graph, device, stream, image, outputs)
        slot.close()
        engine.close()


def test_a_cuda_graph_replays_with_new_content(graphs, built, device):
    graph = graphs["fp16"]
    with device.current():
        engine = engine_of(graph, built["fp16"][0], device)
        stream = device.stream()
        slot, image, outputs = bind(engine, device, 2, stream)
        launch = engine.capture(stream, slot.run)
        fill(device, image, stream, 9)
        for _ in range(3):
            launch()
        check(graph, device, stream, image, outputs)


def test_slots_on_several_streams_run_at_the_same_time(graphs, built, device):
    graph = graphs["fp16"]
    with device.current():
        engine = engine_of(graph, built["fp16"][0], device)
        streams = [device.stream(), device.stream()]
        slots = [bind(engine, device, 1 + n % 4, streams[n % 2], n) for n in range(6)]
        for _ in range(20):
            for slot, _, _ in slots:
                slot.run()
        for stream in streams:
            stream.synchronize()
        for number, (_, image, outputs) in enumerate(slots):
            check(graph, device, streams[number % 2], image, outputs)


def test_a_shape_outside_the_profile_is_refused(graphs, built, device):
    with device.current():
        engine = engine_of(graphs["fp16"], built["fp16"][0], device)
        with pytest.raises(UsageError, match=r"takes 1x3x256x320\.\.4x3x256x320"):
            bind(engine, device, 5, device.stream())


def test_a_damaged_plan_is_rejected_and_explained(graphs, built, device):
    plan = built["fp16"][0].plan
    for damaged in (plan[: len(plan) // 2], b"nope" + plan[4:]):
        with device.current(), pytest.raises(PlanRejectedError, match="TensorRT does not take the engine"):
            load_plan(damaged)


def test_a_build_can_be_stopped(graphs, device):
    stop = threading.Event()

    def on_progress(progress):
        if progress.phase:
            stop.set()

    options = BuildOptions(PROFILES, optimization_level=5)
    with pytest.raises(EngineBuildStoppedError):
        build_plan(graphs["fp16"].model.path, options, device, on_progress, stop=stop)


def test_a_timing_cache_is_taken_again(graphs, built, device, caplog):
    first = built["fp16"][0]
    options = BuildOptions(PROFILES, optimization_level=1)
    again = build_plan(graphs["fp16"].model.path, options, device, timing_cache=first.timing_cache)
    assert "timing cache is of another GPU" not in caplog.text
    assert again.seconds < first.seconds * 1.5


@pytest.mark.parametrize("level", ["same-cc", "ampere+"])
def test_plans_for_other_gpus_load_here(graphs, device, level):
    options = BuildOptions(PROFILES, optimization_level=1, hardware_compatibility=level)
    assert build_plan(graphs["fp16"].model.path, options, device).layers["count"]


def test_a_version_compatible_plan_loads_here(graphs, device):
    options = BuildOptions(PROFILES, optimization_level=1, version_compatible=True)
    assert build_plan(graphs["fp16"].model.path, options, device).layers["count"]


def test_layers_are_described_in_detail(built, device):
    with device.current():
        loaded = load_plan(built["fp16"][0].plan)
        assert all("LayerType" in layer for layer in describe_layers(loaded))


def test_an_unknown_operator_is_named(graphs, device, tmp_path):
    import onnx

    model = onnx.load(str(graphs["f32"].model.path))
    output = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = [f"{name}_before" if name == output else name for name in node.output]
    made = onnx.helper.make_node("Wobble", [f"{output}_before"], [output], "added", domain="com.example")
    model.graph.node.append(made)
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    path = tmp_path / "odd.onnx"
    onnx.save(model, str(path))
    with pytest.raises(ModelError, match="Wobble"):
        build_plan(path, BuildOptions(PROFILES), device)


def test_an_engine_is_checked_against_the_float_model(device, tmp_path, monkeypatch):
    import cv2
    from gpu_on_host import small_picture

    from retinastream.engines.precision.half import to_fp16
    from retinastream.evaluation.check_sets import open_check_set
    from retinastream.evaluation.precision_check import check_precision
    from retinastream.models.zoo import resolve_model

    monkeypatch.setenv("RETINASTREAM_CACHE", str(tmp_path))
    cv2.imwrite(str(tmp_path / "small.png"), small_picture())
    reference = resolve_model("mnet025").path
    half = to_fp16(reference, tmp_path / "half.onnx").path
    report = check_precision(reference, half, open_check_set(tmp_path / "small.png"), device="cuda")
    assert report.candidate["runtime"] == "tensorrt"
    assert report.agreement["recall"] == 1.0


@pytest.mark.parametrize("cuda_graph", [True, False], ids=["graph", "no graph"])
def test_a_detector_finds_the_faces_that_the_cpu_finds(device, tmp_path, monkeypatch, cuda_graph):
    from gpu_on_host import assert_same, small_picture

    from retinastream.pipeline.detector import Detector

    monkeypatch.setenv("RETINASTREAM_CACHE", str(tmp_path))
    picture = small_picture()
    with Detector("mnet025", device="cpu", runtime="onnxruntime", size="native") as reference:
        expected = reference([picture] * 3)
    options = {"device": "cuda", "runtime": "tensorrt", "size": "native", "batch": 2, "cuda_graph": cuda_graph}
    with Detector("mnet025", **options) as detector:
        for found, wanted in zip(detector([picture] * 3), expected, strict=True):
            assert_same(found, wanted, pixels=1.5, score=0.03)
    assert len(EngineCache().entries()) >= 1
