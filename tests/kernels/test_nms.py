"""Non-maximum suppression equals its definition, written as loops over exact fractions."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinastream.kernels.nms import nms


def nms_by_definition(boxes, iou, limit=None, plus_one=False):
    """Take the best box, drop those that overlap it by more than ``iou``, go on with the rest."""
    extra = 1 if plus_one else 0
    exact = [[Fraction(float(v)) for v in box] for box in boxes]
    kept = []
    for index, (x1, y1, x2, y2) in enumerate(exact):
        if limit is not None and len(kept) >= limit:
            break
        for other in kept:
            a1, b1, a2, b2 = exact[other]
            shared = max(Fraction(0), min(x2, a2) - max(x1, a1) + extra)
            shared *= max(Fraction(0), min(y2, b2) - max(y1, b1) + extra)
            union = (x2 - x1 + extra) * (y2 - y1 + extra) + (a2 - a1 + extra) * (b2 - b1 + extra) - shared
            if union > 0 and shared / union > iou:
                break
        else:
            kept.append(index)
    return kept


def random_boxes(rng, count, span, longest):
    corners = rng.integers(0, span, (count, 2))
    return np.concatenate([corners, corners + rng.integers(0, longest + 1, (count, 2))], 1).astype(np.float32)


IOUS = st.sampled_from([Fraction(0), Fraction(1, 4), Fraction(3, 10), Fraction(2, 5), Fraction(1, 2), Fraction(1)])
LIMITS = st.one_of(st.none(), st.integers(0, 12))


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.integers(0, 60), st.integers(1, 30), st.integers(0, 12), IOUS, LIMITS, st.booleans()
)
def test_a_few_boxes_with_ties_and_touching_edges(seed, count, span, longest, iou, limit, plus_one):
    boxes = random_boxes(np.random.default_rng(seed), count, span, longest)
    kept = nms(boxes, float(iou), limit=limit, plus_one=plus_one)
    assert kept.dtype == np.int64
    assert kept.tolist() == nms_by_definition(boxes, iou, limit, plus_one)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(127, 400), st.sampled_from([12, 40, 120]), IOUS, st.booleans())
def test_more_boxes_than_one_block(seed, count, span, iou, plus_one):
    boxes = random_boxes(np.random.default_rng(seed), count, span, 14)
    limit = int(seed % 50) or None
    assert nms(boxes, float(iou), limit=limit, plus_one=plus_one).tolist() == nms_by_definition(
        boxes, iou, limit, plus_one
    )


@pytest.mark.parametrize(
    ("boxes", "iou", "plus_one", "kept"),
    [
        pytest.param([], 0.4, False, [], id="no box"),
        pytest.param([[0, 0, 5, 5]], 0.4, False, [0], id="one box"),
        pytest.param([[0, 0, 5, 5]] * 3, 0.4, False, [0], id="identical boxes: the first stays"),
        pytest.param([[0, 0, 5, 5]] * 3, 1.0, False, [0, 1, 2], id="nothing overlaps by more than 1"),
        pytest.param([[0, 0, 5, 5], [5, 0, 9, 5]], 0.0, False, [0, 1], id="touching edges do not overlap"),
        pytest.param([[0, 0, 5, 5], [5, 0, 9, 5]], 0.0, True, [0], id="touching edges share a column when counted +1"),
        pytest.param([[0, 0, 5, 5], [6, 0, 9, 5]], 0.0, True, [0, 1], id="neighbouring pixels do not overlap with +1"),
        pytest.param([[0, 0, 5, 5], [5, 5, 9, 9]], 0.0, False, [0, 1], id="touching corners do not overlap"),
        pytest.param([[0, 0, 4, 4], [0, 0, 4, 2]], 0.5, False, [0, 1], id="an overlap of exactly the threshold stays"),
        pytest.param([[0, 0, 4, 4], [0, 0, 4, 2]], 0.49, False, [0], id="an overlap above the threshold goes"),
        pytest.param([[2, 2, 2, 2]] * 2, 0.0, False, [0, 1], id="boxes without area overlap nothing"),
        pytest.param([[0, 0, 9, 9], [3, 3, 3, 6]], 0.0, False, [0, 1], id="a line inside a box overlaps nothing"),
        pytest.param([[2, 2, 2, 2]] * 2, 0.5, True, [0], id="a point is one pixel when counted +1"),
        pytest.param([[0, 0, 4, 4], [1, 0, 5, 4], [2, 0, 6, 4]], 0.5, False, [0, 2], id="a dropped box drops nothing"),
        pytest.param([[-8, -8, -2, -2], [-8, -8, -2, -3]], 0.4, False, [0], id="negative coordinates"),
    ],
)
def test_named_cases(boxes, iou, plus_one, kept):
    array = np.array(boxes, np.float32).reshape(-1, 4)
    assert nms(array, iou, plus_one=plus_one).tolist() == kept


@pytest.mark.parametrize("limit", [0, 1, 127, 128, 129, 700, None], ids=lambda n: f"limit {n}")
def test_a_limit_keeps_the_first_of_those_that_stay(limit):
    boxes = random_boxes(np.random.default_rng(3), 1500, 900, 30)
    every = nms(boxes, 0.3)
    assert len(every) > 700
    np.testing.assert_array_equal(nms(boxes, 0.3, limit=limit), every[:limit])


def test_five_thousand_boxes_equal_the_full_matrix():
    """The full matrix in float64, with clusters as a detector makes them."""
    rng = np.random.default_rng(11)
    centres, sides = rng.uniform(0, 3800, (300, 2)), rng.uniform(8, 300, 300)
    member = rng.integers(0, 300, 5000)
    centre = centres[member] + rng.normal(0, 0.1, (5000, 2)) * sides[member, None]
    half = (sides[member] * rng.uniform(0.8, 1.25, 5000) / 2)[:, None]
    boxes = np.concatenate([centre - half, centre + half], 1).astype(np.float32)
    wide = boxes.astype(np.float64)
    area = (wide[:, 2] - wide[:, 0]) * (wide[:, 3] - wide[:, 1])
    alive, kept = np.ones(5000, bool), []
    for i in range(5000):
        if not alive[i]:
            continue
        kept.append(i)
        sides_shared = np.minimum(wide[i, 2:], wide[:, 2:]) - np.maximum(wide[i, :2], wide[:, :2])
        shared = np.clip(sides_shared, 0, None).prod(1)
        alive &= shared / (area[i] + area - shared) <= 0.4
    assert 250 < len(kept) < 2500
    assert nms(boxes, 0.4).tolist() == kept


def test_boxes_without_end_or_number_do_not_break_it():
    boxes = np.array([[0, 0, 5, 5], [np.nan] * 4, [-np.inf, 0, np.inf, 5], [0, 0, 5, 5]], np.float32)
    with np.errstate(invalid="ignore"):
        kept = nms(boxes, 0.4)
    assert 0 in kept
    assert 3 not in kept


def test_the_boxes_given_are_not_changed():
    boxes = random_boxes(np.random.default_rng(1), 50, 20, 9)
    before = boxes.copy()
    nms(boxes, 0.4, plus_one=True)
    np.testing.assert_array_equal(boxes, before)
