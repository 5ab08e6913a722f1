"""The parts of building and running plans that need no TensorRT, not even a fake one."""

import json
import logging
import threading

import pytest

from retinastream.engines.tensorrt.inspect_plan import summarise_layers
from retinastream.engines.tensorrt.load import version_numbers
from retinastream.engines.tensorrt.loaded_plan import EngineTensor
from retinastream.engines.tensorrt.log import ERROR, INFO, VERBOSE, WARNING, LogRing
from retinastream.engines.tensorrt.messages import TAIL_LINES, explain, failure_text
from retinastream.engines.tensorrt.options import (
    BuildOptions,
    ShapeProfile,
    parse_batches,
    parse_bytes,
    parse_profile,
    parse_size,
    profile_for,
    profiles_for,
)
from retinastream.engines.tensorrt.progress import BuildClock, BuildProgress, describe_progress
from retinastream.errors import UsageError
from retinastream.models.onnx_file import OnnxModel
from retinastream.models.spec import DetectorSpec


def model_of(shape=(None, 3, None, None), strides=(8, 16, 32)):
    spec = DetectorSpec(strides=strides)
    return OnnxModel("m.onnx", "0" * 64, spec, "images", shape, ("a", "b", "c"), "m")


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ("CUDA initialization failure with error: 35. Please check", "driver 580 or newer"),
        ("CUDA initialization failure with error: 100", "CUDA_VISIBLE_DEVICES"),
        ("CUDA initialization failure with error 803", "CUDA does not start (error 803)"),
        (
            "The engine plan file is not compatible with this version of TensorRT, expecting library version 8.6.1.2 "
            "got 8.6.0.12, please rebuild.",
            "was built by TensorRT 8.6.0.12 and this is TensorRT 8.6.1.2",
        ),
        (
            "The engine plan file is generated on an incompatible device, expecting compute 8.9 got compute 8.6, "
            "please rebuild.",
            "capability 8.6 and this one has 8.9: build",
        ),
        (
            "Using an engine plan file across different models of devices is not recommended and is likely to affect "
            "performance or even cause errors.",
            "--hardware-compatibility same-cc",
        ),
        (
            "The current device is not compatible with this hardware-compatible engine. Expected compute capability "
            ">= 8.0",
            "from Ampere on",
        ),
        ("Serialization assertion plan->header.magicTag == rt::kPLAN_MAGIC_TAG failed.", "not a whole engine"),
        ("Assertion plan->header.size == blobSize failed.", "not a whole engine"),
        ("Network has dynamic or shape inputs, but no optimization profile has been defined.", "--shape WIDTHxHEIGHT"),
        ("Specified optimization profiles must satisfy MIN<=OPT<=MAX.", "smallest <= best <= largest"),
        ("Runtime dimension does not satisfy any optimization profile.", "retinastream engine build"),
        ("Set dimension [9,3,64,64] for tensor images does not satisfy any optimization profiles.", "engine build"),
        ("Could not find any implementation for node /body/conv + relu.", "compute /body/conv + relu within"),
        ("Resize scales must be an initializer!", "--fold-constants"),
        ("getPluginCreator() could not find Plugin Wobble version 1", "operator Wobble"),
        ("Cannot find plugin: Wobble, version: 1, namespace:.", "operator Wobble, which"),
        ("No importer registered for op: Wobble. Attempting to import as plugin.", "operator Wobble"),
        (
            "TensorRT only supports symmetric quantization. The zero point must be all zeros",
            "retinastream engine quantize",
        ),
        ("Scale coefficients must all be positive", "zero or negative"),
        ("Error Code 2: OutOfMemory (Requested size was 17 bytes.)", "smaller batch"),
        ("BuilderFlag kFP16 cannot be used with strongly typed network: flag is set", "mistake of this package"),
        ("type object 'BuilderFlag' has no attribute 'FP16'", "lacks FP16"),
    ],
)
def test_raw_text_is_explained(raw, says):
    assert says in explain(["Something before", raw, "and after"])


def test_a_cause_is_named_before_its_consequence():
    lines = ["Could not find any implementation for node x.", "CUDA initialization failure with error: 100"]
    assert "CUDA_VISIBLE_DEVICES" in explain(lines)


def test_unknown_text_is_passed_on_as_it_is():
    assert explain(["whatever"]) is None
    assert failure_text("it failed", ["whatever"]) == "it failed. TensorRT said: whatever"
    assert failure_text("it failed", []) == "it failed. TensorRT said nothing about it"


def test_an_error_carries_the_last_lines_only():
    text = failure_text("it failed", [f"line {number}" for number in range(50)])
    assert "line 49" in text
    assert f"line {50 - TAIL_LINES}" in text
    assert f"line {49 - TAIL_LINES}" not in text


