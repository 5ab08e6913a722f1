"""Average precision against hand-computed cases and against a slow implementation written differently."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinastream.errors import UsageError
from retinastream.evaluation.average_precision import average_precision, box_iou, recall_by_height

Array = npt.NDArray[np.float64]
A, B, C = [0.0, 0, 10, 10], [20.0, 0, 30, 10], [40.0, 0, 50, 10]
NOWHERE = [80.0, 80, 90, 90]
HALF_OF_A = [0.0, 0, 10, 5]


def picture(*rows: tuple[list[float], float]) -> tuple[Array, Array]:
    return np.array([r[0] for r in rows]).reshape(-1, 4), np.array([r[1] for r in rows])


def boxes(*rows: list[float]) -> Array:
    return np.array(rows).reshape(-1, 4)


@pytest.mark.parametrize(
    ("predictions", "truths", "expected", "why"),
    [
        ([picture((A, 0.9), (B, 0.8))], [boxes(A, B)], 1.0, "every face found and nothing else"),
        ([picture((A, 0.9), (B, 0.8), (NOWHERE, 0.1))], [boxes(A, B)], 1.0, "a false one below every right one"),
        ([picture((NOWHERE, 0.9), (A, 0.8))], [boxes(A)], 0.5, "a false one above the only right one"),
        ([picture((A, 0.9))], [boxes(A, B)], 0.5, "half of the faces found"),
        ([picture((A, 0.9), (NOWHERE, 0.8), (B, 0.7))], [boxes(A, B)], 0.5 + 0.5 * 2 / 3, "a false one between"),
        (
            [picture((NOWHERE, 0.9), (A, 0.8), (B, 0.7))],
            [boxes(A, B)],
            2 / 3,
            "the envelope lifts the precision 1/2 at recall 1/2 to the 2/3 at recall 1",
        ),
        ([picture((A, 0.9), (A, 0.8), (B, 0.7))], [boxes(A, B)], 0.5 + 0.5 * 2 / 3, "a second box on a face is false"),
        (
            [picture((NOWHERE, 0.6)), picture((A, 0.9))],
            [boxes(), boxes(A)],
            1.0,
            "ranked over the set: the false one of the first picture comes after",
        ),
        (
            [picture((NOWHERE, 0.9)), picture((A, 0.6))],
            [boxes(), boxes(A)],
            0.5,
            "ranked over the set: the false one of the first picture comes first",
        ),
        ([picture((A, 0.5))], [boxes(B)], 0.0, "a box of another face"),
        ([picture((HALF_OF_A, 0.5))], [boxes(A)], 1.0, "an overlap of exactly the limit is enough"),
        ([picture()], [boxes(A)], 0.0, "nothing predicted"),
        ([picture((A, 0.9)), picture((A, 0.9))], [boxes(A), boxes(B)], 0.5, "a box does not match across pictures"),
    ],
)
def test_area_of_small_sets(
    predictions: list[tuple[Array, Array]], truths: list[Array], expected: float, why: str
) -> None:
    assert average_precision(predictions, truths).ap == pytest.approx(expected), why


def test_curve_has_one_entry_per_prediction_best_first() -> None:
    result = average_precision([picture((B, 0.7), (A, 0.9), (NOWHERE, 0.8))], [boxes(A, B)])
    assert result.scores.tolist() == [0.9, 0.8, 0.7]
    assert result.precision.tolist() == pytest.approx([1, 1 / 2, 2 / 3])
    assert result.recall.tolist() == [0.5, 0.5, 1.0]
    assert result.truths == 2


def test_equal_scores_rank_in_the_order_given() -> None:
    right_first = average_precision([picture((A, 0.5), (NOWHERE, 0.5))], [boxes(A)])
    false_first = average_precision([picture((NOWHERE, 0.5), (A, 0.5))], [boxes(A)])
    assert (right_first.ap, false_first.ap) == (1.0, 0.5)
    across = average_precision([picture((NOWHERE, 0.5)), picture((A, 0.5))], [boxes(), boxes(A)])
    assert across.ap == 0.5


def test_best_overlap_decides_even_when_that_face_is_taken() -> None:
    near_a, between = [0.0, 0, 10, 10], [0.0, 0, 11, 10]
    shifted = [3.0, 0, 13, 10]  # also overlaps `between` by more than a half
    result = average_precision([picture((near_a, 0.9), (between, 0.8))], [boxes(A, shifted)])
    assert box_iou(boxes(between), boxes(shifted))[0, 0] > 0.5
    assert result.recall.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("predictions", "truths", "flags", "expected", "why"),
    [
        (
            picture((A, 0.9), (B, 0.8)),
            boxes(A, B),
            [True, False],
            1.0,
            "a box on an ignored face is neither right nor false",
        ),
        (picture((A, 0.9), (A, 0.8), (B, 0.7)), boxes(A, B), [True, False], 1.0, "nor is a second box on it"),
        (picture((B, 0.8)), boxes(A, B), [True, False], 1.0, "an ignored face need not be found"),
        (picture((NOWHERE, 0.9), (B, 0.8)), boxes(A, B), [True, False], 0.5, "a box on nothing is false all the same"),
    ],
)
def test_ignored_faces(
    predictions: tuple[Array, Array], truths: Array, flags: list[bool], expected: float, why: str
) -> None:
    result = average_precision([predictions], [truths], ignore=[np.array(flags)])
    assert result.ap == pytest.approx(expected), why
    assert result.truths == 1


@pytest.mark.parametrize(
    ("predictions", "truths", "ignore", "why"),
    [
        ([], [], None, "no pictures"),
        ([picture((A, 0.9))], [boxes()], None, "a picture without a face"),
        ([picture((A, 0.9))], [boxes(A)], [np.array([True])], "only an ignored face"),
    ],
)
def test_without_a_face_to_find_the_area_is_undefined(
    predictions: list[tuple[Array, Array]], truths: list[Array], ignore: list[npt.NDArray[np.bool_]] | None, why: str
) -> None:
    result = average_precision(predictions, truths, ignore=ignore)
    assert math.isnan(result.ap), why
    assert result.truths == 0


def test_overlap_of_boxes() -> None:
    overlap = box_iou(boxes(A, HALF_OF_A, [3, 3, 3, 9]), boxes(A, B, [5, 0, 15, 10], [3, 3, 3, 9]))
    assert overlap.shape == (3, 4)
    assert overlap[0].tolist() == pytest.approx([1, 0, 1 / 3, 0])
    assert overlap[1].tolist() == pytest.approx([0.5, 0, 0.2, 0])
    assert not overlap[2].any(), "a box without area overlaps nothing, not even itself"
    assert box_iou(boxes(), boxes(A)).shape == (0, 1)


def test_recall_by_height_counts_each_face_in_its_bin() -> None:
    small, medium, tall = [0.0, 0, 10, 10], [20.0, 0, 40, 20], [60.0, 0, 90, 40]
    truths = [boxes(small, medium), boxes(medium, tall)]
    found = [picture((small, 0.9), (medium, 0.3)), picture((medium, 0.8), (medium, 0.7), (NOWHERE, 0.9))]
    result = recall_by_height(found, truths, [10, 20, 40, np.inf], 0.5)
    assert result.truths.tolist() == [1, 2, 1]
    assert result.found.tolist() == [1, 1, 0]
    assert result.recall.tolist() == [1.0, 0.5, 0.0]
    everything = recall_by_height(found, truths, [10, 20, 40, np.inf], 0.0)
    assert everything.found.tolist() == [1, 2, 0], "a lower threshold also counts the box with score 0.3"


def test_recall_by_height_leaves_out_ignored_faces_and_heights_outside_the_edges() -> None:
    truths, tall = boxes(A, B, [0, 50, 10, 90]), [0.0, 50, 10, 90]
    result = recall_by_height(
        [picture((A, 0.9), (B, 0.9), (tall, 0.9))],
        [truths],
        [5, 15, 25],
        0.5,
        ignore=[np.array([True, False, False])],
    )
    assert result.truths.tolist() == [1, 0]
    assert result.found.tolist() == [1, 0]
    assert math.isnan(result.recall[1]), "no face of that height"


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: average_precision([picture()], []), "1 pictures have predictions, 0 truths"),
        (lambda: average_precision([picture()], [boxes()], 0.0), "iou is 0.0"),
        (lambda: average_precision([(boxes(A), np.zeros(2))], [boxes()]), "picture 0: boxes, scores"),
        (lambda: average_precision([picture((A, math.nan))], [boxes(A)]), "picture 0: a score is not a finite number"),
        (lambda: average_precision([picture()], [boxes(A)], ignore=[np.zeros(2, bool)]), "ignore flags have shapes"),
        (lambda: recall_by_height([picture()], [boxes(A)], [10], 0.5), r"edges \[10\]"),
        (lambda: recall_by_height([picture()], [boxes(A)], [20, 10], 0.5), r"edges \[20, 10\]"),
    ],
)
def test_wrong_arguments_are_refused_with_what_was_given(call: object, says: str) -> None:
    assert callable(call)
    with pytest.raises(UsageError, match=says):
        call()


def slow_iou(p: list[float], t: list[float]) -> float:
    width = min(p[2], t[2]) - max(p[0], t[0])
    height = min(p[3], t[3]) - max(p[1], t[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / ((p[2] - p[0]) * (p[3] - p[1]) + (t[2] - t[0]) * (t[3] - t[1]) - width * height)


def slow_average_precision(
    predictions: list[tuple[Array, Array]], truths: list[Array], ignore: list[npt.NDArray[np.bool_]], limit: float
) -> float:
    """One prediction after the other, and the area as the mean over truths of the best precision at their recall."""
    ranking = [(-s, n, k) for n, (_, scores) in enumerate(predictions) for k, s in enumerate(scores.tolist())]
    used: set[tuple[int, int]] = set()
    right = 0
    points: list[tuple[int, float, int]] = []
    for _, n, k in sorted(ranking):
        overlaps = [slow_iou(predictions[n][0][k].tolist(), t) for t in truths[n].tolist()]
        best = max(range(len(overlaps)), key=overlaps.__getitem__) if overlaps else -1
        if best >= 0 and overlaps[best] >= limit:
            if ignore[n][best]:
                continue
            if (n, best) not in used:
                used.add((n, best))
                right += 1
        points.append((right, right / (points[-1][2] + 1 if points else 1), points[-1][2] + 1 if points else 1))
    total = sum(int((~f).sum()) for f in ignore)
    if total == 0:
        return math.nan
    best_at = [max([p for r, p, _ in points if r >= wanted], default=0.0) for wanted in range(1, total + 1)]
    return sum(best_at) / total


# A coarse grid of positions and scores, so that overlaps at the limit, doubles and equal scores are frequent.
a_box = st.builds(
    lambda x, y, w, h: [x, y, x + w, y + h],
    st.integers(0, 6),
    st.integers(0, 3),
    st.integers(1, 5),
    st.integers(1, 5),
)
a_picture = st.tuples(
    st.lists(st.tuples(a_box, st.integers(1, 6)), max_size=7), st.lists(st.tuples(a_box, st.booleans()), max_size=5)
)


@settings(max_examples=300, deadline=None)
@given(st.lists(a_picture, max_size=4), st.sampled_from([0.3, 0.5, 0.75, 1.0]))
def test_agrees_with_a_slow_implementation(
    pictures: list[tuple[list[tuple[list[int], int]], list[tuple[list[int], bool]]]], limit: float
) -> None:
    predictions = [picture(*(([float(v) for v in b], s / 8) for b, s in p)) for p, _ in pictures]
    truths = [boxes(*([float(v) for v in b] for b, _ in t)) for _, t in pictures]
    ignore = [np.array([f for _, f in t], bool) for _, t in pictures]
    expected = slow_average_precision(predictions, truths, ignore, limit)
    result = average_precision(predictions, truths, limit, ignore=ignore)
    assert result.ap == pytest.approx(expected, nan_ok=True)
    if result.truths:
        assert 0 <= result.ap <= 1
        assert bool((np.diff(result.recall) >= 0).all())
        assert bool((np.diff(result.scores) <= 0).all())
