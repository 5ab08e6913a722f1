"""The WIDER FACE protocol against hand-computed cases, a slow implementation, and the official ground truth."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinastream.errors import InputError, MissingPackageError, UsageError
from retinastream.evaluation.wider_face import evaluate, pixel_iou
from retinastream.evaluation.wider_text import read_predictions, write_predictions
from retinastream.evaluation.wider_truth import SETTINGS, EventTruth, GroundTruth, PictureTruth, read_ground_truth

Array = npt.NDArray[np.float64]
Found = dict[str, dict[str, Array]]
# Side 9 counts as 10 pixels, so areas and overlaps of these are round numbers.
A, B, C = [0.0, 0, 9, 9], [20.0, 0, 9, 9], [40.0, 0, 9, 9]
NOWHERE = [80.0, 80, 9, 9]
HALF_OF_A = [0.0, 0, 9, 4]


def face_picture(name: str, boxes: list[list[float]], *counted: list[int]) -> PictureTruth:
    """Counted indices for easy, medium and hard; one list is for all three."""
    lists = counted * 3 if len(counted) == 1 else counted
    kept = {s: np.array(i, np.int64) for s, i in zip(SETTINGS, lists, strict=True)}
    return PictureTruth(name, np.array(boxes, np.float64).reshape(-1, 4), kept)


def one_event(*pictures: PictureTruth) -> GroundTruth:
    return GroundTruth((EventTruth("e", pictures),))


def rows(*boxes: tuple[list[float], float]) -> Array:
    return np.array([[*box, score] for box, score in boxes], np.float64).reshape(-1, 5)


@pytest.mark.parametrize(
    ("truth", "found", "expected", "why"),
    [
        (one_event(face_picture("p", [A, B], [0, 1])), {"p": rows((A, 0.9), (B, 0.2))}, 1.0, "everything found"),
        (one_event(face_picture("p", [A], [0])), {"p": rows((NOWHERE, 0.9), (A, 0.2))}, 0.5, "a false one first"),
        (one_event(face_picture("p", [A], [0])), {"p": rows((A, 0.9), (NOWHERE, 0.2))}, 1.0, "a false one last"),
        (
            one_event(face_picture("p", [A, B], [0, 1])),
            {"p": rows((A, 0.9), (NOWHERE, 0.5), (B, 0.1))},
            0.5 + 0.5 * 2 / 3,
            "a false one between",
        ),
        (
            one_event(face_picture("p", [A, B], [0, 1])),
            {"p": rows((A, 0.9), (A, 0.5), (B, 0.1))},
            0.5 + 0.5 * 2 / 3,
            "a second box on a face counts as false",
        ),
        (
            one_event(face_picture("p", [A], [0])),
            {"p": rows((HALF_OF_A, 0.9))},
            1.0,
            "an overlap of exactly 0.5 is enough",
        ),
        (
            one_event(face_picture("p", [A, B], [1])),
            {"p": rows((A, 0.9), (A, 0.8), (B, 0.1))},
            1.0,
            "boxes on an ignored face do not count, however many",
        ),
        (
            one_event(face_picture("p", [A, B], [1])),
            {"p": rows((NOWHERE, 0.9), (B, 0.1))},
            0.5,
            "a box on nothing counts although there is an ignored face",
        ),
        (
            one_event(face_picture("p", [A], [0]), face_picture("q", [A], [0])),
            {"p": rows((A, 0.9), (NOWHERE, 0.1))},
            0.5,
            "the picture without predictions still has its face to be found",
        ),
        (
            one_event(face_picture("p", [A], [0]), face_picture("q", [], [])),
            {"p": rows((A, 0.1)), "q": rows((A, 0.9))},
            1.0,
            "a picture without any labelled face is left out, as officially",
        ),
        (
            one_event(face_picture("p", [A], [0]), face_picture("q", [B], [])),
            {"p": rows((A, 0.1)), "q": rows((A, 0.9))},
            0.5,
            "a picture with ignored faces only is not left out",
        ),
        (one_event(face_picture("p", [A], [0])), {"p": rows()}, 0.0, "an empty array of predictions"),
        (one_event(face_picture("p", [A], [0])), {}, 0.0, "no predictions at all"),
    ],
)
def test_area_of_small_sets(truth: GroundTruth, found: dict[str, Array], expected: float, why: str) -> None:
    result = evaluate({"e": found}, truth)
    assert result.ap == pytest.approx(dict.fromkeys(SETTINGS, expected)), why


def test_settings_differ_only_in_the_faces_that_count() -> None:
    truth = one_event(face_picture("p", [A, B, C], [0], [0, 1], [0, 1, 2]))
    result = evaluate({"e": {"p": rows((C, 0.9), (A, 0.5), (NOWHERE, 0.3), (B, 0.1))}}, truth)
    assert result.ap == pytest.approx({"easy": 1.0, "medium": 0.5 + 0.5 * 2 / 3, "hard": 2 / 3 + 1 / 3 * 3 / 4})
    assert [result.curves[s].hits[-1] for s in SETTINGS] == [1, 2, 3]
    assert [result.curves[s].proposals[-1] for s in SETTINGS] == [2, 3, 4]


def test_setting_without_a_face_is_undefined() -> None:
    result = evaluate({"e": {"p": rows((A, 0.9))}}, one_event(face_picture("p", [A], [], [0], [0])))
    assert math.isnan(result.ap["easy"])
    assert result.ap["hard"] == 1.0
    assert np.isnan(result.curves["easy"].precision).all(), "the only prediction is on an ignored face"


def test_equal_scores_enter_the_curve_together_in_any_order() -> None:
    truth = one_event(face_picture("p", [A], [0]))
    for order in ((A, NOWHERE), (NOWHERE, A)):
        assert evaluate({"e": {"p": rows(*((box, 0.5) for box in order))}}, truth).ap["hard"] == 0.5


def test_scores_are_stretched_over_the_whole_set() -> None:
    truth = one_event(face_picture("p", [A], [0]), face_picture("q", [B], [0]))
    curve = evaluate({"e": {"p": rows((A, 40.0)), "q": rows((B, -10.0), (NOWHERE, 15.0))}}, truth).curves["hard"]
    assert curve.thresholds[[0, 499, -1]].tolist() == [0.999, 0.5, 0.0]
    assert curve.proposals[[0, 498, 499, 998, 999]].tolist() == [1, 1, 2, 2, 3]
    assert curve.hits[[0, 998, 999]].tolist() == [1, 1, 2]
    assert curve.recall[-1] == 1.0
    assert curve.precision[-1] == pytest.approx(2 / 3)


def test_scores_closer_than_a_threshold_are_not_told_apart() -> None:
    truth = one_event(face_picture("p", [A], [0]))
    found = rows((NOWHERE, 1.0), (A, 0.9995), (NOWHERE, 0.0))
    assert evaluate({"e": {"p": found}}, truth).ap["hard"] == 0.5
    assert evaluate({"e": {"p": rows((A, 1.0), (NOWHERE, 0.9995), (C, 0.0))}}, truth).ap["hard"] == 0.5


def test_overlap_counts_both_end_pixels() -> None:
    overlap = pixel_iou(
        np.array([A, [0, 0, 0, 0]]), np.array([A, HALF_OF_A, [9.0, 0, 9, 9], [10.0, 0, 9, 9], [4, 4, -2, 9]])
    )
    assert overlap[0].tolist() == [1.0, 0.5, 10 / 190, 0.0, 0.0]
    assert overlap[1].tolist() == [1 / 100, 1 / 50, 0.0, 0.0, 0.0], "a box of width 0 is one pixel wide"


def test_perfect_predictions_give_exactly_one() -> None:
    rng = np.random.default_rng(3)
    pictures = []
    for n in range(37):
        boxes = np.column_stack([np.arange(11) * 60, rng.integers(0, 40, 11), rng.integers(1, 50, (11, 2))])
        limits = (0.3, 0.6, 0.9)
        pictures.append(
            face_picture(str(n), boxes.tolist(), *(np.flatnonzero(rng.random(11) < x).tolist() for x in limits))
        )
    truth = one_event(*pictures)
    found = {p.name: np.column_stack([p.boxes, rng.random(11)]) for p in pictures}
    assert evaluate({"e": found}, truth).ap == dict.fromkeys(SETTINGS, 1.0)
    same = {p.name: np.column_stack([p.boxes, np.full(11, 0.7)]) for p in pictures}
    assert evaluate({"e": same}, truth).ap == dict.fromkeys(SETTINGS, 1.0), "equal scores everywhere"


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ({"e": {"x": rows((A, 1.0))}}, "does not have e/x;"),
        ({"other": {"p": rows()}}, "does not have other;"),
        ({"e": {f"x{n}": rows() for n in range(7)}}, r"e/x4 and 2 more;"),
        ({"e": {"p": np.zeros((2, 4))}}, r"e/p: predictions have shape \(2, 4\); expected \(N, 5\)"),
        ({"e": {"p": rows((A, math.nan))}}, "e/p: a prediction is not finite"),
    ],
)
def test_wrong_predictions_are_refused_with_what_was_given(found: Found, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        evaluate(found, one_event(face_picture("p", [A], [0])))


def slow_overlap(p: list[float], t: list[float]) -> float:
    px2, py2, tx2, ty2 = p[0] + p[2], p[1] + p[3], t[0] + t[2], t[1] + t[3]
    w, h = min(px2, tx2) - max(p[0], t[0]) + 1, min(py2, ty2) - max(p[1], t[1]) + 1
    if w <= 0 or h <= 0:
        return 0.0
    return w * h / ((px2 - p[0] + 1) * (py2 - p[1] + 1) + (tx2 - t[0] + 1) * (ty2 - t[1] + 1) - w * h)


def slow_points(found: list[list[float]], truth: PictureTruth, setting: str) -> list[tuple[float, int, int]]:
    """After each prediction, best first: its score, how many have counted, how many faces are found."""
    points: list[tuple[float, int, int]] = []
    seen: set[int] = set()
    counting = 0
    for *box, score in sorted(found, key=lambda row: -row[4]):
        overlaps = [slow_overlap(box, t) for t in truth.boxes.tolist()]
        best = overlaps.index(max(overlaps))
        if overlaps[best] < 0.5:
            counting += 1
        elif best in truth.counted[setting].tolist():
            counting += 1
            seen.add(best)
        points.append((score, counting, len(seen)))
    return points


def slow_average_precision(found: Found, truth: GroundTruth, setting: str) -> float:
    """Threshold by threshold and picture by picture, then the area as a sum over the faces to be found."""
    scores = [row[4] for event in found.values() for array in event.values() for row in array.tolist()]
    low, high = (min(scores), max(scores)) if scores else (0.0, 1.0)
    total, pictures = 0, []
    for event in truth.events:
        for picture in event.pictures:
            total += len(picture.counted[setting])
            given = found.get(event.name, {}).get(picture.name, rows()).tolist()
            if given and len(picture.boxes):
                scaled = [[*row[:4], (row[4] - low) / (high - low) if high > low else 1.0] for row in given]
                pictures.append(slow_points(scaled, picture, setting))
    curve = []
    for t in range(1, 1001):
        reached = [[p for p in points if p[0] >= 1 - t / 1000] for points in pictures]
        curve.append((sum(p[-1][2] for p in reached if p), sum(p[-1][1] for p in reached if p)))
    precisions = {(h, n): h / n for h, n in set(curve) if n}
    best_at = [max([p for (h, _), p in precisions.items() if h >= k], default=0.0) for k in range(1, total + 1)]
    return sum(best_at) / total if total else math.nan


# Few positions and scores, so that overlaps at the limit, equal overlaps, doubles and equal scores are frequent.
a_box = st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(-1, 4), st.integers(0, 4)).map(list)
a_face = st.tuples(a_box, st.integers(0, 3))  # 0 counts in every setting, 3 in none
a_picture = st.tuples(st.lists(a_face, max_size=5), st.lists(st.tuples(a_box, st.integers(0, 2000)), max_size=6))


def agree(found: Found, truth: GroundTruth) -> None:
    result = evaluate(found, truth)
    for setting in SETTINGS:
        assert result.ap[setting] == pytest.approx(slow_average_precision(found, truth, setting), nan_ok=True)


@settings(max_examples=60, deadline=None)
@given(st.lists(a_picture, min_size=1, max_size=3), st.sampled_from([1, 500, 2000]))
def test_agrees_with_a_slow_implementation(pictures: list[Any], coarse: int) -> None:
    truths = [
        face_picture(
            str(n), [b for b, _ in f], *([k for k, (_, level) in enumerate(f) if level <= s] for s in range(3))
        )
        for n, (f, _) in enumerate(pictures)
    ]
    events = {str(n): rows(*((b, score // coarse) for b, score in given)) for n, (_, given) in enumerate(pictures)}
    truth = GroundTruth((EventTruth("a", tuple(truths[::2])), EventTruth("b", tuple(truths[1::2]))))
    agree(
        {"a": {p.name: events[p.name] for p in truths[::2]}, "b": {p.name: events[p.name] for p in truths[1::2]}}, truth
    )


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_a_slow_implementation_on_crowds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truths, found = [], {}
    for n in range(5):
        boxes = np.round(rng.uniform([0, 0, 5, 5], [150, 100, 40, 40], (20, 4)))
        kept = [np.flatnonzero(rng.random(20) < x).tolist() for x in (0.2, 0.5, 0.9)]
        truths.append(face_picture(str(n), boxes.tolist(), *kept))
        near = boxes[rng.integers(0, 20, 60)] + rng.normal(0, 3, (60, 4))
        found[str(n)] = np.column_stack([near, rng.random(60)])
    agree({"e": found}, one_event(*truths))


def test_text_round_trip_keeps_every_number(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    given = {"0--Parade": {"a.b": rng.normal(0, 100, (7, 5)), "none": rows()}, "1--Riot": {"c": rows((A, 1e-7))}}
    write_predictions(tmp_path, given)
    again = read_predictions(tmp_path)
    assert {e: list(p) for e, p in again.items()} == {"0--Parade": ["a.b", "none"], "1--Riot": ["c"]}
    for event, pictures in given.items():
        for picture, array in pictures.items():
            assert again[event][picture].shape == array.shape
            assert (again[event][picture] == array).all()


@pytest.mark.parametrize("name", ["x", "x.jpg", "e/x.jpg", "/data/e/x.png", "e\\x.jpg", "  x "])
def test_name_line_may_have_extension_and_folders(tmp_path: Path, name: str) -> None:
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "x.txt").write_text(f"{name}\r\n1\r\n1 2  3 4\t0.5 \r\n\r\n")
    assert read_predictions(tmp_path)["e"]["x"].tolist() == [[1, 2, 3, 4, 0.5]]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", r"x\.txt, line 1: the file ends"),
        ("x\n", r"x\.txt, line 2: the file ends"),
        ("y.jpg\n0\n", r"x\.txt, line 1: the name is 'y\.jpg'; expected x"),
        ("x\nmany\n", r"x\.txt, line 2: the count is 'many'"),
        ("x\n-1\n", r"x\.txt, line 2: the count is '-1'"),
        ("x\n2\n1 2 3 4 0.5\n", r"x\.txt, line 2: the count is 2, but 1 boxes follow"),
        ("x\n1\n1 2 3 4 0.5\n1 2 3 4 0.4\n", r"x\.txt, line 2: the count is 1, but 2 boxes follow"),
        ("x\n2\n1 2 3 4 0.5\n1 2 3 4\n", r"x\.txt, line 4: '1 2 3 4' is not five finite numbers"),
        ("x\n1\n1 2 3 4 best\n", r"x\.txt, line 3: '1 2 3 4 best' is not five numbers"),
        ("x\n1\n1 2 3 4 nan\n", r"x\.txt, line 3: '1 2 3 4 nan' is not five finite numbers"),
        ("x\n2\n\n1 2 3 4 0.5\n", r"x\.txt, line 3: '' is not five finite numbers"),
        (b"\xff\xfe\x00", r"x\.txt could not be read as text"),
    ],
)
def test_malformed_text_is_refused_by_file_and_line(tmp_path: Path, text: str | bytes, says: str) -> None:
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "x.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=says):
        read_predictions(tmp_path)


def test_folders_without_predictions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        read_predictions(tmp_path / "absent")
    with pytest.raises(InputError, match="has no predictions"):
        read_predictions(tmp_path)


def cells(values: list[Any]) -> npt.NDArray[np.object_]:
    column = np.empty((len(values), 1), object)
    for n, value in enumerate(values):
        column[n, 0] = value
    return column


def write_mats(folder: Path) -> None:
    """Two events with one and two pictures, in the layout of the official files."""
    savemat = pytest.importorskip("scipy.io", reason="scipy is not installed, and it writes .mat files").savemat
    files = cells([cells(["p0"]), cells(["p1", "p2"])])
    many = [[n, n, 5, 5] for n in range(300)]
    boxes = cells([cells([np.array([A, B], np.int32)]), cells([np.array(many), np.zeros((0, 4))])])
    kept = {"easy": [[], []], "medium": [[2], [300]], "hard": [[1, 2], [1, 255, 256]]}
    names = cells(["0--Parade", "1--Riot"])
    savemat(folder / "wider_face_val.mat", {"event_list": names, "file_list": files, "face_bbx_list": boxes})
    for setting, (first, second) in kept.items():
        smallest = [np.array(i, np.uint16 if max(i, default=0) > 255 else np.uint8)[:, None] for i in (first, second)]
        lists = cells([cells([smallest[0]]), cells([smallest[1], np.zeros((0, 1), np.uint8)])])
        savemat(folder / f"wider_{setting}_val.mat", {"file_list": files, "gt_list": lists})


def test_reads_the_official_layout(tmp_path: Path) -> None:
    write_mats(tmp_path)
    truth = read_ground_truth(tmp_path)
    assert [(e.name, [p.name for p in e.pictures]) for e in truth.events] == [
        ("0--Parade", ["p0"]),
        ("1--Riot", ["p1", "p2"]),
    ]
    assert truth.events[0].pictures[0].boxes.tolist() == [A, B]
    assert truth.events[1].pictures[1].boxes.shape == (0, 4)
    assert {s: i.tolist() for s, i in truth.events[1].pictures[0].counted.items()} == {
        "easy": [],
        "medium": [299],
        "hard": [0, 254, 255],
    }
    assert (truth.pictures, [truth.faces(s) for s in SETTINGS]) == (3, [0, 2, 5])


def _other_pictures(folder: Path) -> None:
    from scipy.io import savemat

    savemat(folder / "wider_easy_val.mat", {"file_list": cells([cells(["z"])]), "gt_list": cells([cells([[]])])})


def _another_matrix(folder: Path) -> None:
    from scipy.io import savemat

    savemat(folder / "wider_face_val.mat", {"images": np.zeros((3, 3))})


def _lists_that_are_numbers(folder: Path) -> None:
    from scipy.io import savemat

    savemat(folder / "wider_medium_val.mat", {"file_list": np.arange(4.0), "gt_list": np.arange(4.0)})


def _matlab_7_3(folder: Path) -> None:
    # The header that MATLAB writes before an HDF5 file; scipy says that it cannot read those.
    text = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124)
    (folder / "wider_face_val.mat").write_bytes(text + b"\x00\x02IM" + b"\x89HDF\r\n\x1a\n" + bytes(512))


def _face_too_many(folder: Path) -> None:
    from scipy.io import loadmat, savemat

    content = {k: v for k, v in loadmat(folder / "wider_easy_val.mat").items() if not k.startswith("__")}
    content["gt_list"][0, 0][0, 0] = np.array([[3]], np.uint8)
    savemat(folder / "wider_easy_val.mat", content)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: (f / "wider_hard_val.mat").unlink(), r"wider_hard_val\.mat does not exist"),
        (lambda f: (f / "wider_hard_val.mat").write_bytes(b"no matrix"), r"wider_hard_val\.mat is not a WIDER FACE"),
        (lambda f: (f / "wider_hard_val.mat").write_bytes(b""), r"wider_hard_val\.mat is not a WIDER FACE"),
        (
            lambda f: (f / "wider_hard_val.mat").write_bytes((f / "wider_face_val.mat").read_bytes()),
            r"wider_hard_val\.mat is not a WIDER FACE ground truth with file_list, gt_list",
        ),
        (
            lambda f: (f / "wider_face_val.mat").unlink(),
            r"wider_face_val\.mat does not exist; it comes with the official",
        ),
        (_another_matrix, r"wider_face_val\.mat is not a WIDER FACE ground truth with event_list, file_list, face_bbx"),
        (_lists_that_are_numbers, r"wider_medium_val\.mat is not a WIDER FACE ground truth"),
        (_matlab_7_3, r"wider_face_val\.mat is not a WIDER FACE ground truth"),
        (_other_pictures, r"wider_easy_val\.mat lists other pictures"),
        (_face_too_many, "p0: easy names a face beyond the 2"),
    ],
)
def test_other_mat_files_are_refused(tmp_path: Path, spoil: Callable[[Path], object], says: str) -> None:
    write_mats(tmp_path)
    spoil(tmp_path)
    with pytest.raises(InputError, match=says):
        read_ground_truth(tmp_path)


def test_a_ground_truth_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    write_mats(tmp_path)
    for other in (tmp_path / "wider_face_val.mat", tmp_path / "absent"):
        with pytest.raises(InputError, match=r"is not a folder; expected the one with wider_face_val\.mat"):
            read_ground_truth(other)


def test_a_part_of_the_ground_truth_has_its_own_faces(tmp_path: Path) -> None:
    write_mats(tmp_path)
    truth = read_ground_truth(tmp_path)
    part = truth.only([("1--Riot", "p1"), ("1--Riot", "unknown")])
    assert part.names == [("1--Riot", "p1")]
    assert [e.name for e in part.events] == ["1--Riot"]
    assert [part.faces(s) for s in SETTINGS] == [0, 1, 3]
    assert truth.only([]).pictures == 0
    with pytest.raises(UsageError, match="does not have 0--Parade"):
        evaluate({"0--Parade": {"p0": rows()}}, part)


def test_without_scipy_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(MissingPackageError, match=r"retinastream\[eval\]"):
        read_ground_truth(tmp_path)


@pytest.fixture(scope="module")
def official(data: Path) -> GroundTruth:
    pytest.importorskip("scipy", reason="scipy is not installed, and the .mat files are read with it")
    if not (data / "widerface" / "wider_face_val.mat").is_file():
        pytest.skip(f"the WIDER FACE ground truth is not in {data / 'widerface'}")
    return read_ground_truth(data / "widerface")


@pytest.mark.data
def test_official_ground_truth_has_its_published_size(official: GroundTruth) -> None:
    assert (len(official.events), official.pictures) == (61, 3226)
    assert {s: official.faces(s) for s in SETTINGS} == {"easy": 7211, "medium": 13319, "hard": 31958}
    assert sum(len(p.boxes) for e in official.events for p in e.pictures) == 39708


@pytest.mark.data
def test_perfect_predictions_on_the_official_ground_truth(official: GroundTruth) -> None:
    # Two faces of the hard setting cannot be matched by anything: one is listed twice, one has a width of -2.
    rng = np.random.default_rng(0)
    found: Found = {}
    for event in official.events:
        for picture in event.pictures:
            boxes = np.unique(picture.boxes[picture.boxes[:, 2] >= 0], axis=0)
            found.setdefault(event.name, {})[picture.name] = np.column_stack([boxes, rng.random(len(boxes))])
    result = evaluate(found, official)
    assert (result.ap["easy"], result.ap["medium"]) == (1.0, 1.0)
    assert result.ap["hard"] == 31956 / 31958
    assert np.nanmin(result.curves["hard"].precision) == 1.0
