"""Specs: what they compute, what they refuse, and where they are read from."""

import json

import pytest

from retinastream.errors import UsageError
from retinastream.models.spec import DetectorSpec
from retinastream.models.spec_registry import SPECS, read_spec


@pytest.mark.parametrize(("height", "width", "anchors"), [(2160, 3840, 340_320), (640, 640, 16_800), (32, 32, 42)])
def test_anchor_count_of_known_sizes(height, width, anchors):
    padded = -(-height // 32) * 32
    assert DetectorSpec().anchor_count(height if height == 2160 else padded, width) == anchors


def test_plain_values_round_trip_through_json():
    spec = SPECS["retinaface-light-10-20"]
    assert DetectorSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    ("what", "values", "message"),
    [
        ("fewer sizes than strides", {"anchor_sizes": [[16, 32]]}, "3 strides and 1 lists"),
        ("strides that descend", {"strides": [32, 16, 8]}, "ascending"),
        ("no strides", {"strides": [], "anchor_sizes": []}, "ascending"),
        ("a negative size", {"anchor_sizes": [[16], [-64], [256]]}, "positive"),
        ("two means", {"mean": [1, 2]}, "three numbers"),
        ("another channel order", {"channel_order": "gbr"}, "'gbr' is unknown; allowed are bgr, rgb"),
        ("another layout", {"output_layout": "nhwc"}, "'nhwc' is unknown; allowed are fused, classic"),
        ("68 landmarks", {"landmark_count": 68}, "68 landmarks"),
        ("a misspelt field", {"anchor_size": []}, "unknown spec field 'anchor_size'"),
    ],
)
def test_wrong_values_are_refused(what, values, message):
    with pytest.raises(UsageError, match=message):
        DetectorSpec.from_dict(values)


def test_spec_is_read_by_name_or_from_yaml_or_json(tmp_path):
    assert read_spec("retinaface-light") == DetectorSpec()
    (tmp_path / "mine.yaml").write_text("anchor_sizes: [[10, 20], [32, 64], [128, 256]]\n")
    assert read_spec(tmp_path / "mine.yaml") == SPECS["retinaface-light-10-20"]
    (tmp_path / "mine.json").write_text(json.dumps({"scale": 0.5}))
    assert read_spec(str(tmp_path / "mine.json")).scale == 0.5


@pytest.mark.parametrize(
    ("what", "content", "message"),
    [
        ("no such name or file", None, "neither a spec nor a file; specs are retinaface-light"),
        ("no YAML", "a: [", "cannot be read as YAML"),
        ("a list", "- 1", "holds list"),
        ("strides that are text", "strides: [a, b, c]", "cannot be used"),
        ("an unknown field", "stride: 8", "unknown spec field 'stride'"),
    ],
)
def test_unusable_spec_files_are_refused(what, content, message, tmp_path):
    path = tmp_path / "spec.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=message):
        read_spec(path)
