"""Runs on drawn faces: exact resumption, what is refused before the first step, what a run leaves behind."""

import csv
import json
import shutil
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")
pytest.importorskip("onnx", reason="onnx is not installed, and a finished run exports its model")

import cv2  # noqa: E402

from media.drawn_faces import write_faces  # noqa: E402
from retinastream.errors import (  # noqa: E402
    InputError,
    ModelError,
    OutputError,
    SetupError,
    TrainingError,
    UsageError,
)
from retinastream.models.checkpoints import load_checkpoint  # noqa: E402
from retinastream.models.onnx_graph import file_sha256, read_graph  # noqa: E402
from retinastream.training import run_folder  # noqa: E402
from retinastream.training.checkpoint import read_checkpoint  # noqa: E402
from retinastream.training.config_file import change_config, load_config, parse_config  # noqa: E402
from retinastream.training.learner import Learner  # noqa: E402
from retinastream.training.observer import Observer  # noqa: E402
from retinastream.training.trainer import train  # noqa: E402
from retinastream.training.training_data import read_source  # noqa: E402

STEPS = 6


class Recorder(Observer):
    """Remembers what it is told, and calls ``then`` after every step."""

    def __init__(self, then=lambda step: None):
        self.notes, self.steps, self.rows, self.evaluations, self.paths, self.then = [], [], [], [], [], then

    def note(self, text):
        self.notes.append(text)

    def stepped(self, step, values):
        self.steps.append((step, dict(values)))
        self.then(step)

    def logged(self, step, row):
        self.rows.append((step, dict(row)))

    def evaluated(self, step, row):
        self.evaluations.append((step, dict(row)))

    def saved(self, path):
        self.paths.append(path)


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """Eight drawn pictures, two of them without a face."""
    return write_faces(tmp_path_factory.mktemp("faces"), pictures=8, size=(96, 96), heights=(16, 50), empty=2)


def configure(labels, *changes):
    """Two steps of four pictures make an epoch; three epochs make a run."""
    values = {
        "data": [{"labels": str(labels)}],
        "augmentation": {"mosaic": 0.5, "min_face": 4.0},
        "loss": {"least_negatives": 16},
        "schedule": {"shape": "cosine", "rate": 0.01, "epochs": STEPS / 2, "warmup_epochs": 1},
        "optimiser": {"clip_norm": 10.0, "decay_norms": False},
        "run": {"batch": 4, "size": 64, "seed": 3, "precision": "f32", "threads": 1, "log_every": 2, "device": "cpu"},
    }
    return change_config(parse_config(values, "test"), changes)


