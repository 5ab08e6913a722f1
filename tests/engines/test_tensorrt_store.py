"""Engines at first use and afterwards, against the fake: built, kept, found, and run by a whole detector."""

import logging
import threading

import numpy as np
import pytest
from fake_tensorrt import FakeWorld
from fake_tensorrt.fixtures import install, random_image, run_onnx

from retinastream.engines import stored_plans
from retinastream.engines.cache.errors import EngineMissingError
from retinastream.engines.cache.store import EngineCache
from retinastream.engines.engine_store import ensure_engine, obtain_engine
from retinastream.engines.precision_graph import precision_graph
from retinastream.engines.stored_plans import StoredPlans
from retinastream.engines.tensorrt.options import BuildOptions, profile_for
from retinastream.engines.tensorrt_runtime import TensorRtEngine
from retinastream.errors import UsageError
from retinastream.models.onnx_file import read_onnx
from retinastream.models.zoo import resolve_model


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RETINASTREAM_CACHE", str(tmp_path / "cache"))
    return EngineCache()


@pytest.fixture
def fused(tiny_model):
    pytest.importorskip("onnxruntime", reason="the fake runs networks by onnxruntime")
    return read_onnx(tiny_model["fused"])


def bind_and_run(engine, shape, seed=0):
    device = engine.device
    with device.current():
        stream = device.stream()
        image = device.upload(random_image(shape, engine.input_dtype, seed))
        outputs = [device.empty(s, engine.output_dtype) for s in engine.output_shapes(shape[0], *shape[2:])]
        slot = engine.bind(image, outputs, stream)
        slot.run()
        stream.synchronize()
        slot.close()
        return np.array(image), [np.array(output) for output in outputs]


def test_the_first_use_of_a_size_builds_and_the_second_process_finds_it(world, fused, cache, caplog):
    first = TensorRtEngine(fused, world.device, precision="fp16")
    assert (first.input_dtype, first.output_dtype, world.builds) == (np.float16, np.float32, [])
    image, outputs = bind_and_run(first, (2, 3, 64, 96))
    assert "building a TensorRT engine for tiny-fused 1x3x64x96..2x3x64x96: minutes, once per machine" in caplog.text
    graph = precision_graph(fused, "fp16").model
    for name, output in zip(fused.output_names, outputs, strict=True):
        expected = run_onnx(graph.path, image)[name]
        np.testing.assert_allclose(output, expected, atol=1e-3 * max(1.0, float(np.abs(expected).max())))
    bind_and_run(first, (1, 3, 64, 96))
    assert len(world.builds) == 1
    first.close()

    caplog.clear()
    second = TensorRtEngine(fused, world.device, precision="fp16")
    bind_and_run(second, (1, 3, 64, 96))
    assert len(world.builds) == 1
    assert "building" not in caplog.text
    entry = cache.entries()[0]
    build = entry.sidecar.build
    assert (build.model, entry.sidecar.key.precision, len(build.tensors)) == ("tiny-fused", "fp16", 4)
    assert build.notes["layers"]["reformats"] == 1
    assert entry.sidecar.key.machine.tensorrt == world.version


def test_a_larger_batch_than_any_kept_engine_takes_is_built_for(newest, fused):
    engine = TensorRtEngine(fused, newest.device, precision="f32")
    bind_and_run(engine, (1, 3, 64, 96))
    bind_and_run(engine, (3, 3, 64, 96))
    bind_and_run(engine, (2, 3, 64, 96))
    assert len(newest.builds) == 2


def test_an_engine_is_built_for_the_largest_batch_that_is_expected(newest, fused):
    engine = TensorRtEngine(fused, newest.device, precision="f32", batch=4)
    bind_and_run(engine, (1, 3, 64, 96))
    bind_and_run(engine, (4, 3, 64, 96))
    assert len(newest.builds) == 1


def test_an_engine_that_was_built_on_purpose_is_taken_whatever_its_settings(newest, fused, cache):
    options = BuildOptions((profile_for(64, 96, (1, 4, 8)), profile_for(96, 96, (2,))), optimization_level=5)
    obtained = obtain_engine(precision_graph(fused, "f32"), options, newest.device)
    assert obtained.built
    engine = TensorRtEngine(fused, newest.device, precision="f32")
    bind_and_run(engine, (8, 3, 64, 96))
    bind_and_run(engine, (2, 3, 96, 96))
    assert len(newest.builds) == 1
    bind_and_run(engine, (1, 3, 96, 96))
    assert len(newest.builds) == 2


