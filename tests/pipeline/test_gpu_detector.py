"""The detector on a device finds what it finds on a CPU, with one wait per batch.

The device is a HostDevice: kernels compiled for the host, run as late as they may, streams ahead of each other at
random.
"""

import logging
from fractions import Fraction

import numpy as np
import pytest
from gpu_on_host import (
    MODEL,
    as_video,
    assert_equal,
    assert_same,
    detector_on_host,
    on_device,
    pictures_of,
    sample_frames,
    small_picture,
)
from host_device import HostDevice
from host_engine import HostEngine

from retinastream.errors import UsageError
from retinastream.kernels.cuda_faces import MAX_FACES
from retinastream.pipeline.detector import Detector
from retinastream.types import PIXEL_FORMATS, Frame

ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed, and it is the engine of these tests")


@pytest.fixture(scope="module")
def picture():
    return small_picture()


@pytest.fixture(scope="module")
def cpu():
    """What a CPU finds, by settings."""
    made = {}

    def find(pictures, **settings):
        key = tuple(sorted(settings.items()))
        if key not in made:
            chosen = {"size": "native", "threshold": 0.3, "device": "cpu", "runtime": "onnxruntime", "threads": 1}
            made[key] = Detector(MODEL, **(chosen | settings))
        return made[key](pictures)

    yield find
    for detector in made.values():
        detector.close()


# --- the same faces --------------------------------------------------------------------------------------------------


def test_frames_of_the_4k_sample_have_the_faces_that_a_cpu_finds(cpu):
    frames = sample_frames(2)
    with detector_on_host(size="fit:640", batch=2, threshold=0.5) as detector:
        found = detector(frames)
    expected = cpu(frames, size="fit:640", threshold=0.5)
    assert [len(faces) for faces in expected] == [5, 5]
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)
        assert one.pts == other.pts is not None


@pytest.mark.parametrize(("seed", "batch"), [(1, 1), (2, 3), pytest.param(3, 2, marks=pytest.mark.slow)])
def test_pictures_have_the_faces_that_a_cpu_finds_whatever_runs_first(cpu, picture, seed, batch):
    pictures = pictures_of(picture, 7)
    device = HostDevice(shuffle=seed)
    with detector_on_host(device, batch=batch) as detector:
        found = detector(pictures)
        streamed = list(detector.stream(pictures))
    device.check()
    expected = cpu(pictures)
    assert sum(map(len, expected)) >= 7
    for one, again, other in zip(found, streamed, expected, strict=True):
        assert_same(one, other)
        assert_equal(again, one)


@pytest.mark.parametrize("size", ["fit:300", "short:150,max:300", "pyramid"])
def test_every_size_policy_gives_what_it_gives_on_a_cpu(cpu, picture, size):
    tall = np.ascontiguousarray(np.rot90(picture))
    wide = np.hstack([picture, picture, picture[:, :60]])
    device = HostDevice(shuffle=5)
    with detector_on_host(device, size=size, batch=2) as detector:
        found = detector([picture, tall, wide, wide])
    device.check()
    for one, other in zip(found, cpu([picture, tall, wide, wide], size=size), strict=True):
        assert_same(one, other, pixels=0.3, score=0.01)


def test_a_pyramid_is_two_runs_of_the_network_and_one_of_the_face_kernels(picture):
    wide = np.hstack([picture, picture, picture[:, :60]])
    device = HostDevice()
    with detector_on_host(device, size="pyramid") as detector:
        detector(wide)
        assert detector.backend.engine.runs == 2
    assert device.executed["preprocess_f32"] == device.executed["find_fused_float"] == 2
    assert device.executed["faces_of_few"] == 1


@pytest.mark.parametrize("name", sorted(set(PIXEL_FORMATS) - {"bgr24", "gray"}))
def test_frames_of_every_format_from_host_and_device_memory(cpu, picture, name):
    frame = as_video(picture, name)
    device = HostDevice()
    with detector_on_host(device) as detector:
        found = detector(frame)
        assert_equal(detector(on_device(frame, device)), found)
    assert len(found) > 0
    assert_same(found, cpu(frame), pixels=0.3, score=0.01)


def test_one_batch_may_mix_formats_memory_and_pitches(cpu, picture):
    device = HostDevice(shuffle=3)
    frames = [
        Frame.from_bgr(picture, index=0),
        on_device(as_video(picture, "nv12", index=1), device),
        as_video(picture, "yuv420p10", index=2),
        Frame.from_bgr(np.hstack([picture, picture])[:, : picture.shape[1]], index=3),
        Frame.from_bgr(picture[:, ::-1], index=4),
        on_device(Frame.from_bgr(picture, index=5), device, pitch=2048),
    ]
    turned = np.ascontiguousarray(np.rot90(picture, -1))
    frames.append(Frame((turned,), PIXEL_FORMATS["bgr24"], *turned.shape[1::-1], full_range=True, rotation=90, index=6))
    with detector_on_host(device, batch=len(frames)) as detector:
        found = detector(frames)
        assert detector.backend.engine.runs == 1
    device.check()
    host = [frame if isinstance(frame.planes[0], np.ndarray) else None for frame in frames]
    host[1], host[5] = as_video(picture, "nv12", index=1), Frame.from_bgr(picture, index=5)
    for one, other in zip(found, cpu(host), strict=True):
        assert_same(one, other, pixels=0.3, score=0.01)