def tensors(value, name=""):
    """All tensors of a checkpoint by their place in it."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return {place: t for key, item in items for place, t in tensors(item, f"{name}.{key}").items()}


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def straight(labels, tmp_path_factory):
    """A run that was never interrupted: (its result, what it said)."""
    told = Recorder()
    folder = tmp_path_factory.mktemp("straight") / "run"
    evaluation = f"evaluation={{data: {{labels: {labels}}}, every: 4}}"
    return train(configure(labels, evaluation), run_dir=folder, observer=told), told


@pytest.mark.parametrize(
    "changes",
    [(), ("run.precision=bf16", "run.size=[64, 96]"), ("optimiser.nesterov=true", "run.channels_last=false")],
    ids=["f32", "bf16, two sizes", "plain layout"],
)
def test_a_resumed_run_ends_in_the_same_bits_as_one_that_was_not_stopped(labels, tmp_path, changes):
    config = configure(labels, *changes)
    whole, first = tmp_path / "whole", tmp_path / "parts"
    train(config, run_dir=whole)
    stopped = train(config, run_dir=first, stop_after=3)
    assert (stopped.step, stopped.finished, stopped.model) == (3, False, None)
    torch.rand(7)  # the generator of the process is elsewhere now
    told = Recorder()
    resumed = train(config, run_dir=first, resume=True, observer=told)
    assert resumed.finished
    assert [step for step, _ in told.steps] == list(range(4, resumed.steps + 1))
    name = f"checkpoints/step-{resumed.steps:08d}.pth"
    one, other = (tensors(read_checkpoint(folder / name)) for folder in (whole, first))
    assert one.keys() == other.keys()
    assert len(one) > 700  # weights, average and momentum of 300 tensors, of which some have no momentum
    assert [place for place in one if not torch.equal(one[place], other[place])] == []
    assert (whole / "model.onnx").read_bytes() == (first / "model.onnx").read_bytes()


def test_another_seed_ends_elsewhere(labels, tmp_path):
    ends = []
    for seed in (3, 4):
        folder = tmp_path / str(seed)
        train(configure(labels, f"run.seed={seed}"), run_dir=folder, stop_after=1)
        ends.append(read_checkpoint(folder / "checkpoints" / "step-00000001.pth")["network"]["fpn.output1.0.weight"])
    assert not torch.equal(*ends)


def test_a_run_leaves_its_configuration_data_log_checkpoints_report_and_model(straight, labels):
    result, told = straight
    folder = result.run_dir
    assert result.finished
    assert load_config(folder / "config.yaml").data[0].labels == labels
    assert json.loads((folder / "data.json").read_text())["sets"][0]["usable"] == 8
    assert "8 of 8 pictures usable" in (folder / "data.txt").read_text()
    logged = rows(folder / "log.csv")
    assert [row["step"] for row in logged] == ["2", "4", "6"]
    assert float(logged[0]["loss"]) == pytest.approx(sum(v["loss"] for _, v in told.steps[:2]) / 2, rel=1e-4)
    assert [row["step"] for row in rows(folder / "evaluation.csv")] == ["4", "6"]
    assert (folder / "checkpoints" / "best.pth").is_file()
    report = json.loads((folder / "report.json").read_text())
    assert report == result.report
    assert report["model_sha256"] == file_sha256(folder / "model.onnx")
    assert {"machine", "network", "evaluation", "pictures"} <= {note.partition(":")[0] for note in told.notes}
    assert any("f32 (as configured), 1 threads" in note for note in told.notes)


def test_the_model_at_the_end_is_the_moving_average_and_says_how_it_was_made(straight):
    result, _ = straight
    metadata, report = read_graph(result.model).metadata, result.report
    assert metadata["retinastream.training_config_sha256"] == report["config_sha256"]
    assert metadata["retinastream.training_data_sha256"] == report["data_sha256"]
    assert metadata["retinastream.training_step"] == str(STEPS)


def test_a_checkpoint_loads_as_a_detector_without_naming_its_spec(straight):
    result, _ = straight
    path = result.run_dir / "checkpoints" / f"step-{STEPS:08d}.pth"
    loaded = load_checkpoint(path)
    average = read_checkpoint(path)["state_dict"]
    assert loaded.architecture == "mobilenetv1-x0.25"
    assert all(torch.equal(value, average[name]) for name, value in loaded.network.state_dict().items())


def test_the_network_that_is_measured_answers_as_the_exported_model_does(straight, labels):
    import numpy as np

    from retinastream.pipeline.detector import Detector
    from retinastream.training.config import DataSource, EvaluationConfig
    from retinastream.training.evaluate_during import NetworkDetector

    result, _ = straight
    loaded = load_checkpoint(result.run_dir / "checkpoints" / f"step-{STEPS:08d}.pth")
    wanted = EvaluationConfig(data=DataSource(labels=labels), threshold=0.3)
    picture = cv2.imread(str(next((labels.parent / "images").glob("*.png"))))[:90]
    ours = NetworkDetector(loaded.network, loaded.spec, wanted)(picture)
    with Detector(result.model, threshold=0.3, size="native", threads=1) as detector:
        theirs = detector(picture)
    assert len(ours) == len(theirs) > 0
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-3)
    np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=0.1)


def test_a_folder_that_is_in_use_is_refused_and_left_alone(straight, labels):
    result, _ = straight
    before = (result.run_dir / "log.csv").read_bytes()
    with pytest.raises(UsageError, match=r"not empty.*--resume"):
        train(configure(labels), run_dir=result.run_dir)
    assert (result.run_dir / "log.csv").read_bytes() == before


def test_resuming_a_finished_run_takes_no_step_and_exports_again(straight, labels, tmp_path):
    result, _ = straight
    folder = shutil.copytree(result.run_dir, tmp_path / "copy")
    (folder / "model.onnx").unlink()
    told = Recorder()
    again = train(load_config(folder / "config.yaml"), run_dir=folder, resume=True, observer=told)
    assert told.steps == []
    assert again.model.read_bytes() == result.model.read_bytes()
    assert [row["step"] for row in rows(folder / "log.csv")] == ["2", "4", "6"]


@pytest.fixture
def begun(labels, tmp_path):
    train(configure(labels), run_dir=tmp_path / "run", stop_after=2)
    return tmp_path / "run"


def test_a_changed_configuration_is_shown_and_refused_unless_it_is_accepted(begun, labels):
    config = configure(labels, "schedule.rate=0.02", "run.keep=1")
    with pytest.raises(UsageError) as caught:
        train(config, run_dir=begun, resume=True)
    assert "2 place(s): schedule.rate: 0.01 -> 0.02; run.keep: 3 -> 1" in str(caught.value)
    told = Recorder()
    result = train(config, run_dir=begun, resume=True, accept_changes=True, observer=told, stop_after=3)
    assert result.step == 3
    assert "changed on resume: schedule.rate: 0.01 -> 0.02" in told.notes
    assert load_config(begun / "config.yaml") == config


def test_other_data_than_the_run_began_with_are_refused_unless_accepted(begun, labels, tmp_path):
    copy = shutil.copytree(labels.parent, tmp_path / "faces")
    config = configure(copy / "labels.json")
    train(config, run_dir=tmp_path / "other", stop_after=1)
    known = json.loads((copy / "labels.json").read_text())
    known.popitem()
    (copy / "labels.json").write_text(json.dumps(known))
    with pytest.raises(UsageError, match="training data has hash"):
        train(config, run_dir=tmp_path / "other", resume=True)
    assert train(config, run_dir=tmp_path / "other", resume=True, accept_changes=True, stop_after=2).step == 2


def test_a_checkpoint_of_another_architecture_names_the_first_tensor_that_differs(begun, labels):
    with pytest.raises(ModelError, match=r"body\.stage1\.0\.0\.weight has shape \(8, 3, 3, 3\).*\(16, 3, 3, 3\)"):
        train(configure(labels, "model.architecture=mobilenetv1-x0.5"), run_dir=begun, resume=True, accept_changes=True)


def test_resuming_where_no_run_is_says_so(labels, tmp_path):
    with pytest.raises(UsageError, match="no checkpoint to resume from"):
        train(configure(labels), run_dir=tmp_path / "nothing", resume=True)
    assert not (tmp_path / "nothing").exists()


def test_a_folder_without_a_checkpoint_is_to_be_removed_whichever_way_it_is_tried(labels, tmp_path):
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UsageError, match=r"no checkpoint to resume from; start without --resume, after removing"):
        train(configure(labels), run_dir=tmp_path, resume=True)
    with pytest.raises(UsageError, match=r"is not empty; it has no checkpoint: remove it"):
        train(configure(labels), run_dir=tmp_path)


def test_a_setup_that_fails_leaves_the_folder_free_for_the_next_try(labels, tmp_path):
    config = configure(labels, "data.0.labels=nowhere.json")
    with pytest.raises((InputError, UsageError), match=r"nowhere\.json"):
        train(config, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "error", "part"),
    [
        ("model.spec=retinaface-paper", UsageError, "leave model.spec out"),
        ("model.architecture=resnet51", ModelError, "resnet51"),
        ("model.backbone=nothing.tar", ModelError, r"nothing\.tar.*model\.backbone=null"),
        ("model.weights=nothing.pth", ModelError, r"nothing\.pth.*model\.weights=FILE"),
        ("run.precision=fp16", UsageError, "fp16"),
        ("run.size=16", UsageError, "16"),
        ("run.size=100", UsageError, r"run\.size 100.*multiple.*such as 96"),
        ("run.size=[[64, 4], [90, 2]]", UsageError, r"run\.size 90.*such as 96"),
        ("evaluation={data: {labels: LABELS}, size: big}", UsageError, r"evaluation\.size: size 'big'.*native"),
        ("distillation={teacher: nothing.onnx}", UsageError, "nothing.onnx"),
    ],
)
def test_what_cannot_run_is_refused_before_the_first_step(labels, tmp_path, change, error, part):
    with pytest.raises(error, match=part):
        train(configure(labels, change.replace("LABELS", str(labels))), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_is_not_replaced_by_the_cpu_silently(labels, tmp_path):
    with pytest.raises(SetupError, match="no CUDA device"):
        train(configure(labels, "run.device=cuda"), run_dir=tmp_path / "run")


def test_a_folder_that_cannot_be_made_is_named_before_the_first_step(labels, tmp_path):
    (tmp_path / "file").touch()
    told = Recorder()
    with pytest.raises(OutputError, match=r"file/run"):
        train(configure(labels), run_dir=tmp_path / "file" / "run", observer=told)
    assert told.steps == []


def test_a_full_disk_is_noticed_before_the_first_step(labels, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(10, 9, 1000)
    monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OutputError, match=r"0 MB free.*need \d+ MB"):
        train(configure(labels), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_request_to_stop_finishes_the_step_saves_and_returns(labels, tmp_path):
    stop = threading.Event()
    told = Recorder(then=lambda step: stop.set() if step == 2 else None)
    result = train(configure(labels), run_dir=tmp_path / "run", observer=told, stop=stop)
    assert (result.step, result.finished) == (2, False)
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002.pth"]
    assert "stopped after step 2" in told.notes
    assert not any(thread.name == "training-batches" for thread in threading.enumerate())


def test_checkpoints_are_written_on_the_way_and_old_ones_removed(labels, tmp_path):
    told = Recorder()
    train(configure(labels, "run.checkpoint_every=1", "run.keep=2"), run_dir=tmp_path / "run", observer=told)
    names = [f"step-{step:08d}.pth" for step in range(1, STEPS + 1)]
    assert [path.name for path in told.paths] == [*names, "model.onnx"]
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == names[-2:]


def test_checkpoints_also_go_by_the_clock(labels, tmp_path):
    told = Recorder()
    config = configure(labels, "run.checkpoint_minutes=1e-9")
    train(config, run_dir=tmp_path / "run", observer=told, stop_after=3)
    assert [path.name for path in told.paths] == [f"step-{step:08d}.pth" for step in (1, 2, 3)]


def test_a_loss_that_is_no_number_stops_the_run_and_saves_what_led_there(labels, tmp_path, monkeypatch):
    real = Learner.learn

    def poisoned(self, batch, rate):
        if batch.step == 2:
            with torch.no_grad():
                self.network.body.stage1[0][0].weight[0, 0, 0, 0] = float("nan")
        return real(self, batch, rate)

    monkeypatch.setattr(Learner, "learn", poisoned)
    folder = tmp_path / "run"
    with pytest.raises(TrainingError, match=r"step 2: the loss is nan.*nan-step-2"):
        train(configure(labels, "run.checkpoint_every=2"), run_dir=folder)
    saved = folder / "nan-step-2"
    told = json.loads((saved / "batch.json").read_text())
    assert told["values"]["loss"] == "nan"
    assert len(told["pictures"]) == 4
    for entry in told["pictures"]:
        assert cv2.imread(str(saved / entry["file"])).shape == (64, 64, 3)
        assert len(entry["boxes"]) == len(entry["landmarks"]) == len(entry["ignore"])
    state = torch.load(saved / "state.pth", weights_only=True)
    assert state["images"].shape == (4, 3, 64, 64)
    assert (folder / "checkpoints" / "step-00000002.pth").is_file()


def test_a_run_that_failed_before_its_first_checkpoint_is_not_told_to_resume(labels, tmp_path):
    config = configure(labels, "schedule.rate=1e30", "schedule.warmup_epochs=0", "optimiser.clip_norm=null")
    with pytest.raises(TrainingError, match=r"start again in another --output"):
        train(config, run_dir=tmp_path / "run")


def test_an_infinite_gradient_stops_the_run_before_it_reaches_a_weight(labels, tmp_path, monkeypatch):
    seen = []
    real = Learner.learn

    def poisoned(self, batch, rate):
        weight = self.network.ssh1.conv3X3[0].weight
        hook = weight.register_hook(lambda gradient: gradient * float("inf"))
        seen.append((weight, weight.detach().clone()))
        try:
            return real(self, batch, rate)
        finally:
            hook.remove()

    monkeypatch.setattr(Learner, "learn", poisoned)
    with pytest.raises(TrainingError, match=r"norm of the gradient is (inf|nan)"):
        train(configure(labels), run_dir=tmp_path / "run")
    ((weight, before),) = seen
    assert torch.equal(weight, before)


def test_a_checkpoint_that_cannot_be_written_ends_the_run_with_the_older_one_intact(labels, tmp_path, monkeypatch):
    real, calls = torch.save, []

    def full(content, file):
        calls.append(1)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        real(content, file)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OutputError, match="No space left"):
        train(configure(labels, "run.checkpoint_every=2"), run_dir=tmp_path / "run")
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002.pth"]


def test_a_teacher_takes_its_share_in_the_loss(labels, tmp_path, tiny_model):
    told = Recorder()
    change = f"distillation={{teacher: {tiny_model['fused']}, threads: 1, recipe: {{share: 0.25}}}}"
    result = train(configure(labels, change), run_dir=tmp_path / "run", observer=told, stop_after=2)
    for _, values in told.steps:
        assert values["loss"] == pytest.approx(0.75 * values["total"] + 0.25 * values["teacher_total"], rel=1e-5)
    assert result.report["teacher_sha256"] == file_sha256(tiny_model["fused"])
    assert any(note.startswith("teacher: ") for note in told.notes)


def test_without_a_teacher_the_loss_is_that_of_the_labels(straight):
    _, told = straight
    assert all(values["loss"] == values["total"] for _, values in told.steps)
    assert all(values["teacher_total"] != values["teacher_total"] for _, values in told.steps)


def test_norms_and_biases_decay_only_if_asked_to(labels, tmp_path):
    from retinastream.models.architectures import create_network
    from retinastream.training.optimiser import make_optimiser

    network = create_network("mobilenetv1-x0.25")
    shapes = {}
    for decay_norms in (False, True):
        config = configure(labels, f"optimiser.decay_norms={decay_norms}")
        groups = make_optimiser(network, config.optimiser).param_groups
        shapes[decay_norms] = [(g["weight_decay"], {p.ndim for p in g["params"]}) for g in groups]
    assert shapes == {False: [(5e-4, {4}), (0.0, {1})], True: [(5e-4, {1, 4})]}


def test_a_split_by_name_holds_out_the_same_pictures_whatever_else_there_is(labels, tmp_path):
    config = configure(labels, "data.0.held_out=0.4", "data.0.part=held-out")
    held = {p.name for p in read_source(config.data[0]).pictures}
    rest = {p.name for p in read_source(change_config(config, ["data.0.part=train"]).data[0]).pictures}
    assert held
    assert rest
    assert not held & rest
    assert len(held | rest) == 8
    known = json.loads(labels.read_text())
    for name in sorted(known)[:3]:
        del known[name]
    copy = shutil.copytree(labels.parent, tmp_path / "fewer")
    (copy / "labels.json").write_text(json.dumps(known))
    fewer = change_config(config, [f"data.0.labels={copy / 'labels.json'}"])
    assert {p.name for p in read_source(fewer.data[0]).pictures} == held & known.keys()


def test_the_network_of_the_paper_trains_too(labels, tmp_path):
    config = configure(
        labels,
        "model={architecture: paper-mobilenetv1-x0.25, face_prior: 0.01}",
        "matching={positive: 0.5, background: 0.3, claim_above: null}",
    )
    result = train(config, run_dir=tmp_path / "run", stop_after=2)
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "step-00000002.pth").architecture == (
        "paper-mobilenetv1-x0.25"
    )
    assert result.step == 2


LEARN_BY_HEART = {
    "model": {"face_prior": 0.01},
    "augmentation": {"crop": [1.0, 1.0], "flip": 0.5, "colour_probability": 0.0},
    "schedule": {"shape": "cosine", "rate": 0.03, "epochs": 70, "warmup_epochs": 5},
    "optimiser": {"clip_norm": 10.0, "ema_decay": 0.9, "decay_norms": False},
    "run": {"batch": 8, "size": 128, "log_every": 20, "precision": "f32", "threads": 1, "device": "cpu"},
}


@pytest.mark.slow
def test_twenty_drawn_pictures_are_learned_by_heart(tmp_path):
    source = {"labels": str(write_faces(tmp_path / "set", pictures=20, size=(128, 96), heights=(20, 64), most=2))}
    told = Recorder()
    config = parse_config({**LEARN_BY_HEART, "data": [source], "evaluation": {"data": source}}, "test")
    result = train(config, run_dir=tmp_path / "run", observer=told)
    losses = [row["loss"] for _, row in told.rows]
    assert losses[-1] < 0.2 * losses[0]
    assert result.last_ap50 >= 0.95


@pytest.mark.slow
def test_two_processes_take_the_steps_together_and_one_writes(labels, tmp_path):
    pytest.importorskip("torch.distributed", reason="this build of torch has no distributed training")
    if not torch.distributed.is_gloo_available():
        pytest.skip("this build of torch has no Gloo")
    import yaml

    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump(configure(labels, "run.batch=2").plain()))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "retinastream", "train", "--config", file, "--output", tmp_path / "run"]
    done = subprocess.run(
        [*launch, *map(str, command)], capture_output=True, text=True, cwd=tmp_path, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("2 processes") == 1
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (report["step"], report["finished"]) == (STEPS, True)
    assert [row["step"] for row in rows(tmp_path / "run" / "log.csv")] == ["2", "4", "6"]
    # Two processes of two pictures see what one of four sees.
    alone = train(configure(labels), run_dir=tmp_path / "alone")
    assert alone.steps == report["steps"]


@pytest.mark.gpu
def test_fp16_and_bf16_train_on_a_gpu(labels, tmp_path):
    for precision in ("fp16", "bf16"):
        told = Recorder()
        config = configure(labels, "run.device=cuda", f"run.precision={precision}")
        result = train(config, run_dir=tmp_path / precision, observer=told)
        assert result.finished
        assert all(values["loss"] < 1e4 for _, values in told.steps)
        assert Path(result.model).is_file()
