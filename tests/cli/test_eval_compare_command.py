"""``retinastream eval compare``: what a person sees, what is written, and what is refused."""

import json

import cv2
import numpy as np
import pytest

FACE, OTHER = [10.0, 10, 60, 70], [80.0, 20, 112, 60]
PICTURES = {"a.png": [FACE, OTHER], "b.png": [FACE], "c.png": [], "d.png": [OTHER]}


@pytest.fixture
def labels(tmp_path):
    """Four pictures with four faces, in the format "boxes": returns the label file."""
    folder = tmp_path / "set"
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in PICTURES:
        assert cv2.imwrite(str(folder / "images" / name), rng.integers(0, 256, (96, 128, 3), np.uint8))
    content = {name: {"size": [128, 96], "boxes": boxes} for name, boxes in PICTURES.items()}
    (folder / "boxes.json").write_text(json.dumps(content))
    return folder / "boxes.json"


def write_text_predictions(folder, found):
    """Write {picture: [(box, score)]} as a text file per picture."""
    folder.mkdir()
    for name, rows in found.items():
        lines = [f"{b[0]:g} {b[1]:g} {b[2] - b[0]:g} {b[3] - b[1]:g} {score}" for b, score in rows]
        (folder / name.replace(".png", ".txt")).write_text("\n".join([name, str(len(lines)), *lines]) + "\n")
    return folder


@pytest.fixture
def good(tmp_path):
    return write_text_predictions(tmp_path / "good", {n: [(b, 0.9) for b in boxes] for n, boxes in PICTURES.items()})


@pytest.fixture
def poor(tmp_path):
    """One face of the four, and a false one in each picture."""
    false = ([100.0, 70, 124, 94], 0.95)
    return write_text_predictions(
        tmp_path / "poor", {name: [false, *([(FACE, 0.8)] if name == "b.png" else [])] for name in PICTURES}
    )


@pytest.fixture
def clip(tmp_path):
    from media.builders import write_video

    path = tmp_path / "clip.mp4"
    write_video(path, frames=7, size=(128, 96))
    return path


def test_the_better_predictions_are_called_better(retinastream, labels, good, poor):
    code, out, err = retinastream("eval", "compare", poor, good, "--on", labels, "--resamples", 200)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "set: 4 pictures, 4 faces; intervals from 200 resamples of the pictures, seed 0"
    rows = {line[:24].strip(): line.split() for line in lines[2:8]}
    recall = next(words for name, words in rows.items() if name.startswith("recall"))
    assert recall[4:7] == ["0.2500", "1.0000", "+0.7500"]
    # of four pictures one draw in sixteen has only those whose faces both found
    verdicts = ["B is better", "B is better", "no difference shown", "B is better"]
    assert [line.split("%")[-1].strip() for line in lines[2:6]] == verdicts
    assert all(line.rstrip().endswith("not measured") for line in lines[6:8])
    text = "\n".join(lines)
    assert "set: B judged by what A finds in 4 pictures; scores from 0.5, IoU 0.5" in text
    # of A's five, four false, one is found; three of B's four are faces that A has not
    assert "recall     0.2000 (1 of 5 faces)" in text
    assert "precision  0.2500 (3 that A has not)" in text
    assert "only B has score 0.900, a.png [0] at 10,10 to 60,70" in text
    assert "only A has score 0.950" in text


def test_the_same_predictions_show_no_difference(retinastream, labels, good):
    code, out, _ = retinastream("eval", "compare", good, good, "--on", labels, "--resamples", 20)
    assert code == 0
    assert out.count("no difference shown") == 4
    assert "recall     1.0000 (4 of 4 faces)" in out