def test_settings_of_engines_of_another_precision_are_not_taken_over(newest, fused, cache):
    options = BuildOptions((profile_for(64, 96, (1, 4, 8)),), optimization_level=5)
    obtain_engine(precision_graph(fused, "f32"), options, newest.device)
    bind_and_run(TensorRtEngine(fused, newest.device, precision="fp16"), (1, 3, 64, 96))
    levels = {entry.sidecar.key.precision: entry.sidecar.key.builder["optimization_level"] for entry in cache.entries()}
    assert levels == {"f32": 5, "fp16": 3}


def test_after_several_sizes_one_engine_is_built_for_all(newest, fused, cache, caplog):
    engine = TensorRtEngine(fused, newest.device, precision="f32")
    for number in range(1, 5):
        bind_and_run(engine, (1, 3, 32 * number, 64))
    assert len(newest.builds) == 4
    image, outputs = bind_and_run(engine, (1, 3, 160, 64))
    assert "for all sizes" in caplog.text
    expected = run_onnx(fused.path, image)[fused.output_names[0]]
    np.testing.assert_allclose(outputs[0], expected, atol=1e-4 * float(np.abs(expected).max()))
    for shape in ((1, 3, 96, 192), (1, 3, 32, 32), (1, 3, 256, 64)):
        bind_and_run(engine, shape)
    assert len(newest.builds) == 5
    # a video does not take it: an engine of its own size is faster
    bind_and_run(TensorRtEngine(fused, newest.device, precision="f32"), (1, 3, 96, 192))
    assert len(newest.builds) == 6
    again = TensorRtEngine(fused, newest.device, precision="f32")
    for shape in ((1, 3, 32, 64), (1, 3, 64, 64), (1, 3, 96, 64), (1, 3, 96, 192), (1, 3, 224, 224)):
        bind_and_run(again, shape)
    assert len(newest.builds) == 6
    # nor does a folder of pictures begin with several builds again
    later = TensorRtEngine(fused, newest.device, precision="f32")
    for number in range(1, 5):
        bind_and_run(later, (1, 3, 64, 64 + 32 * number))
    assert len(newest.builds) == 7


def test_the_engine_tuned_for_the_batch_is_preferred(newest, fused, cache):
    graph = precision_graph(fused, "f32")
    for batches in ((1, 8), (1, 2, 8), (1, 4, 8)):
        obtain_engine(graph, BuildOptions((profile_for(64, 96, batches),)), newest.device)
    plans = StoredPlans(fused, newest.device, "f32")
    plan = plans.plan_for(2, 64, 96)
    assert plan.tensors[0].profiles[0][1][0] == 2


def test_an_engine_of_another_gpu_or_version_is_not_taken(newest, fused, monkeypatch):
    bind_and_run(TensorRtEngine(fused, newest.device, precision="f32"), (1, 3, 64, 96))
    other = install(monkeypatch, FakeWorld("10.16.1.11", newest.device))
    bind_and_run(TensorRtEngine(fused, newest.device, precision="f32"), (1, 3, 64, 96))
    assert (len(newest.builds), len(other.builds), other.faults) == (1, 1, [])


def test_an_engine_that_tensorrt_does_not_take_any_more_is_put_aside_and_built_again(newest, fused, cache, caplog):
    bind_and_run(TensorRtEngine(fused, newest.device, precision="f32"), (1, 3, 64, 96))
    newest.compute_capability = (9, 1)
    bind_and_run(TensorRtEngine(fused, newest.device, precision="f32"), (1, 3, 64, 96))
    assert len(newest.builds) == 2
    assert len(cache.quarantined()) == 1
    assert "compute capability 9.0 and this one has 9.1" in caplog.text


def test_building_can_be_forbidden(newest, fused):
    plans = StoredPlans(fused, newest.device, "f32", may_build=False)
    with pytest.raises(EngineMissingError, match="retinastream engine build"):
        plans.plan_for(1, 64, 96)


