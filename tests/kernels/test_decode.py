"""Decoding equals a loop over every anchor, in both layouts; encoding is its inverse."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinastream.kernels.decode import (
    anchors_at,
    decode_classic,
    decode_fused,
    decode_offsets,
    encode_offsets,
    level_offsets,
    merge,
    score_logit,
    to_source,
)
from retinastream.kernels.sizing import Placement
from retinastream.models.spec import DetectorSpec

SPEC = DetectorSpec()
THREE_SIZES = DetectorSpec(strides=(4, 8), anchor_sizes=((8.0, 12.0, 16.0), (40.0,)))
EVERYTHING = 10**6


def anchors_by_loops(spec, height, width):
    """(centre x, centre y, size) of every anchor in the order level, row, column, size."""
    anchors = []
    for stride, sizes in zip(spec.strides, spec.anchor_sizes, strict=True):
        for row in range(math.ceil(height / stride)):
            for column in range(math.ceil(width / stride)):
                anchors += [((column + 0.5) * stride, (row + 0.5) * stride, size) for size in sizes]
    return anchors


def random_maps(seed, spec, height, width, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return [
        rng.normal(0, 2, (16 * len(sizes), rows, columns)).astype(dtype)
        for (rows, columns), sizes in zip(spec.feature_sizes(height, width), spec.anchor_sizes, strict=True)
    ]


def read_anchor(maps, spec, level, row, column, which):
    """(logits, box offsets, landmark offsets) of one anchor, by the channel order of the spec's docstring."""
    cell = maps[level][:, row, column].astype(np.float64)
    count = len(spec.anchor_sizes[level])
    logits = cell[2 * which : 2 * which + 2]
    box = cell[2 * count + 4 * which : 2 * count + 4 * which + 4]
    points = cell[6 * count + 10 * which : 6 * count + 10 * which + 10]
    return logits, box, points


def decode_by_loops(maps, spec, height, width, threshold):
    """Every face as (score, anchor index, box, landmarks), best first."""
    faces, index = [], 0
    near, log = spec.variances
    for level, (rows, columns) in enumerate(spec.feature_sizes(height, width)):
        stride = spec.strides[level]
        for row in range(rows):
            for column in range(columns):
                for which, size in enumerate(spec.anchor_sizes[level]):
                    logits, box, points = read_anchor(maps, spec, level, row, column, which)
                    powers = np.exp(logits - logits.max())
                    score = powers[1] / powers.sum()
                    if score >= threshold:
                        centre = (np.array([column, row]) + 0.5) * stride
                        middle = centre + box[:2] * near * size
                        extent = size * np.exp(box[2:] * log)
                        corners = np.concatenate([middle - extent / 2, middle + extent / 2])
                        faces.append((score, index, corners, centre + points.reshape(5, 2) * near * size))
                    index += 1
    return sorted(faces, key=lambda f: (-f[0], f[1]))


def classic_of(maps, spec):
    """loc, conf (probabilities) and landms of one picture from fused maps, as the network's own layers compute them."""
    parts = [[], [], []]
    for level, tensor in enumerate(maps):
        for row in range(tensor.shape[1]):
            for column in range(tensor.shape[2]):
                for which in range(len(spec.anchor_sizes[level])):
                    logits, box, points = read_anchor(maps, spec, level, row, column, which)
                    powers = np.exp(logits - logits.max())
                    for part, values in zip(parts, (box, powers / powers.sum(), points), strict=True):
                        part.append(values)
    return [np.array(p, np.float32) for p in parts]


SIZES = [
    pytest.param(SPEC, 32, 32, id="one cell on the coarsest level"),
    pytest.param(SPEC, 64, 96, id="a small picture"),
    pytest.param(SPEC, 96, 64, id="an upright picture"),
    pytest.param(SPEC, 224, 320, id="a larger picture"),
    pytest.param(THREE_SIZES, 24, 40, id="another spec with three sizes and one"),
]


