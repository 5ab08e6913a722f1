"""Means over footprints by small ratios equal their definition, in every sample depth and memory layout."""

import numpy as np
import pytest
from resampling_by_definition import footprint_weights

from retinastream.kernels.area import can_reduce, group_weights, reduce_plane, small_ratio


@pytest.mark.parametrize(
    ("size", "target", "ratio"),
    [
        (3840, 1280, (3, 1)),
        (1920, 1280, (3, 2)),
        (640, 480, (4, 3)),
        (640, 640, None),
        (640, 1280, None),
        (4096, 1280, None),
        (3840, 640, None),
    ],
)
def test_which_ratios_are_small(size, target, ratio):
    assert small_ratio(size, target) == ratio


@pytest.mark.parametrize("ratio", [(2, 1), (3, 1), (3, 2), (4, 1), (4, 3)])
def test_weights_are_the_parts_of_the_footprints(ratio):
    p, q = ratio
    np.testing.assert_allclose(group_weights(p, q) / p, footprint_weights(p, q))


@pytest.mark.parametrize("bits", [8, 10, 14])
@pytest.mark.parametrize("across", [(2, 1), (3, 1), (3, 2), (4, 3)])
@pytest.mark.parametrize("down", [(2, 1), (3, 2), (4, 1)])
@pytest.mark.parametrize("layout", ["packed", "padded rows", "interleaved"])
def test_means_equal_the_definition(bits, across, down, layout):
    rng = np.random.default_rng(bits)
    height, width = 12 * down[0], 24 * across[0]
    kind = np.uint8 if bits == 8 else np.uint16
    memory = rng.integers(0, 1 << bits, (height, 2 * width + 8)).astype(kind)
    memory[:3] = (1 << bits) - 1
    plane = {
        "packed": np.ascontiguousarray(memory[:, :width]),
        "padded rows": memory[:, :width],
        "interleaved": memory[:, : 2 * width : 2],
    }[layout]
    to_height, to_width = 12 * down[1], 24 * across[1]
    assert can_reduce(plane, to_width, to_height, bits) == ((down, across) != ((2, 1), (2, 1)))
    unit = float(1 << (16 - bits))
    got = reduce_plane(plane, to_width, to_height, unit)
    vertical, horizontal = footprint_weights(height, to_height), footprint_weights(width, to_width)
    expected = vertical @ plane.astype(np.float64) @ horizontal.T * unit
    assert got.shape == (to_height, to_width)
    assert np.abs(got - expected).max() <= 0.51


def test_deep_samples_are_left_to_the_general_way():
    assert not can_reduce(np.zeros((6, 6), np.uint16), 2, 2, 16)