def test_a_timing_cache_is_kept_for_the_next_build(newest, fused, cache):
    device = newest.device
    ensure_engine(fused, "f32", [(96, 64)], device)
    seen = []
    newest.on_step = lambda phase, step: seen.append(step)
    path = ensure_engine(fused, "f32", [(64, 64)], device, batches=(1, 2))
    assert path.is_file()
    assert path.parent == cache.folder
    _, config = newest.builds[1]
    assert bytes(config._cache.serialize()).endswith(b"measured")


def test_a_stopped_build_keeps_nothing(newest, fused, cache):
    stop = threading.Event()
    newest.on_step = lambda phase, step: stop.set()
    graph = precision_graph(fused, "f32")
    with pytest.raises(Exception, match="nothing was written"):
        obtain_engine(graph, BuildOptions((profile_for(64, 96, (1,)),)), newest.device, stop=stop)
    assert cache.entries() == []
    assert [path.name for path in cache.folder.iterdir() if path.suffix not in (".lock", "")] == []


def test_progress_is_logged_every_few_seconds(newest, fused, caplog, monkeypatch):
    from retinastream.engines.tensorrt import build

    monkeypatch.setattr(build, "_TICK_SECONDS", 0.01)
    monkeypatch.setattr(stored_plans, "_LOG_SECONDS", 0.02)
    lines = threading.Event()
    newest.on_step = lambda phase, step: lines.wait(0.05)
    with caplog.at_level(logging.WARNING):
        bind_and_run(TensorRtEngine(fused, newest.device, precision="f32"), (1, 3, 64, 96))
    assert "building: Timing 1 of 4" in caplog.text
    assert "s so far" in caplog.text


@pytest.mark.parametrize(
    ("precision", "says"),
    [("int8", "retinastream engine quantize"), ("fp8", "allowed are f32, fp16, int8")],
)
def test_a_precision_that_needs_more_is_refused_with_how_to_get_it(newest, fused, precision, says):
    with pytest.raises(UsageError, match=says):
        TensorRtEngine(fused, newest.device, precision=precision)


def test_a_file_of_one_precision_is_not_another(newest, fused):
    half = precision_graph(fused, "fp16").model
    with pytest.raises(UsageError, match="is fp16 and f32 was asked for; use --precision fp16"):
        TensorRtEngine(half, newest.device, precision="f32")
    assert precision_graph(half, "fp16").model.path == half.path


def test_a_model_of_fixed_batch_is_refused_for_another(newest, fused, tmp_path):
    import onnx

    model = onnx.load(str(fused.path))
    dimension = model.graph.input[0].type.tensor_type.shape.dim[0]
    dimension.Clear()
    dimension.dim_value = 1
    path = tmp_path / "one.onnx"
    onnx.save(model, str(path))
    plans = StoredPlans(read_onnx(path), newest.device, "f32")
    plans.plan_for(1, 64, 96)
    with pytest.raises(UsageError, match="fixed batch of 1"):
        plans.plan_for(2, 64, 96)


def test_an_engine_of_a_model_of_fixed_size_is_kept_and_found(newest, fused, tmp_path):
    import onnx

    model = onnx.load(str(fused.path))
    for dimension, size in zip(model.graph.input[0].type.tensor_type.shape.dim, (1, 3, 64, 96), strict=True):
        dimension.Clear()
        dimension.dim_value = size
    path = tmp_path / "fixed.onnx"
    onnx.save(model, str(path))
    for _ in range(2):
        bind_and_run(TensorRtEngine(read_onnx(path), newest.device, precision="f32"), (1, 3, 64, 96))
    assert len(newest.builds) == 1


@pytest.mark.parametrize("precision", ["f32", "fp16"])
def test_a_detector_by_tensorrt_finds_the_faces_that_onnx_runtime_finds(world, precision):
    from gpu_on_host import assert_same, small_picture

    from retinastream.pipeline.detector import Detector

    pytest.importorskip("onnxruntime", reason="both sides run the network by onnxruntime")
    picture = small_picture()
    model = resolve_model("mnet025")
    with Detector("mnet025", device="cpu", runtime="onnxruntime", size="native", threads=1) as reference:
        expected = reference([picture] * 3)
    engine = TensorRtEngine(model, world.device, precision=precision)
    with Detector.from_engine(engine, size="native", batch=2) as detector:
        found = detector([picture] * 3)
        assert detector.info.runtime == "tensorrt"
    assert len(expected[0]) > 0
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other, **({} if precision == "f32" else {"pixels": 1.0, "score": 0.02}))
