"""``retinastream eval verify``: what it prints, writes, warns of and refuses."""

import csv
import json

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from retinastream.cli import eval_verify
from retinastream.errors import InputError, ModelError, UsageError
from retinastream.kernels.align import template
from retinastream.types import Faces

cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed, and pictures are read with it")

app = typer.Typer()
app.command("verify")(eval_verify.verify)

COLOURS = {"ann1": (10, 20, 200), "ann2": (30, 30, 210), "bo1": (220, 10, 10), "bo2": (120, 0, 0), "none": (0, 0, 0)}


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


class FakeDetector:
    """Finds a face at the template in every picture that is not black."""

    def __init__(self, model, *, threshold, size, **options):
        self.model = type("Model", (), {"name": model, "sha256": "0" * 64})
        self.info = type("Info", (), {"runtime": "fake", "precision": "f32"})
        self.threshold, self.size = threshold, size

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def __call__(self, picture):
        if not picture.any():
            return Faces()
        box, score = np.array([[0, 0, 112, 112]], np.float32), np.array([0.9], np.float32)
        return Faces(box, score, template()[None].astype(np.float32), width=120, height=120)


class FakeEmbedder:
    """Embeds a crop as its mean colour."""

    def __init__(self, model, *, normalise, flip, **options):
        self.path, self.sha256, self.dimension, self.runtime = model, "1" * 64, 3, "fake"
        self.normalise, self.flip = normalise, flip

    def __call__(self, crops):
        rows = crops.reshape(len(crops), -1, 3).mean(1).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def networks(monkeypatch):
    """Replace both networks by ones whose answers are known."""
    monkeypatch.setattr("retinastream.pipeline.detector.Detector", FakeDetector)
    monkeypatch.setattr("retinastream.evaluation.embedding.FaceEmbedder", FakeEmbedder)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, colour in COLOURS.items():
        cv2.imwrite(str(folder / f"{name}.png"), np.full((120, 120, 3), colour, np.uint8))
    return folder


def listing(folder, *rows, name="pairs.txt"):
    path = folder / name
    path.write_text("".join(f"{a}.png {b}.png {same}\n" for a, b, same in rows))
    return path


CLEAR = (("ann1", "ann2", 1), ("bo1", "bo2", 1), ("ann1", "bo1", 0), ("ann2", "bo2", 0))


def test_a_table_says_what_ran_and_what_came_out(networks, pictures):
    result = run(listing(pictures, *CLEAR), "--embedder", "net.onnx", "--model", "found", "--far", "0.5,1")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["detector", "found,", "auto,", "f32"]
    assert "pictures      4, 0 without a face" in lines
    assert "pairs         2 of one person, 2 of two" in lines
    assert any(line.startswith("TAR           100.00 % at FAR 0.5: threshold") for line in lines)
    assert "AUC           1.000000" in lines
    assert "EER           0.00 %" in lines
    assert result.stderr == ""


def test_json_holds_every_number_and_which_files_made_it(networks, pictures):
    result = run(
        listing(pictures, *CLEAR), "--embedder", "net.onnx", "--far", "0.5", "--normalise", "imagenet", "--json"
    )
    numbers = json.loads(result.stdout)
    assert numbers["tar_at_far"][0]["wanted_far"] == 0.5
    assert numbers["tar_at_far"][0]["tar"] == 1.0
    assert numbers["embedder"]["normalise"] == "imagenet"
    assert numbers["embedder"]["sha256"] == "1" * 64
    assert numbers["detector"]["model"] == "mnet025"
    assert (numbers["same_pairs"], numbers["different_pairs"], numbers["auc"], numbers["choose"]) == (
        2,
        2,
        1.0,
        "largest",
    )


def test_pictures_without_a_face_are_said_and_fail_or_are_left_out(networks, pictures):
    path = listing(pictures, *CLEAR, ("ann1", "none", 1), ("bo1", "none", 0))
    failing = run(path, "--embedder", "e", "--far", "0.5", "--json")
    assert failing.exit_code == 0
    assert "no face was found in 1 of 5 pictures (none.png); 1 same and 1 different pairs count as" in failing.stderr
    assert json.loads(failing.stdout)["tar_at_far"][0]["tar"] == pytest.approx(2 / 3)
    skipping = run(path, "--embedder", "e", "--far", "0.5", "--json", "--without-face", "skip")
    assert "their pairs are left out" in skipping.stderr
    assert "2 of 6 pairs are left out" in skipping.stderr
    assert json.loads(skipping.stdout)["tar_at_far"][0]["tar"] == 1.0


def test_a_far_with_too_few_pairs_is_said(networks, pictures):
    result = run(listing(pictures, *CLEAR), "--embedder", "e", "--far", "0.5,1e-3")
    assert "a FAR of 0.001 needs at least 1,000 different pairs and there are 2" in result.stderr
    assert "FAR of 0.5" not in result.stderr
    assert [line.split()[5] for line in result.stdout.splitlines() if "too few pairs" in line] == ["0.001:"]


