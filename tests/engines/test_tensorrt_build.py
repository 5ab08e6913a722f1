"""Building plans, against the fake: what is asked of TensorRT, what is made of its answers. No proof of TensorRT."""

import signal
import threading
import time

import pytest

from retinastream.engines.tensorrt.build import build_plan
from retinastream.engines.tensorrt.options import BuildOptions, profile_for
from retinastream.errors import (
    EngineBuildStoppedError,
    EngineError,
    MissingPackageError,
    ModelError,
    SetupError,
    UsageError,
)
from retinastream.kernels import cuda_driver

OPTIONS = BuildOptions((profile_for(64, 96, (1, 2, 4)),))


@pytest.fixture
def onnx_file(tiny_model):
    pytest.importorskip("onnxruntime", reason="the fake runs networks by onnxruntime")
    return tiny_model["fused"]


def test_a_plan_knows_its_tensors_its_layers_and_its_version(world, onnx_file):
    built = build_plan(onnx_file, OPTIONS, world.device)
    assert built.version == world.version
    image = next(tensor for tensor in built.tensors if tensor.mode == "input")
    assert (image.dtype, image.shape, image.on_device) == ("FLOAT", (-1, 3, -1, -1), True)
    assert image.profiles == (((1, 3, 64, 96), (2, 3, 64, 96), (4, 3, 64, 96)),)
    assert len(built.tensors) == 4
    assert built.layers["reformats"] == 1
    assert built.layers["count"] == sum(built.layers["kinds"].values()) > 20
    assert built.layers["precisions"]["FP32"] == built.layers["count"] - 1
    assert built.scratch_bytes == world.scratch_bytes
    assert "tactic sources" in " ".join(built.log)
    assert built.seconds > 0


def test_the_builder_is_told_what_the_options_say(world, onnx_file):
    trt = world.module
    options = BuildOptions(
        OPTIONS.profiles,
        workspace=1 << 30,
        optimization_level=4,
        hardware_compatibility="same-cc",
        version_compatible=True,
        max_aux_streams=0,
    )
    build_plan(onnx_file, options, world.device)
    network, config = world.builds[0]
    assert config._pools == {trt.MemoryPoolType.WORKSPACE: 1 << 30}
    assert config.builder_optimization_level == 4
    assert config.hardware_compatibility_level == trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
    assert config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED
    assert config.max_aux_streams == 0
    assert config._flags == {trt.BuilderFlag.VERSION_COMPATIBLE}
    assert network._flags == (2 if world.major == 10 else 0)


def test_the_workspace_is_never_more_than_the_gpu_has(newest, onnx_file):
    build_plan(onnx_file, BuildOptions(OPTIONS.profiles, workspace=1 << 42), newest.device)
    assert list(newest.builds[0][1]._pools.values()) == [newest.device.memory_limit]


def test_tf32_is_off_unless_it_is_asked_for(newest, onnx_file):
    trt = newest.module
    build_plan(onnx_file, OPTIONS, newest.device)
    build_plan(onnx_file, BuildOptions(OPTIONS.profiles, tf32=True), newest.device)
    assert [trt.BuilderFlag.TF32 in config._flags for _, config in newest.builds] == [False, True]


def test_one_profile_per_size(newest, onnx_file):
    profiles = (profile_for(64, 96, (1, 2)), profile_for(128, 64, (2,)))
    built = build_plan(onnx_file, BuildOptions(profiles), newest.device)
    image = next(tensor for tensor in built.tensors if tensor.mode == "input")
    assert [image.profile_of(shape) for shape in ((1, 3, 64, 96), (2, 3, 128, 64), (1, 3, 128, 64))] == [0, 1, None]
    assert image.allowed() == "1x3x64x96..2x3x64x96 or 2x3x128x64"
    assert built.scratch_bytes == 2 * newest.scratch_bytes


