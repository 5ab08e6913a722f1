"""Curves as JSON and as pictures."""

import json
import math
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from retinastream.errors import MissingPackageError, UsageError
from retinastream.evaluation.curves import (
    MAX_POINTS,
    check_matplotlib,
    measure_curves,
    wider_curves,
    write_measure_curves,
    write_wider_curves,
)
from retinastream.evaluation.labelled_set import LabelledPicture
from retinastream.evaluation.measures import Measures, measure
from retinastream.evaluation.wider_face import WiderFaceResult, evaluate
from retinastream.evaluation.wider_truth import SETTINGS, EventTruth, GroundTruth, PictureTruth
from retinastream.types import Faces


def measures(predictions: int = 40, faces: int = 12) -> Measures:
    rng = np.random.default_rng(2)
    starts = np.column_stack([np.arange(predictions) * 300.0, np.zeros(predictions)])
    boxes = np.column_stack([starts, starts + rng.uniform(4, 290, (predictions, 2))]).astype(np.float32)
    truth = LabelledPicture(
        "a.jpg",
        Path("a.jpg"),
        None,
        None,
        boxes[:faces],
        np.full((faces, 5, 2), np.nan, np.float32),
        np.zeros(faces, np.bool_),
        np.ones(faces, np.float32),
    )
    found = Faces(boxes, rng.random(predictions).astype(np.float32), np.zeros((predictions, 5, 2), np.float32))
    return measure([found], [truth])


def wider(kept: list[int]) -> WiderFaceResult:
    picture = PictureTruth("p", np.array([[0.0, 0, 9, 9], [50, 0, 9, 9]]), {s: np.array(kept, int) for s in SETTINGS})
    rows = np.array([[0, 0, 9, 9, 0.9], [90, 90, 9, 9, 0.8], [50, 0, 9, 9, 0.1]])
    return evaluate({"e": {"p": rows}}, GroundTruth((EventTruth("e", (picture,)),)))


def test_numbers_are_those_of_the_measures() -> None:
    result = measures()
    plain = json.loads(json.dumps(measure_curves(result), allow_nan=False))
    assert plain["precision_recall"]["score"] == result.curve.scores.tolist()
    assert plain["precision_recall"]["precision"] == result.curve.precision.tolist()
    assert plain["precision_recall"]["recall"] == result.curve.recall.tolist()
    assert plain["recall_by_height"]["edges"][-1] is None, "there is no infinity in JSON"
    assert sum(plain["recall_by_height"]["faces"]) == 12
    assert plain["recall_by_height_any_score"]["recall"][4] == 1.0


def test_long_curves_are_thinned_from_first_to_last() -> None:
    result = measures(predictions=5000)
    plain = measure_curves(result)["precision_recall"]
    assert len(plain["score"]) == MAX_POINTS
    assert (plain["score"][0], plain["score"][-1]) == (result.curve.scores[0], result.curve.scores[-1])
    assert plain["recall"][-1] == result.curve.recall[-1]


def test_without_predictions_curves_are_empty(tmp_path: Path) -> None:
    result = measures(predictions=0, faces=0)
    assert measure_curves(result)["precision_recall"] == {"score": [], "precision": [], "recall": []}
    assert len(write_measure_curves(tmp_path, result)) == 2


def test_wider_curves_have_a_thousand_points_per_setting() -> None:
    plain = json.loads(json.dumps(wider_curves(wider([0, 1])), allow_nan=False))
    assert set(plain) == set(SETTINGS)
    assert len(plain["hard"]["recall"]) == len(plain["hard"]["precision"]) == len(plain["hard"]["threshold"]) == 1000
    assert (plain["hard"]["recall"][-1], plain["hard"]["precision"][-1]) == (1.0, pytest.approx(2 / 3))
    nothing = wider_curves(wider([]))["hard"]
    assert nothing["ap"] is None
    assert set(nothing["recall"]) == {None}


def test_pictures_are_drawn_and_not_replaced_unasked(tmp_path: Path) -> None:
    written = write_measure_curves(tmp_path / "new", measures(), title="a $et_ [of] faces")
    written += write_wider_curves(tmp_path / "wider", wider([0, 1]), title="WIDER FACE")
    assert [file.name for file in written] == ["precision_recall.png", "recall.png", "precision_recall.png"]
    for file in written:
        drawn = cv2.imread(str(file))
        assert drawn is not None
        assert min(drawn.shape[:2]) > 400
        assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 10, "nothing is drawn on it"
    with pytest.raises(UsageError, match="exists already"):
        write_measure_curves(tmp_path / "new", measures())
    write_measure_curves(tmp_path / "new", measures(), overwrite=True)


def test_the_precision_recall_line_goes_where_the_numbers_say(tmp_path: Path) -> None:
    # One right prediction above, one false below: precision 1 up to recall 1/2; the lower right stays white.
    (file,) = write_wider_curves(tmp_path, wider([0, 1]))
    drawn = cv2.imread(str(file))
    assert drawn is not None
    coloured = (drawn.max(axis=2).astype(int) - drawn.min(axis=2)) > 40
    rows, columns = np.nonzero(coloured)
    height, width = coloured.shape
    plot = (rows < 0.45 * height) & (columns > 0.15 * width)
    assert plot.sum() > 200
    assert columns[plot].max() > 0.9 * width, "recall reaches 1"


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for attempt in (check_matplotlib, lambda: write_measure_curves(tmp_path, measures())):
        with pytest.raises(MissingPackageError, match=r"pip install 'retinastream\[eval\]'"):
            attempt()
    assert measure_curves(measures())["precision_recall"]["score"], "numbers need no matplotlib"
    assert not math.isnan(measures().ap50)
    assert not list(tmp_path.iterdir())
