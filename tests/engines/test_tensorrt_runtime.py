"""Running plans, against the fake: binding, streams, memory, graphs, errors. No proof of TensorRT itself."""

import gc

import numpy as np
import pytest
from fake_tensorrt import FakeWorld
from fake_tensorrt.fixtures import random_image, run_onnx
from host_device import HostDevice, UseAfterFree

from retinastream.engines.cache.errors import PlanRejectedError
from retinastream.engines.tensorrt.build import build_plan
from retinastream.engines.tensorrt.options import BuildOptions, profile_for
from retinastream.engines.tensorrt.plan_source import GivenPlan
from retinastream.engines.tensorrt_runtime import TensorRtEngine
from retinastream.errors import DeviceMemoryError, EngineError, UsageError
from retinastream.kernels.device import CaptureError
from retinastream.models.onnx_file import read_onnx

PROFILES = (profile_for(64, 96, (1, 2, 4)), profile_for(96, 64, (1, 2)))


@pytest.fixture(params=["fused", "classic"])
def model(request, tiny_model):
    pytest.importorskip("onnxruntime", reason="the fake runs networks by onnxruntime")
    return read_onnx(tiny_model[request.param])


@pytest.fixture
def fused(tiny_model):
    pytest.importorskip("onnxruntime", reason="the fake runs networks by onnxruntime")
    return read_onnx(tiny_model["fused"])


def plan_of(world, model, profiles=PROFILES, **options):
    return build_plan(model.path, BuildOptions(profiles, **options), world.device).plan


def engine_of(world, model, profiles=PROFILES):
    return TensorRtEngine(model, world.device, precision="f32", plans=GivenPlan(model, plan_of(world, model, profiles)))


def buffers(world, engine, image):
    """Device arrays: the input with its content, and outputs."""
    batch, _, height, width = image.shape
    shapes = engine.output_shapes(batch, height, width)
    return world.device.upload(image), [world.device.empty(shape, engine.output_dtype) for shape in shapes]


def close_to(expected):
    return {"atol": 1e-4 * max(1.0, float(np.abs(expected).max()))}


def check_outputs(model, image, outputs):
    expected = run_onnx(model.path, np.asarray(image))
    for name, output in zip(model.output_names, outputs, strict=True):
        np.testing.assert_allclose(np.asarray(output), expected[name], **close_to(expected[name]))


def test_a_slot_computes_what_the_model_computes_and_waits_for_nothing(world, model):
    device = world.device
    engine = engine_of(world, model)
    with device.current():
        stream = device.stream()
        image, outputs = buffers(world, engine, random_image((2, 3, 64, 96)))
        slot = engine.bind(image, outputs, stream)
        for output in outputs:
            np.asarray(output)[...] = 0
        before = device.synchronizations
        slot.run()
        assert device.synchronizations == before
        assert not np.asarray(outputs[0]).any()
        stream.synchronize()
        check_outputs(model, image, outputs)
        slot.close()
    engine.close()


def test_an_engine_says_what_it_is(world, fused):
    info = engine_of(world, fused).info
    assert (info.runtime, info.runtime_version, info.device, info.device_name, info.precision) == (
        "tensorrt",
        world.version,
        "cuda:0",
        "NumPy",
        "f32",
    )


def test_slots_of_several_sizes_and_streams_do_not_disturb_each_other(world, fused):
    device, shapes = world.device, [(1, 3, 64, 96), (2, 3, 96, 64), (4, 3, 64, 96)]
    engine = engine_of(world, fused)
    with device.current():
        streams = [device.stream(), device.stream()]
        bound = []
        for number, shape in enumerate(shapes):
            image, outputs = buffers(world, engine, random_image(shape, seed=number))
            bound.append((engine.bind(image, outputs, streams[number % 2]), image, outputs))
        for _, _, outputs in bound:
            for output in outputs:
                np.asarray(output)[...] = 0
        for slot, _, _ in reversed(bound):
            slot.run()
        device.drain()
        for _, image, outputs in bound:
            check_outputs(fused, image, outputs)


def test_contexts_of_one_stream_share_their_scratch_memory_and_streams_do_not(newest, fused):
    device = newest.device
    newest.scratch_bytes = 1 << 20
    engine = engine_of(newest, fused)
    with device.current():
        first, second = device.stream(), device.stream()
        held = []

        def bind(shape, stream):
            image, outputs = buffers(newest, engine, random_image(shape))
            free = device.memory()[0]
            held.append(engine.bind(image, outputs, stream))
            return free - device.memory()[0]

        assert bind((1, 3, 64, 96), first) == 1 << 20
        assert bind((2, 3, 64, 96), first) == 0
        assert bind((1, 3, 64, 96), second) == 1 << 20
        # the second profile wants twice as much: a new block, and the former one stays with its slots
        assert bind((1, 3, 96, 64), first) == 2 << 20
        for slot in held:
            slot.run()
        device.drain()
        for slot in held:
            slot.close()
        held.clear()
        gc.collect()
        assert device.memory()[0] == device.memory_limit


