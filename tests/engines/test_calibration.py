"""Ranges out of counted magnitudes: each method against its own definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinastream.engines.precision.calibration import METHODS, Calibration
from retinastream.engines.precision.histogram import BINS, Histogram
from retinastream.errors import ModelError, UsageError


def limit(values, method, parts=1, **options):
    histogram = Histogram()
    for part in np.array_split(np.asarray(values, np.float32), parts):
        histogram.add(part)
    return Calibration({"x": histogram}, 1, 1, "").limits(method, **options)["x"]


@settings(max_examples=30, derandomize=True, deadline=None)
@given(st.lists(st.floats(2.0**-20, 2.0**20, width=32), min_size=1, max_size=8), st.integers(0, 2**16))
def test_counts_do_not_depend_on_the_order_that_ranges_came_in(ranges, seed):
    rng = np.random.default_rng(seed)
    parts = [rng.uniform(-r, r, 50).astype(np.float32) for r in ranges]
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    everything = np.abs(np.concatenate(parts))
    assert histogram.counts.sum() == everything.size
    assert histogram.largest == everything.max()
    assert histogram.width * BINS >= histogram.largest * (1 - 1e-5)
    # Counted again with the final width; a value within rounding of a border may lie on either side.
    wanted = np.bincount(np.minimum((everything / histogram.width).astype(int), BINS - 1), minlength=BINS)
    assert np.abs(np.cumsum(histogram.counts) - np.cumsum(wanted)).max() <= 3


def test_zeros_before_the_first_value_are_counted():
    histogram = Histogram()
    histogram.add(np.zeros(5, np.float32))
    histogram.add(np.array([0.0, 3.0], np.float32))
    assert (histogram.counts[0], histogram.counts[-1], histogram.largest) == (6, 1, 3.0)


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_of_zeros_has_the_limit_zero(method):
    assert limit(np.zeros(100), method) == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_numbers_are_refused(bad):
    with pytest.raises(ModelError, match="not finite"):
        Histogram().add(np.array([1.0, bad], np.float32))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(3))
def test_no_limit_is_beyond_the_largest_value(method, seed):
    values = np.random.default_rng(seed).laplace(0, 1, 20_000)
    assert 0 < limit(values, method, parts=5) <= np.abs(values).max() * (1 + 1e-6)


def test_max_is_exact():
    assert limit([-7.25, 3, 1], "max") == 7.25


@pytest.mark.parametrize("percent", [90.0, 99.0, 99.99])
def test_percentile_is_that_of_numpy_to_within_a_bin(percent):
    values = np.random.default_rng(1).normal(0, 2, 50_000)
    found = limit(values, "percentile", percentile=percent)
    assert abs(found - np.percentile(np.abs(values), percent)) <= 2 * np.abs(values).max() / BINS


@pytest.mark.parametrize("draw", ["normal", "laplace", "uniform"])
def test_mse_is_within_a_step_of_the_best_limit_there_is(draw):
    values = getattr(np.random.default_rng(2), draw)(-1 if draw == "uniform" else 0, 1, 50_000)

    def error(at):
        scale = at / 127
        return np.mean((np.clip(np.rint(values / scale), -127, 127) * scale - values) ** 2)

    best = min(error(at) for at in np.linspace(0.2, 1, 100) * np.abs(values).max())
    assert error(limit(values, "mse")) <= best * 1.02


def test_entropy_cuts_a_lone_outlier_and_keeps_an_even_distribution():
    rng = np.random.default_rng(3)
    bell = np.append(rng.normal(0, 1, 100_000), 60.0)
    assert limit(bell, "max") == 60.0
    assert 3.0 < limit(bell, "entropy") < 12.0
    even = rng.uniform(-1, 1, 100_000)
    assert limit(even, "entropy") > 0.95


def test_entropy_does_not_see_zeros():
    rng = np.random.default_rng(4)
    bell = rng.normal(0, 1, 20_000)
    assert limit(np.append(bell, np.zeros(500_000)), "entropy") == limit(bell, "entropy")


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [("average", {}, "'average' is not known; allowed are max, percentile, mse, entropy"),
     ("percentile", {"percentile": 101}, "expected 50 to 100")],
)  # fmt: skip
def test_unknown_methods_are_refused(method, options, words):
    with pytest.raises(UsageError, match=words):
        limit([1.0], method, **options)
