"""Too little memory on the device: the batch is halved once, loudly, and no frame is lost; then it is an error."""

import logging

import numpy as np
import pytest
from gpu_on_host import MODEL, assert_equal, detector_on_host, pictures_of, small_picture
from host_device import HostDevice
from host_engine import HostEngine

from retinastream.errors import DeviceMemoryError
from retinastream.types import Frame

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed, and it is the engine of these tests")


@pytest.fixture(scope="module")
def pictures():
    return pictures_of(small_picture(320, 192), 12)


@pytest.fixture(scope="module")
def expected(pictures):
    with detector_on_host() as detector:
        return detector(pictures)


def assert_all(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.index == other.index
        np.testing.assert_array_equal(one.boxes, other.boxes)


def memory_of(pictures, **settings):
    """Bytes of the device that a detector takes for these pictures."""
    device = HostDevice()
    with detector_on_host(device, **settings) as detector:
        detector(pictures)
        with device.current():
            free, total = device.memory()
    return total - free


@pytest.mark.parametrize(
    ("slots_that_fit", "streams", "way"), [(0.8, 1, "list"), (0.8, 1, "stream"), (1.7, 3, "list"), (2.5, 3, "list")]
)
def test_a_batch_that_does_not_fit_is_halved_and_no_frame_is_lost(
    pictures, expected, slots_that_fit, streams, way, caplog
):
    """Also when it is the second or third slot that does not fit, with batches on their way in the others."""
    one = memory_of(pictures[:4], batch=4, streams=1)
    device = HostDevice(memory_limit=int(one * slots_that_fit))
    with detector_on_host(device, batch=4, streams=streams) as detector:
        found = detector(pictures) if way == "list" else list(detector.stream(pictures))
        assert detector.batch == detector.execution["batch"] == 2
        assert_all(detector(pictures), expected)
    device.check()
    for faces, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(faces.boxes, other.boxes)
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(said) == 1
    assert "batches are of 2 instead of 4 frames" in said[0]
    assert "MB were asked for" in said[0]
    assert "are free" in said[0]


@pytest.mark.parametrize("batch", [1, 4])
def test_what_does_not_fit_by_half_is_an_error_with_remedies(pictures, batch):
    one = memory_of(pictures[:1], streams=1)
    device = HostDevice(memory_limit=int(one * 0.9))
    with detector_on_host(device, batch=batch) as detector:
        with pytest.raises(DeviceMemoryError) as caught:
            detector(pictures)
        with device.current():
            free, total = device.memory()
        assert free == total
        assert detector.batch == max(1, batch // 2)
        # a smaller picture may still be looked at
        assert len(detector(pictures[0][:64]).boxes) >= 0
    for part in ("MB were asked for", "are free", "--size", "--batch", "--streams", "size native", "cuda:0"):
        assert part in str(caught.value)
    device.check()


def test_the_faces_of_batches_in_front_are_not_lost_with_the_error(pictures, expected):
    """The first picture fits, the large one behind it does not, also not alone."""
    device = HostDevice(memory_limit=int(memory_of(pictures[:1], streams=1) * 2.5))
    with detector_on_host(device) as detector:
        jobs = [detector.backend.submit([Frame.from_bgr(p)]) for p in pictures[:2]]
        with pytest.raises(DeviceMemoryError):
            detector.backend.submit([Frame.from_bgr(np.zeros((640, 960, 3), np.uint8))])
        for job, other in zip(jobs, expected, strict=False):
            np.testing.assert_array_equal(detector.backend.collect(job)[0].boxes, other.boxes)
    device.check()


def test_memory_of_the_engine_counts_too(pictures, expected):
    engine = HostEngine(MODEL, HostDevice(), most_items=3)
    with detector_on_host(engine=engine, batch=5) as detector:
        assert_all(detector(pictures), expected)
        assert detector.batch == 2
        assert engine.open_slots > 0
    assert engine.open_slots == 0


def test_an_engine_that_runs_out_of_memory_when_it_first_runs_counts_too(pictures, expected, monkeypatch):
    engine = HostEngine(MODEL, HostDevice())
    bind = engine.bind

    def bind_greedy(image, outputs, stream):
        slot = bind(image, outputs, stream)
        if len(image) > 2:

            def run():
                raise DeviceMemoryError("7 MB were asked for, and 1 MB is free")

            slot.run = run
        return slot

    engine.bind = bind_greedy
    with detector_on_host(engine=engine, batch=4) as detector:
        assert_all(detector(pictures), expected)
        assert detector.batch == 2
    engine.device.check()


def test_model_of_one_batch_cannot_be_halved(pictures, tmp_path):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    model = onnx.load(MODEL)
    model.graph.input[0].type.tensor_type.shape.dim[0].Clear()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, tmp_path / "two.onnx")
    engine = HostEngine(tmp_path / "two.onnx", HostDevice(), most_items=1)
    with detector_on_host(engine=engine, batch=2) as detector:
        with pytest.raises(DeviceMemoryError, match="a batch of 2 at size native does not fit"):
            detector(pictures)
        assert detector.batch == 2


def test_a_larger_picture_moves_all_buffers_and_a_smaller_one_none(pictures):
    device = HostDevice()
    large = np.ascontiguousarray(np.vstack([pictures[0]] * 2))
    with detector_on_host(device, streams=1) as detector:
        small = detector(pictures[0])
        detector(pictures[0])
        assert len(detector(large)) > 0
        with device.current():
            before = device.memory()
        needed = before[1] - before[0]
        assert needed == memory_of([large], streams=1)
        for _ in range(3):
            assert_equal(detector(pictures[0]), small)
        with device.current():
            assert device.memory() == before
    device.check()
    # old buffers are given back before larger ones are asked for, so both need not fit
    with detector_on_host(HostDevice(memory_limit=needed), streams=1) as detector:
        for _ in range(2):
            detector(pictures[0])
        assert len(detector(large)) > 0
