"""int8 files: quantised where TensorRT fuses, symmetric, with fp16 scales, and computing what they should."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

onnx = pytest.importorskip("onnx", reason="onnx is not installed, and models are converted with it")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed, and models are calibrated on it")

from onnx import TensorProto, numpy_helper  # noqa: E402
from precision_graphs import Graph, detector, pictures, residual, run  # noqa: E402

from retinastream.engines.precision.half import halve  # noqa: E402
from retinastream.engines.precision.lint import lint, lint_graph  # noqa: E402
from retinastream.engines.precision.model_files import CALIBRATION_KEY, raise_opset  # noqa: E402
from retinastream.engines.precision.placement import Placement, place  # noqa: E402
from retinastream.engines.precision.qdq import SMALLEST_SCALE, half_scale, insert_pairs  # noqa: E402
from retinastream.engines.precision.quantise import Quantiser, choose_method, quantise  # noqa: E402
from retinastream.engines.precision.simulate import simulate_graph  # noqa: E402
from retinastream.errors import InputError, ModelError, UsageError  # noqa: E402
from retinastream.models.onnx_file import read_onnx  # noqa: E402


class Links:
    """Who makes and takes what, by node name, of a graph with pairs."""

    def __init__(self, model):
        self.by_name = {n.name: n for n in model.graph.node}
        self.maker = {name: n for n in model.graph.node for name in n.output}
        self.weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}

    def source(self, node, position):
        """The operator behind an input, and the tensor that was quantised on the way (None where none was)."""
        made = self.maker.get(self.by_name[node].input[position])
        if made is None or made.op_type != "DequantizeLinear":
            return None
        quantising = self.maker[made.input[0]]
        assert quantising.op_type == "QuantizeLinear"
        assert list(quantising.input[1:]) == list(made.input[1:])
        return quantising.input[0]


def quantised(model, limit=4.0, **choice):
    model = raise_opset(model)
    placement = place(model, **choice)
    return insert_pairs(model, placement, dict.fromkeys(placement.tensors(model), limit)), placement


@pytest.fixture
def source(tmp_path):
    onnx.save(detector(), str(tmp_path / "detector.onnx"))
    return tmp_path / "detector.onnx"


def test_a_written_file_is_what_tensorrt_takes(source, tmp_path):
    made = quantise(source, tmp_path / "int8.onnx", pictures(3), force=True)
    model = onnx.load(str(made.path))
    onnx.checker.check_model(model, full_check=True)
    assert lint(made.path) == []
    assert model.opset_import[0].version >= 19
    links = Links(model)
    for node in model.graph.node:
        if node.op_type == "Conv":
            assert links.source(node.name, 0) is not None
            weight = links.source(node.name, 1)
            pair = links.maker[node.input[1]]
            assert weight == f"{node.name}.weight_fp16"
            assert [a.i for a in pair.attribute if a.name == "axis"] == [0]
            assert links.weights[pair.input[1]].shape == (links.weights[weight].shape[0],)
            assert links.weights[node.input[2]].dtype == np.float16  # the bias, as it is
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scale, zero = (links.weights[name] for name in node.input[1:])
            assert (scale.dtype, zero.dtype, zero.shape) == (np.float16, np.int8, scale.shape)
            assert (scale > 0).all()
            assert not zero.any()
        if node.op_type == "QuantizeLinear" and node.input[0] in links.maker:
            assert links.maker[node.input[0]].op_type != "Conv", "the activation behind a convolution comes first"
    found = read_onnx(made.path)
    assert (found.precision, found.input_type) == ("int8", "float16")
    assert {o.type.tensor_type.elem_type for o in model.graph.output} == {TensorProto.FLOAT}


@pytest.mark.parametrize("layout", ["fused", "classic"])
def test_its_outputs_are_near_those_of_the_original(tiny_model, tmp_path, layout):
    made = quantise(tiny_model[layout], tmp_path / "int8.onnx", pictures(4), force=True, outside="round", method="max")
    assert lint(made.path) == []
    image = pictures(1, seed=9)[0]
    given = run(simulate_graph(onnx.load(str(made.path))), image)
    for name, wanted in run(tiny_model[layout], image).items():
        assert 0 < np.sqrt(np.mean((given[name] - wanted) ** 2)) < 0.2 * wanted.std(), name


def test_of_a_residual_addition_only_the_skip_branch_is_quantised():
    model, _ = quantised(residual())
    links = Links(model)
    assert links.source("add_one", 0) is None, "convolution b is fused with the addition"
    assert links.source("add_one", 1) == "stem_relu"
    assert links.source("add_two", 0) is None, "the larger of two convolutions is fused"
    assert links.source("add_two", 1) == "short"
    # One pair per tensor, whoever takes it: the convolution and the addition behind it.
    assert links.by_name["add_one"].input[1] == links.by_name["a"].input[0]
    assert [f for f in lint_graph(model) if f.severity == "error"] == []


def test_additions_without_a_convolution_before_them_are_left(tiny_model):
    model, placement = quantised(onnx.load(str(tiny_model["fused"])))
    assert placement.skips == ()
    links = Links(model)
    sources = [links.source(n.name, i) for n in model.graph.node if n.op_type in ("Add", "Concat") for i in range(2)]
    assert sources == [None] * len(sources)
    assert len(sources) > 4


def test_a_layer_that_is_left_out_takes_its_additions_along():
    model = raise_opset(residual())
    placement = place(model).without(model, ["b"])
    assert "b" not in placement.layers
    assert placement.skips == (("add_two", 1),)


@pytest.mark.parametrize(
    ("choice", "left"),
    [
        ({"leave": ["a", "w*"]}, {"a", "wide"}),
        ({"leave_parts": ["first"]}, {"stem"}),
        ({"leave_parts": ["last"]}, {"head"}),
        ({"leave_parts": ["depthwise"]}, {"depth"}),
        ({"leave": ["b"], "leave_parts": ["first", "last"]}, {"b", "stem", "head"}),
    ],
)
def test_layers_are_left_by_name_and_by_kind(choice, left):
    model = residual()
    layers = {n.name for n in model.graph.node if n.op_type == "Conv"}
    assert set(place(model, **choice).layers) == layers - left


@pytest.mark.parametrize(
    ("choice", "error", "words"),
    [
        ({"leave": ["nothing"]}, UsageError, "no node of the model is called 'nothing'"),
        ({"leave_parts": ["middle"]}, UsageError, "no part 'middle' of a network; allowed are first, last, depthwise"),
        ({"leave": ["*"]}, ModelError, "nothing to quantise"),
    ],
)
def test_choices_that_mean_nothing_are_refused(choice, error, words):
    with pytest.raises(error, match=words):
        place(residual(), **choice)


def test_matrix_products_are_scaled_along_their_outputs():
    g = Graph()
    flat = g.node("Flatten", ["images"], "flat")
    rng = np.random.default_rng(0)
    one = g.node("Gemm", [flat, g.weight("w", rng.normal(size=(12, 5)).astype(np.float32))], "plain")
    two = g.node("Gemm", [one, g.weight("t", rng.normal(size=(7, 5)).astype(np.float32))], "turned", transB=1)
    g.node("MatMul", [two, g.weight("m", rng.normal(size=(7, 9)).astype(np.float32))], "product")
    model, _ = quantised(g.model([("product", [1, 9])], inputs=[("images", (1, 3, 2, 2))]))
    links = Links(model)
    axes = {n: [a.i for a in links.maker[links.by_name[n].input[1]].attribute] for n in ("plain", "turned", "product")}
    assert axes == {"plain": [1], "turned": [0], "product": [1]}
    assert lint_graph(model) == []


@settings(max_examples=200, derandomize=True)
@given(st.floats(0, 1e9, allow_nan=False))
def test_scales_hold_their_range_in_half_precision(limit):
    scale = float(half_scale(limit))
    assert np.float16(scale) == scale
    assert scale >= SMALLEST_SCALE
    if limit / 127 <= 65504:
        assert scale * 127 >= limit
        assert scale <= max(limit / 127 * (1 + 2**-4), SMALLEST_SCALE)


def test_channels_of_zeros_get_a_scale_that_survives(tmp_path):
    stem = np.random.default_rng(0).normal(0, 0.2, (8, 3, 3, 3))
    stem[3] = 0
    stem[4] = 1e-7
    onnx.save(detector(changes={"stem": stem}), str(tmp_path / "d.onnx"))
    made = quantise(tmp_path / "d.onnx", tmp_path / "int8.onnx", pictures(2), force=True)
    model = onnx.load(str(made.path))
    scale = Links(model).weights["stem.weight_scale_fp16"]
    assert scale.dtype == np.float16
    assert (scale[[3, 4]] > 0).all()
    assert lint(made.path) == []
    assert np.isfinite(run(simulate_graph(model), pictures(1)[0])["head_8"]).all()


def test_weights_are_quantised_to_within_half_a_step():
    model, _ = quantised(residual())
    links = Links(model)
    for name in ("stem", "depth", "head"):
        weight = links.weights[f"{name}.weight"]
        scale = links.weights[f"{name}.weight_scale"].reshape(-1, 1, 1, 1)
        steps = np.rint(weight / scale)
        assert np.abs(steps).max() <= 127
        assert (np.abs(steps).max(axis=(1, 2, 3)) >= 126).all(), "each channel uses its whole range"
        assert np.abs(steps * scale - weight).max() <= scale.max() / 2


def test_the_cast_to_half_precision_changes_no_scale():
    model, _ = quantised(residual(), limit=3.1)
    before = {k: v for k, v in Links(model).weights.items() if k.endswith("_scale")}
    halve(model, set())
    after = Links(model).weights
    assert all(np.array_equal(after[f"{name}_fp16"].astype(np.float32), value) for name, value in before.items())


def test_what_was_calibrated_is_written_into_the_file(source, tmp_path):
    made = quantise(source, tmp_path / "int8.onnx", pictures(3), force=True, leave=["head_16"], method="percentile")
    entries = {e.key: e.value for e in onnx.load(str(made.path)).metadata_props}
    facts = json.loads(entries[CALIBRATION_KEY])
    assert facts["sha256"] == made.calibration_sha256
    assert (facts["method"], facts["percentile"], facts["pictures"], facts["fp16_layers"]) == (
        "percentile", 99.99, 3, ["head_16"],
    )  # fmt: skip
    assert entries["retinastream.converted_from_sha256"] == read_onnx(source).sha256


def test_the_same_pictures_give_the_same_file_and_others_another_hash(source, tmp_path):
    one, same, other = (
        quantise(source, tmp_path / name, pictures(3, seed=seed), force=True)
        for name, seed in (("a.onnx", 0), ("b.onnx", 0), ("c.onnx", 1))
    )
    assert one.path.read_bytes() == same.path.read_bytes()
    assert one.calibration_sha256 != other.calibration_sha256


@pytest.mark.parametrize(
    ("given", "options", "error", "words"),
    [
        ([], {"force": True}, InputError, "no picture to calibrate with"),
        (pictures(3), {}, InputError, r"too few pictures to calibrate with: 3; expected at least 32"),
        (pictures(40, 32, 32), {}, InputError, "sees no face in any of the 40 calibration pictures"),
        ([np.zeros((3, 32, 32), np.float32)], {"force": True}, UsageError, r"float32 \(3, 32, 32\); expected"),
        (pictures(2), {"force": True, "method": "median"}, UsageError, "'median' is not known; allowed are max"),
        (pictures(2), {"force": True, "method": "percentile", "percentile": 0.99}, UsageError, "expected 50 to 100"),
    ],
)
def test_pictures_that_will_not_do_are_refused(tmp_path, given, options, error, words):
    quiet = {f"head_{s}": np.zeros((32, 8, 1, 1)) for s in (8, 16, 32)}  # both classes alike: no score reaches 0.5
    for head in quiet.values():
        head[1:4:2] = -0.01
    model = detector(changes=quiet)
    for tensor in model.graph.initializer:
        if tensor.name.endswith(".bias") and tensor.name.startswith("head"):
            bias = np.zeros(32, np.float32)
            bias[[0, 2]] = 3.0
            tensor.CopyFrom(numpy_helper.from_array(bias, tensor.name))
    onnx.save(model, str(tmp_path / "d.onnx"))
    with pytest.raises(error, match=words):
        quantise(tmp_path / "d.onnx", tmp_path / "int8.onnx", given, **options)
    assert not (tmp_path / "int8.onnx").exists()


def test_an_int8_model_is_not_quantised_again(source, tmp_path):
    made = quantise(source, tmp_path / "int8.onnx", pictures(2), force=True)
    with pytest.raises(ModelError, match="is int8 already"):
        quantise(made.path, tmp_path / "again.onnx", pictures(2), force=True)
    model = onnx.load(str(made.path))
    del model.metadata_props[:]
    onnx.save(model, str(tmp_path / "bare.onnx"))
    assert read_onnx(tmp_path / "bare.onnx").precision == "int8", "told by its operators"


def test_a_range_that_was_not_calibrated_is_an_error():
    model = raise_opset(residual())
    with pytest.raises(ModelError, match="the range of 'images' is not known"):
        insert_pairs(model, Placement(("stem",), ()), {})


def test_the_method_that_changes_least_is_chosen(source):
    quantiser = Quantiser(source, pictures(2), force=True)
    costs = iter([0.3, 0.1, 0.2, 0.4])
    method, noise = choose_method(quantiser, lambda _model: next(costs))
    assert method == list(noise)[1]
    assert sorted(noise.values()) == [0.1, 0.2, 0.3, 0.4]


def test_nodes_kept_single_are_not_quantised(source, tmp_path):
    made = quantise(source, tmp_path / "int8.onnx", pictures(2), force=True, keep=["head_8"])
    assert (made.fp32_nodes, made.fp16_layers) == (("head_8",), ())
    assert "head_8" not in made.int8_layers
    model = onnx.load(str(made.path))
    assert Links(model).weights["head_8.weight"].dtype == np.float32
