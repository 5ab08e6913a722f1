"""fp16 files: typed throughout, near the float32 model, and never with a weight that was changed silently."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="onnx is not installed, and models are converted with it")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed, and converted models run on it")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from precision_graphs import Graph, detector, pictures, run  # noqa: E402

from retinastream import Detector  # noqa: E402
from retinastream.engines.precision.half import halve, to_fp16  # noqa: E402
from retinastream.engines.precision.model_files import fold_constants, load_float_model, name_nodes  # noqa: E402
from retinastream.engines.precision.simulate import simulate_graph  # noqa: E402
from retinastream.engines.select import create_engine  # noqa: E402
from retinastream.errors import ModelError, OutputError, UsageError  # noqa: E402
from retinastream.models.onnx_file import read_onnx  # noqa: E402


def simulated(path, image):
    return run(simulate_graph(onnx.load(str(path))), image)


def weights_by_type(path):
    model = onnx.load(str(path))
    return {t.name: t.data_type for t in model.graph.initializer}


def saved(model, path):
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize("layout", ["fused", "classic"])
def test_a_converted_model_takes_half_gives_single_and_is_near_the_original(tiny_model, tmp_path, layout):
    made = to_fp16(tiny_model[layout], tmp_path / "half.onnx", outside="round")
    model = onnx.load(str(made.path))
    onnx.checker.check_model(model, full_check=True)
    assert [i.type.tensor_type.elem_type for i in model.graph.input] == [TensorProto.FLOAT16]
    assert {o.type.tensor_type.elem_type for o in model.graph.output} == {TensorProto.FLOAT}
    found = read_onnx(made.path)
    assert (found.precision, found.input_type) == ("fp16", "float16")
    assert found.spec == read_onnx(tiny_model[layout]).spec
    image = pictures(1, 64, 96)[0]
    for name, wanted in run(tiny_model[layout], image).items():
        given = run(made.path, image)[name]
        assert 0 < np.abs(given - wanted).max() < 0.01 * max(1.0, np.abs(wanted).max())


def test_everything_that_can_be_half_is(tiny_model, tmp_path):
    made = to_fp16(tiny_model["fused"], tmp_path / "half.onnx", outside="round")
    # What Resize is told is float32 by its definition.
    assert {name for name, kind in weights_by_type(made.path).items() if kind != TensorProto.FLOAT16} == {"doubling"}
    model = onnx.load(str(made.path))
    assert [n.op_type for n in model.graph.node].count("Cast") == len(model.graph.output)
    assert made.fp32_nodes == ()


def test_probabilities_and_what_follows_them_stay_single(tiny_model, tmp_path):
    made = to_fp16(tiny_model["classic"], tmp_path / "half.onnx", outside="round")
    assert made.fp32_nodes == ("conf",)
    conf = run(made.path, pictures(1, 64, 64)[0])["conf"]
    assert np.abs(conf.sum(axis=2) - 1).max() < 1e-6
    # Half precision has 11 bits near 1: single precision tells more scores apart than that.
    assert (conf.astype(np.float16).astype(np.float32) != conf).any()


@pytest.mark.parametrize("keep", [["level_16"], ["level_1?"], ["stem", "level_16"]])
def test_nodes_stay_single_by_name_and_pattern(tmp_path, keep):
    source = saved(detector(), tmp_path / "d.onnx")
    made = to_fp16(source, tmp_path / "half.onnx", keep=keep)
    assert "level_16" in made.fp32_nodes
    kinds = weights_by_type(made.path)
    assert kinds["level_16.weight"] == TensorProto.FLOAT
    assert kinds["level_8.weight_fp16"] == TensorProto.FLOAT16
    image = pictures(1)[0]
    assert np.abs(run(made.path, image)["head_8"] - run(source, image)["head_8"]).max() < 1.0


def test_a_pattern_that_means_no_node_is_refused_with_the_nearest(tmp_path):
    source = saved(detector(), tmp_path / "d.onnx")
    with pytest.raises(UsageError, match=r"no node of the model is called 'levl_16'; did you mean 'level_16'\?"):
        to_fp16(source, tmp_path / "half.onnx", keep=["levl_16"])
    assert not (tmp_path / "half.onnx").exists()


def detector_with(value, tmp_path):
    stem = np.random.default_rng(0).normal(0, 0.2, (8, 3, 3, 3))
    stem[0, 0, 0, 0] = value
    return saved(detector(changes={"stem": stem}), tmp_path / "odd.onnx")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (7e4, r"stem \(stem.weight\): 1 values above 65504 \(up to 70000\)"),
        (1e-9, r"1 values below 6e-08 \(down to 1e-09\)"),
    ],
)
def test_weights_outside_half_precision_are_refused_by_name(tmp_path, value, words):
    with pytest.raises(ModelError, match=words):
        to_fp16(detector_with(value, tmp_path), tmp_path / "half.onnx")


@pytest.mark.parametrize("value", [7e4, 1e-9])
def test_their_nodes_can_stay_single(tmp_path, value):
    made = to_fp16(detector_with(value, tmp_path), tmp_path / "half.onnx", outside="fp32")
    assert made.fp32_nodes == ("stem",)
    assert [w.node for w in made.outside] == ["stem"]
    weight = {t.name: t for t in onnx.load(str(made.path)).graph.initializer}["stem.weight"]
    assert np.float32(value) in numpy_helper.to_array(weight)


def test_small_ones_are_rounded_when_asked_and_large_ones_are_not(tmp_path):
    made = to_fp16(detector_with(1e-9, tmp_path), tmp_path / "half.onnx", outside="round")
    assert (made.outside[0].too_small, made.fp32_nodes) == (1, ())
    with pytest.raises(ModelError, match="above 65504"):
        to_fp16(detector_with(7e4, tmp_path), tmp_path / "half.onnx", outside="round", overwrite=True)


def test_the_edges_of_half_precision_are_inside(tmp_path):
    stem = np.full((8, 3, 3, 3), 65504.0)
    stem[0] = 2.0**-23
    made = to_fp16(saved(detector(changes={"stem": stem}), tmp_path / "d.onnx"), tmp_path / "half.onnx")
    kept = {t.name: numpy_helper.to_array(t) for t in onnx.load(str(made.path)).graph.initializer}["stem.weight_fp16"]
    assert np.array_equal(kept.astype(np.float64), stem)


def test_weights_that_are_not_numbers_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"'stem\.weight' of stem is not finite"):
        to_fp16(detector_with(np.nan, tmp_path), tmp_path / "half.onnx", outside="round")


def test_the_input_can_stay_single(tmp_path):
    source = saved(detector(), tmp_path / "d.onnx")
    made = to_fp16(source, tmp_path / "half.onnx", keep_input=True)
    assert (read_onnx(made.path).input_type, read_onnx(made.path).precision) == ("float32", "fp16")
    other = to_fp16(source, tmp_path / "b.onnx")
    given, wanted = (simulated(p, pictures(1)[0])["head_8"] for p in (made.path, other.path))
    assert np.array_equal(given, wanted)  # the cast inside is the cast outside


def test_sizes_are_computed_in_single_precision():
    # 4099 cannot be told from 4100 in half precision, and so a size that goes through floats would change.
    g = Graph()
    size = g.node("Shape", ["images"], "shape")
    width = g.node("Gather", [size, g.weight("three", np.array([3], np.int64))], "width")
    half = g.node(
        "Mul", [g.node("Cast", [width], "width_float", to=TensorProto.FLOAT), g.weight("one", np.float32([1]))], "same"
    )
    rows = g.node("Cast", [half], "columns", to=TensorProto.INT64)
    shape = g.node("Concat", [g.weight("rest", np.array([1, 3, -1], np.int64)), rows], "target", axis=0)
    g.node("Relu", [g.node("Reshape", ["images", shape], "reshaped")], "out")
    model = g.model([("out", ["b", 3, "h", "w"])])
    halve(model, set())
    assert run(model, np.ones((1, 3, 2, 4099), np.float32))["out"].shape == (1, 3, 2, 4099)
    assert {n.name: n for n in model.graph.node}["width_float"].attribute[0].i == TensorProto.FLOAT


def test_a_cast_of_the_picture_and_constants_of_all_kinds_are_converted():
    g = Graph()
    g.nodes.append(helper.make_node("Constant", [], ["factor"], name="factor", value_float=2.5))
    g.nodes.append(helper.make_node("Constant", [], ["axes"], value_ints=[2, 3]))
    cast = g.node("Cast", ["images"], "double", to=TensorProto.DOUBLE)
    back = g.node("Cast", [cast], "back", to=TensorProto.FLOAT)
    g.node("Mul", [back, "factor"], "scaled")
    g.node("ReduceMean", ["scaled", "axes"], "out", keepdims=1)
    model = g.model([("out", ["b", 3, 1, 1])], opset=18)
    fold_constants(model)
    name_nodes(model)
    halve(model, set())
    onnx.checker.check_model(model, full_check=True)
    assert {n.name: n for n in model.graph.node}["back"].attribute[0].i == TensorProto.FLOAT16
    assert np.allclose(run(model, np.full((1, 3, 4, 4), 3.0, np.float32))["out"], 7.5)


def test_what_was_converted_is_not_converted_again(tmp_path):
    made = to_fp16(saved(detector(), tmp_path / "d.onnx"), tmp_path / "half.onnx")
    with pytest.raises(ModelError, match="is fp16 already"):
        to_fp16(made.path, tmp_path / "again.onnx")


def test_half_weights_under_a_single_input_are_seen(tmp_path):
    made = to_fp16(saved(detector(), tmp_path / "d.onnx"), tmp_path / "half.onnx", keep_input=True)
    model = onnx.load(str(made.path))
    del model.metadata_props[:]
    with pytest.raises(ModelError, match="weights are of half precision"):
        to_fp16(saved(model, tmp_path / "bare.onnx"), tmp_path / "again.onnx")


def test_operators_that_are_not_of_onnx_and_control_flow_are_refused(tmp_path):
    model = detector()
    model.graph.node[1].op_type, model.graph.node[1].domain = "Swish", "my.domain"
    model.opset_import.append(helper.make_opsetid("my.domain", 1))
    with pytest.raises(ModelError, match=r"precision cannot be changed here: my\.domain\.Swish \(1\)"):
        to_fp16(saved(model, tmp_path / "custom.onnx"), tmp_path / "half.onnx")


def test_missing_files_of_weights_are_named(tmp_path):
    onnx.save(detector(), str(tmp_path / "d.onnx"), save_as_external_data=True, location="d.bin", size_threshold=0)
    (tmp_path / "d.bin").unlink()
    with pytest.raises(ModelError, match=r"keeps its weights in 'd\.bin', which is not beside it"):
        to_fp16(tmp_path / "d.onnx", tmp_path / "half.onnx")


def test_external_weights_are_read_and_written_inside(tmp_path):
    whole = saved(detector(), tmp_path / "whole.onnx")
    onnx.save(detector(), str(tmp_path / "d.onnx"), save_as_external_data=True, location="d.bin", size_threshold=0)
    made = [to_fp16(p, tmp_path / f"{p.stem}.half.onnx").path for p in (whole, tmp_path / "d.onnx")]
    image = pictures(1)[0]
    assert np.array_equal(*(run(path, image)["head_8"] for path in made))


def test_outputs_that_exist_are_kept_unless_asked(tmp_path):
    source = saved(detector(), tmp_path / "d.onnx")
    (tmp_path / "half.onnx").write_text("mine")
    with pytest.raises(UsageError, match="exists; choose another name, or pass --overwrite"):
        to_fp16(source, tmp_path / "half.onnx")
    with pytest.raises(UsageError, match="is the model itself"):
        to_fp16(source, source, overwrite=True)
    assert (tmp_path / "half.onnx").read_text() == "mine"
    assert read_onnx(to_fp16(source, tmp_path / "half.onnx", overwrite=True).path).precision == "fp16"


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    from pathlib import Path

    source = saved(detector(), tmp_path / "d.onnx")
    (tmp_path / "half.onnx").write_text("mine")

    def refuse(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OutputError, match="No space left"):
        to_fp16(source, tmp_path / "half.onnx", overwrite=True)
    assert (tmp_path / "half.onnx").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.onnx", "half.onnx"]


def test_the_same_model_gives_the_same_file(tmp_path):
    source = saved(detector(), tmp_path / "d.onnx")
    one, other = (to_fp16(source, tmp_path / name).path.read_bytes() for name in ("a.onnx", "b.onnx"))
    assert one == other


def test_a_detector_runs_a_half_file_as_what_it_is(tmp_path):
    source = saved(detector(), tmp_path / "d.onnx")
    made = to_fp16(source, tmp_path / "half.onnx")
    picture = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    with Detector(made.path, size="native", threshold=0.0, device="cpu") as half:
        assert (half.info.runtime, half.info.precision) == ("onnxruntime", "fp16")
        found = half(picture)
    with Detector(source, size="native", threshold=0.0, device="cpu", runtime="onnxruntime") as single:
        wanted = single(picture)
    assert len(found) == len(wanted) > 0
    assert abs(float(found.scores.max()) - float(wanted.scores.max())) < 0.01


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"runtime": "openvino"}, "is fp16, which runtime 'openvino' does not run on the CPU"),
        ({"precision": "f32"}, "allowed is fp16"),
    ],
)
def test_a_half_file_is_not_run_as_something_else(tmp_path, options, words):
    made = to_fp16(saved(detector(), tmp_path / "d.onnx"), tmp_path / "half.onnx")
    with pytest.raises(UsageError, match=words):
        create_engine(read_onnx(made.path), device="cpu", **options)


def test_loading_names_nodes_that_have_none(tmp_path):
    model = detector()
    for node in model.graph.node:
        node.name = ""
    _, loaded = load_float_model(saved(model, tmp_path / "d.onnx"))
    names = [node.name for node in loaded.graph.node]
    assert len(set(names)) == len(names)
    assert "Conv_0" in names


def half_by_hand(image):
    """Two operators in half precision, as NumPy computes them: x -> x * 3 -> + 0.1."""
    product = image.astype(np.float16) * np.float16(3)
    return (product + np.float16(0.1)).astype(np.float32)


def test_a_simulation_rounds_every_result_which_onnx_runtime_alone_does_not():
    g = Graph()
    g.node("Mul", ["images", g.weight("three", np.float32(3))], "product")
    g.node("Add", ["product", g.weight("tenth", np.float32(0.1))], "out")
    model = g.model([("out", ["b", 3, "h", "w"])])
    halve(model, set())
    image = np.random.default_rng(0).uniform(-100, 100, (1, 3, 8, 8)).astype(np.float32)
    assert np.array_equal(run(simulate_graph(model), image)["out"], half_by_hand(image))


def test_a_simulation_overflows_where_half_precision_does(tmp_path):
    stem = np.full((8, 3, 3, 3), 100.0)
    made = to_fp16(saved(detector(changes={"stem": stem}), tmp_path / "d.onnx"), tmp_path / "half.onnx")
    image = np.full((1, 3, 64, 64), 140.0, np.float32)  # 27 * 140 * 100 is far above 65504
    assert not np.isfinite(simulated(made.path, image)["head_8"]).all()
    engine = create_engine(read_onnx(made.path), device="cpu", threads=1)
    slot = engine.slot(1, 64, 64)
    slot.input[...] = image
    assert not np.isfinite(slot.run()[0]).all()
    assert "rounded as the file says" in engine.info.reason


def test_without_onnx_a_half_file_runs_as_it_is_and_says_so(tmp_path, monkeypatch):
    import importlib.util

    made = to_fp16(saved(detector(), tmp_path / "d.onnx"), tmp_path / "half.onnx")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "onnx" else found(name, *rest))
    engine = create_engine(read_onnx(made.path), device="cpu", threads=1)
    assert "onnx is not installed" in engine.info.reason
    slot = engine.slot(1, 64, 64)
    slot.input[...] = pictures(1, 64, 64)[0]
    assert slot.run()[0].dtype == np.float32
