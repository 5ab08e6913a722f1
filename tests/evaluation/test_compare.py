"""Paired bootstrap: the fast way against pictures that are really repeated, and questions with known answers."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinastream.errors import UsageError
from retinastream.evaluation.average_precision import average_precision
from retinastream.evaluation.compare import compare
from retinastream.evaluation.labelled_set import LabelledPicture
from retinastream.evaluation.measures import IOUS, measure
from retinastream.evaluation.ranked_hits import RankedHits
from retinastream.types import Faces


def labelled(name, boxes, ignore=None, landmarks=None):
    n = len(boxes)
    return LabelledPicture(
        name=name,
        path=Path(name),
        width=None,
        height=None,
        boxes=np.asarray(boxes, np.float32).reshape(n, 4),
        landmarks=np.full((n, 5, 2), np.nan, np.float32) if landmarks is None else landmarks.astype(np.float32),
        ignore=np.zeros(n, bool) if ignore is None else np.asarray(ignore, bool),
        scores=np.ones(n, np.float32),
    )


def boxes_at(rng, count):
    corner = rng.uniform(0, 300, (count, 2))
    return np.hstack([corner, corner + rng.uniform(15, 90, (count, 2))])


def random_set(seed, pictures, *, ignored=0.2, landmarks=True):
    rng = np.random.default_rng(seed)
    result = []
    for number in range(pictures):
        boxes = boxes_at(rng, rng.integers(0, 6))
        points = boxes[:, None, :2] + rng.random((len(boxes), 5, 2)) * (boxes[:, None, 2:] - boxes[:, None, :2])
        points[rng.random(len(boxes)) < 0.2] = np.nan
        ignore = rng.random(len(boxes)) < ignored
        result.append(labelled(f"{number}.jpg", boxes, ignore, points if landmarks else None))
    return result


def random_predictions(seed, truths, *, found=0.8, noise=3.0, wrong=2, decimals=None):
    """Find some of the faces, roughly, and some that are not there."""
    rng = np.random.default_rng(seed)
    result = []
    for picture in truths:
        kept = rng.random(len(picture.boxes)) < found
        right = picture.boxes[kept] + rng.normal(0, noise, (int(kept.sum()), 4))
        points = picture.landmarks[kept] + rng.normal(0, noise, (int(kept.sum()), 5, 2))
        points = np.where(np.isfinite(points), points, 1.0)
        extra = boxes_at(rng, rng.integers(0, wrong + 1))
        boxes = np.vstack([right, right[: len(right) // 3] + 4, extra])
        points = np.concatenate([points, points[: len(right) // 3] + 4, np.zeros((len(extra), 5, 2))])
        scores = np.concatenate([rng.beta(4, 1, len(right) + len(right) // 3), rng.beta(1, 2, len(extra))])
        scores = scores if decimals is None else np.round(scores, decimals)
        order = np.argsort(-scores, kind="stable")
        result.append(
            Faces(boxes[order].astype(np.float32), scores[order].astype(np.float32), points[order].astype(np.float32))
        )
    return result


def repeated(items, draws):
    return [item for item, count in zip(items, draws, strict=True) for _ in range(count)]


def slow_average_precision(predictions, truths, iou):
    found = [(faces.boxes, faces.scores) for faces in predictions]
    return average_precision(found, [t.boxes for t in truths], iou, ignore=[t.ignore for t in truths]).ap


@given(st.integers(0, 10_000), st.integers(1, 25), st.sampled_from([0.0, 0.3]))
@settings(max_examples=60, deadline=None)
def test_a_resample_has_the_average_precision_of_pictures_that_are_really_repeated(seed, pictures, ignored):
    truths = random_set(seed, pictures, ignored=ignored)
    predictions = random_predictions(seed + 1, truths)
    hits = RankedHits.of(predictions, truths, (0.5, 0.75, 0.9))
    rng = np.random.default_rng(seed)
    for draws in (
        np.ones(pictures, np.int64),
        np.bincount(rng.integers(pictures, size=pictures), minlength=pictures),
        rng.integers(0, 5, pictures),
    ):
        fast = hits.average_precisions(draws)
        slow = [slow_average_precision(repeated(predictions, draws), repeated(truths, draws), iou) for iou in hits.ious]
        np.testing.assert_allclose(fast, slow, rtol=1e-12, atol=1e-12, equal_nan=True)


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_equal_scores_rank_as_in_average_precision(seed):
    truths = random_set(seed, 12)
    predictions = random_predictions(seed + 1, truths, decimals=1)
    hits = RankedHits.of(predictions, truths, IOUS)
    slow = [slow_average_precision(predictions, truths, iou) for iou in IOUS]
    np.testing.assert_allclose(hits.average_precisions(), slow, rtol=1e-12, equal_nan=True)


def slow_compare(a, b, truths, resamples, seed, threshold):
    """Measure every resample from repeated pictures, with the measures of one detector: differences (resamples, 4)."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(resamples):
        draws = np.bincount(rng.integers(len(truths), size=len(truths)), minlength=len(truths))
        both = [measure(repeated(side, draws), repeated(truths, draws), score_threshold=threshold) for side in (a, b)]
        rows.append([(m.ap50, m.ap, m.at_score.recall, m.at_score.precision) for m in both])
    values = np.array(rows)
    return values[:, 1] - values[:, 0]