def test_the_log_keeps_the_last_lines_and_finds_those_since_a_mark():
    ring = LogRing(size=3)
    for number in range(5):
        ring.add(ERROR, f"old {number}")
    mark = ring.mark()
    assert ring.since(0) == ("old 2", "old 3", "old 4")
    assert ring.since(mark) == ()
    ring.add(INFO, "said")
    ring.add(WARNING, "warned")
    ring.add(VERBOSE, "muttered")
    assert ring.since(mark) == ("said", "warned")
    assert ring.complaints(mark) == ("warned",)


def test_a_warning_is_passed_on_once(caplog):
    ring = LogRing()
    with caplog.at_level(logging.INFO):
        for _ in range(100):
            ring.add(WARNING, "the same again")
    assert [record.getMessage() for record in caplog.records] == ["TensorRT: the same again"]


def test_the_log_is_safe_to_write_from_many_threads():
    ring = LogRing(size=10_000)
    threads = [threading.Thread(target=lambda: [ring.add(INFO, "x") for _ in range(500)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert ring.mark() == len(ring.since(0)) == 4000


class Time:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_nested_phases_make_one_share_that_never_falls():
    time = Time()
    clock = BuildClock(time)
    assert clock.now() == BuildProgress("starting")
    clock.enter("building")
    clock.phase_start("build", None, 4)
    clock.step_complete("build", 0)
    time.now = 10.0
    assert clock.now() == BuildProgress("building", "build", 1, 4, 0.25, 10.0, 30.0)
    clock.phase_start("timing", "build", 2)
    clock.phase_start("one kernel", "timing", 5)
    clock.step_complete("timing", 0)
    assert clock.now().fraction == pytest.approx(0.25 + 0.5 / 4)
    assert clock.now().phase == "one kernel"
    clock.phase_finish("one kernel")
    clock.phase_finish("timing")
    # the step that the part belonged to was not reported: the share stays
    assert clock.now().fraction == pytest.approx(0.375)
    for step in range(4):
        clock.step_complete("build", step)
    clock.phase_finish("build")
    assert clock.now().fraction == 1.0
    clock.phase_start("another", None, 10)
    assert clock.now().fraction == 1.0


def test_a_phase_without_steps_or_parent_does_no_harm():
    clock = BuildClock(Time())
    clock.phase_start("a", "never started", 0)
    clock.step_complete("b", 3)
    clock.phase_finish("b")
    assert clock.now().fraction == 0.0
    assert clock.now().left is None


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (BuildProgress("reading the model", seconds=1.2), "reading the model: 1 s so far"),
        (
            BuildProgress("building", "Timing", 3, 40, 0.12, 30.4, 220.0),
            "building: Timing 3 of 40, 12%, 30 s so far, about 220 s left",
        ),
        (
            BuildProgress("checking the engine", fraction=1.0, seconds=9, left=0.0),
            "checking the engine: 100%, 9 s so far",
        ),
    ],
)
def test_progress_is_one_line(progress, text):
    assert describe_progress(progress) == text


def test_sizes_are_padded_to_the_largest_stride_and_same_ones_share_a_profile():
    profiles = profiles_for(model_of(), [(3840, 2160), (3840, 2170), (1280, 720)], (1, 8, 16))
    assert [str(profile) for profile in profiles] == ["1x3x2176x3840..16x3x2176x3840", "1x3x736x1280..16x3x736x1280"]
    assert profiles[0].optimum == (8, 3, 2176, 3840)


@pytest.mark.parametrize(
    ("batches", "expected"),
    [((4,), (4, 4, 4)), ((1, 8), (1, 8, 8)), ((1, 8, 16), (1, 8, 16))],
)
def test_batches_are_one_or_a_range_with_or_without_the_best(batches, expected):
    profile = profile_for(64, 64, batches)
    assert (profile.minimum[0], profile.optimum[0], profile.maximum[0]) == expected


def test_a_profile_out_of_order_is_refused():
    with pytest.raises(UsageError, match="smallest and best shapes of a profile are 4x3x64x64 and 2x3x64x64"):
        ShapeProfile((4, 3, 64, 64), (2, 3, 64, 64), (8, 3, 64, 64))
    with pytest.raises(UsageError, match="best and largest"):
        ShapeProfile((1, 3, 64, 64), (2, 3, 64, 64), (8, 3, 64, 32))
    with pytest.raises(UsageError, match="expected BATCHx3xHEIGHTxWIDTH"):
        ShapeProfile((0, 3, 64, 64), (2, 3, 64, 64), (8, 3, 64, 64))


def test_a_model_of_fixed_size_takes_no_other():
    model = model_of((None, 3, 640, 640))
    assert profiles_for(model, [(640, 640)], (1,))
    with pytest.raises(UsageError, match="fixed width of 640"):
        profiles_for(model, [(1280, 640)], (1,))


@pytest.mark.parametrize(
    ("text", "expected"), [("3840x2160", (3840, 2160)), (" 64 X 32 ", (64, 32)), ("1280×720", (1280, 720))]
)
def test_sizes_are_read(text, expected):
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "64", "64x", "0x64", "64x64x3", "-1x5"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UsageError, match="WIDTHxHEIGHT"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4G", 4 << 30), ("512M", 512 << 20), ("1.5GiB", 3 << 29), ("100", 100), ("2k", 2048), ("1 T", 1 << 40)],
)
def test_amounts_of_memory_are_read(text, expected):
    assert parse_bytes(text) == expected