def test_progress_rises_to_the_end_and_names_the_phases(world, onnx_file):
    seen = []
    release = threading.Event()

    def on_progress(progress):
        seen.append(progress)
        if progress.step >= 1:
            release.set()

    world.on_step = lambda phase, step: release.wait(10) if (phase, step) == (0, 2) else None
    build_plan(onnx_file, OPTIONS, world.device, on_progress)
    fractions = [progress.fraction for progress in seen]
    assert fractions == sorted(fractions)
    inside = next(progress for progress in seen if progress.phase == "Timing")
    assert (inside.stage, inside.step, inside.steps, inside.fraction) == ("building", 2, 4, 0.25)
    assert inside.left == pytest.approx(inside.seconds * 3)
    assert (seen[-1].stage, seen[-1].fraction) == ("checking the engine", 1.0)


def test_a_build_that_is_stopped_ends_and_leaves_nothing(world, onnx_file):
    stop = threading.Event()
    world.on_step = lambda phase, step: stop.set() if (phase, step) == (0, 1) else None
    with pytest.raises(EngineBuildStoppedError, match="nothing was written"):
        build_plan(onnx_file, OPTIONS, world.device, stop=stop)
    assert world.reports == [(0, 0), (0, 1)]
    assert world.builds == []


def test_ctrl_c_ends_the_build_at_its_next_step(newest, onnx_file):
    reached, interrupted = threading.Event(), threading.Event()

    def on_step(phase, step):
        if (phase, step) == (0, 1):
            reached.set()
            interrupted.wait(10)

    def on_progress(progress):
        if reached.is_set():
            threading.Timer(0.2, interrupted.set).start()
            signal.raise_signal(signal.SIGINT)

    newest.on_step = on_step
    with pytest.raises(KeyboardInterrupt):
        build_plan(onnx_file, OPTIONS, newest.device, on_progress)
    assert newest.reports == [(0, 0), (0, 1)]


def test_reporting_continues_while_tensorrt_says_nothing(newest, onnx_file, monkeypatch):
    from retinastream.engines.tensorrt import build

    monkeypatch.setattr(build, "_TICK_SECONDS", 0.01)
    calls = []
    silence = threading.Event()

    def on_progress(progress):
        calls.append(progress.seconds)
        if len(calls) == 20:
            silence.set()

    newest.on_step = lambda phase, step: silence.wait(20)
    build_plan(onnx_file, OPTIONS, newest.device, on_progress)
    assert len(calls) >= 20


@pytest.mark.parametrize(
    ("failure", "error", "says"),
    [
        pytest.param(
            "build", EngineError, r"no way to compute /conv1/Conv \+ /relu1/Relu within the limits", id="no tactic"
        ),
        pytest.param("build_memory", EngineError, "memory does not suffice", id="out of memory"),
        pytest.param("create_network", EngineError, "does not create a network", id="no network"),
        pytest.param("profile", UsageError, "does not take the shapes", id="a profile that is refused"),
    ],
)
def test_none_and_false_become_errors_that_carry_the_log(world, onnx_file, failure, error, says):
    world.failures.add(failure)
    with pytest.raises(error, match=says) as caught:
        build_plan(onnx_file, OPTIONS, world.device)
    if failure in ("build", "build_memory"):
        assert "TensorRT said: " in str(caught.value)
        assert "Error Code" in str(caught.value)


def test_a_dynamic_model_without_shapes_is_refused_before_the_build(world, onnx_file):
    with pytest.raises(UsageError, match=r"-1x3x-1x-1 .*--shape WIDTHxHEIGHT and --batch"):
        build_plan(onnx_file, BuildOptions(), world.device)


def test_a_driver_that_fails_only_in_tensorrt_is_explained(world, onnx_file):
    world.has_driver = False
    with pytest.raises(EngineError, match=r"builder does not start: the NVIDIA driver is too old .* error: 35"):
        build_plan(onnx_file, OPTIONS, world.device)