@pytest.mark.parametrize(("spec", "height", "width"), [*SIZES, pytest.param(SPEC, 50, 70, id="sides between strides")])
def test_anchors_are_those_of_the_explicit_list(spec, height, width):
    expected = np.array(anchors_by_loops(spec, height, width))
    assert spec.anchor_count(height, width) == len(expected)
    centres, sizes = anchors_at(np.arange(len(expected)), spec, height, width)
    np.testing.assert_array_equal(centres, expected[:, :2])
    np.testing.assert_array_equal(sizes, expected[:, 2])
    shuffled = np.random.default_rng(0).permutation(len(expected))
    np.testing.assert_array_equal(anchors_at(shuffled, spec, height, width)[0], expected[shuffled, :2])


def test_a_4k_frame_has_340320_anchors():
    assert SPEC.anchor_count(2160, 3840) == 340_320
    assert level_offsets(SPEC, 2160, 3840) == (0, 259_200, 324_000)
    centres, sizes = anchors_at(np.array([0, 1, 340_319]), SPEC, 2160, 3840)
    assert centres.tolist() == [[4, 4], [4, 4], [3824, 2160]]
    assert sizes.tolist() == [16, 32, 512]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_encoding_and_decoding_are_inverse(seed, count):
    rng = np.random.default_rng(seed)
    anchors = np.array(anchors_by_loops(SPEC, 96, 128))[rng.integers(0, SPEC.anchor_count(96, 128), count)]
    centres, sizes = anchors[:, :2].astype(np.float32), anchors[:, 2].astype(np.float32)
    corner = rng.uniform(-50, 150, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(1, 300, (count, 2))], 1).astype(np.float32)
    points = rng.uniform(-50, 200, (count, 5, 2)).astype(np.float32)
    offsets = encode_offsets(boxes, points, centres, sizes, SPEC.variances)
    assert [o.shape for o in offsets] == [(count, 4), (count, 10)]
    again = decode_offsets(*offsets, centres, sizes, SPEC.variances)
    assert [a.dtype for a in again] == [np.float32] * 2
    np.testing.assert_allclose(again[0], boxes, atol=0.005)
    np.testing.assert_allclose(again[1], points, atol=0.005)


def test_a_face_of_the_anchors_own_place_and_size_is_encoded_as_zeros():
    centres, sizes = np.array([[20.0, 12.0]], np.float32), np.array([16.0], np.float32)
    box, points = encode_offsets(
        np.array([[12, 4, 28, 20]], np.float32), np.full((1, 5, 2), [20, 12], np.float32), centres, sizes, (0.1, 0.2)
    )
    assert not box.any()
    assert not points.any()
    one_size_right = np.array([[12 + 16, 4, 28 + 16, 20]], np.float32)
    twice = np.array([[4, -4, 36, 28]], np.float32)
    both = np.concatenate([one_size_right, twice])
    boxes, _ = encode_offsets(both, np.zeros((2, 5, 2), np.float32), centres.repeat(2, 0), sizes.repeat(2), (0.1, 0.2))
    np.testing.assert_allclose(boxes, [[10, 0, 0, 0], [0, 0, math.log(2) / 0.2, math.log(2) / 0.2]], atol=1e-5)


@pytest.mark.parametrize("threshold", [0.0, 0.02, 0.5, 0.97])
@pytest.mark.parametrize(("spec", "height", "width"), SIZES)
def test_fused_maps_decode_as_a_loop_over_all_anchors_does(spec, height, width, threshold):
    maps = random_maps(height, spec, height, width)
    expected = decode_by_loops(maps, spec, height, width, threshold)
    found = decode_fused(maps, spec, height, width, threshold, EVERYTHING)
    assert not found.overflow
    assert found.anchors.tolist() == [f[1] for f in expected]
    np.testing.assert_allclose(found.scores, [f[0] for f in expected], atol=1e-6)
    np.testing.assert_allclose(found.boxes, np.reshape([f[2] for f in expected], (-1, 4)), rtol=1e-5, atol=1e-2)
    np.testing.assert_allclose(found.landmarks, np.reshape([f[3] for f in expected], (-1, 5, 2)), rtol=1e-5, atol=1e-2)
    assert [a.dtype for a in (found.boxes, found.scores, found.landmarks, found.anchors)] == [np.float32] * 3 + [
        np.int64
    ]


