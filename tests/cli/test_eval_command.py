"""`retinastream eval`: what a person sees, what is written, and what is refused."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

FACE, SMALL = [10.0, 10, 60, 70], [100.0, 20, 112, 34]


@pytest.fixture
def labels(tmp_path):
    """Three pictures with three faces, in the format "boxes": returns the label file."""
    folder = tmp_path / "set"
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    content = {}
    for name, boxes in {"a.png": [FACE, SMALL], "b.png": [FACE], "c.png": []}.items():
        assert cv2.imwrite(str(folder / "images" / name), rng.integers(0, 256, (96, 128, 3), np.uint8))
        content[name] = {"size": [128, 96], "boxes": boxes}
    (folder / "boxes.json").write_text(json.dumps(content))
    return folder / "boxes.json"


@pytest.fixture
def predictions(tmp_path):
    """Text predictions: both large faces, one of them below 0.5, and one false box between."""
    folder = tmp_path / "found"
    folder.mkdir()
    (folder / "a.txt").write_text("a.png\n2\n10 10 50 60 0.9\n70 70 20 20 0.6\n")
    (folder / "b.txt").write_text("b.png\n1\n10 10 50 60 0.4\n")
    return folder


@pytest.fixture
def wider(tmp_path):
    """Two events with one and two pictures, the official .mat files and the pictures: (truth folder, pictures)."""
    savemat = pytest.importorskip("scipy.io", reason="scipy is not installed, and it writes .mat files").savemat

    def cells(values):
        column = np.empty((len(values), 1), object)
        for n, value in enumerate(values):
            column[n, 0] = value
        return column

    truth, images = tmp_path / "truth", tmp_path / "images"
    names = {"0--Parade": ["0_Parade_a"], "1--Riot": ["1_Riot_b", "1_Riot_c"]}
    truth.mkdir()
    files = cells([cells(pictures) for pictures in names.values()])
    boxes = cells([cells([np.array([[10, 10, 50, 60], [100, 20, 12, 14]])] * len(p)) for p in names.values()])
    savemat(
        truth / "wider_face_val.mat", {"event_list": cells(list(names)), "file_list": files, "face_bbx_list": boxes}
    )
    for setting, kept in {"easy": [1], "medium": [1], "hard": [1, 2]}.items():
        lists = cells([cells([np.array(kept, np.uint8)[:, None]] * len(p)) for p in names.values()])
        savemat(truth / f"wider_{setting}_val.mat", {"file_list": files, "gt_list": lists})
    for event, pictures in names.items():
        (images / event).mkdir(parents=True)
        for name in pictures:
            assert cv2.imwrite(str(images / event / f"{name}.jpg"), np.full((96, 1024, 3), 99, np.uint8))
    return truth, images


def write_wider_predictions(folder, *names):
    for event, name in names:
        (folder / event).mkdir(parents=True, exist_ok=True)
        (folder / event / f"{name}.txt").write_text(f"{name}\n1\n10 10 50 60 0.9\n")
    return folder


ALL = [("0--Parade", "0_Parade_a"), ("1--Riot", "1_Riot_b"), ("1--Riot", "1_Riot_c")]


def test_set_measures_predictions_in_a_table(retinastream, labels, predictions):
    code, out, err = retinastream("eval", "set", labels, "--predictions", predictions)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "set: 3 pictures, 3 faces, 3 predictions"
    # Right, false, right of three faces: 1/3 at precision 1 and 1/3 at precision 2/3.
    assert lines[1].split() == ["AP", "at", "IoU", "0.5", "0.5556"]
    assert "precision 0.5000, recall 0.3333, F1 0.4000 (1 found, 1 wrong, 2 missed)" in lines[3]
    assert "no face to compare" in out
    row = next(line for line in lines if line.startswith("32 to 64"))
    assert row.split() == ["32", "to", "64", "2", "1.0000", "0.5000", "-"]


def test_set_prints_one_json_object_with_what_was_measured(retinastream, labels, predictions):
    code, out, _ = retinastream(
        *("eval", "set", labels, "--predictions", predictions, "--json", "--score", "0.3", "--target-precision", "0.6")
    )
    assert code == 0
    result = json.loads(out)
    assert result["set"]["format"] == "boxes"
    assert len(result["set"]["sha256"]) == 64
    assert result["predictions_of"] == {"predictions": str(predictions)}
    assert result["ap50"] == pytest.approx(5 / 9)
    assert (result["at_score"]["threshold"], result["at_score"]["found"]) == (0.3, 2)
    assert result["at_precision"]["threshold"] == pytest.approx(0.4)


def test_set_runs_a_model_and_its_predictions_give_the_same_result(retinastream, labels, tiny_model):
    given = ("eval", "set", labels, "-m", tiny_model["fused"], "--threads", "1")
    code, out, err = retinastream(*given, "--threshold", "0.3", "-o", "out", "--json")
    assert code == 0
    assert "3 of 3 pictures usable" in err
    assert "size native; openvino" in err
    assert "boxes not clipped" in err
    result = json.loads(out)
    facts = result["predictions_of"]
    assert (facts["size"], facts["threshold"], facts["iou"], facts["max_faces"], facts["clip"]) == (
        *("native", 0.3, 0.4, 750, False),
    )
    assert len(facts["model_sha256"]) == 64
    names = ["curves.json", "precision_recall.png", "predictions.faces.jsonl", "recall.png", "result.json"]
    assert sorted(p.name for p in Path("out").iterdir()) == names
    assert json.loads(Path("out/result.json").read_text()) == result
    assert set(json.loads(Path("out/curves.json").read_text())) >= {"precision_recall", "recall_by_height"}
    code, out, _ = retinastream("eval", "set", labels, "--predictions", "out/predictions.faces.jsonl", "--json")
    assert code == 0
    again = json.loads(out)
    assert again.pop("predictions_of") != result.pop("predictions_of")
    assert again == result
    assert result["counts"]["predictions"] > 0


def test_set_refuses_outputs_that_exist_before_it_measures(retinastream, labels, tiny_model):
    Path("out").mkdir()
    Path("out/recall.png").write_text("mine")
    given = ("eval", "set", labels, "-m", tiny_model["fused"], "--threads", "1", "-o", "out", "--quiet")
    code, out, err = retinastream(*given)
    assert (code, out) == (2, "")
    assert "recall.png exists already" in err
    assert Path("out/recall.png").read_text() == "mine"
    assert [p.name for p in Path("out").iterdir()] == ["recall.png"]
    code, _, err = retinastream(*given, "--overwrite")
    assert (code, err) == (0, "")
    Path("file").write_text("")
    code, _, err = retinastream(*given[:-2], "file")
    assert (code, "is a file; give the name of a folder" in err) == (2, True)


def test_set_without_matplotlib_says_so_before_it_measures(retinastream, labels, predictions, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    code, out, err = retinastream("eval", "set", labels, "--predictions", predictions, "-o", "out")
    assert (code, out) == (3, "")
    assert "retinastream[eval]" in err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "nothing to measure was given; expected --model, or --predictions"),
        (["--predictions", "x", "-m", "y", "--max-faces", "3"], "--predictions was given with --model, --max-faces"),
        (["-m", "no-such-model"], "no-such-model"),
        (["-m", "x.onnx", "--tta", "--size", "fit:640"], "--size fit:640 was given with --tta"),
        (["-m", "x.onnx", "--threshold", "2"], "--threshold 2.0 is not allowed"),
        (["-m", "x.onnx", "--runtime", "magic"], "--runtime 'magic' is not allowed"),
        (["--predictions", "x", "--format", "odd"], "odd"),
    ],
)
def test_set_refuses_wrong_usage(retinastream, labels, arguments, says):
    code, out, err = retinastream("eval", "set", labels, *arguments)
    assert (code, out) == (2, "")
    assert says in err


def test_set_names_missing_pictures(retinastream, labels, tiny_model):
    (labels.parent / "images" / "b.png").unlink()
    code, _, err = retinastream("eval", "set", labels, "-m", tiny_model["fused"])
    assert code == 1
    assert "b.png" in err
    code, out, _ = retinastream(
        *("eval", "set", labels, "-m", tiny_model["fused"], "--missing-limit", "0.5", "--threads", "1", "--json")
    )
    assert (code, json.loads(out)["counts"]["pictures"]) == (0, 2)


def test_set_refuses_predictions_of_other_pictures(retinastream, labels, predictions):
    (predictions / "z.txt").write_text("z\n0\n")
    code, _, err = retinastream("eval", "set", labels, "--predictions", predictions)
    assert code == 2
    assert "does not have: z;" in err


def test_set_refuses_labels_without_faces(retinastream, tmp_path, predictions):
    (tmp_path / "boxes.json").write_text(json.dumps({"a.png": {"size": [9, 9], "boxes": []}}))
    code, _, err = retinastream("eval", "set", tmp_path / "boxes.json", "--predictions", predictions)
    assert code == 1
    assert "no face to be found" in err


def test_wider_measures_predictions(retinastream, wider, tmp_path):
    found = write_wider_predictions(tmp_path / "found", *ALL)
    code, out, err = retinastream("eval", "wider", wider[0], "--predictions", found)
    assert (code, err) == (0, "")
    assert [line.split() for line in out.splitlines()] == [
        ["WIDER", "FACE", "val", "AP", "faces"],
        ["easy", "1.0000", "3"],
        ["medium", "1.0000", "3"],
        ["hard", "0.5000", "6"],
    ]


def test_wider_says_loudly_that_a_part_is_not_comparable(retinastream, wider, tmp_path):
    found = write_wider_predictions(tmp_path / "found", ALL[0])
    code, out, err = retinastream("eval", "wider", wider[0], "--predictions", found, "--only-present", "--quiet")
    assert code == 0
    assert "WARNING: only 1 of the 3 pictures were measured; these figures are NOT comparable" in err
    assert "NOT comparable" in out
    assert out.splitlines()[1].split() == ["easy", "1.0000", "1"]
    code, out, err = retinastream("eval", "wider", wider[0], "--predictions", found, "--json")
    summary = json.loads(out)
    assert (summary["comparable"], summary["pictures"], summary["ap"]["easy"]) == (True, 3, pytest.approx(1 / 3))
    assert "predictions for 1 of the 3 pictures" in err
    _, out, _ = retinastream("eval", "wider", wider[0], "--predictions", found, "--only-present", "--json")
    assert json.loads(out)["comparable"] is False


def test_wider_runs_a_model_and_its_predictions_give_the_same_result(retinastream, wider, tiny_model):
    truth, images = wider
    given = ("eval", "wider", truth, "--images", images, "-m", tiny_model["fused"], "--threads", "1", "-o", "out")
    code, out, err = retinastream(*given, "--json")
    assert code == 0
    assert "WARNING" not in err
    result = json.loads(out)
    assert result["comparable"] is True
    texts = sorted(p.relative_to("out/predictions").as_posix() for p in Path("out/predictions").rglob("*.txt"))
    assert texts == [f"{event}/{name}.txt" for event, name in ALL]
    assert json.loads(Path("out/result.json").read_text()) == result
    assert len(json.loads(Path("out/curves.json").read_text())["hard"]["recall"]) == 1000
    code, out, _ = retinastream("eval", "wider", truth, "--predictions", "out/predictions", "--json")
    assert (code, json.loads(out)["ap"]) == (0, result["ap"])
    code, _, err = retinastream(*given)
    assert (code, "result.json exists already" in err) == (2, True)
    (Path("out/predictions/1--Riot") / "stale.txt").write_text("")
    code, _, err = retinastream(*given, "--overwrite")
    assert (code, "stale.txt" in err) == (2, True)


def test_wider_needs_all_pictures_or_only_present(retinastream, wider, tiny_model):
    truth, images = wider
    (images / "1--Riot" / "1_Riot_c.jpg").unlink()
    small = images / "1--Riot" / "1_Riot_b.jpg"
    assert cv2.imwrite(str(small), np.zeros((96, 128, 3), np.uint8))
    given = ("eval", "wider", truth, "--images", images, "-m", tiny_model["fused"], "--threads", "1")
    code, _, err = retinastream(*given)
    assert code == 1
    assert "1 of the 3 pictures of the ground truth are not in" in err
    assert "1--Riot/1_Riot_c" in err
    code, out, err = retinastream(*given, "--only-present")
    assert code == 0
    assert "measured on 2 of 3 pictures: NOT comparable" in out
    assert "1 of 2 pictures are not 1024 pixels wide" in err
    (images / "extra.jpg").write_bytes(small.read_bytes())
    code, _, err = retinastream(*given, "--only-present")
    assert (code, "extra.jpg" in err) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--predictions", "found", "--images", "x"], 2, "--images is the folder that --model runs on"),
        (["-m", "x.onnx"], 2, "--images is the folder that --model runs on"),
        (["--images", "x"], 2, "nothing to measure was given"),
        (["--predictions", "absent"], 1, "absent is not a folder"),
        (["--predictions", "found"], 2, "does not have 9--Unknown"),
    ],
)
def test_wider_refuses_wrong_usage(retinastream, wider, arguments, code, says):
    write_wider_predictions(Path("found"), ("9--Unknown", "x"))
    given, out, err = retinastream("eval", "wider", wider[0], *arguments)
    assert (given, out) == (code, "")
    assert says in err


def test_wider_names_ground_truth_that_is_missing_or_of_another_kind(retinastream, wider, tmp_path):
    found = write_wider_predictions(tmp_path / "found", *ALL)
    (wider[0] / "wider_hard_val.mat").write_bytes((wider[0] / "wider_face_val.mat").read_bytes())
    code, _, err = retinastream("eval", "wider", wider[0], "--predictions", found)
    assert (code, "wider_hard_val.mat is not a WIDER FACE ground truth with file_list, gt_list" in err) == (1, True)
    (wider[0] / "wider_face_val.mat").unlink()
    code, _, err = retinastream("eval", "wider", wider[0], "--predictions", found)
    assert (code, "wider_face_val.mat does not exist" in err) == (1, True)


def test_tta_looks_at_several_sizes(retinastream, labels, tiny_model, monkeypatch):
    from retinastream.evaluation import test_time

    start = test_time.AugmentedDetector.__init__
    monkeypatch.setattr(start, "__kwdefaults__", {**start.__kwdefaults__, "scales": (64, 96)})
    code, out, err = retinastream(
        *("eval", "set", labels, "-m", tiny_model["fused"], "--tta", "--threads", "1", "--json")
    )
    assert code == 0
    assert json.loads(out)["predictions_of"]["size"] == "short sides 64, 96 and their mirror images"
    assert "short sides 64, 96" in err