def test_without_a_driver_tensorrt_is_not_touched(newest, onnx_file, monkeypatch):
    state = cuda_driver.DriverState("there is no driver; install one", None, ())
    monkeypatch.setattr(cuda_driver, "probe", lambda library=None: state)
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    with pytest.raises(SetupError, match="there is no driver; install one") as caught:
        build_plan(onnx_file, OPTIONS, newest.device)
    assert not isinstance(caught.value, MissingPackageError)


def test_tensorrt_that_is_not_installed_is_named_with_its_extra(newest, onnx_file, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'retinastream\[tensorrt-cu13\]'"):
        build_plan(onnx_file, OPTIONS, newest.device)


def test_a_tensorrt_that_is_too_old_is_refused(newest, onnx_file):
    newest.module.__version__ = "10.11.0.33"
    with pytest.raises(SetupError, match=r"10\.11\.0\.33 is installed; 10\.12 or newer"):
        build_plan(onnx_file, OPTIONS, newest.device)


def with_node(path, out, operator, domain="", **attributes):
    """A copy of a model whose first output goes through one more node."""
    import onnx

    model = onnx.load(str(path))
    output = model.graph.output[0]
    for node in model.graph.node:
        node.output[:] = [f"{name}_before" if name == output.name else name for name in node.output]
    made = onnx.helper.make_node(
        operator, [f"{output.name}_before"], [output.name], "added", domain=domain, **attributes
    )
    model.graph.node.append(made)
    if domain:
        model.opset_import.append(onnx.helper.make_opsetid(domain, 1))
    onnx.save(model, str(out))
    return out


def test_an_operator_that_tensorrt_does_not_know_is_named_with_its_node(world, onnx_file, tmp_path):
    path = with_node(onnx_file, tmp_path / "odd.onnx", "Wobble", "com.example")
    with pytest.raises(ModelError) as caught:
        build_plan(path, OPTIONS, world.device)
    text = str(caught.value)
    assert str(path) in text
    assert "'added' (Wobble)" in text
    assert "UNSUPPORTED_NODE" in text
    assert "onnxOpImporters.cpp:42 in importNode" in text
    assert "retinastream model export" in text


def test_external_weights_that_are_missing_are_named(world, onnx_file, tmp_path):
    import onnx

    path = tmp_path / "split.onnx"
    onnx.save(
        onnx.load(str(onnx_file)), str(path), save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    build_plan(path, OPTIONS, world.device)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"'weights\.bin', which is not beside it"):
        build_plan(path, OPTIONS, world.device)


def test_a_timing_cache_is_used_and_one_of_another_gpu_is_left_out(world, onnx_file, caplog):
    first = build_plan(onnx_file, OPTIONS, world.device)
    assert first.timing_cache
    build_plan(onnx_file, OPTIONS, world.device, timing_cache=first.timing_cache)
    assert "timing cache" not in caplog.text
    build_plan(onnx_file, OPTIONS, world.device, timing_cache=b"of another GPU")
    assert "the timing cache is of another GPU or TensorRT and is not used" in caplog.text


def test_a_model_of_fixed_size_needs_no_shapes_and_takes_no_others(world, onnx_file, tmp_path):
    import onnx

    model = onnx.load(str(onnx_file))
    for dimension, size in zip(model.graph.input[0].type.tensor_type.shape.dim, (1, 3, 64, 96), strict=True):
        dimension.Clear()
        dimension.dim_value = size
    path = tmp_path / "fixed.onnx"
    onnx.save(model, str(path))
    built = build_plan(path, BuildOptions(), world.device)
    assert next(tensor for tensor in built.tensors if tensor.mode == "input").shape == (1, 3, 64, 96)
    build_plan(path, BuildOptions((profile_for(64, 96, (1,)),)), world.device)
    with pytest.raises(UsageError, match="takes 1x3x64x96 only"):
        build_plan(path, OPTIONS, world.device)


def test_a_failing_report_ends_the_build(newest, onnx_file):
    def broken(progress):
        raise OSError("the terminal is gone")

    began = time.monotonic()
    with pytest.raises(OSError, match="terminal"):
        build_plan(onnx_file, OPTIONS, newest.device, broken)
    assert time.monotonic() - began < 30
