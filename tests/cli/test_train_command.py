"""``retinastream train`` as a person calls it: exit codes, messages, signals, and a whole small run."""

import json
import signal
import time

import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")
pytest.importorskip("onnx", reason="onnx is not installed, and a finished run exports its model")

import yaml  # noqa: E402

from media.drawn_faces import write_faces  # noqa: E402

SETTINGS = {
    "schedule": {"shape": "cosine", "rate": 0.01, "epochs": 3, "warmup_epochs": 1},
    "optimiser": {"clip_norm": 10.0},
    "run": {"batch": 4, "size": 64, "precision": "f32", "threads": 1, "log_every": 2, "device": "cpu"},
}


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    return write_faces(tmp_path_factory.mktemp("faces"), pictures=8, size=(96, 96), heights=(16, 50))


@pytest.fixture
def config(labels, tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({**SETTINGS, "data": [{"labels": str(labels)}]}))
    return path


def wait_for(path, process, seconds=120):
    """Wait until a file is there and holds more than its first line."""
    for _ in range(seconds * 20):
        if path.is_file() and path.read_text().count("\n") > 1:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    pytest.fail(f"{path} was not written within {seconds} s")


def test_a_run_needs_no_name_of_a_subcommand_and_lands_in_a_folder_of_its_configuration(retinastream, config, tmp_path):
    code, out, err = retinastream("train", "--config", config)
    assert code == 0, err
    run = tmp_path / "work" / "runs" / "small"
    assert (run / "model.onnx").is_file()
    assert out == ""
    assert "machine: cpu (CPU), f32 (as configured), 1 threads" in err
    assert "6 steps of 4 pictures at 64 px: 3 epochs of 2 steps over 8 pictures" in err
    assert "step 6/6  loss " in err


def test_train_run_is_the_same(retinastream, config, tmp_path):
    code, _, err = retinastream("train", "run", "--config", config, "-o", "here", "--stop-after", 1, "--quiet")
    assert (code, err) == (0, "")
    assert (tmp_path / "work" / "here" / "checkpoints" / "step-00000001.pth").is_file()


def test_help_names_both_ways_to_use_it(retinastream):
    code, out, _ = retinastream("train", "--help")
    assert code == 0
    assert "label" in out
    assert "run" in out
    code, out, _ = retinastream("train", "run", "--help")
    assert code == 0
    assert "--resume" in out


def test_the_configuration_in_effect_can_be_printed(retinastream, config):
    code, out, _ = retinastream("train", "--config", config, "--dump-config", "run.batch=2", "schedule.rate=2e-3")
    values = yaml.safe_load(out)
    assert code == 0
    assert (values["run"]["batch"], values["schedule"]["rate"], values["schedule"]["epochs"]) == (2, 0.002, 3)


def test_a_folder_in_use_is_refused_and_resumed_when_asked(retinastream, config):
    assert retinastream("train", "--config", config, "-o", "run", "--stop-after", 2)[0] == 0
    code, _, err = retinastream("train", "--config", config, "-o", "run")
    assert code == 2
    assert "run exists and is not empty; give --resume" in err
    code, _, err = retinastream("train", "-o", "run", "--resume")
    assert code == 0, err
    assert "resumed after step 2 of 6" in err


