"""Box voting: compared with a slow version that takes one box at a time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinastream.errors import UsageError
from retinastream.evaluation.box_voting import vote
from retinastream.kernels.nms import nms


def overlap(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union > 0 else 0.0


def slow_vote(boxes, scores, landmarks, iou):
    """Return (box, score, landmarks, members) of every group, one box after the other."""
    waiting = sorted(range(len(scores)), key=lambda i: (-float(scores[i]), i))
    result = []
    while waiting:
        best = waiting[0]
        members = [best] + [i for i in waiting[1:] if overlap(boxes[best].tolist(), boxes[i].tolist()) > iou]
        waiting = [i for i in waiting if i not in members]
        weights = [float(scores[i]) for i in members]
        if sum(weights) == 0:
            weights = [1.0] * len(members)
        box = sum(w * boxes[i].astype(float) for w, i in zip(weights, members, strict=True)) / sum(weights)
        points = sum(w * landmarks[i].astype(float) for w, i in zip(weights, members, strict=True)) / sum(weights)
        result.append((box, float(scores[best]), points, sorted(members)))
    return result


def crowded(seed, count, ties=False):
    """Boxes that lie on each other in clumps."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0, 400, (max(1, count // 6), 2))[rng.integers(0, max(1, count // 6), count)]
    corner = centres + rng.normal(0, 5, (count, 2))
    boxes = np.hstack([corner, corner + rng.uniform(15, 60, (count, 2))]).astype(np.float32)
    scores = rng.uniform(0, 1, count).astype(np.float32)
    if ties:
        scores = np.round(scores * 4).astype(np.float32) / 4
    landmarks = rng.uniform(-10, 450, (count, 5, 2)).astype(np.float32)
    return boxes, scores, landmarks


@given(st.integers(0, 10_000), st.integers(0, 70), st.sampled_from([0.0, 0.2, 0.4, 0.7, 1.0]), st.booleans())
@settings(max_examples=80, deadline=None)
def test_voting_equals_the_slow_version(seed, count, iou, ties):
    boxes, scores, landmarks = crowded(seed, count, ties)
    found = vote(boxes, scores, landmarks, iou)
    expected = slow_vote(boxes, scores, landmarks, iou)
    assert len(found.scores) == len(expected)
    for k, (box, score, points, members) in enumerate(expected):
        assert np.flatnonzero(found.groups == k).tolist() == members
        assert found.sizes[k] == len(members)
        assert found.scores[k] == pytest.approx(score)
        np.testing.assert_allclose(found.boxes[k], box, atol=1e-3)
        np.testing.assert_allclose(found.landmarks[k], points, atol=1e-3)


def test_the_mean_of_two_boxes_by_hand():
    boxes = np.array([[0, 0, 100, 100], [10, 0, 110, 100], [300, 300, 320, 340]], np.float32)
    scores = np.array([0.9, 0.3, 0.5], np.float32)
    landmarks = np.repeat(boxes[:, None, :2], 5, axis=1)
    found = vote(boxes, scores, landmarks)
    # weights 3 : 1
    np.testing.assert_allclose(found.boxes, [[2.5, 0, 102.5, 100], [300, 300, 320, 340]], atol=1e-4)
    np.testing.assert_allclose(found.landmarks[0], np.full((5, 2), [2.5, 0]), atol=1e-4)
    np.testing.assert_allclose(found.scores, [0.9, 0.5])
    assert found.sizes.tolist() == [2, 1]


def test_one_group_is_kept_for_every_box_that_nms_keeps():
    boxes, scores, landmarks = crowded(3, 400)
    order = np.argsort(-scores, kind="stable")
    kept = nms(boxes[order], 0.4)
    found = vote(boxes, scores, landmarks, 0.4)
    np.testing.assert_array_equal(found.scores, scores[order][kept])


def test_a_box_that_stands_alone_is_returned_as_it_is():
    rng = np.random.default_rng(0)
    corner = np.arange(200, dtype=np.float32)[:, None] * 100 + rng.uniform(0, 10, (200, 2)).astype(np.float32)
    boxes = np.hstack([corner, corner + 33.3]).astype(np.float32)
    scores = np.sort(rng.uniform(0.001, 1, 200).astype(np.float32))[::-1]
    landmarks = rng.uniform(0, 1e4, (200, 5, 2)).astype(np.float32)
    found = vote(boxes, scores, landmarks)
    np.testing.assert_array_equal(found.boxes, boxes)
    np.testing.assert_array_equal(found.scores, scores)
    np.testing.assert_array_equal(found.landmarks, landmarks)


def test_the_order_given_does_not_change_the_result():
    boxes, scores, landmarks = crowded(5, 120)
    shuffled = np.random.default_rng(1).permutation(120)
    one = vote(boxes, scores, landmarks)
    other = vote(boxes[shuffled], scores[shuffled], landmarks[shuffled])
    np.testing.assert_array_equal(one.boxes, other.boxes)
    np.testing.assert_array_equal(one.landmarks, other.landmarks)
    np.testing.assert_array_equal(one.groups[shuffled], other.groups)


def test_of_equal_scores_the_first_given_leads():
    boxes = np.array([[0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]], np.float32)
    scores = np.full(3, 0.5, np.float32)
    # neighbours overlap by 6/14, the outer two by 2/18
    assert vote(boxes, scores, np.zeros((3, 5, 2), np.float32), 0.4).groups.tolist() == [0, 0, 1]
    assert vote(boxes[[1, 0, 2]], scores, np.zeros((3, 5, 2), np.float32), 0.4).groups.tolist() == [0, 0, 0]


def test_an_overlap_of_exactly_the_limit_does_not_join():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5]], np.float32)
    points = np.zeros((2, 5, 2), np.float32)
    scores = np.array([0.9, 0.8], np.float32)
    assert vote(boxes, scores, points, 0.5).sizes.tolist() == [1, 1]
    assert vote(boxes, scores, points, 0.499).sizes.tolist() == [2]


def test_scores_of_zero_average_alike():
    boxes = np.array([[0, 0, 10, 10], [2, 0, 12, 10]], np.float32)
    found = vote(boxes, np.zeros(2, np.float32), np.zeros((2, 5, 2), np.float32))
    np.testing.assert_allclose(found.boxes, [[1, 0, 11, 10]])
    assert found.scores.tolist() == [0.0]


def test_no_boxes_give_no_groups():
    found = vote(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros((0, 5, 2), np.float32))
    assert found.boxes.shape == (0, 4)
    assert found.landmarks.shape == (0, 5, 2)
    assert found.scores.shape == found.sizes.shape == found.groups.shape == (0,)


@pytest.mark.parametrize(
    ("boxes", "scores", "points", "iou", "says"),
    [
        ((2, 4), (3,), (2, 5, 2), 0.4, r"shapes \(\(2, 4\), \(3,\)"),
        ((2, 4), (2,), (2, 10), 0.4, r"expected \(N, 4\)"),
        ((2, 4), (2,), (2, 5, 2), 1.5, "iou is 1.5"),
        ((2, 4), (2,), (2, 5, 2), -0.1, "iou is -0.1"),
    ],
)
def test_wrong_arguments_are_refused_in_words(boxes, scores, points, iou, says):
    with pytest.raises(UsageError, match=says):
        vote(np.zeros(boxes), np.zeros(scores), np.zeros(points), iou)


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.5])
def test_a_score_that_cannot_weigh_is_refused(value):
    with pytest.raises(UsageError, match="not a finite number, or a score is below 0"):
        vote(np.zeros((1, 4)), np.array([value]), np.zeros((1, 5, 2)))