def test_json_and_the_file_hold_the_same(retinastream, labels, good, poor, tmp_path):
    arguments = ("eval", "compare", poor, good, "--on", labels, "--resamples", 50, "--seed", 3, "--confidence", 0.9)
    code, out, err = retinastream(*arguments, "--json", "--output", tmp_path / "out")
    assert (code, err) == (0, "")
    printed = json.loads(out)
    assert printed == json.loads((tmp_path / "out" / "result.json").read_text())
    assert printed["A"] == {"predictions": str(poor)}
    assert printed["on"]["name"] == "set"
    assert len(printed["on"]["sha256"]) == 64
    compared = printed["comparison"]
    assert (compared["seed"], compared["resamples"], compared["confidence"]) == (3, 50, 0.9)
    assert compared["differences"][0]["measure"] == "ap50"
    assert compared["differences"][0]["b"] == 1.0
    assert printed["agreement"]["wrong"] == 3
    code, _, err = retinastream(*arguments, "--output", tmp_path / "out")
    assert code != 0
    assert "result.json" in err
    code, _, err = retinastream(*arguments, "--output", tmp_path / "out", "--overwrite")
    assert code == 0
    assert err.startswith("-> ")


def test_settings_of_one_side_reach_that_side_alone(retinastream, labels, tiny_model):
    code, out, err = retinastream(
        *("eval", "compare", tiny_model["fused"], tiny_model["classic"], "--on", labels, "--json"),
        *("--threads", 1, "--resamples", 5, "--threshold", 0.3),
        *("--b-size", "fit:64", "--a-iou", 0.7, "--no-a-clip", "--clip"),
    )
    assert code == 0, err
    result = json.loads(out)
    a, b = result["A"], result["B"]
    assert (a["iou"], b["iou"]) == (0.7, 0.4)
    assert (a["clip"], b["clip"]) == (False, True)
    assert (a["size"], b["size"]) == ("native", "fit:64")
    assert (a["threshold"], b["threshold"]) == (0.3, 0.3)
    assert (a["threads"], b["threads"]) == (1, 1)
    assert "A: tiny-fused" in err
    assert "B: tiny-classic" in err


@pytest.mark.slow
def test_a_model_is_compared_with_itself_in_many_sizes(retinastream, labels, tiny_model, tmp_path):
    one = tmp_path / "one.json"
    one.write_text(json.dumps({"b.png": {"size": [128, 96], "boxes": [FACE]}}))
    code, out, err = retinastream(
        *("eval", "compare", tiny_model["fused"], tiny_model["fused"], "--on", one, "--json", "--b-tta"),
        *("--images", labels.parent / "images", "--threads", 1, "--resamples", 5, "--threshold", 0.4),
    )
    assert code == 0, err
    result = json.loads(out)
    assert (result["A"]["tta"], result["B"]["tta"]) == (False, True)
    assert "500, 800" in result["B"]["size"]


def test_two_layouts_of_one_network_agree_on_a_video(retinastream, clip, tiny_model):
    code, out, err = retinastream(
        *("eval", "compare", tiny_model["fused"], tiny_model["classic"], "--on", clip, "--stride", 3, "--quiet"),
        *("--threads", 1, "--score", 0.3, "--threshold", 0.2),
    )
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "clip: B judged by what A finds in 3 pictures; scores from 0.3, IoU 0.5"
    assert lines[1].startswith("recall     1.0000 (")
    assert lines[2] == "precision  1.0000 (0 that A has not)"
    assert "B - A" not in out


def test_results_of_detect_are_compared_with_a_model(retinastream, clip, tiny_model, tmp_path):
    model = tiny_model["fused"]
    settings = ("--size", "native", "--threshold", 0.3, "--threads", 1)
    code, _, err = retinastream("detect", clip, "--model", model, *settings, "--no-clip", "--output", tmp_path / "run")
    assert code == 0, err
    found = tmp_path / "run" / "clip.faces.jsonl"
    code, out, err = retinastream(
        *("eval", "compare", found, model, "--on", clip, *settings, "--score", 0.3, "--stride", 2, "--json", "--quiet")
    )
    assert code == 0, err
    agreed = json.loads(out)["agreement"]
    assert agreed["pictures"] == 4
    assert agreed["faces"] > 0
    assert agreed["recall"] > 0.95
    assert agreed["overlap"] > 0.98


