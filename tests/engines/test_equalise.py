"""Equalised channels: the network computes the same, and its tensors waste no resolution."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="onnx is not installed, and models are converted with it")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed, and models are calibrated on it")

from precision_graphs import Graph, pictures, residual, run  # noqa: E402

from retinastream.engines.precision.equalise import channel_ranges, equalise, find_pairs  # noqa: E402
from retinastream.engines.precision.model_files import raise_opset  # noqa: E402
from retinastream.engines.precision.placement import place  # noqa: E402
from retinastream.engines.precision.qdq import insert_pairs  # noqa: E402


def chain(*, tap=False, activation="LeakyRelu"):
    """stem -> depthwise -> pointwise, channels of the stem a thousandfold apart; ``tap`` makes the stem an output."""
    rng = np.random.default_rng(0)
    values = rng.normal(0, 0.2, (8, 3, 3, 3)) * np.logspace(-2, 1, 8).reshape(-1, 1, 1, 1)
    g = Graph()
    one = g.node(activation, [g.conv("images", "stem", 3, 8, 3, stride=2, values=values)], "one")
    two = g.node("Relu", [g.conv(one, "depth", 8, 8, 3, group=8)], "two")
    g.conv(two, "point", 8, 4, 1)
    outputs = [("point", ["b", 4, "r", "c"]), *([("one", ["b", 8, "r", "c"])] if tap else [])]
    return raise_opset(g.model(outputs))


@pytest.mark.parametrize("activation", ["Relu", "LeakyRelu"])
def test_the_network_computes_the_same(activation):
    model = chain(activation=activation)
    image = pictures(1)[0]
    wanted = run(model, image)["point"]
    assert [(p.before, p.after, p.depthwise) for p in equalise(model, pictures(3, seed=1))] == [
        ("stem", "depth", True),
        ("depth", "point", False),
    ]
    given = run(model, image)["point"]
    assert not np.array_equal(given, wanted), "the weights did change"
    assert np.abs(given - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_the_channels_before_a_depthwise_convolution_become_equally_large():
    model = chain()
    before = channel_ranges(model, ["one"], pictures(2))["one"]
    equalise(model, pictures(2))
    after = channel_ranges(model, ["one"], pictures(2))["one"]
    assert before.max() > 100 * before.min()
    assert after.max() < 1.01 * after.min()


def test_eight_bits_then_lose_less():
    images = pictures(2)

    def error(model):
        placement = place(model)
        ranges = {"images": 140.0, **{t: channel_ranges(model, [t], images)[t].max() / 2 for t in ("one", "two")}}
        quantised = insert_pairs(model, placement, ranges)
        return float(np.mean([np.mean((run(quantised, i)["point"] - run(model, i)["point"]) ** 2) for i in images]))

    plain, equal = chain(), chain()
    equalise(equal, images)
    assert error(equal) < error(plain) / 2


def test_a_tensor_that_others_see_is_left_alone():
    assert [p.before for p in find_pairs(chain(tap=True))] == ["depth"]
    # Of the residual network only branches inside a block qualify: what is added, or shared, does not.
    assert [(p.before, p.after) for p in find_pairs(raise_opset(residual()))] == [("a", "b"), ("depth", "head")]


def test_other_activations_pass_no_factors_through():
    assert [p.before for p in find_pairs(chain(activation="Sigmoid"))] == ["depth"]


def test_dead_channels_are_left_alone():
    model = chain()
    for tensor in model.graph.initializer:
        if tensor.name in ("stem.weight", "stem.bias"):
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[2] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    equalise(model, pictures(2))
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    assert all(np.isfinite(values).all() for values in weights.values())
    assert not weights["stem.weight"][2].any()