@pytest.mark.parametrize("dtype", [np.float16, np.int8])
def test_engines_of_other_types_find_the_same_faces(cpu, picture, dtype):
    settings = {"input_scale": 1.2, "output_dtype": np.float16} if dtype == np.int8 else {}
    engine = HostEngine(MODEL, HostDevice(), dtype=dtype, **settings)
    with detector_on_host(engine=engine, threshold=0.5) as detector:
        found = detector(picture)
    assert_same(found, cpu(picture, threshold=0.5), pixels=1.0, score=0.05)


@pytest.mark.slow
def test_the_classic_layout_and_openvino_as_the_engine(tiny_model, picture):
    """Random weights: scores near one half, so only their best are compared."""
    with detector_on_host(model=tiny_model["fused"], threshold=0.0) as fused:
        expected = fused(picture)
    for model, runtime in ((tiny_model["classic"], "onnxruntime"), (tiny_model["fused"], "openvino")):
        pytest.importorskip(runtime, reason=f"{runtime} is not installed")
        engine = HostEngine(model, HostDevice(), runtime=runtime)
        with detector_on_host(engine=engine, threshold=0.0) as detector:
            found = detector(picture)
        np.testing.assert_allclose(found.scores[:20], expected.scores[:20], atol=0.02)


def test_settings_mean_what_they_mean_on_a_cpu(cpu, picture):
    for settings in (
        {"iou": 1.0, "threshold": 0.2},
        {"max_faces": 2},
        {"clip": False},
        {"plus_one": True},
        {"threshold": 0.9},
    ):
        moved = np.ascontiguousarray(picture[:, 60:280])
        with detector_on_host(**settings) as detector:
            assert_same(detector(moved), cpu(moved, **settings))


def test_frames_keep_their_identity(picture):
    frame = Frame.from_bgr(picture, index=12, source="clip")
    frame.pts, frame.time_base, frame.corrupt, frame.interlaced = 250, Fraction(1, 100), True, True
    with detector_on_host() as detector:
        faces = detector(frame)
    assert (faces.index, faces.source, faces.pts, faces.corrupt, faces.interlaced) == (12, "clip", 2.5, True, True)
    assert (faces.height, faces.width) == picture.shape[:2]


def test_model_of_one_batch_runs_it_whole_for_the_last_frames_too(picture, cpu, tmp_path):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    model = onnx.load(MODEL)
    model.graph.input[0].type.tensor_type.shape.dim[0].Clear()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    onnx.save(model, tmp_path / "three.onnx")
    pictures = pictures_of(picture, 4)
    with detector_on_host(model=tmp_path / "three.onnx", batch=3) as detector:
        found = detector(pictures)
    for one, other in zip(found, cpu(pictures), strict=True):
        assert_same(one, other)


# --- one wait per batch ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_the_host_waits_once_per_batch_and_copies_once_each_way(picture, cuda_graph):
    pictures = pictures_of(picture, 12)
    device = HostDevice()
    with detector_on_host(device, batch=2, cuda_graph=cuda_graph) as detector:
        detector(pictures[:6])
        device.reset_counts()
        detector(pictures)
    graphs = 6 if cuda_graph else 0
    assert device.synchronizations == 6
    assert device.graph_launches == graphs
    counted = (device.copies_in, device.copies_out, device.clears, device.calls, device.launches)
    # preprocess, find, few, order, decode, overlap, many
    assert counted == ((0, 0, 0, 0, 0) if cuda_graph else (6, 6, 6, 6, 42))
    assert device.executed["preprocess_f32"] == device.executed["faces_of_many"] == 6


def test_a_batch_of_device_frames_copies_in_only_what_says_where_they_are(picture):
    device = HostDevice()
    frames = [on_device(as_video(picture, "nv12", index=n), device) for n in range(2)]
    with detector_on_host(device, batch=2, cuda_graph=False) as detector:
        detector(frames)
        device.reset_counts()
        detector(frames)
    assert (device.copies_in, device.synchronizations) == (1, 1)
    assert device.bytes_in < 1024


def test_the_next_batches_are_queued_before_one_is_read(picture, monkeypatch):
    from host_streams import HostEvent

    device = HostDevice()
    queued, wait = [], HostEvent.synchronize
    monkeypatch.setattr(HostEvent, "synchronize", lambda self: (queued.append(device.copies_in), wait(self))[1])
    with detector_on_host(device, cuda_graph=False, streams=2) as detector:
        detector(pictures_of(picture, 5))
    assert queued == [2, 3, 4, 5, 5]