def test_a_changed_configuration_is_shown_on_resume(retinastream, config):
    assert retinastream("train", "--config", config, "-o", "run", "--stop-after", 2)[0] == 0
    code, _, err = retinastream("train", "--config", config, "-o", "run", "--resume", "run.seed=9")
    assert code == 2
    assert "run.seed: 0 -> 9" in err
    code, _, err = retinastream("train", "-o", "run", "--resume", "run.seed=9", "--accept-changes", "--stop-after", 3)
    assert code == 0
    assert "changed on resume: run.seed: 0 -> 9" in err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--config", "nothing.yaml"], "nothing.yaml: no such training configuration"),
        ([], "Usage"),
        (["--resume"], "give --config FILE"),
        (["--output", "nowhere", "--resume"], "no run that could be resumed"),
        (["--config", "CONFIG", "run.bach=3"], "did you mean 'batch'"),
        (["--config", "CONFIG", "run.batch"], "expected key=value"),
        (["CONFIG"], "did you mean --config"),
        (["--resume", "."], "did you mean --output . --resume"),
        (["--config", "CONFIG", "data.0.labels=none.json"], "none.json"),
    ],
)
def test_wrong_usage_is_explained_in_one_line(retinastream, config, arguments, part):
    code, out, err = retinastream("train", *(str(config) if a == "CONFIG" else a for a in arguments))
    assert code in ((0, 2) if not arguments else (1, 2))
    assert part in out + err


def test_an_unknown_key_in_the_file_names_the_file(retinastream, config):
    config.write_text(config.read_text() + "\nmatchin: {}\n")
    code, _, err = retinastream("train", "--config", config)
    assert code == 2
    assert f"{config}: unknown key 'matchin'; did you mean 'matching'" in err


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
def test_a_signal_finishes_the_step_saves_and_resumes_to_the_same_weights(start, config, tmp_path, number, code):
    many = ["schedule.epochs=100", "schedule.warmup_epochs=10", "run.log_every=1"]
    process = start("train", "--config", config, "-o", "run", *many)
    wait_for(tmp_path / "run" / "log.csv", process)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert "stopping: finishing the step and saving" in err
    assert "to go on: retinastream train --output run --resume" in err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert 0 < report["step"] < 200
    assert not report["finished"]
    ended = start("train", "-o", "run", "--resume", "--stop-after", report["step"] + 3)
    assert ended.wait(120) == 0
    whole = start("train", "--config", config, "-o", "whole", *many, "--stop-after", report["step"] + 3)
    assert whole.wait(180) == 0
    hashes = {json.loads((tmp_path / f / "report.json").read_text())["weights_sha256"] for f in ("run", "whole")}
    assert len(hashes) == 1


@pytest.mark.slow
def test_a_model_is_trained_exported_measured_and_used(retinastream, tmp_path):
    learned = write_faces(tmp_path / "set", pictures=20, size=(128, 96), heights=(20, 64), most=2)
    settings = {
        "model": {"face_prior": 0.01},
        "data": [{"labels": str(learned)}],
        "evaluation": {"data": {"labels": str(learned)}, "every": 100},
        "augmentation": {"crop": [1.0, 1.0], "colour_probability": 0.0},
        "schedule": {"shape": "cosine", "rate": 0.03, "epochs": 70, "warmup_epochs": 5},
        "optimiser": {"clip_norm": 10.0, "ema_decay": 0.9, "decay_norms": False},
        "run": {"batch": 8, "size": 128, "precision": "f32", "threads": 1, "device": "cpu"},
    }
    (tmp_path / "learn.yaml").write_text(yaml.safe_dump(settings))
    code, _, err = retinastream("train", "--config", tmp_path / "learn.yaml", "-o", "run")
    assert code == 0, err
    work = tmp_path / "work"
    report = json.loads((work / "run" / "report.json").read_text())
    model = work / "run" / "model.onnx"

    code, out, err = retinastream("eval", "set", learned, "--model", model, "--size", "native", "--json")
    assert code == 0, err
    assert json.loads(out)["ap50"] == pytest.approx(report["last_ap50"], abs=0.01)
    assert report["last_ap50"] > 0.8

    pictures = learned.parent / "images"
    code, _, err = retinastream("detect", pictures, "-m", model, "-o", "found", "--size", "native")
    assert code == 0, err
    lines = [json.loads(line) for path in (work / "found").rglob("*.jsonl") for line in path.read_text().splitlines()]
    faces = [face for line in lines if isinstance(line.get("faces"), list) for face in line["faces"]]
    assert len(faces) > 20
