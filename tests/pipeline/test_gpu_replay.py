"""CUDA graphs: recorded at the second batch of a shape, replayed from then on, never needed for the right result."""

import logging

import numpy as np
import pytest
from gpu_on_host import MODEL, as_video, detector_on_host, on_device, pictures_of, small_picture
from host_device import HostDevice
from host_engine import HostEngine

from retinastream.types import Frame

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed, and it is the engine of these tests")


@pytest.fixture(scope="module")
def pictures():
    return pictures_of(small_picture(320, 192), 8)


def assert_same_faces(found, expected):
    assert sum(map(len, found)) > 0
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.scores, other.scores)


@pytest.mark.parametrize("settings", [{}, {"batch": 3}, {"size": "fit:200"}], ids=str)
def test_replays_give_what_plain_launches_give(pictures, settings):
    with detector_on_host(cuda_graph=False, **settings) as plain:
        expected = plain(pictures)
        assert plain.backend.engine.captures == 0
    device = HostDevice(shuffle=7)
    with detector_on_host(device, **settings) as detector:
        for _ in range(3):
            assert_same_faces(detector(pictures), expected)
        assert detector.backend.engine.captures > 0
        assert device.graph_launches > 0
    device.check()


def test_a_shape_is_recorded_at_its_second_batch_in_every_slot(pictures):
    device = HostDevice()
    with detector_on_host(device, streams=2) as detector:
        launches = []
        for _ in range(3):
            detector(pictures[:2])
            launches.append((detector.backend.engine.captures, device.graph_launches))
    assert launches == [(0, 0), (2, 2), (2, 4)]


def test_a_batch_of_device_frames_at_other_addresses_is_the_same_graph(pictures):
    device = HostDevice()
    frames = [on_device(as_video(picture, "nv12", index=n), device) for n, picture in enumerate(pictures)]
    with detector_on_host(cuda_graph=False) as plain:
        expected = plain([as_video(picture, "nv12") for picture in pictures])
    with detector_on_host(device, streams=1) as detector:
        assert_same_faces(detector(frames), expected)
        assert detector.backend.engine.captures == 1
        assert device.graph_launches == 7


def test_other_formats_and_memory_are_other_graphs_of_the_same_shape(pictures):
    device = HostDevice()
    picture = pictures[0]
    kinds = [Frame.from_bgr(picture), as_video(picture, "nv12"), as_video(picture, "p010")]
    kinds.append(on_device(as_video(picture, "nv12"), device))
    with detector_on_host(cuda_graph=False) as plain:
        expected = plain([*kinds[:3], kinds[1]])
    with detector_on_host(device, streams=1) as detector:
        for _ in range(4):
            assert_same_faces(detector(kinds), expected)
        assert detector.backend.engine.captures == 4
        assert detector.backend.engine.bound == 1
    device.check()


def test_graphs_are_recorded_anew_when_buffers_have_moved(pictures):
    """By a larger picture (all buffers), and by a wider format of the same size (the staging)."""
    picture, large = pictures[0], np.vstack([pictures[0]] * 2)
    with detector_on_host(cuda_graph=False) as plain:
        expected = plain([picture, large])
    for other in (large, as_video(picture, "yuv444p10")):
        device = HostDevice()
        with detector_on_host(device, streams=1) as detector:
            video = as_video(picture, "nv12")
            first = detector([video] * 3)
            detector(other)
            assert_same_faces(detector([video] * 3), first)
            assert_same_faces(detector([picture, large, picture]), [*expected, expected[0]])
            assert detector.backend.engine.captures >= 2
        device.check()


def test_graphs_are_recorded_anew_when_more_faces_move_the_result(pictures):
    """A larger batch of smaller pictures: only the block of results in host memory grows."""
    large, small = np.tile(pictures[0], (5, 3, 1)), [picture[:64, :96] for picture in pictures[:3]]
    device = HostDevice()
    with detector_on_host(device, batch=3, streams=1) as detector:
        first = detector(large)
        assert_same_faces([detector(large), detector(large)], [first, first])
        with device.current():
            before = device.memory()
        detector(small)
        with device.current():
            assert device.memory() == before
        assert_same_faces([detector(large)], [first])
    device.check()


def test_the_last_frames_of_a_video_have_a_graph_of_their_own(pictures):
    device = HostDevice()
    with detector_on_host(cuda_graph=False) as plain:
        expected = plain(pictures)
    with detector_on_host(device, batch=3, streams=1) as detector:
        for _ in range(3):
            assert_same_faces(detector(pictures), expected)
        assert detector.backend.engine.captures == 2
        assert detector.backend.engine.bound == 2
    device.check()


def test_an_engine_that_cannot_record_is_queued_plainly_and_it_is_said_once(pictures, caplog):
    engine = HostEngine(MODEL, HostDevice(), can_capture=False)
    with detector_on_host(engine=engine, cuda_graph=False) as plain:
        expected = plain(pictures)
    engine = HostEngine(MODEL, HostDevice(), can_capture=False)
    with caplog.at_level(logging.WARNING), detector_on_host(engine=engine) as detector:
        for _ in range(2):
            assert_same_faces(detector(pictures), expected)
        assert detector.execution["cuda_graph"] == "refused: this engine refuses"
    assert engine.device.graph_launches == 0
    assert len([r for r in caplog.records if "cannot be recorded as a CUDA graph" in r.getMessage()]) == 1


def test_what_cannot_be_part_of_a_graph_is_found_out_while_recording(pictures, monkeypatch):
    """The network allocates memory in its run, which no capture takes."""
    device = HostDevice()
    engine = HostEngine(MODEL, device)
    bind = engine.bind

    def bind_allocating(image, outputs, stream):
        slot = bind(image, outputs, stream)
        run = slot.run
        slot.run = lambda: (device.empty((1,), np.uint8), run())
        return slot

    engine.bind = bind_allocating
    with detector_on_host(engine=engine) as detector:
        first = detector(pictures)
        assert_same_faces(detector(pictures), first)
        assert "allocating memory cannot be captured" in detector.execution["cuda_graph"]
    device.check()
