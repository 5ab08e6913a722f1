"""Which layers are left in half precision: the ranking, and the search for the fewest."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinastream.engines.precision.sensitivity import LayerCost, fewest_left
from retinastream.errors import ModelError, UsageError


@settings(max_examples=200, derandomize=True)
@given(st.integers(2, 200), st.data())
def test_the_fewest_layers_are_found_with_few_judgements(layers, data):
    needed = data.draw(st.integers(0, layers - 1))
    ranked = [f"layer{i}" for i in range(layers)]
    asked = []

    def judge(left):
        asked.append(len(left))
        assert list(left) == ranked[: len(left)]
        return 0.5 if len(left) >= needed else 1.5

    search = fewest_left(ranked, judge)
    assert search.left == tuple(ranked[:needed])
    assert [trial.left for trial in search.trials] == asked
    assert len(set(asked)) == len(asked), "nothing is judged twice"
    assert len(asked) <= 2 * int(np.ceil(np.log2(layers))) + 3


def test_a_loss_of_exactly_what_is_allowed_passes():
    assert fewest_left(["a", "b"], lambda left: 1.0).left == ()


@pytest.mark.parametrize("layers", [1, 2, 3, 8, 50])
def test_a_model_that_never_passes_is_an_error_that_says_how_far_off_it_is(layers):
    with pytest.raises(ModelError, match=r"the loss is 2\.50 times what it may be; int8 is not for this model"):
        fewest_left([str(i) for i in range(layers)], lambda left: 2.5)


def test_the_search_judges_as_rarely_as_it_says():
    def judgements(enough):
        return len(fewest_left([str(n) for n in range(50)], lambda left: 0.5 if len(left) >= enough else 2.0).trials)

    assert max(map(judgements, range(50))) == 13
    assert judgements(1) == 2, "most models need few layers left out"


def test_costs_read_as_decibels():
    assert LayerCost("a", 0.01).decibels == pytest.approx(20)
    assert LayerCost("a", 0.0).decibels == float("inf")


@pytest.fixture
def quantiser(tmp_path):
    """A network one of whose layers suffers: eight bits of its input's range tell its usual values not apart."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed, and models are converted with it")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed, and models are calibrated on it")
    from precision_graphs import detector, pictures

    from retinastream.engines.precision.quantise import Quantiser

    stem = np.random.default_rng(0).normal(0, 0.2, (8, 3, 3, 3))
    stem[0] *= 3000  # one channel is far larger than the rest, and the next layer ignores it
    model = detector(changes={"stem": stem})
    for tensor in model.graph.initializer:
        if tensor.name == "level_8.weight":
            weight = onnx.numpy_helper.to_array(tensor).copy()
            weight[:, 0] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(weight, tensor.name))
    onnx.save(model, str(tmp_path / "d.onnx"))
    return Quantiser(tmp_path / "d.onnx", pictures(4), force=True, equalised=False)


def test_the_layer_that_suffers_is_ranked_first(quantiser):
    from precision_graphs import pictures

    from retinastream.engines.precision.sensitivity import OutputNoise, rank_layers

    noise = OutputNoise(quantiser.model, pictures(2, seed=5))
    told = []
    ranked = rank_layers(quantiser, "max", noise, lambda done, total: told.append((done, total)))
    assert ranked[0].layer == "level_8"
    assert ranked[0].noise > 10 * ranked[1].noise
    assert sorted(cost.layer for cost in ranked) == sorted(quantiser.layers)
    assert told[-1] == (7, 7)
    whole, without = noise(quantiser.simulated("max")), noise(quantiser.simulated("max", ["level_8"]))
    assert without < whole / 5
    assert noise(quantiser.model) == 0


def test_ranking_needs_a_picture(quantiser):
    from retinastream.engines.precision.sensitivity import OutputNoise

    with pytest.raises(UsageError, match="no picture to measure the layers on"):
        OutputNoise(quantiser.model, [])


def test_the_search_writes_the_model_that_it_found(quantiser, tmp_path):
    from precision_graphs import pictures

    from retinastream.evaluation.auto_quantise import auto_quantise
    from retinastream.evaluation.precision_check import Loss, PrecisionReport
    from retinastream.models.onnx_file import read_onnx

    class Gate:
        """Content once the layer that suffers is left out."""

        def __init__(self):
            self.seen = []

        def check(self, path, limits):
            import onnx

            pairs = {n.name for n in onnx.load(str(path)).graph.node if n.op_type == "QuantizeLinear"}
            lost = 0.8 if "level_8.weight_quantise" in pairs else 0.4  # of 1.0
            self.seen.append(lost)
            return PrecisionReport({}, {}, "labelled", {}, (Loss("ap50", 0.9, 0.9 - lost / 100, lost, 1.0),))

    gate = Gate()
    found = auto_quantise(quantiser, tmp_path / "int8.onnx", gate, pictures(2), method="max", aim=0.5)
    assert gate.seen == [0.8, 0.4]
    assert found.search.left == ("level_8",) == found.model.fp16_layers
    assert found.report.losses[0].points == 0.4
    assert read_onnx(tmp_path / "int8.onnx").precision == "int8"
    assert [trial.verdict for trial in found.search.trials] == pytest.approx([1.6, 0.8])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.onnx", "int8.onnx"]
    whole = auto_quantise(quantiser, tmp_path / "int8.onnx", gate, pictures(2), method="max", aim=1.0, overwrite=True)
    assert whole.search.left == ()
    with pytest.raises(UsageError, match="aim is 0; expected a part of the limits"):
        auto_quantise(quantiser, tmp_path / "other.onnx", gate, pictures(2), aim=0)
    chosen = auto_quantise(quantiser, tmp_path / "int8.onnx", gate, pictures(2), overwrite=True)
    assert set(chosen.noise_of_methods) == {"max", "percentile", "mse", "entropy"}
    assert chosen.model.method == min(chosen.noise_of_methods, key=chosen.noise_of_methods.get)
    assert chosen.to_dict()["search"]["trials"][0]["left"] == 0