def test_the_first_batches_of_a_shape_do_not_wait_more_often(picture):
    device = HostDevice()
    with detector_on_host(device) as detector:
        detector(pictures_of(picture, 5))
        assert device.synchronizations == 5


# --- what was left out is said ---------------------------------------------------------------------------------------


def test_overflow_is_in_the_faces_and_said_once_per_source(picture, caplog):
    frames = [Frame.from_bgr(picture, index=n, source=name) for n, name in enumerate(["a", "a", "b", "a"])]
    with detector_on_host(max_faces=1) as detector:
        found = detector(frames)
        assert detector.backend.log.frames["overflow"] == 4
    assert [faces.overflow for faces in found] == [True] * 4
    assert [len(faces) for faces in found] == [1] * 4
    said = [record.getMessage() for record in caplog.records if "max_faces" in record.getMessage()]
    assert [text[0] for text in said] == ["a", "b"]


def test_candidates_that_are_not_a_number_are_counted_and_said(picture, caplog):
    engine = HostEngine(MODEL, HostDevice())
    infer = engine.infer

    def broken(image):
        outputs = [output.copy() for output in infer(image)]
        outputs[0][:, :4] = np.nan
        return outputs

    engine.infer = broken
    with detector_on_host(engine=engine) as detector:
        faces = detector([picture, picture])
        assert detector.backend.log.frames["not_a_number"] == 2
    assert all(f.not_a_number > 0 for f in faces)
    assert sum("not a number" in record.getMessage() for record in caplog.records) == 1


# --- what is said and what is refused --------------------------------------------------------------------------------


def test_size_auto_on_a_gpu_is_native_and_says_so(caplog):
    engine = HostEngine(MODEL, HostDevice())
    with caplog.at_level(logging.INFO), Detector.from_engine(engine) as detector:
        assert str(detector.size) == "native"
    assert "size auto on a GPU is native" in caplog.text


def test_what_runs_is_told(picture):
    with detector_on_host(streams=2, batch=3) as detector:
        assert detector.info is detector.backend.engine.info
        assert detector.execution == {"batch": 3, "slots": 2, "cuda_graph": "on"}
        assert (detector.threshold, detector.batch) == (0.3, 3)
    with detector_on_host(cuda_graph=False) as detector:
        assert detector.execution == {"batch": 1, "slots": 3, "cuda_graph": "off"}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        pytest.param({"streams": 5}, "streams 5 is out of range.*1 to 4", id="too many slots"),
        pytest.param({"streams": True}, "streams True", id="slots of yes"),
        pytest.param({"max_faces": MAX_FACES + 1}, "max_faces 4097 is out of range", id="more faces than kernels keep"),
        pytest.param({"threshold": 2}, "threshold 2 is out of range", id="threshold"),
        pytest.param({"batch": 0}, "batch 0", id="an empty batch"),
        pytest.param({"size": "4k"}, "size '4k' is not known", id="size"),
    ],
)
def test_values_that_are_not_allowed_are_refused(values, says):
    with pytest.raises(UsageError, match=says):
        detector_on_host(**values)


@pytest.mark.parametrize(
    ("planes", "says"),
    [
        pytest.param(lambda y, uv: (y,), "has 1 planes; expected 2", id="a plane too few"),
        pytest.param(lambda y, uv: (y, uv[:5]), r"uint8 \(5, .*expected uint8 \(96", id="a plane of another shape"),
        pytest.param(lambda y, uv: (y.astype(np.int16), uv), "int16", id="another type"),
        pytest.param(lambda y, uv: (y.tolist(), uv), "list", id="no array"),
    ],
)
def test_frames_that_do_not_fit_their_format_are_refused_and_cost_no_slot(picture, planes, says):
    frame = as_video(picture, "nv12")
    broken = Frame(planes(*frame.planes), frame.format, frame.width, frame.height)
    device = HostDevice()
    with detector_on_host(device, streams=1) as detector:
        for _ in range(3):
            with pytest.raises(UsageError, match=says):
                detector(broken)
        assert len(detector(frame)) > 0
        assert detector.backend.engine.bound == 1
    device.check()


def test_frames_of_another_device_are_refused_by_name(picture):
    device, other = HostDevice(), HostDevice(index=1)
    frame = on_device(as_video(picture, "nv12"), other)
    with detector_on_host(device) as detector, pytest.raises(UsageError, match=r"lies on cuda:1.*runs on cuda:0"):
        detector(frame)


def test_a_detector_of_the_cpu_says_how_to_get_faces_on_a_device(tiny_model):
    with (
        Detector(tiny_model["fused"], size="native", device="cpu", threads=1) as detector,
        pytest.raises(UsageError, match=r"detect_device was called .* runs on cpu; call detector\(pictures\)"),
    ):
        detector.detect_device(np.zeros((8, 8, 3), np.uint8))
