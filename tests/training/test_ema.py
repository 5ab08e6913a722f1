"""The moving average of the weights, against one computed by hand."""

import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from retinastream.errors import UsageError  # noqa: E402
from retinastream.training.ema import MovingAverage  # noqa: E402


class Counter(torch.nn.Module):
    def __init__(self, value):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([value]))
        self.register_buffer("mean", torch.tensor([value * 10]))
        self.register_buffer("seen", torch.tensor(0))

    def become(self, value, seen):
        with torch.no_grad():
            self.weight.fill_(value)
            self.mean.fill_(value * 10)
            self.seen.fill_(seen)


def test_a_young_average_moves_fast_and_an_old_one_by_its_decay():
    network = Counter(1.0)
    average = MovingAverage(network, 0.5)
    expected = 1.0
    for update, value in enumerate([3.0, -2.0, 5.0, 0.5, 4.0, 1.0, 2.0, 8.0, 1.5], start=1):
        network.become(value, update)
        average.update(network)
        kept = min(0.5, (1 + update) / (10 + update))
        expected = kept * expected + (1 - kept) * value
        assert average.state["weight"].item() == pytest.approx(expected, rel=1e-6)
        assert average.state["mean"].item() == pytest.approx(10 * expected, rel=1e-6)
    assert kept == 0.5
    assert average.state["seen"].item() == 9


def test_the_weights_themselves_are_left_alone():
    network = Counter(1.0)
    average = MovingAverage(network, 0.9)
    network.become(3.0, 1)
    average.update(network)
    assert network.weight.item() == 3.0


def test_a_decay_of_zero_follows_the_weights():
    network = Counter(1.0)
    average = MovingAverage(network, 0.0)
    network.become(7.0, 1)
    average.update(network)
    assert average.state["weight"].item() == 7.0


def test_a_loaded_average_goes_on_as_the_one_that_was_saved():
    network, twin = Counter(1.0), Counter(1.0)
    average, loaded = MovingAverage(network, 0.99), MovingAverage(twin, 0.99)
    for value in (2.0, 5.0):
        network.become(value, 1)
        average.update(network)
    loaded.load({name: value.clone() for name, value in average.state.items()}, average.updates)
    twin.become(5.0, 1)
    for each, weights in ((average, network), (loaded, twin)):
        weights.become(-4.0, 2)
        each.update(weights)
    assert torch.equal(average.state["weight"], loaded.state["weight"])


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0])
def test_a_decay_outside_its_range_is_refused(decay):
    with pytest.raises(UsageError, match=str(decay)):
        MovingAverage(Counter(1.0), decay)