def test_a_slot_keeps_its_arrays_alive_and_lets_them_go(newest, fused):
    device = newest.device
    engine = engine_of(newest, fused)
    with device.current():
        stream = device.stream()
        slot = engine.bind(*buffers(newest, engine, random_image((1, 3, 64, 96))), stream)
        gc.collect()
        slot.run()
        stream.synchronize()
        slot.run()
        slot.close()
        gc.collect()
        with pytest.raises(UseAfterFree):
            stream.synchronize()
    device.faults.clear()
    with pytest.raises(UsageError, match="slot is closed"):
        slot.run()


def test_a_graph_replays_the_network_with_new_content(world, fused):
    device = world.device
    engine = engine_of(world, fused)
    with device.current():
        stream = device.stream()
        image, outputs = buffers(world, engine, random_image((2, 3, 64, 96)))
        slot = engine.bind(image, outputs, stream)
        launch = engine.capture(stream, slot.run)
        np.asarray(image)[...] = random_image((2, 3, 64, 96), seed=5)
        launch()
        stream.synchronize()
        check_outputs(fused, image, outputs)


def test_what_tensorrt_refuses_to_have_captured_is_a_capture_error(world, fused):
    device = world.device
    engine = engine_of(world, fused)
    with device.current():
        stream = device.stream()
        slot = engine.bind(*buffers(world, engine, random_image((1, 3, 64, 96))), stream)
        world.failures.add("execute")
        with pytest.raises(CaptureError, match=r"cannot be captured: TensorRT did not queue .*Parameter check failed"):
            engine.capture(stream, slot.run)
        world.failures.clear()
        slot.run()
        stream.synchronize()


@pytest.mark.parametrize(
    ("failure", "says"),
    [
        ("set_profile", "refused to choose profile 0"),
        ("set_shape", "refused to set the shape of 'input'|refused to set the shape of 'images'"),
        ("infer_shapes", "cannot infer the shapes: shape inference failed"),
        ("missing_shapes", "lacks the shapes of"),
        ("set_address", "refused to set the address of"),
        ("execute", "did not queue"),
    ],
)
def test_no_answer_of_tensorrt_is_ignored(world, fused, failure, says):
    device = world.device
    engine = engine_of(world, fused)
    with device.current():
        image, outputs = buffers(world, engine, random_image((1, 3, 64, 96)))
        world.failures.add(failure)
        with pytest.raises(EngineError, match=says) as caught:
            engine.bind(image, outputs, device.stream())
    assert "TensorRT said" in str(caught.value) or failure == "missing_shapes"


def test_a_context_without_room_is_an_error_about_memory(world, fused):
    engine = engine_of(world, fused)
    world.failures.add("create_context")
    with world.device.current(), pytest.raises(DeviceMemoryError, match="smaller batch"):
        image, outputs = buffers(world, engine, random_image((1, 3, 64, 96)))
        engine.bind(image, outputs, world.device.stream())


def test_scratch_memory_that_does_not_fit_is_an_error_about_memory(newest, fused):
    newest.scratch_bytes = 1 << 40
    engine = engine_of(newest, fused)
    with newest.device.current(), pytest.raises(DeviceMemoryError, match="were asked for"):
        image, outputs = buffers(newest, engine, random_image((1, 3, 64, 96)))
        engine.bind(image, outputs, newest.device.stream())


@pytest.mark.parametrize("shape", [(5, 3, 64, 96), (1, 3, 64, 64), (3, 3, 96, 64)])
def test_a_shape_outside_every_profile_is_a_usage_error_with_what_is_allowed(world, fused, shape):
    engine = engine_of(world, fused)
    text = r"takes 1x3x64x96\.\.4x3x64x96 or 1x3x96x64\.\.2x3x96x64 .* engine build --shape"
    with world.device.current(), pytest.raises(UsageError, match=text):
        image, outputs = buffers(world, engine, random_image(shape))
        engine.bind(image, outputs, world.device.stream())


def test_default_streams_are_refused(newest, fused):
    engine = engine_of(newest, fused)
    with newest.device.current():
        image, outputs = buffers(newest, engine, random_image((1, 3, 64, 96)))
        for handle in (0, 1):
            with pytest.raises(UsageError, match="a default stream was given"):
                engine.bind(image, outputs, newest.device.foreign_stream(handle))


