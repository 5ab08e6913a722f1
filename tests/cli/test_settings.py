"""One definition of every setting: files, environment, flags, and what is said about wrong ones."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from retinastream.errors import UsageError
from retinastream.settings import DetectSettings, load_settings


def test_flags_beat_the_environment_which_beats_the_file(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("threshold: 0.1\niou: 0.2\nstride: 3\n")
    settings = load_settings({"threshold": 0.9}, config, {"RETINASTREAM_THRESHOLD": "0.8", "RETINASTREAM_IOU": "0.7"})
    assert (settings.threshold, settings.iou, settings.stride) == (0.9, 0.7, 3)


def test_what_is_dumped_is_what_can_be_read_again(tmp_path):
    settings = load_settings({"size": "native", "format": ["csv", "jsonl"], "annotate": True}, None, {})
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump(settings.plain()))
    assert load_settings({}, config, {}) == settings


def test_file_may_name_settings_as_the_options_are_named(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("max-faces: 5\n")
    assert load_settings({}, config, {}).max_faces == 5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("treshold: 0.5", ["treshold", "threshold"]),
        ("zzz: 1", ["zzz", "known are", "threshold"]),
        ("threshold: 1.5", ["threshold", "1.5", "c.yaml", "less than or equal to 1"]),
        ("runtime: tensorflow", ["runtime", "tensorflow", "openvino"]),
        ("format: [jsonl, xml]", ["format", "xml", "coco"]),
        ("- a\n- b", ["name: value", "list"]),
        ("a: [", ["is not YAML"]),
    ],
)
def test_wrong_files_are_explained(tmp_path, text, words):
    config = tmp_path / "c.yaml"
    config.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_settings({}, config, {})
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("require", "cpu", ["require", "'cpu'", "'gpu'"]),
        ("runtime", "tensorflow", ["runtime", "'tensorflow'", "'torch'", "'tensorrt'"]),
        ("precision", "fp8", ["precision", "'fp8'", "'fp16'", "'int8'"]),
        ("cuda_graph", "maybe", ["cuda-graph", "'maybe'", "boolean"]),
        ("streams", -1, ["streams", "-1", "0"]),
    ],
)
def test_wrong_settings_of_the_machine_name_what_is_allowed(name, value, words):
    with pytest.raises(UsageError) as caught:
        load_settings({name: value}, None, {})
    for word in words:
        assert word in str(caught.value)


def test_settings_of_the_machine_come_from_the_environment_as_from_flags():
    environment = {
        "RETINASTREAM_DEVICE": "cuda:1",
        "RETINASTREAM_REQUIRE": "gpu",
        "RETINASTREAM_RUNTIME": "torch",
        "RETINASTREAM_PRECISION": "fp16",
        "RETINASTREAM_CUDA_GRAPH": "0",
        "RETINASTREAM_TORCH_COMPILE": "true",
    }
    found = load_settings({}, None, environment)
    assert (found.device, found.require, found.runtime, found.precision) == ("cuda:1", "gpu", "torch", "fp16")
    assert (found.cuda_graph, found.torch_compile) == (False, True)
    plain = DetectSettings()
    assert (plain.device, plain.require, plain.precision, plain.cuda_graph) == ("auto", None, None, True)


def test_settings_of_the_machine_reach_the_detector(monkeypatch):
    """Every one of them, by name: one that is left out would be ignored without a word."""
    from retinastream.pipeline import run

    given = {}
    monkeypatch.setattr(run, "Detector", lambda model, **values: given.update(values))
    flags = {"device": "cuda:1", "require": "gpu", "runtime": "torch", "precision": "bf16", "streams": 2}
    flags |= {"cuda_graph": False, "torch_compile": True}
    run.make_detector(load_settings(flags, None, {}))
    assert {name: given[name] for name in flags} == flags


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--device", "tpu"], 2, ["'tpu'", "auto, cpu, cuda, cuda:N"]),
        (["--device", "cpu", "--require", "gpu"], 2, ["'cpu'", "--require gpu"]),
        (["--device", "cuda", "--runtime", "openvino"], 2, ["'openvino' does not run on a GPU"]),
        (["--device", "cpu", "--runtime", "tensorrt"], 2, ["'tensorrt' does not run on the CPU"]),
        (["--device", "cpu", "--precision", "int8"], 2, ["'int8' is not available", "tensorrt on a GPU"]),
        (["--device", "cuda"], 3, ["'cuda' cannot be used", "made for this test", "--device cpu"]),
        (["--require", "gpu"], 3, ["--require gpu was given", "made for this test"]),
    ],
)
def test_the_command_line_refuses_what_cannot_be(retinastream, monkeypatch, tmp_path, flags, code, words):
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed, and pictures are read with it")
    from retinastream.kernels import cuda_driver

    text = "the driver is broken, made for this test; mend it"
    monkeypatch.setattr(cuda_driver, "probe", lambda: cuda_driver.DriverState(text, (13, 0), (), text, "mend it"))
    picture = tmp_path / "picture.png"
    cv2.imwrite(str(picture), np.zeros((64, 64, 3), np.uint8))
    given, _, errors = retinastream("detect", picture, *flags)
    assert given == code
    for word in words:
        assert word in errors
    assert list(Path().iterdir()) == []


def test_a_gpu_that_is_not_used_is_said_aloud_and_written_down(retinastream, monkeypatch, tmp_path, caplog):
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed, and pictures are read with it")
    from retinastream.kernels import cuda_driver

    text = "the driver is broken, made for this test; mend it"
    monkeypatch.setattr(cuda_driver, "probe", lambda: cuda_driver.DriverState(text, (13, 0), (), text, "mend it"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    picture = tmp_path / "picture.png"
    cv2.imwrite(str(picture), np.zeros((64, 64, 3), np.uint8))
    code, summary, errors = retinastream("detect", picture, "--json")
    assert code == 0
    assert f"the network runs on the CPU although there seems to be a GPU: {text}" in caplog.messages
    assert f"no GPU can be used: {text}" in errors
    (written,) = Path().glob("*.jsonl")
    header = json.loads(written.read_text().splitlines()[0])
    assert (header["device"], header["precision"]) == ("cpu", "f32")
    assert text in json.loads(summary)["detector"]["runtime_reason"]


def test_unknown_environment_variable_is_refused_with_the_nearest_name():
    with pytest.raises(UsageError, match=r"RETINASTREAM_SIZ .*'size'"):
        load_settings({}, None, {"RETINASTREAM_SIZ": "native"})


def test_variables_of_other_purposes_are_let_through():
    settings = load_settings({}, None, {"RETINASTREAM_CACHE": "/x", "RETINASTREAM_TEST_DATA": "/y", "HOME": "/z"})
    assert settings == DetectSettings()


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere\.yaml.*no such"):
        load_settings({}, tmp_path / "nowhere.yaml", {})
