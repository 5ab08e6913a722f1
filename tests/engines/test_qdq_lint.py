"""The linter: silent about what is right, and naming the node and the remedy of each thing that is not."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="onnx is not installed, and the linter reads models with it")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from precision_graphs import Graph, residual  # noqa: E402

from retinastream.engines.precision.half import halve  # noqa: E402
from retinastream.engines.precision.lint import lint, lint_graph  # noqa: E402
from retinastream.engines.precision.model_files import raise_opset  # noqa: E402
from retinastream.engines.precision.placement import place  # noqa: E402
from retinastream.engines.precision.qdq import insert_pairs  # noqa: E402
from retinastream.errors import ModelError  # noqa: E402


@pytest.fixture
def model():
    """A quantised graph in which nothing is wrong."""
    plain = raise_opset(residual())
    placement = place(plain)
    made = insert_pairs(plain, placement, dict.fromkeys(placement.tensors(plain), 4.0))
    halve(made, set())
    return made


def replace(model, name, values):
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(values), name))
            return
    raise KeyError(name)


def values(model, name):
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))


def node(model, name):
    return next(n for n in model.graph.node if n.name == name)


def add(model, name, array):
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return name


def asymmetric(m):
    replace(m, "images_zero_point", np.int8(3))


def unsigned(m):
    replace(m, "images_zero_point", np.uint8(0))


def computed_zero_point(m):
    m.graph.node.insert(0, helper.make_node("Cast", ["images"], ["computed"], name="cast", to=TensorProto.INT8))
    node(m, "images_quantise").input[2] = "computed"


def no_zero_point(m):
    del node(m, "images_quantise").input[2:]


def no_zero_point_behind(m):
    del node(m, "images_dequantise").input[2:]


def computed_scale(m):
    m.graph.node.insert(0, helper.make_node("ReduceMax", ["images"], ["computed"], name="largest", keepdims=0))
    node(m, "images_quantise").input[1] = "computed"


def zero_scale(m):
    scale = values(m, "stem.weight_scale_fp16").copy()
    scale[2] = 0
    replace(m, "stem.weight_scale_fp16", scale)


def vanishing_scale(m):
    replace(m, "images_scale_fp16", np.float32(1e-9))


def huge_scale(m):
    replace(m, "images_scale_fp16", np.float32(1e6))


def infinite_scale(m):
    replace(m, "images_scale_fp16", np.float16(np.inf))


def old_opset(m):
    m.opset_import[0].version = 17


def wrong_axis(m):
    for part in ("quantise", "dequantise"):
        node(m, f"a.weight_{part}").attribute[0].i = 1  # 8 in, 8 out: only the meaning is wrong


def wrong_length(m):
    replace(m, "stem.weight_scale_fp16", np.ones(5, np.float16))
    replace(m, "stem.weight_zero_point", np.zeros(5, np.int8))


def other_count(m):
    replace(m, "stem.weight_zero_point", np.zeros((), np.int8))


def impossible_axis(m):
    node(m, "stem.weight_quantise").attribute[0].i = 7


def quantised_bias(m):
    conv = node(m, "stem")
    add(m, "bias_int", np.zeros(8, np.int32))
    add(m, "bias_scale", np.ones(8, np.float16))
    add(m, "bias_zero", np.zeros(8, np.int32))
    constants = ["bias_int", "bias_scale", "bias_zero"]
    pair = helper.make_node("DequantizeLinear", constants, ["bias_back"], name="bias_pair", axis=0)
    m.graph.node.insert(0, pair)
    conv.input[2] = "bias_back"


def per_channel_activation(m):
    replace(m, "images_scale_fp16", np.ones(3, np.float16))
    replace(m, "images_zero_point", np.zeros(3, np.int8))


def both_branches(m):
    adding = node(m, "add_one")
    for part, made, kind in (("b_quantised", "b_q", "QuantizeLinear"), ("b_back", "b_dq", "DequantizeLinear")):
        source = "b" if kind == "QuantizeLinear" else "b_quantised"
        extra = helper.make_node(kind, [source, "images_scale_fp16", "images_zero_point"], [part], name=made)
        m.graph.node.insert([n.name for n in m.graph.node].index("add_one"), extra)
    adding.input[0] = "b_back"


def before_the_activation(m):
    position = [n.name for n in m.graph.node].index("stem_relu")
    node(m, "stem_relu").input[0] = "early_back"
    constants = ["images_scale_fp16", "images_zero_point"]
    pair = [
        helper.make_node("QuantizeLinear", ["stem", *constants], ["early"], name="early_q"),
        helper.make_node("DequantizeLinear", ["early", *constants], ["early_back"], name="early_dq"),
    ]
    for offset, extra in enumerate(pair):
        m.graph.node.insert(position + offset, extra)


@pytest.mark.parametrize(
    ("spoil", "severity", "rule", "where", "words"),
    [
        (asymmetric, "error", "zero-point", "images_quantise", "its zero point is 3; only symmetric"),
        (unsigned, "error", "type", "images_quantise", "it quantises to uint8"),
        (computed_zero_point, "error", "zero-point", "images_quantise", "its zero point is computed"),
        (no_zero_point, "error", "zero-point", "images_quantise", "has no zero point, and so makes uint8"),
        (no_zero_point_behind, "warning", "zero-point", "images_dequantise", "has no zero point"),
        (computed_scale, "error", "scale", "images_quantise", "its scale is computed"),
        (zero_scale, "error", "scale", "stem.weight_quantise", "1 of its 8 scales are not positive"),
        (vanishing_scale, "error", "scale", "images_quantise", "1e-09 becomes 0 in half precision"),
        (huge_scale, "error", "scale", "images_quantise", "above 65504"),
        (infinite_scale, "error", "scale", "images_quantise", "not finite"),
        (old_opset, "error", "opset", "images_quantise", "float16 in a graph of opset 17"),
        (wrong_axis, "error", "axis", "a.weight_quantise", "along axis 1 the weight of a (Conv)"),
        (wrong_length, "error", "axis", "stem.weight_quantise", "5 scales for an axis of 8"),
        (other_count, "error", "scale", "stem.weight_quantise", "8 scales and 1 zero points"),
        (impossible_axis, "error", "axis", "stem.weight_quantise", "axis is 7 for a tensor of 4 dimensions"),
        (quantised_bias, "error", "bias", "stem", "its bias is quantised (bias_pair)"),
        (per_channel_activation, "error", "per-tensor", "images_quantise", "an activation has 3 scales"),
        (both_branches, "warning", "addition", "add_one", "both of its branches are quantised, so that b and"),
        (before_the_activation, "warning", "activation", "early_q", "between stem and its activation stem_relu"),
    ],
)
def test_what_is_wrong_is_found_and_where(model, spoil, severity, rule, where, words):
    assert lint_graph(model) == []
    spoil(model)
    found = lint_graph(model)
    meant = [f for f in found if (f.severity, f.rule, f.node) == (severity, rule, where)]
    assert meant, found
    assert words in meant[0].message
    assert meant[0].remedy
    assert {f.rule for f in found} == {rule}, "one mistake is not reported as several"
    assert str(meant[0]).startswith(f"{severity}: {where}: ")


def test_errors_come_before_warnings(model):
    both_branches(model)
    asymmetric(model)
    assert [f.severity for f in lint_graph(model)] == ["error"] * 4 + ["warning"]  # two pairs share the zero point


def test_constants_in_nodes_are_read(model):
    zero = next(t for t in model.graph.initializer if t.name == "images_zero_point")
    model.graph.node.insert(
        0, helper.make_node("Constant", [], ["three"], value=numpy_helper.from_array(np.int8(3), "three"))
    )
    node(model, "images_quantise").input[2] = "three"
    assert zero is not None
    assert [(f.rule, f.node) for f in lint_graph(model)] == [("zero-point", "images_quantise")]


def test_a_transposed_convolution_is_scaled_along_its_second_axis():
    def graph(axis):
        g = Graph()
        g.weight("w", np.ones((3, 4, 2, 2), np.float32))
        g.weight("scale", np.ones((3, 4)[axis], np.float32))
        g.weight("zero", np.zeros((3, 4)[axis], np.int8))
        g.node("QuantizeLinear", ["w", "scale", "zero"], "q", axis=axis)
        g.node("DequantizeLinear", ["q", "scale", "zero"], "dq", axis=axis)
        g.node("ConvTranspose", ["images", "dq"], "up", strides=[2, 2])
        return g.model([("up", ["b", 4, "r", "c"])], opset=19, ir=9)

    assert lint_graph(graph(1)) == []
    assert {f.rule for f in lint_graph(graph(0))} == {"axis"}


def test_a_graph_without_quantisation_has_nothing_to_find(tiny_model):
    assert lint(tiny_model["classic"]) == []


@pytest.mark.parametrize(("content", "words"), [(b"", "is empty"), (b"hello, world", "is not a complete ONNX file")])
def test_what_is_no_onnx_file_is_refused(tmp_path, content, words):
    (tmp_path / "file.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=words):
        lint(tmp_path / "file.onnx")


def test_what_quantising_tools_write_by_default_is_refused(tmp_path):
    """ONNX Runtime's own quantiser, with its defaults: asymmetric, and biases as int32."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    from precision_graphs import detector, pictures

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.left = [{"images": p} for p in pictures(2)]

        def get_next(self):
            return self.left.pop() if self.left else None

    onnx.save(detector(), str(tmp_path / "d.onnx"))
    quantization.quantize_static(str(tmp_path / "d.onnx"), str(tmp_path / "q.onnx"), Reader())
    rules = {f.rule for f in lint(tmp_path / "q.onnx") if f.severity == "error"}
    assert {"bias", "zero-point"} <= rules
