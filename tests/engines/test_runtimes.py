"""The runtimes agree with each other, reuse their slots, run side by side, and refuse what they cannot do."""

import threading

import numpy as np
import pytest

from retinastream.engines import cpu, openvino_runtime
from retinastream.engines.openvino_runtime import OpenVinoEngine
from retinastream.engines.select import create_engine
from retinastream.errors import MissingPackageError, ModelError, SetupError, UsageError
from retinastream.models.onnx_file import OnnxModel, read_onnx
from retinastream.models.spec import DetectorSpec

SIZES = [(1, 32, 32), (1, 96, 64), (2, 64, 160), (3, 32, 96)]


def installed(runtime):
    pytest.importorskip(runtime, reason=f"{runtime} is not installed")
    return runtime


@pytest.fixture(scope="module", params=["openvino", "onnxruntime", "torch"])
def runtime(request):
    return installed(request.param)


@pytest.fixture(scope="module")
def engine(runtime, tiny_model):
    engine = create_engine(read_onnx(tiny_model["fused"]), runtime=runtime, threads=2)
    yield engine
    engine.close()


def fill(slot, picture, spec):
    """Give a slot the picture (batch, height, width, 3) uint8 BGR in the form that it wants."""
    if slot.input.dtype == np.uint8:
        slot.input[...] = picture
        return
    channels = picture if spec.channel_order == "bgr" else picture[..., ::-1]
    slot.input[...] = ((channels - np.asarray(spec.mean)) * spec.scale).transpose(0, 3, 1, 2)


def run(engine, picture, slot=None):
    slot = slot or engine.slot(*picture.shape[:3])
    fill(slot, picture, engine.model.spec)
    return [np.array(out) for out in slot.run()]


def picture_of(seed, batch, height, width):
    return np.random.default_rng(seed).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("layout", ["fused", "classic"])
@pytest.mark.parametrize("compared", ["openvino", "torch"])
def test_all_runtimes_compute_the_same(tiny_model, layout, compared):
    model = read_onnx(tiny_model[layout])
    ours = create_engine(model, runtime=installed(compared), threads=2)
    theirs = create_engine(model, runtime=installed("onnxruntime"), threads=2)
    for seed, size in enumerate(SIZES):
        picture = picture_of(seed, *size)
        pairs = list(zip(run(ours, picture), run(theirs, picture), strict=True))
        assert len(pairs) == 3
        for one, other in pairs:
            assert one.shape == other.shape
            np.testing.assert_allclose(one, other, atol=1e-4 * max(1.0, np.abs(other).max()))


def test_a_network_for_rgb_with_a_scale_gets_the_same_input_from_both(tiny_model, tmp_path):
    """OpenVINO normalises inside its graph; the other one gets normalised floats."""
    from retinastream.models.export import export_network
    from retinastream.models.network import RetinaFace

    spec = DetectorSpec(channel_order="rgb", mean=(123.0, 117.0, 104.0), scale=1 / 64)
    model = read_onnx(export_network(RetinaFace(seed=2), spec, tmp_path / "rgb.onnx"))
    picture = picture_of(9, 1, 64, 64)
    results = [run(create_engine(model, runtime=installed(r), threads=2), picture) for r in ("openvino", "onnxruntime")]
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * max(1.0, np.abs(other).max()))
    plain = run(create_engine(read_onnx(tiny_model["fused"]), runtime="openvino", threads=2), picture)
    assert not np.allclose(results[0][0], plain[0], atol=1e-2)


def test_outputs_have_the_shapes_of_the_layout(engine):
    outputs = run(engine, picture_of(0, 2, 64, 160))
    assert [o.shape for o in outputs] == [(2, 32, 8, 20), (2, 32, 4, 10), (2, 32, 2, 5)]
    assert {o.dtype for o in outputs} == {np.dtype(np.float32)}


def test_a_slot_can_be_used_again_and_follows_its_input(engine):
    first, second = picture_of(1, 1, 64, 64), picture_of(2, 1, 64, 64)
    slot = engine.slot(1, 64, 64)
    once = run(engine, first, slot)
    other = run(engine, second, slot)
    again = run(engine, first, slot)
    assert not np.allclose(once[0], other[0])
    for one, two in zip(once, again, strict=True):
        np.testing.assert_array_equal(one, two)


def test_slots_of_different_sizes_do_not_disturb_each_other(engine):
    pictures = [picture_of(seed, *size) for seed, size in enumerate(SIZES)]
    slots = [engine.slot(*size) for size in SIZES]
    alone = [run(engine, p) for p in pictures]
    for slot, picture in zip(slots, pictures, strict=True):
        fill(slot, picture, engine.model.spec)
    for slot, expected in reversed(list(zip(slots, alone, strict=True))):
        for one, two in zip(slot.run(), expected, strict=True):
            np.testing.assert_allclose(one, two, atol=1e-5 * max(1.0, np.abs(two).max()))