def test_a_picture_that_cannot_be_read_is_named_and_is_a_failure(networks, pictures):
    (pictures / "broken.png").write_bytes(b"no picture")
    result = run(listing(pictures, *CLEAR, ("ann1", "broken", 1)), "--embedder", "e")
    assert result.exit_code == 1
    assert "broken.png: is not a picture" in result.stderr
    assert "AUC           1.000000" in result.stdout


def test_numbers_and_pairs_are_written_and_not_replaced_unasked(networks, pictures, tmp_path):
    path, out = listing(pictures, *CLEAR, ("ann1", "none", 0)), tmp_path / "results" / "a"
    first = run(path, "--embedder", "e", "--output", out, "--json")
    assert json.loads((out / "verification.json").read_text()) == json.loads(first.stdout)
    rows = list(csv.DictReader((out / "similarities.csv").open()))
    assert [(r["file1"], r["file2"], r["same"]) for r in rows[:2]] == [
        ("ann1.png", "ann2.png", "1"),
        ("bo1.png", "bo2.png", "1"),
    ]
    assert float(rows[0]["similarity"]) > 0.99
    assert (rows[4]["similarity"], rows[4]["counted"]) == ("", "1")
    with pytest.raises(UsageError, match=r"exists already; .*--overwrite"):
        run(path, "--embedder", "e", "--output", out)
    assert run(path, "--embedder", "e", "--output", out, "--overwrite").exit_code == 0


def test_a_list_elsewhere_and_a_folder_per_person_give_the_same_pairs(networks, pictures, tmp_path):
    elsewhere = listing(tmp_path, *CLEAR, ("ann1", "bo2", 0), ("ann2", "bo1", 0))
    listed = json.loads(run(elsewhere, "--images", pictures, "--embedder", "e", "--json").stdout)
    for name in ("ann1", "ann2", "bo1", "bo2"):
        target = tmp_path / "people" / name[:-1] / f"{name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((pictures / f"{name}.png").read_bytes())
    people = json.loads(run(tmp_path / "people", "--embedder", "e", "--json").stdout)
    for values in (listed, people):
        values.pop("pairs_file")
    assert listed == people


@pytest.mark.parametrize("far", ["0", "1e-3,x", "", "2", "nan"])
def test_fars_that_are_none_are_refused(networks, pictures, far):
    with pytest.raises(UsageError, match=r"--far .* is not understood; expected numbers above 0"):
        run(listing(pictures, *CLEAR), "--embedder", "e", "--far", far)


def test_mistakes_are_errors_that_name_what_was_given(pictures, tmp_path):
    path = listing(pictures, *CLEAR)
    with pytest.raises(InputError, match="no such list of pairs"):
        run(tmp_path / "nothing.txt", "--embedder", "e.onnx")
    with pytest.raises(ModelError, match=r"e\.onnx does not exist"):
        run(path, "--embedder", "e.onnx")
    assert run(path).exit_code == 2
    wrong = run(path, "--embedder", "e.onnx", "--choose", "tallest")
    assert wrong.exit_code == 2
    assert "largest" in wrong.stderr


@pytest.mark.data
def test_real_faces_of_two_people_are_told_apart(data, real_model, tmp_path):
    embedder = data / "weights" / "MobileFaceNet.onnx"
    if not embedder.is_file():
        pytest.skip(f"{embedder} is absent")
    parts = {
        "obama/1": ("fr_obama2", 0.0, 1.0),
        "obama/2": ("fr_obama_and_biden", 0.5, 0.75),
        "obama/3": ("fr_two_people", 0.0, 0.5),
        "biden/1": ("fr_biden", 0.0, 1.0),
        "biden/2": ("fr_biden2", 0.3, 1.0),
        "biden/3": ("fr_obama_and_biden", 0.3, 0.5),
        "biden/4": ("fr_two_people", 0.6, 1.0),
    }
    for name, (still, left, right) in parts.items():
        picture = cv2.imread(str(data / "stills" / f"{still}.jpg"))
        width = picture.shape[1]
        target = tmp_path / "people" / f"{name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(target), picture[:, int(left * width) : int(right * width)])
    options = ("--embedder", embedder, "--model", real_model, "--normalise", "imagenet", "--size", "native")
    out = tmp_path / "out"
    result = run(tmp_path / "people", *options, "--far", "0.1", "--threads", 1, "--output", out)
    assert result.exit_code == 0
    assert "7, 0 without a face" in result.stdout
    numbers = json.loads((out / "verification.json").read_text())
    assert (numbers["same_pairs"], numbers["different_pairs"]) == (9, 12)
    assert (numbers["tar_at_far"][0]["tar"], numbers["auc"], numbers["eer"]) == (1.0, 1.0, 0.0)
    rows = list(csv.DictReader((out / "similarities.csv").open()))
    same = [float(r["similarity"]) for r in rows if r["same"] == "1"]
    different = [float(r["similarity"]) for r in rows if r["same"] == "0"]
    assert min(same) > 0.5
    assert max(different) < 0.25