@pytest.mark.parametrize(("spec", "height", "width"), SIZES)
def test_both_layouts_of_one_picture_give_the_same_faces(spec, height, width):
    maps = random_maps(7, spec, height, width)
    fused = decode_fused(maps, spec, height, width, 0.3, EVERYTHING)
    classic_spec = replace(spec, output_layout="classic")
    classic = decode_classic(*classic_of(maps, spec), classic_spec, height, width, 0.3, EVERYTHING)
    by_anchor_fused, by_anchor = np.argsort(fused.anchors), np.argsort(classic.anchors)
    np.testing.assert_array_equal(fused.anchors[by_anchor_fused], classic.anchors[by_anchor])
    np.testing.assert_allclose(fused.scores, classic.scores, atol=1e-6)
    np.testing.assert_allclose(fused.boxes[by_anchor_fused], classic.boxes[by_anchor], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(fused.landmarks[by_anchor_fused], classic.landmarks[by_anchor], rtol=1e-4, atol=1e-3)


def test_half_precision_maps_decode_as_their_values_in_float32():
    maps = random_maps(5, SPEC, 64, 96, np.float16)
    half = decode_fused(maps, SPEC, 64, 96, 0.4, EVERYTHING)
    single = decode_fused([m.astype(np.float32) for m in maps], SPEC, 64, 96, 0.4, EVERYTHING)
    assert half.boxes.dtype == np.float32
    assert half.scores.dtype == np.float32
    for name in ("anchors", "scores", "boxes", "landmarks"):
        np.testing.assert_array_equal(getattr(half, name), getattr(single, name))


@pytest.mark.parametrize(
    ("threshold", "logit"),
    [(0.0, -math.inf), (-1.0, -math.inf), (1.0, math.inf), (0.5, 0.0), (0.02, math.log(0.02 / 0.98))],
)
def test_the_threshold_as_a_difference_of_logits(threshold, logit):
    assert score_logit(threshold) == pytest.approx(logit)


def test_threshold_zero_keeps_every_anchor_and_one_keeps_none():
    maps = random_maps(2, SPEC, 64, 64)
    assert len(decode_fused(maps, SPEC, 64, 64, 0.0, EVERYTHING)) == SPEC.anchor_count(64, 64)
    nothing = decode_fused(maps, SPEC, 64, 64, 1.0, EVERYTHING)
    assert (len(nothing), nothing.overflow) == (0, False)
    assert (nothing.boxes.shape, nothing.landmarks.shape, nothing.anchors.dtype) == ((0, 4), (0, 5, 2), np.int64)
    loc, conf, landms = classic_of(maps, SPEC)
    assert len(decode_classic(loc, conf, landms, SPEC, 64, 64, 0.0, EVERYTHING)) == SPEC.anchor_count(64, 64)
    assert len(decode_classic(loc, conf, landms, SPEC, 64, 64, 1.0, EVERYTHING)) == 0


@pytest.mark.parametrize("layout", ["fused", "classic"])
def test_equal_scores_rank_by_anchor_index(layout):
    maps = [np.zeros_like(m) for m in random_maps(0, SPEC, 64, 96)]
    count = SPEC.anchor_count(64, 96)
    if layout == "fused":
        found = decode_fused(maps, SPEC, 64, 96, 0.5, 30)
    else:
        found = decode_classic(*classic_of(maps, SPEC), SPEC, 64, 96, 0.5, 30)
    assert found.anchors.tolist() == list(range(30))
    assert found.overflow
    assert count > 30


@pytest.mark.parametrize(
    ("limit", "kept", "overflow"),
    [
        pytest.param(9, 9, True, id="one fewer than there are"),
        pytest.param(10, 10, False, id="exactly as many as there are"),
        pytest.param(11, 10, False, id="more than there are"),
    ],
)
def test_the_limit_keeps_the_best_and_says_when_it_cut(limit, kept, overflow):
    maps = [np.zeros_like(m) for m in random_maps(0, SPEC, 64, 96)]
    for number in range(10):
        maps[0][1, number % 8, number] = 1 + number
    for found in (
        decode_fused(maps, SPEC, 64, 96, 0.6, limit),
        decode_classic(*classic_of(maps, SPEC), SPEC, 64, 96, 0.6, limit),
    ):
        assert (len(found), found.overflow) == (kept, overflow)
        np.testing.assert_allclose(found.scores, [1 / (1 + math.exp(-n)) for n in range(10, 10 - kept, -1)], atol=1e-6)


def test_wild_values_of_a_broken_network_give_finite_boxes_and_no_face_for_nan():
    maps = random_maps(0, SPEC, 32, 32)
    for tensor in maps:
        tensor[:4] = [[[-9]], [[9]], [[-9]], [[9]]]
        tensor[4:12] = 1e4
    maps[2][0] = np.nan
    found = decode_fused(maps, SPEC, 32, 32, 0.5, EVERYTHING)
    assert len(found) == SPEC.anchor_count(32, 32) - 1
    assert found.not_a_number == 1
    assert np.isfinite(found.boxes).all()


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.99, 1.0])
def test_scores_that_are_nan_are_counted_at_any_threshold_and_none_is_a_candidate(threshold):
    maps = random_maps(3, SPEC, 64, 96)
    maps[0][[0, 1, 3], [0, 2, 2], [1, 3, 3]] = np.nan  # of two sizes of one cell, and of another cell
    maps[1][:2, 0, 0] = np.inf  # whose difference is none
    classic_spec = replace(SPEC, output_layout="classic")
    with np.errstate(invalid="ignore"):
        loc, conf, landms = classic_of(maps, SPEC)
    with np.errstate(invalid="raise"):
        fused = decode_fused(maps, SPEC, 64, 96, threshold, EVERYTHING)
    classic = decode_classic(loc, conf, landms, classic_spec, 64, 96, threshold, EVERYTHING)
    assert (fused.not_a_number, classic.not_a_number) == (4, 4)
    assert np.isfinite(fused.scores).all()
    assert np.isfinite(classic.scores).all()
    if threshold == 0.0:
        assert len(fused) == len(classic) == SPEC.anchor_count(64, 96) - 4
    assert to_source(fused, Placement(200, 50, 100, 100, 128, 128)).not_a_number == 4
    assert merge([fused, classic], 5).not_a_number == 8