def test_intervals_equal_those_of_repeated_pictures():
    truths = random_set(7, 15)
    a, b = random_predictions(1, truths), random_predictions(2, truths, found=0.9, noise=2)
    result = compare(a, b, truths, resamples=60, seed=5, score_threshold=0.6, confidence=0.9)
    slow = slow_compare(a, b, truths, 60, 5, 0.6)
    for column, name in enumerate(("ap50", "ap", "recall", "precision")):
        low, high = np.quantile(slow[:, column], (0.05, 0.95))
        assert result[name].low == pytest.approx(low, abs=1e-12)
        assert result[name].high == pytest.approx(high, abs=1e-12)
        assert result[name].b_higher == pytest.approx(np.mean(slow[:, column] > 1e-12), abs=1e-12)


def test_the_values_of_both_are_those_that_are_measured_alone():
    truths = random_set(3, 20)
    a, b = random_predictions(1, truths), random_predictions(2, truths, noise=6)
    result = compare(a, b, truths, resamples=2)
    for side, predictions in (("a", a), ("b", b)):
        alone = measure(predictions, truths)
        for name, value in (
            ("ap50", alone.ap50),
            ("ap", alone.ap),
            ("recall", alone.at_score.recall),
            ("precision", alone.at_score.precision),
        ):
            assert getattr(result[name], side) == pytest.approx(value, abs=1e-12)
    assert (result.pictures, result.faces) == (20, sum(int((~t.ignore).sum()) for t in truths))


def test_landmark_error_is_of_the_faces_that_both_found():
    boxes = [[0, 0, 100, 100], [200, 0, 230, 30], [0, 200, 50, 250]]
    points = np.zeros((3, 5, 2))
    truths = [labelled("a.jpg", boxes, None, points)]

    def faces(rows, off):
        chosen = np.array(boxes, np.float32)[rows]
        shifted = np.array(off, np.float32)[:, None, None] * np.array([1, 0], np.float32)
        return [Faces(chosen, np.full(len(rows), 0.9, np.float32), np.tile(shifted, (1, 5, 1)))]

    # A misses the third face, on which B is far off
    result = compare(faces([0, 1], [1, 3]), faces([0, 1, 2], [2, 3, 40]), truths, resamples=5)
    assert result.landmarked == 2
    error = result["landmark_error"]
    assert (error.a, error.b) == (pytest.approx((0.01 + 0.1) / 2), pytest.approx((0.02 + 0.1) / 2))
    assert error.better == "A"
    large = result["landmark_error_large"]
    assert (large.a, large.b) == (pytest.approx(0.01), pytest.approx(0.02))


def test_predictions_without_landmarks_are_not_measured_on_them():
    truths = random_set(3, 10)
    a = random_predictions(1, truths)
    b = [replace(faces, landmarks=np.full_like(faces.landmarks, np.nan)) for faces in a]
    result = compare(a, b, truths, resamples=10)
    assert result.landmarked == 0
    assert result["landmark_error"].verdict == "not measured"
    assert result["ap50"].verdict == "no difference shown"


def test_identical_predictions_show_no_difference():
    truths = random_set(0, 20)
    same = random_predictions(1, truths)
    result = compare(same, same, truths, resamples=50)
    for row in result.differences:
        assert (row.difference, row.low, row.high, row.b_higher) == (0, 0, 0, 0)
        assert row.verdict == "no difference shown"


