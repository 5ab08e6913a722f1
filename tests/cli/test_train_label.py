"""``retinastream train label``: what it writes, says and refuses."""

import json

import cv2
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from retinastream.cli.train_label import label
from retinastream.errors import InputError, ModelError, OutputError, UsageError
from retinastream.evaluation.labelled_set import read_labelled_set

app = typer.Typer()
app.command("label")(label)


@app.command("other")
def other() -> None:
    """A group of one command would take its name for an argument."""


def run(*arguments):
    return CliRunner().invoke(app, ["label", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    draw = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(root / name), draw.integers(0, 256, (64, 96, 3), np.uint8))
    return root


@pytest.fixture
def teacher(tiny_model):
    return tiny_model["fused"]


def test_a_folder_of_pictures_becomes_a_label_file(folder, teacher, tmp_path):
    output = tmp_path / "new" / "labels.json"
    result = run(
        "--pictures", folder, "--teacher", teacher, "--output", output,
        "--positive", 0.5, "--ignore-above", 0.45, "--threads", 1,
    )  # fmt: skip
    assert result.exit_code == 0
    read = read_labelled_set(output, images=folder)
    assert [p.name for p in read.pictures] == ["a.png", "b.png"]
    assert read.faces + read.ignored > 0
    assert f"2 pictures, {read.faces} faces ({read.landmarked} with landmarks), {read.ignored} ignored" in result.stdout
    assert str(folder) in result.stdout.splitlines()[1]


def test_labels_are_kept_and_the_teachers_faces_added(folder, teacher, tmp_path):
    labels = tmp_path / "labels.json"
    mine = [1.0, 1.0, 9.0, 9.0, *[-1.0] * 10, 1.0]
    labels.write_text(json.dumps({"a.png": {"width": 96, "height": 64, "faces": [mine]}}))
    output = tmp_path / "merged.json"
    result = run(
        "--pictures", labels, "--teacher", teacher, "--output", output,
        "--merge", "labels", "--positive", 0.5, "--ignore-above", 0.45, "--threads", 1,
    )  # fmt: skip
    assert result.exit_code == 0
    assert "1 of 1 pictures usable" in result.stderr
    picture = read_labelled_set(output).pictures[0]
    assert picture.boxes[0].tolist() == mine[:4]
    assert len(picture) > 1
    assert "before: 1 faces, 0 ignored" in result.stdout


def test_looking_several_times_finds_at_least_something(folder, teacher, tmp_path, monkeypatch):
    from retinastream.evaluation import test_time

    monkeypatch.setattr(test_time.AugmentedDetector.__init__, "__kwdefaults__", {
        **test_time.AugmentedDetector.__init__.__kwdefaults__, "scales": (64,),
    })  # fmt: skip
    output = tmp_path / "labels.json"
    command = ["--pictures", folder, "--teacher", teacher, "--output", output, "--augmented", "--threads", 1]
    assert run(*command, "--positive", 0.5, "--ignore-above", 0.45).exit_code == 0
    assert len(read_labelled_set(output)) == 2
    with pytest.raises(UsageError, match="leave out --size fit:64"):
        run(*command, "--size", "fit:64", "--overwrite")


def test_an_existing_output_is_kept_unless_told_otherwise(folder, teacher, tmp_path):
    output = tmp_path / "labels.json"
    output.write_text("mine")
    command = ["--pictures", folder, "--teacher", teacher, "--output", output, "--threads", 1]
    with pytest.raises(UsageError, match="--overwrite"):
        run(*command)
    assert output.read_text() == "mine"
    assert run(*command, "--overwrite").exit_code == 0
    assert set(json.loads(output.read_text())) == {"a.png", "b.png"}


def test_an_output_that_cannot_be_written_is_refused_before_the_work(folder, tmp_path):
    (tmp_path / "file").write_text("")
    command = ["--pictures", folder, "--teacher", "absent.onnx", "--output"]
    with pytest.raises(OutputError, match="another --output"):
        run(*command, tmp_path / "file" / "labels.json")
    with pytest.raises(OutputError, match="name of a file"):
        run(*command, tmp_path, "--overwrite")
    with pytest.raises(OutputError, match="is a folder; give the name of a file"):
        run(*command, tmp_path)


def test_damaged_pictures_are_named_and_too_many_of_them_refused(folder, teacher, tmp_path):
    (folder / "c.jpg").write_text("no picture")
    command = ["--pictures", folder, "--teacher", teacher, "--output", tmp_path / "labels.json", "--threads", 1]
    with pytest.raises(InputError, match="1 of 3 pictures cannot be used"):
        run(*command)
    result = run(*command, "--missing-limit", 0.5)
    assert result.exit_code == 0
    assert "left out: c.jpg" in result.stderr


@pytest.mark.parametrize("extra", [["--merge", "labels"], ["--images", "."]])
def test_options_for_labels_are_refused_with_a_folder_of_pictures(folder, teacher, tmp_path, extra):
    with pytest.raises(UsageError, match="for label files"):
        run("--pictures", folder, "--teacher", teacher, "--output", tmp_path / "labels.json", *extra)


def test_an_unknown_teacher_is_refused(folder, tmp_path):
    with pytest.raises(ModelError, match=r"absent\.onnx does not exist"):
        run("--pictures", folder, "--teacher", "absent.onnx", "--output", tmp_path / "labels.json")


def test_pictures_that_do_not_exist_are_named_with_both_things_they_may_be(teacher, tmp_path):
    with pytest.raises(UsageError, match=r"gone does not exist; expected a folder of pictures, or a label file"):
        run("--pictures", tmp_path / "gone", "--teacher", teacher, "--output", tmp_path / "labels.json")