def test_batches_are_read_in_order():
    assert parse_batches("1,8,16") == (1, 8, 16)
    for text in ("16,8,1", "x", ""):
        with pytest.raises(UsageError):
            parse_batches(text)


def test_shapes_of_another_input_are_refused():
    assert parse_profile("images:1x3x64x96", "'images':2x3x64x96", "4x3x64x96", "images").maximum == (4, 3, 64, 96)
    with pytest.raises(UsageError, match="for an input 'input'"):
        parse_profile("input:1x3x64x96", "1x3x64x96", "1x3x64x96", "images")
    with pytest.raises(UsageError, match="images:1x3x736x1280"):
        parse_profile("1x3x64", "1x3x64x96", "1x3x64x96", "images")


def test_every_option_shows_in_the_values_and_comes_back_from_them():
    profile = profile_for(64, 64, (1,))
    changed = [
        BuildOptions((profile,), workspace=1 << 30),
        BuildOptions((profile,), optimization_level=2),
        BuildOptions((profile,), hardware_compatibility="same-cc"),
        BuildOptions((profile,), version_compatible=True),
        BuildOptions((profile,), max_aux_streams=0),
        BuildOptions((profile,), tf32=True),
    ]
    assert len({json.dumps(options.builder_values()) for options in (BuildOptions((profile,)), *changed)}) == 7
    for options in changed:
        level = options.hardware_compatibility
        assert BuildOptions.from_values(options.builder_values(), options.profiles, level) == options


@pytest.mark.parametrize(
    "wrong",
    [{"optimization_level": 6}, {"workspace": 5}, {"hardware_compatibility": "all"}, {"max_aux_streams": -1}],
)
def test_options_that_the_builder_does_not_take_are_refused(wrong):
    with pytest.raises(UsageError):
        BuildOptions.checked(**wrong)


def test_the_profile_with_the_smallest_largest_batch_is_chosen():
    wide, narrow = profile_for(64, 64, (1, 16)), profile_for(64, 64, (1, 4))
    ranges = tuple((p.minimum, p.optimum, p.maximum) for p in (wide, narrow))
    image = EngineTensor("images", "input", "HALF", (-1, 3, 64, 64), True, ranges)
    assert [image.profile_of((batch, 3, 64, 64)) for batch in (1, 4, 5, 17)] == [1, 1, 0, None]
    assert image.profile_of((1, 3, 64)) is None


class Described:
    def __init__(self, text):
        self.text = text

    def layers_json(self):
        return self.text


LAYERS = """{"Layers": [
 {"Name": "conv1", "LayerType": "CaskConvolution", "Outputs": [{"Format/Datatype": "Channel major INT8 format"}]},
 {"Name": "conv2", "LayerType": "CaskConvolution", "Outputs": [{"Format/Datatype": "Row major linear FP16 format"}]},
 {"Name": "conv3", "LayerType": "CaskConvolution", "Outputs": [{"Datatype": "Float"}]},
 {"Name": "Reformatting CopyNode for Input Tensor 0 to conv1", "LayerType": "NoOp", "Outputs": []},
 {"Name": "x", "LayerType": "Reformat", "Outputs": [{"Format/Datatype": "N/A due to dynamic shapes"}]}
], "I/O Tensors": []}"""


def test_layers_are_counted_by_precision_and_kind():
    assert summarise_layers(Described(LAYERS)) == {
        "count": 5,
        "precisions": {"unknown": 2, "INT8": 1, "FP16": 1, "FP32": 1},
        "kinds": {"CaskConvolution": 3, "NoOp": 1, "Reformat": 1},
        "reformats": 2,
    }


@pytest.mark.parametrize("text", ["", "no JSON", "[]", '{"Layers": ["conv1", "conv2"]}'])
def test_a_description_that_is_not_understood_is_no_error(text):
    summary = summarise_layers(Described(text))
    assert summary["count"] == (2 if "conv1" in text else 0)
    assert summary["reformats"] == 0


def test_versions_are_numbers():
    assert version_numbers("11.4.0.106") == (11, 4, 0, 106)
    assert version_numbers("10.12.0.36.post1")[:2] == (10, 12)