def test_the_pictures_of_a_batch_do_not_influence_each_other(engine):
    batch = picture_of(5, 3, 32, 96)
    together = run(engine, batch)
    for number in range(3):
        for one, all_of_them in zip(run(engine, batch[number : number + 1]), together, strict=True):
            np.testing.assert_allclose(one[0], all_of_them[number], atol=1e-4 * max(1.0, np.abs(one).max()))


@pytest.mark.parametrize("streams", [1, 2], ids=lambda n: f"{n} streams")
def test_two_slots_in_two_threads_give_what_each_gives_alone(runtime, tiny_model, streams):
    engine = create_engine(read_onnx(tiny_model["fused"]), runtime=runtime, threads=2, streams=streams)
    assert engine.info.streams == streams
    pictures = [picture_of(20, 1, 64, 96), picture_of(21, 1, 96, 64)]
    expected = [run(engine, p) for p in pictures]
    failures = []

    def work(number):
        slot = engine.slot(*pictures[number].shape[:3])
        for _ in range(15):
            for one, two in zip(run(engine, pictures[number], slot), expected[number], strict=True):
                if not np.allclose(one, two, atol=1e-4 * max(1.0, np.abs(two).max())):
                    failures.append(number)

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert failures == []


def test_an_engine_says_what_it_is(engine, runtime):
    info = engine.info
    assert (info.runtime, info.device, info.precision, info.threads, info.streams) == (runtime, "cpu", "f32", 2, 1)
    assert info.runtime_version[0].isdigit()
    assert info.device_name
    assert info.reason == f"runtime {runtime} was asked for"


def test_zero_threads_means_every_processor_this_process_may_use(runtime, tiny_model):
    info = create_engine(read_onnx(tiny_model["fused"]), runtime=runtime).info
    assert info.threads == cpu.cpu_count()


@pytest.mark.parametrize(
    ("values", "error", "says"),
    [
        pytest.param({"runtime": "tensorflow"}, UsageError, "auto, openvino, onnxruntime", id="an unknown runtime"),
        pytest.param({"device": "tpu"}, UsageError, "allowed are auto, cpu", id="an unknown device"),
        pytest.param({"device": "cuda"}, SetupError, "--device cpu", id="a GPU, which is driven elsewhere"),
        pytest.param({"device": "cuda:1"}, SetupError, "'cuda:1'", id="a numbered GPU"),
        pytest.param({"runtime": "openvino", "precision": "fp8"}, UsageError, "f32 and bf16", id="unknown precision"),
        pytest.param(
            {"runtime": "onnxruntime", "precision": "bf16"}, UsageError, "allowed is f32", id="bf16 elsewhere"
        ),
        pytest.param({"runtime": "torch", "precision": "bf16"}, UsageError, "allowed is f32", id="bf16 in torch"),
        pytest.param({"runtime": "openvino", "precision": "fp16"}, UsageError, "torch on a GPU", id="fp16 on a CPU"),
        pytest.param({"runtime": "tensorrt"}, UsageError, "does not run on the CPU", id="a runtime of GPUs"),
        pytest.param({"threads": -1}, UsageError, "0 or more", id="negative threads"),
        pytest.param({"threads": "2"}, UsageError, "whole number", id="threads as text"),
        pytest.param({"streams": -1}, UsageError, "0 or more", id="negative streams"),
        pytest.param({"device": None}, UsageError, "auto, cpu", id="no device"),
    ],
)
def test_wrong_values_are_refused_and_the_allowed_ones_named(tiny_model, values, error, says):
    if values.get("runtime") in ("openvino", "onnxruntime", "torch"):
        installed(values["runtime"])
    with pytest.raises(error) as caught:
        create_engine(read_onnx(tiny_model["fused"]), **values)
    assert says in str(caught.value)
    if error is SetupError:
        assert not isinstance(caught.value, UsageError)


def test_bf16_is_refused_on_a_cpu_that_would_only_emulate_it(tiny_model, monkeypatch):
    installed("openvino")
    monkeypatch.setattr(openvino_runtime, "has_fast_bf16", lambda: False)
    with pytest.raises(UsageError, match=r"neither AVX512-BF16 nor AMX; use --precision f32"):
        create_engine(read_onnx(tiny_model["fused"]), runtime="openvino", precision="bf16")