def test_a_much_better_one_is_called_better_whichever_side_it_is_on():
    truths = random_set(1, 80, ignored=0)
    poor = random_predictions(2, truths, found=0.3, noise=5)
    good = random_predictions(3, truths, found=0.95, noise=1, wrong=0)
    forth, back = compare(poor, good, truths, resamples=200), compare(good, poor, truths, resamples=200)
    for name in ("ap50", "ap", "recall", "precision", "landmark_error"):
        assert forth[name].verdict == "B is better"
        assert back[name].verdict == "A is better"
        assert forth[name].difference == pytest.approx(-back[name].difference)
        assert forth[name].low == pytest.approx(-back[name].high, abs=1e-9)
    assert forth["ap50"].b_higher == 1.0
    assert forth["landmark_error"].b_higher == 0.0


def test_two_samples_of_the_same_quality_seldom_differ():
    """About one interval of 95 % in twenty leaves out 0."""
    called = []
    for seed in range(20):
        truths = random_set(seed, 40, landmarks=False)
        a, b = (random_predictions(1000 + 2 * seed + side, truths) for side in range(2))
        called.append(compare(a, b, truths, resamples=100, seed=seed)["ap50"].better)
    # more than 5 of 20 at 5 % each has a chance of 1 in 3,000
    assert called.count("none") >= 15


def test_pairing_makes_the_interval_narrow():
    truths = random_set(2, 60)
    a = random_predictions(1, truths)
    b = [replace(faces, scores=faces.scores * np.float32(0.999)) for faces in a]
    paired = compare(a, b, truths, resamples=100)["ap50"]
    unpaired = compare(a, random_predictions(9, truths), truths, resamples=100)["ap50"]
    assert paired.high - paired.low < 0.1 * (unpaired.high - unpaired.low)


def test_the_seed_decides():
    truths = random_set(2, 20)
    a, b = random_predictions(1, truths), random_predictions(2, truths)
    assert compare(a, b, truths, resamples=30, seed=1) == compare(a, b, truths, resamples=30, seed=1)
    assert compare(a, b, truths, resamples=30, seed=1) != compare(a, b, truths, resamples=30, seed=2)


def test_a_set_with_few_faces_is_not_judged_from_the_resamples_that_have_one():
    truths = [labelled("0.jpg", [[0, 0, 9, 9]]), *(labelled(f"{n}.jpg", []) for n in range(1, 6))]
    hit = Faces(np.array([[0, 0, 9, 9]], np.float32), np.ones(1, np.float32), np.zeros((1, 5, 2), np.float32))
    result = compare([hit] + [Faces()] * 5, [Faces()] * 6, truths, resamples=300)
    # a picture is missing from a third of the resamples: enough to go by
    assert result["ap50"].better == "A"
    nothing = compare([Faces()] * 5, [Faces()] * 5, truths[1:], resamples=10)
    assert all(row.verdict == "not measured" for row in nothing.differences)
    assert math.isnan(nothing["ap50"].a)


def test_all_of_it_is_json():
    truths = random_set(2, 6, landmarks=False)
    result = compare(random_predictions(1, truths), random_predictions(2, truths), truths, resamples=5)
    plain = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert [row["measure"] for row in plain["differences"]] == [
        "ap50",
        "ap",
        "recall",
        "precision",
        "landmark_error",
        "landmark_error_large",
    ]
    assert plain["differences"][4]["a"] is None
    assert plain["differences"][4]["verdict"] == "not measured"
    assert plain["resamples"] == 5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"resamples": 0}, "resamples is 0"),
        ({"confidence": 95}, "confidence is 95"),
        ({"b": []}, "2 predictions of A and 0 of B for 2 pictures"),
        ({"a": [], "b": [], "truths": []}, "no pictures to compare on"),
    ],
)
def test_wrong_arguments_are_refused_in_words(change, says):
    truths = random_set(0, 2)
    arguments = {"a": [Faces()] * 2, "b": [Faces()] * 2, "truths": truths, **change}
    with pytest.raises(UsageError, match=says):
        compare(**arguments)


def test_scores_that_cannot_be_ranked_are_refused():
    truths = random_set(0, 1)
    broken = [Faces(np.zeros((1, 4), np.float32), np.array([np.nan], np.float32), np.zeros((1, 5, 2), np.float32))]
    with pytest.raises(UsageError, match="not a finite number"):
        compare(broken, broken, truths, resamples=1)


def test_an_unknown_measure_is_a_key_error():
    truths = random_set(0, 2)
    with pytest.raises(KeyError):
        compare([Faces()] * 2, [Faces()] * 2, truths, resamples=1)["speed"]
