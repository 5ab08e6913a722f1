"""The description of a detector: what it refuses, and that it survives being written down."""

import json

import pytest

from retinastream.errors import UsageError
from retinastream.models.spec import DetectorSpec


def test_the_default_is_the_light_retinaface():
    spec = DetectorSpec()
    assert spec.strides == (8, 16, 32)
    assert spec.anchor_sizes == ((16, 32), (64, 128), (256, 512))
    assert (spec.mean, spec.scale, spec.channel_order) == ((104, 117, 123), 1, "bgr")
    assert spec.max_stride == 32


@pytest.mark.parametrize(
    ("height", "width", "count"),
    [
        pytest.param(640, 640, 16_800, id="the paper's square"),
        pytest.param(2160, 3840, 340_320, id="4K"),
        pytest.param(2176, 3840, 342_720, id="4K padded to 32"),
        pytest.param(32, 32, 42, id="one coarse cell"),
        pytest.param(1, 1, 6, id="one pixel"),
    ],
)
def test_anchors_are_counted_over_all_levels(height, width, count):
    assert DetectorSpec().anchor_count(height, width) == count


def test_feature_maps_round_up():
    assert DetectorSpec().feature_sizes(33, 65) == ((5, 9), (3, 5), (2, 3))


def test_a_spec_survives_json():
    spec = DetectorSpec((4, 8), ((10.0,), (20.0, 30.5)), (0.2, 0.1), "rgb", (1.5, 2.0, 3.0), 0.5, 5, "classic")
    assert DetectorSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert hash(DetectorSpec.from_dict(spec.to_dict())) == hash(spec)


def test_fields_left_out_have_their_default():
    assert DetectorSpec.from_dict({"mean": [1, 2, 3]}) == DetectorSpec(mean=(1, 2, 3))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        pytest.param({"strides": (8, 16)}, "2 strides and 3 lists of anchor sizes", id="a level without stride"),
        pytest.param({"strides": (16, 8, 32)}, "must be positive and ascending", id="strides out of order"),
        pytest.param({"strides": (0, 8, 16)}, "must be positive and ascending", id="a stride of zero"),
        pytest.param({"strides": (), "anchor_sizes": ()}, "must be positive", id="no level at all"),
        pytest.param({"anchor_sizes": ((16,), (), (256,))}, "positive numbers for every stride", id="an empty level"),
        pytest.param({"anchor_sizes": ((16,), (-1,), (256,))}, "positive numbers", id="a negative anchor"),
        pytest.param({"mean": (1.0, 2.0)}, "must be three numbers", id="two means"),
        pytest.param({"variances": (0.1,)}, "variances", id="one variance"),
        pytest.param({"channel_order": "gbr"}, "allowed are bgr, rgb", id="an unknown order"),
        pytest.param({"output_layout": "nhwc"}, "allowed are fused, classic", id="an unknown layout"),
        pytest.param({"landmark_count": 68}, "allowed are 5", id="too many landmarks"),
    ],
)
def test_values_that_no_detector_has_are_refused(values, says):
    with pytest.raises(UsageError, match=says):
        DetectorSpec(**values)


def test_an_unknown_field_is_refused_by_name():
    with pytest.raises(UsageError, match=r"unknown spec field 'stride'; known are anchor_sizes"):
        DetectorSpec.from_dict({"stride": 8})
