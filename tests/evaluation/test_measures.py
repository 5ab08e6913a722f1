"""All measures of a labelled set: hand-computed cases, a slow implementation, and a public model's known figures."""

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from retinastream.errors import UsageError
from retinastream.evaluation.average_precision import average_precision, finders
from retinastream.evaluation.labelled_set import LabelledPicture, read_labelled_set
from retinastream.evaluation.landmark_error import landmark_distances
from retinastream.evaluation.measures import HEIGHT_EDGES, IOUS, measure, operating_point, point_of_precision
from retinastream.evaluation.predict import predict
from retinastream.types import Faces

Array = npt.NDArray[np.float64]
A, B, C = [0.0, 0, 10, 10], [100.0, 0, 150, 60], [200.0, 0, 220, 20]
NOWHERE = [400.0, 400, 420, 420]
POINTS = [[2.0, 3], [8, 3], [5, 5], [3, 8], [7, 8]]


def labelled(
    boxes: list[list[float]], *, landmarks: object = None, ignore: list[bool] | None = None, name: str = "p.jpg"
) -> LabelledPicture:
    n = len(boxes)
    points = np.full((n, 5, 2), np.nan) if landmarks is None else np.array(landmarks, float)
    return LabelledPicture(
        name,
        Path(name),
        640,
        480,
        np.array(boxes, np.float32).reshape(n, 4),
        points.astype(np.float32).reshape(n, 5, 2),
        np.array(ignore or [False] * n, np.bool_),
        np.ones(n, np.float32),
    )


def found(*rows: tuple[list[float], float], landmarks: object = None) -> Faces:
    n = len(rows)
    points = np.zeros((n, 5, 2)) if landmarks is None else np.array(landmarks, float)
    return Faces(
        np.array([r[0] for r in rows], np.float32).reshape(n, 4),
        np.array([r[1] for r in rows], np.float32),
        points.astype(np.float32).reshape(n, 5, 2),
    )


def shifted(points: list[list[float]], *offsets: tuple[float, float]) -> list[list[float]]:
    return [[x + dx, y + dy] for (x, y), (dx, dy) in zip(points, offsets, strict=True)]


def test_perfect_predictions_are_perfect_in_everything() -> None:
    rng = np.random.default_rng(5)
    predictions, truths = [], []
    for n in range(9):
        # In columns of their own, so that no box overlaps another.
        sizes = rng.uniform(4, 290, (12, 2))
        starts = np.column_stack([np.arange(12) * 300, rng.uniform(0, 50, 12)])
        boxes = np.column_stack([starts, starts + sizes])
        points = starts[:, None] + rng.uniform(0, 1, (12, 5, 2)) * sizes[:, None]
        truths.append(labelled(boxes.tolist(), landmarks=points, name=f"{n}.jpg"))
        predictions.append(Faces(truths[-1].boxes, rng.uniform(0.6, 1, 12).astype(np.float32), truths[-1].landmarks))
    result = measure(predictions, truths)
    assert (result.ap50, result.ap) == (1.0, 1.0)
    assert set(result.ap_by_iou.values()) == {1.0}
    assert (result.at_score.precision, result.at_score.recall, result.at_score.f1) == (1.0, 1.0, 1.0)
    assert result.at_precision is not None
    assert result.at_precision.recall == 1.0
    assert np.nanmin(result.recall_by_height.recall) == 1.0
    assert result.recall_by_height.truths.sum() == result.counts.faces == 108
    assert (result.landmarks.faces, result.landmarks.mean, result.landmarks.median) == (108, 0.0, 0.0)
    assert result.landmarks.per_point == (0.0,) * 5