def test_arrays_that_do_not_fit_are_refused(newest, fused):
    device = newest.device
    engine = engine_of(newest, fused)
    with device.current():
        stream = device.stream()
        image, outputs = buffers(newest, engine, random_image((1, 3, 64, 96)))
        with pytest.raises(UsageError, match="the input is float16"):
            engine.bind(device.empty((1, 3, 64, 96), np.float16), outputs, stream)
        with pytest.raises(UsageError, match="the outputs are float32"):
            engine.bind(image, outputs[::-1], stream)
        with pytest.raises(UsageError, match="not in the memory of cuda:0"):
            engine.bind(random_image((1, 3, 64, 96)), outputs, stream)
        other = HostDevice(index=1)
        with other.current():
            foreign = other.empty((1, 3, 64, 96), np.float32)
        with pytest.raises(UsageError, match="not in the memory of cuda:0"):
            engine.bind(foreign, outputs, stream)
        engine.close()
        with pytest.raises(UsageError, match="engine is closed"):
            engine.bind(image, outputs, stream)


def test_types_are_read_from_the_engine(world, fused, tmp_path):
    from retinastream.engines.precision.half import to_fp16

    device = world.device
    half = read_onnx(to_fp16(fused.path, tmp_path / "half.onnx", outside="round").path)
    engine = TensorRtEngine(half, device, plans=GivenPlan(half, plan_of(world, half)))
    assert (engine.input_dtype, engine.output_dtype, engine.input_scale) == (np.float16, np.float32, None)
    with device.current():
        stream = device.stream()
        image, outputs = buffers(world, engine, random_image((1, 3, 64, 96), np.float16))
        engine.bind(image, outputs, stream)
        check_outputs(half, image, outputs)


def test_an_engine_of_another_model_is_refused(newest, tiny_model, fused):
    other = read_onnx(tiny_model["classic"])
    with pytest.raises(PlanRejectedError, match=r"the engine has the tensors .*built from another model"):
        GivenPlan(fused, plan_of(newest, other))


def test_an_engine_with_host_memory_is_refused(newest, fused):
    plan = plan_of(newest, fused)
    newest.failures.add("location")
    with pytest.raises(PlanRejectedError, match="host's memory"):
        GivenPlan(fused, plan)


def cut(plan):
    return plan[:-7]


def flipped(plan):
    return b"nope" + plan[4:]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        pytest.param(cut, "not a whole engine", id="cut short"),
        pytest.param(flipped, "does not begin as TensorRT's engines do: the file is not a whole engine", id="no magic"),
        pytest.param(lambda plan: b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull", id="LFS pointer"),
        pytest.param(lambda plan: b"", "is empty", id="empty"),
    ],
)
def test_a_plan_that_does_not_deserialise_is_rejected_with_the_reason(world, fused, damage, says):
    with pytest.raises(PlanRejectedError, match=says):
        GivenPlan(fused, damage(plan_of(world, fused)))


def test_a_plan_of_another_version_or_gpu_is_rejected_and_both_are_named(newest, fused, monkeypatch):
    from fake_tensorrt.fixtures import install

    plan = plan_of(newest, fused)
    older = install(monkeypatch, FakeWorld("10.16.1.11", newest.device))
    text = r"built by TensorRT 11\.4\.0\.106 and this is TensorRT 10\.16\.1\.11: build it again"
    with pytest.raises(PlanRejectedError, match=text):
        GivenPlan(fused, plan)
    ada = install(monkeypatch, FakeWorld(newest.version, newest.device, compute_capability=(8, 9)))
    with pytest.raises(PlanRejectedError, match=r"compute capability 9\.0 and this one has 8\.9: build it again here"):
        GivenPlan(fused, plan)
    assert older.faults == ada.faults == []


def test_a_version_compatible_plan_needs_leave_to_run_its_own_code(newest, fused):
    plan = plan_of(newest, fused, version_compatible=True)
    with pytest.raises(PlanRejectedError, match="host code is not allowed"):
        GivenPlan(fused, plan)
    GivenPlan(fused, plan, version_compatible=True)


def test_a_gpu_without_room_for_the_plan_is_an_error_about_memory(world, fused):
    plan = plan_of(world, fused)
    world.failures.add("deserialize_memory")
    with pytest.raises(DeviceMemoryError, match="GPU's memory does not suffice"):
        GivenPlan(fused, plan)


def test_a_driver_that_fails_only_in_tensorrt_is_explained(world, fused):
    plan = plan_of(world, fused)
    world.has_driver = False
    with pytest.raises(EngineError, match="runtime does not start: no GPU is visible to this process"):
        GivenPlan(fused, plan)