@pytest.mark.skipif(not cpu.has_fast_bf16(), reason="this CPU does not compute bfloat16 in hardware")
def test_bf16_is_near_f32_and_says_so(tiny_model):
    installed("openvino")
    model, picture = read_onnx(tiny_model["fused"]), picture_of(3, 1, 96, 96)
    low = create_engine(model, runtime="openvino", precision="bf16", threads=2)
    high = create_engine(model, runtime="openvino", threads=2)
    assert low.info.precision == "bf16"
    for one, two in zip(run(low, picture), run(high, picture), strict=True):
        difference = np.abs(one - two).max() / np.abs(two).max()
        assert 0 < difference < 0.1


@pytest.mark.parametrize(
    ("flags", "fast"),
    [
        (frozenset({"avx2", "avx512f"}), False),
        (frozenset({"avx512f", "avx512_bf16"}), True),
        (frozenset({"amx_tile", "amx_bf16"}), True),
        (frozenset({"asimd", "bf16"}), True),
        (frozenset(), False),
    ],
)
def test_fast_bf16_is_read_from_the_instruction_sets(monkeypatch, flags, fast):
    monkeypatch.setattr(cpu, "cpu_flags", lambda: flags)
    assert cpu.has_fast_bf16() is fast


@pytest.mark.parametrize("missing", ["openvino", "onnxruntime", "torch"])
def test_a_runtime_that_is_not_installed_is_named_with_how_to_get_it(tiny_model, monkeypatch, missing):
    monkeypatch.setitem(__import__("sys").modules, missing, None)
    with pytest.raises(MissingPackageError, match=rf"{missing} is not installed: pip install"):
        create_engine(read_onnx(tiny_model["fused"]), runtime=missing)


def test_auto_takes_openvino_then_onnxruntime_and_says_why(tiny_model, monkeypatch):
    from retinastream.engines import select

    model = read_onnx(tiny_model["fused"])
    installed("openvino")
    assert create_engine(model, threads=1).info.runtime == "openvino"
    real = select.importlib.util.find_spec
    installed("onnxruntime")
    monkeypatch.setattr(select.importlib.util, "find_spec", lambda n: None if n == "openvino" else real(n))
    info = create_engine(model, threads=1).info
    assert (info.runtime, info.reason) == ("onnxruntime", "openvino is not installed")
    monkeypatch.setattr(
        select.importlib.util, "find_spec", lambda n: None if n in ("openvino", "onnxruntime") else real(n)
    )
    with pytest.raises(SetupError, match="no runtime is installed: pip install openvino"):
        create_engine(model)


def test_a_file_that_is_no_model_is_an_error_that_names_it(runtime, tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a model at all")
    model = OnnxModel(path, "0", DetectorSpec(), "images", (None, 3, None, None), ("a", "b", "c"), "broken")
    with pytest.raises(ModelError) as caught:
        create_engine(model, runtime=runtime)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_openvino_engine_reads_uint8_so_that_a_4k_frame_enters_as_25_megabytes(tiny_model):
    installed("openvino")
    engine = OpenVinoEngine(read_onnx(tiny_model["fused"]), threads=1)
    assert engine.input_kind == "bgr-u8-nhwc"
    assert engine.slot(1, 2176, 3840).input.nbytes == 2176 * 3840 * 3


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(DetectorSpec(), id="BGR minus mean"),
        pytest.param(DetectorSpec(channel_order="rgb", mean=(120.5, 110.0, 99.0), scale=1 / 64), id="RGB, scaled"),
    ],
)
def test_steady_slot_gives_what_a_slot_for_any_size_gives(tiny_model, tmp_path, spec):
    installed("openvino")
    from retinastream.models.export import export_network
    from retinastream.models.network import RetinaFace

    path = export_network(RetinaFace(seed=1), spec, tmp_path / "model.onnx", "fused")
    engine = OpenVinoEngine(read_onnx(path), threads=2, streams=2)
    rng = np.random.default_rng(3)
    for batch, height, width in ((1, 96, 64), (2, 64, 160), (1, 96, 64)):
        pictures = rng.integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
        results = []
        for steady in (False, True):
            slot = engine.slot(batch, height, width, steady=steady)
            slot.input[...] = pictures
            slot.run()
            results.append([output.copy() for output in slot.run()])
        for one, other in zip(*results, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4 * max(1.0, float(np.abs(one).max())))


def test_steady_slots_in_several_threads_do_not_share_their_input(tiny_model):
    installed("openvino")

    engine = OpenVinoEngine(read_onnx(tiny_model["fused"]), threads=2, streams=2)
    slots = [engine.slot(1, 64, 64, steady=True) for _ in range(4)]
    expected = []
    for value, slot in enumerate(slots):
        slot.input[...] = 60 * value
        expected.append([output.copy() for output in slot.run()])
    assert not np.allclose(expected[0][0], expected[3][0])
    wrong = []

    def work(number):
        for _ in range(20):
            for one, other in zip(slots[number].run(), expected[number], strict=True):
                if not np.allclose(one, other, atol=1e-3):
                    wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert wrong == []