def test_extreme_logits_give_scores_of_zero_and_one_without_a_warning():
    maps = [np.zeros_like(m) for m in random_maps(0, SPEC, 32, 32)]
    maps[0][0], maps[0][1] = -3000.0, 3000.0
    maps[1][0], maps[1][1] = 300.0, -300.0
    with np.errstate(over="raise", invalid="raise"):
        found = decode_fused(maps, SPEC, 32, 32, 0.0, EVERYTHING)
    assert found.scores.max() == 1.0
    assert found.scores.min() < 1e-30


def test_coordinates_map_back_to_the_source_picture():
    placement = Placement(200, 50, 100, 100, 128, 128)
    maps = random_maps(4, SPEC, 128, 128)
    found = decode_fused(maps, SPEC, 128, 128, 0.5, 20)
    mapped = to_source(found, placement)
    np.testing.assert_allclose(mapped.boxes, found.boxes * [2, 0.5, 2, 0.5], rtol=1e-6)
    np.testing.assert_allclose(mapped.landmarks, found.landmarks * [2, 0.5], rtol=1e-6)
    np.testing.assert_array_equal(mapped.scores, found.scores)
    assert (mapped.boxes.dtype, mapped.landmarks.dtype, mapped.overflow) == (np.float32, np.float32, True)


def test_passes_merge_by_score_and_ties_go_to_the_earlier_pass():
    maps = [np.zeros_like(m) for m in random_maps(0, SPEC, 32, 32)]
    maps[0][1, 0, 0], maps[0][1, 0, 1], maps[0][3, 0, 0] = 5, 3, 3
    first = decode_fused(maps, SPEC, 32, 32, 0.6, EVERYTHING)
    maps[0][1, 0, 2] = 9
    second = decode_fused(maps, SPEC, 32, 32, 0.6, EVERYTHING)
    both = merge([first, second], EVERYTHING)
    assert (first.anchors.tolist(), second.anchors.tolist()) == ([0, 1, 2], [4, 0, 1, 2])
    assert both.anchors.tolist() == [4, 0, 0, 1, 2, 1, 2]
    assert not both.overflow
    cut = merge([first, second], 2)
    assert (cut.anchors.tolist(), cut.overflow) == ([4, 0], True)
    assert merge([replace(first, overflow=True), second], EVERYTHING).overflow
    assert merge([first], 1) is first
