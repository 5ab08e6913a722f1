"""One definition of every setting: files, environment, flags, and what is said about wrong ones."""

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


def test_unknown_environment_variable_is_refused_with_the_nearest_name():
    with pytest.raises(UsageError, match=r"RETINASTREAM_SIZ .*'size'"):
        load_settings({}, None, {"RETINASTREAM_SIZ": "native"})


def test_variables_of_other_purposes_are_let_through():
    settings = load_settings({}, None, {"RETINASTREAM_CACHE": "/x", "RETINASTREAM_TEST_DATA": "/y", "HOME": "/z"})
    assert settings == DetectSettings()


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere\.yaml.*no such"):
        load_settings({}, tmp_path / "nowhere.yaml", {})