def test_a_folder_of_pictures_is_compared_without_labels(retinastream, labels, good, poor):
    folder = labels.parent / "images"
    code, out, err = retinastream("eval", "compare", good, poor, "--on", folder, "--min-height", 45, "--a-score", 0.6)
    assert (code, err) == (0, "")
    assert "B judged by what A finds in 4 pictures; scores from 0.6 (A) and 0.5 (B), heights from 45 px" in out
    # only FACE is 45 px high and more; it is in two pictures and found in one; the false ones are 24 px high
    assert "recall     0.5000 (1 of 2 faces)" in out
    assert "precision  1.0000 (0 that A has not)" in out
    assert "only A has score 0.900, a.png [0] at 10,10 to 60,70" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("{good}", "{poor}", "--on", "{labels}", "--stride", "2"), "--stride was given, but"),
        (("{good}", "{poor}", "--on", "{clip}", "--missing-limit", "0.5"), "--missing-limit was given, but"),
        (("{good}", "{poor}", "--on", "{labels}", "--precision", "f32"), "A and B are predictions"),
        (("{good}", "{poor}", "--on", "{labels}", "--a-precision", "f32"), "A is predictions"),
        (("{good}", "{poor}", "--on", "{labels}", "--confidence", "95"), "--confidence 95 is not allowed"),
        (("{good}", "{poor}", "--on", "{labels}", "--doubtful", "0.9"), "doubtful is 0.9"),
        (("{good}", "{poor}", "--on", "{clip}"), "A is a folder, but predictions of a video"),
        (("{good}", "none.jsonl", "--on", "{labels}"), "none.jsonl does not exist"),
        (("{good}", "{poor}", "--on", "nowhere.mp4"), "nowhere.mp4: no such file"),
        (("{good}", "{poor}", "--on", "nowhere.json"), "nowhere.json"),
        (("no-such-model", "{poor}", "--on", "{labels}"), "unknown model 'no-such-model'"),
        (("{good}", "mnet025", "--on", "{labels}", "--b-runtime", "fast"), "B: --runtime 'fast' is not allowed"),
        (("{good}", "mnet025", "--on", "{labels}", "--b-tta", "--size", "native"), "B: --size native was given with"),
        (("{good}", "{poor}", "--on", "{labels}", "-o", "{labels}"), "is a file; give the name of a folder"),
    ],
)
def test_mistakes_are_said_in_words(retinastream, labels, good, poor, clip, arguments, says):
    places = {"labels": labels, "good": good, "poor": poor, "clip": clip}
    code, out, err = retinastream("eval", "compare", *(argument.format(**places) for argument in arguments))
    assert code in (1, 2)
    assert says in err
    assert out == ""


def test_help_has_a_panel_for_each_side(retinastream):
    code, out, _ = retinastream("eval", "compare", "--help")
    assert code == 0
    for text in ("A alone", "B alone", "--a-precision", "--b-runtime", "As --precision, for A alone."):
        assert text in out


@pytest.mark.data
@pytest.mark.slow
def test_a_reduced_size_is_worse_on_photographs(retinastream, data, real_model, tmp_path):
    """On 60 photographs of 400x300 half the size loses the small faces, and the interval shows it."""
    folder = data / "facemask"
    listed = json.loads((folder / "boxes.json").read_text())
    chosen = {name: listed[name] for name in sorted(listed)[:60]}
    (tmp_path / "boxes.json").write_text(json.dumps(chosen))
    code, out, err = retinastream(
        *("eval", "compare", real_model, real_model, "--on", tmp_path / "boxes.json"),
        *("--images", folder / "images", "--b-size", "fit:200", "--threads", 2, "--json"),
    )
    assert code == 0, err
    rows = {row["measure"]: row for row in json.loads(out)["comparison"]["differences"]}
    assert rows["ap50"]["verdict"] == "A is better"
    assert rows["recall"]["verdict"] == "A is better"
    assert rows["ap50"]["difference"] < -0.1