def test_average_precision_over_overlaps_is_that_of_each() -> None:
    # Overlaps of 1, 0.8 and 0.6 with their faces: right up to an IoU of 0.95, 0.8 and 0.6.
    predictions = [found((A, 0.9), ([100.0, 0, 150, 48], 0.8), ([200.0, 0, 220, 12], 0.7))]
    result = measure(predictions, [labelled([A, B, C])])
    expected = {iou: (3 if iou <= 0.6 else 2 if iou <= 0.8 else 1) / 3 for iou in IOUS}
    assert result.ap_by_iou == pytest.approx(expected)
    assert list(result.ap_by_iou) == [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
    assert result.ap == pytest.approx((3 * 3 + 4 * 2 + 3 * 1) / 30)
    assert result.ap50 == 1.0


def test_operating_points_by_hand() -> None:
    predictions = [found((A, 0.9), (NOWHERE, 0.75), (B, 0.5), (NOWHERE, 0.25))]
    result = measure(predictions, [labelled([A, B, C])], precision_target=0.6)
    point = result.at_score
    assert (point.found, point.wrong, point.missed) == (2, 1, 1), "a score of exactly the threshold counts"
    assert point.precision == pytest.approx(2 / 3)
    assert point.recall == pytest.approx(2 / 3)
    assert point.f1 == pytest.approx(2 / 3)
    assert result.at_precision is not None
    assert result.at_precision.threshold == 0.5, "the precisions are 1, 1/2, 2/3, 1/2: the lowest threshold counts"
    assert operating_point(result.curve, 0.6).precision == 0.5
    above_all = operating_point(result.curve, 0.95)
    assert (above_all.found, above_all.wrong, above_all.missed, above_all.recall, above_all.f1) == (0, 0, 3, 0.0, 0.0)
    assert math.isnan(above_all.precision)


def test_a_precision_that_no_threshold_has_is_none() -> None:
    result = measure([found((NOWHERE, 0.9), (A, 0.8))], [labelled([A])], precision_target=0.8)
    assert result.at_precision is None
    assert result.to_dict()["at_precision"] is None


def test_predictions_of_equal_score_are_taken_together_for_a_precision() -> None:
    # In the order given the right one comes first, with precision 1; but no threshold separates the two.
    curve = average_precision([(np.array([A, NOWHERE]), np.array([0.5, 0.5]))], [np.array([A])])
    assert curve.precision.tolist() == [1.0, 0.5]
    assert point_of_precision(curve, 0.9) is None
    half = point_of_precision(curve, 0.5)
    assert half is not None
    assert (half.threshold, half.precision, half.recall) == (0.5, 0.5, 1.0)


def test_recall_by_height_counts_at_the_score_and_at_any() -> None:
    heights = [4.0, 8, 15.9, 16, 40, 100, 200, 256, 1000]
    truths = [labelled([[2000.0 * n, 0, 2000.0 * n + 50, h] for n, h in enumerate(heights)])]
    rows = [([2000.0 * n, 0, 2000.0 * n + 50, h], 0.9 if n % 2 else 0.1) for n, h in enumerate(heights)]
    result = measure([found(*rows)], truths)
    assert list(HEIGHT_EDGES) == [0, 8, 16, 32, 64, 128, 256, math.inf]
    assert result.recall_by_height.truths.tolist() == [1, 2, 1, 1, 1, 1, 2]
    assert result.recall_by_height.found.tolist() == [0, 1, 1, 0, 1, 0, 1]
    assert result.recall_by_height_any_score.found.tolist() == [1, 2, 1, 1, 1, 1, 2]


def test_landmark_error_by_hand() -> None:
    # A is 10 x 10: sqrt(area) is 10. B is 50 x 60, so 3000 ** 0.5.
    off = shifted(POINTS, (3, 4), (0, 1), (0, 0), (-2, 0), (0, -2))
    on_b = [[x + 100, y] for x, y in POINTS]
    off_b = shifted(on_b, *[(0.0, 6.0)] * 5)
    truths = [labelled([A, B], landmarks=[POINTS, on_b])]
    result = measure([found((A, 0.9), (B, 0.8), landmarks=[off, off_b])], truths)
    a, b = (5 + 1 + 0 + 2 + 2) / 5 / 10, 6 / 3000**0.5
    assert result.landmarks.faces == 2
    assert result.landmarks.mean == pytest.approx((a + b) / 2)
    assert result.landmarks.median == pytest.approx((a + b) / 2)
    assert result.landmarks.per_point == pytest.approx(tuple((d / 10 + b) / 2 for d in (5, 1, 0, 2, 2)))
    assert (result.landmarks_large.faces, result.landmarks_large.mean) == (1, pytest.approx(b))
    by_height = [(e.faces, e.mean) for e in result.landmarks_by_height if e.faces]
    assert by_height == [(1, pytest.approx(a)), (1, pytest.approx(b))]


def test_landmarks_are_those_of_the_best_scored_prediction_on_the_face() -> None:
    far = shifted(POINTS, *[(5.0, 0.0)] * 5)
    truths = [labelled([A], landmarks=[POINTS])]
    # The worse box with the better score finds the face; the order in which they come does not matter.
    low = measure([found((A, 0.8), ([0.0, 0, 10, 6], 0.9), landmarks=[POINTS, far])], truths)
    assert low.landmarks.mean == pytest.approx(0.5)
    high = measure([found(([0.0, 0, 10, 6], 0.7), (A, 0.8), landmarks=[far, POINTS])], truths)
    assert high.landmarks.mean == 0.0


@pytest.mark.parametrize(
    ("truth", "prediction", "why"),
    [
        (labelled([A]), found((A, 0.9), landmarks=[POINTS]), "no landmarks are labelled"),
        (labelled([A], landmarks=[POINTS], ignore=[True]), found((A, 0.9), landmarks=[POINTS]), "an ignored face"),
        (labelled([A], landmarks=[POINTS]), found((B, 0.9), landmarks=[POINTS]), "the face was not found"),
        (labelled([A], landmarks=[POINTS]), found(([0.0, 0, 10, 4.9], 0.9), landmarks=[POINTS]), "overlap below 0.5"),
        (labelled([A], landmarks=[POINTS]), found((A, 0.9), landmarks=[[[np.nan] * 2] * 5]), "found without landmarks"),
        (labelled([A], landmarks=[[[np.nan, 1], *POINTS[1:]]]), found((A, 0.9), landmarks=[POINTS]), "a point is NaN"),
    ],
)
def test_faces_without_both_landmarks_are_not_compared(truth: LabelledPicture, prediction: Faces, why: str) -> None:
    error = measure([prediction], [truth]).landmarks
    assert error.faces == 0, why
    assert math.isnan(error.mean)


def test_ignored_faces_count_nowhere() -> None:
    truths = [labelled([A, B], landmarks=[POINTS, POINTS], ignore=[True, False])]
    result = measure([found((A, 0.9), (B, 0.8))], truths)
    assert (result.ap50, result.at_score.precision, result.at_score.wrong) == (1.0, 1.0, 0)
    assert (result.counts.faces, result.counts.ignored, result.counts.landmarked, result.counts.predictions) == (
        1,
        1,
        1,
        2,
    )
    assert result.recall_by_height.truths.sum() == 1


def test_a_set_without_faces_has_nothing_to_measure() -> None:
    plain = measure([found((A, 0.9))], [labelled([])]).to_dict()
    assert (plain["ap50"], plain["ap"], plain["at_score"]["recall"]) == (None, None, None)
    assert plain["at_score"]["wrong"] == 1


def test_dictionary_survives_strict_json() -> None:
    plain = measure([found((A, 0.9)), found()], [labelled([A, B]), labelled([])]).to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["ap_by_iou"]["0.50"] == plain["ap50"] == 0.5
    assert plain["counts"] == {"pictures": 2, "faces": 2, "ignored": 0, "landmarked": 0, "predictions": 1}
    assert plain["recall_by_height"][-1] == {"from": 256.0, "to": None, "faces": 0, "found": 0, "recall": None}


def test_lengths_that_differ_are_refused() -> None:
    with pytest.raises(UsageError, match="2 predictions for 1 pictures"):
        measure([found(), found()], [labelled([A])])
    with pytest.raises(UsageError, match="0 predictions for 1 pictures"):
        landmark_distances([], [labelled([A])])


def test_finders_are_indices_into_the_predictions_as_given() -> None:
    boxes, scores = np.array([NOWHERE, A, A, B]), np.array([0.99, 0.2, 0.7, 0.1])
    flags = np.array([False, False, True])
    assert finders((boxes, scores), np.array([C, A, B])).tolist() == [-1, 2, 3]
    assert finders((boxes, scores), np.array([C, A, B]), ignore=flags).tolist() == [-1, 2, -1]
    assert finders((boxes, scores), np.zeros((0, 4))).tolist() == []


def slow_overlap(p: list[float], t: list[float]) -> float:
    w, h = min(p[2], t[2]) - max(p[0], t[0]), min(p[3], t[3]) - max(p[1], t[1])
    if w <= 0 or h <= 0:
        return 0.0
    return w * h / ((p[2] - p[0]) * (p[3] - p[1]) + (t[2] - t[0]) * (t[3] - t[1]) - w * h)


def slow_measures(predictions: list[Faces], truths: list[LabelledPicture], iou: float) -> dict[str, object]:
    """Judge the predictions one by one, best first over all pictures; then areas and counts as sums over faces."""
    ranked = sorted(
        ((float(s), n, i) for n, f in enumerate(predictions) for i, s in enumerate(f.scores)), key=lambda r: -r[0]
    )
    wanted = {(n, k) for n, p in enumerate(truths) for k, skip in enumerate(p.ignore) if not skip}
    seen: dict[tuple[int, int], tuple[int, float]] = {}
    judged = []
    for score, n, i in ranked:
        overlaps = [slow_overlap(predictions[n].boxes[i].tolist(), t) for t in truths[n].boxes.tolist()]
        best = max(range(len(overlaps)), key=lambda k: (overlaps[k], -k), default=-1)
        if best >= 0 and overlaps[best] >= iou:
            if (n, best) not in wanted:
                continue
            judged.append((score, (n, best) not in seen))
            seen.setdefault((n, best), (i, score))
        else:
            judged.append((score, False))
    points = [
        (sum(r for _, r in judged[: k + 1]) / (k + 1), sum(r for _, r in judged[: k + 1])) for k in range(len(judged))
    ]
    area = sum(max([p for p, hits in points if hits >= k], default=0.0) for k in range(1, len(wanted) + 1))
    heights = {key: truths[key[0]].boxes[key[1], 3] - truths[key[0]].boxes[key[1], 1] for key in wanted}
    errors = []
    for (n, k), (i, _) in seen.items():
        box, points_of = truths[n].boxes[k].tolist(), truths[n].landmarks[k]
        if not np.isnan(points_of).any():
            gaps = [math.dist(p, q) for p, q in zip(points_of, predictions[n].landmarks[i], strict=True)]
            errors.append(sum(gaps) / 5 / math.sqrt((box[2] - box[0]) * (box[3] - box[1])))
    return {
        "ap": area / len(wanted),
        "above": [r for s, r in judged if s >= 0.5],
        "bins": [
            sum(low <= heights[key] < high for key, (_, score) in seen.items() if score >= 0.5)
            for low, high in pairwise(HEIGHT_EDGES)
        ],
        "errors": errors,
        "wanted": len(wanted),
    }


def random_set(seed: int) -> tuple[list[Faces], list[LabelledPicture]]:
    rng = np.random.default_rng(seed)
    predictions, truths = [], []
    for n in range(8):
        count = int(rng.integers(0, 9))
        starts = rng.uniform(0, 200, (count, 2))
        boxes = np.column_stack([starts, starts + rng.uniform(4, 90, (count, 2))])
        points = rng.uniform(0, 200, (count, 5, 2))
        points[rng.random(count) < 0.3] = np.nan
        truths.append(
            labelled(boxes.tolist(), landmarks=points, ignore=(rng.random(count) < 0.2).tolist(), name=f"{n}.jpg")
        )
        near = np.repeat(boxes, 3, axis=0) + rng.normal(0, 4, (3 * count, 4))
        far = rng.uniform(0, 100, (5, 4)) + np.array([0, 0, 100, 100])
        rows = np.concatenate([near, far]).astype(np.float32)
        scores = rng.random(len(rows)).astype(np.float32)
        order = rng.permutation(len(rows))
        marks = rng.uniform(0, 200, (len(rows), 5, 2)).astype(np.float32)
        predictions.append(Faces(rows[order], scores, marks))
    return predictions, truths


@pytest.mark.parametrize("seed", range(6))
def test_agrees_with_a_slow_implementation(seed: int) -> None:
    predictions, truths = random_set(seed)
    result = measure(predictions, truths)
    for iou in IOUS:
        assert result.ap_by_iou[iou] == pytest.approx(slow_measures(predictions, truths, iou)["ap"]), iou
    slow = slow_measures(predictions, truths, 0.5)
    above, errors = slow["above"], slow["errors"]
    assert isinstance(above, list)
    assert isinstance(errors, list)
    assert (result.at_score.found, result.at_score.wrong) == (sum(above), len(above) - sum(above))
    assert result.at_score.missed == slow["wanted"] - sum(above)  # type: ignore[operator]
    assert result.recall_by_height.found.tolist() == slow["bins"]
    assert result.landmarks.faces == len(errors) > 0
    assert result.landmarks.mean == pytest.approx(np.mean(errors), rel=1e-5)
    assert result.landmarks.median == pytest.approx(np.median(errors), rel=1e-5)


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(("clip", "expected"), [(False, 0.6535), (True, 0.6576)])
def test_public_checkpoint_on_photographs_of_masks(data: Path, real_model: Path, clip: bool, expected: float) -> None:
    from retinastream.pipeline.detector import Detector

    truths = read_labelled_set(data / "facemask" / "boxes.json")
    assert (len(truths), truths.faces) == (500, 2210)
    with Detector(real_model, size="native", threshold=0.02, clip=clip) as detector:
        predictions = predict(detector, [picture.path for picture in truths.pictures])
    assert measure(predictions, truths).ap50 == pytest.approx(expected, abs=0.002)
