"""Slots change hands without waiting for anybody but the device; frames live as long as they are read, no longer."""

import gc
import threading
import weakref

import numpy as np
import pytest
from gpu_on_host import (
    MODEL,
    as_video,
    assert_equal,
    detector_on_host,
    on_device,
    pictures_of,
    small_picture,
)
from host_device import HostDevice
from host_engine import EngineFailure, HostEngine

from retinastream.errors import UsageError
from retinastream.pipeline.batches import in_batches
from retinastream.pipeline.stages import Pipeline
from retinastream.types import Frame

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed, and it is the engine of these tests")


@pytest.fixture(scope="module")
def pictures():
    return pictures_of(small_picture(320, 192), 8)


@pytest.fixture(scope="module")
def expected(pictures):
    with detector_on_host(HostDevice("eager"), cuda_graph=False, streams=1) as detector:
        found = [detector(picture) for picture in pictures]
    assert sum(map(len, found)) > 8
    return found


def assert_faces(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.landmarks, other.landmarks)


def in_threads(count, work):
    """Run ``work(number)`` in threads and raise what any of them raised."""
    failures = []

    def guarded(number):
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001 - raised by the test
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(n,), daemon=True) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a thread waits for ever"
    if failures:
        raise failures[0]


# --- memory of slots -------------------------------------------------------------------------------------------------


def test_all_memory_of_a_slot_is_asked_for_on_its_stream(pictures):
    """CuPy gives out freed memory in the order of a stream: what another one has queued may still write to it."""
    device = HostDevice()
    with detector_on_host(device, batch=2, streams=2) as detector:
        detector(pictures)
        detector([np.vstack([picture] * 2) for picture in pictures[:2]])  # larger: new memory
    streams = [stream for _, stream in device.allocations]
    assert len(streams) >= 6
    assert len(set(streams)) == 2
    assert not {None, 0} & set(streams)


# --- memory of frames ------------------------------------------------------------------------------------------------


def test_frames_in_host_memory_may_be_overwritten_as_soon_as_they_are_submitted(pictures, expected):
    device = HostDevice()
    memory = np.empty_like(pictures[0])
    with detector_on_host(device) as detector:
        for _ in range(2):  # plain, then as a graph
            jobs = []
            for picture in pictures[:3]:
                memory[...] = picture
                jobs.append(detector.backend.submit([Frame.from_bgr(memory)]))
                memory[...] = 0
            assert device.executed["preprocess_f32"] % 3 == 0  # nothing of these three has run
            assert_faces([detector.backend.collect(job)[0] for job in jobs], expected[:3])


def test_frames_in_host_memory_are_let_go_when_they_are_submitted(pictures):
    with detector_on_host() as detector:
        frame = Frame.from_bgr(pictures[0].copy())
        pixels = weakref.ref(frame.planes[0])
        submit, collect = detector.stages()
        job = submit.work([frame])
        del frame
        gc.collect()
        assert pixels() is None
        collect.work(job)


def test_frames_on_the_device_are_held_until_their_faces_are_read(pictures, expected):
    device = HostDevice()
    with detector_on_host(device) as detector:
        submit, collect = detector.stages()
        frame = on_device(Frame.from_bgr(pictures[0]), device)
        pixels = weakref.ref(frame.planes[0].base)
        job = submit.work([frame])
        frame.planes = ()
        del frame
        gc.collect()
        assert pixels() is not None
        _, faces = collect.work(job)
        gc.collect()
        assert pixels() is None
    assert_faces(faces, expected[:1])
    device.check()


def test_frames_on_the_device_are_let_go_when_a_list_cannot_be_finished(pictures):
    device = HostDevice()
    with detector_on_host(device) as detector:
        frames = [on_device(Frame.from_bgr(picture), device) for picture in pictures[:3]]
        seen = [weakref.ref(frame.planes[0].base) for frame in frames]
        frames[2].planes = ()
        with pytest.raises(UsageError, match="has 0 planes"):
            detector(frames)
        del frames
        gc.collect()
        assert all(reference() is None for reference in seen)


def test_frames_are_kept_for_outputs_that_need_them(pictures):
    with detector_on_host() as detector:
        submit, collect = detector.stages(keep_frames=True)
        frames = [Frame.from_bgr(pictures[0])]
        assert collect.work(submit.work(frames))[0] is frames


def test_the_work_waits_for_what_writes_the_frames_on_the_default_stream(pictures, expected):
    """As a hardware decoder does: when it gives a frame, the copy into the frame is only queued."""
    for seed in range(4):
        device = HostDevice(shuffle=seed)
        with device.current():
            decoder = device.foreign_stream(0)
        with detector_on_host(device) as detector:
            frames = [on_device(Frame.from_bgr(p), device, stream=decoder) for p in pictures]
            assert_faces(detector(frames), expected)
        device.check()


def test_a_buffer_of_staging_is_not_filled_before_its_copy_has_run(pictures, expected):
    """More pictures than slots, in one slot and in three, as graphs and plainly."""
    for streams in (1, 3):
        device = HostDevice(shuffle=streams)
        with detector_on_host(device, streams=streams) as detector:
            for _ in range(2):
                assert_faces(detector(pictures), expected)
        device.check()


# --- turns -----------------------------------------------------------------------------------------------------------


def test_slots_are_made_when_they_are_needed(pictures):
    with detector_on_host() as detector:
        for picture in pictures[:3]:
            detector(picture)
        assert detector.backend.engine.bound == 1
        detector(pictures)
        assert detector.backend.engine.bound == 3


def test_results_may_be_collected_in_any_order(pictures, expected):
    with detector_on_host(streams=2) as detector:
        jobs = [detector.backend.submit([Frame.from_bgr(picture)]) for picture in pictures]
        found = [detector.backend.collect(job)[0] for job in reversed(jobs)]
    assert_faces(found[::-1], expected)


def test_several_threads_may_share_a_detector(pictures, expected):
    device = HostDevice(shuffle=1)
    with detector_on_host(device, streams=2) as detector:

        def work(number):
            for _ in range(3):
                assert_faces(detector(pictures[number:]), expected[number:])
                assert_faces(detector.stream(pictures[:number]), expected[:number])

        in_threads(4, work)
    device.check()


def test_the_loop_over_a_stream_may_use_the_same_detector(pictures, expected):
    with detector_on_host(streams=1) as detector:
        for number, faces in enumerate(detector.stream(pictures)):
            assert_faces([faces, detector(pictures[number])], [expected[number]] * 2)


@pytest.mark.parametrize("stop_after", [1, 2, 5])
def test_leaving_a_stream_early_ends_its_threads_and_lets_device_frames_go(pictures, stop_after):
    device = HostDevice(shuffle=stop_after)
    with detector_on_host(device) as detector:
        seen = []

        def source():
            for number in range(40):
                frame = on_device(Frame.from_bgr(pictures[number % 8]), device)
                seen.append(weakref.ref(frame.planes[0].base))
                yield frame
                del frame

        stream = detector.stream(source())
        for _ in range(stop_after):
            next(stream)
        stream.close()
        del stream
        gc.collect()
        assert [t.name for t in threading.enumerate() if t.name.startswith("retinastream-")] == []
        assert seen
        assert all(reference() is None for reference in seen)
        assert len(detector(pictures)) == 8
    device.check()


def test_a_pipeline_that_is_given_up_costs_no_slot(pictures, expected):
    with detector_on_host(streams=2) as detector:
        for _ in range(3):
            with Pipeline(in_batches(map(Frame.from_bgr, pictures * 3), 1), detector.stages()) as pipeline:
                next(iter(pipeline))
        assert_faces(detector(pictures), expected)
        assert detector.backend.engine.bound == 2


# --- failing work ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuda_graph", [True, False])
@pytest.mark.parametrize("fail_at", [1, 3, 6])
def test_a_failing_run_is_raised_for_its_own_batch_alone(pictures, expected, fail_at, cuda_graph):
    engine = HostEngine(MODEL, HostDevice(), fail_at=fail_at)
    with detector_on_host(engine=engine, cuda_graph=cuda_graph) as detector:
        jobs = [detector.backend.submit([Frame.from_bgr(picture)]) for picture in pictures]
        for number, job in enumerate(jobs):
            if number + 1 == fail_at:
                for _ in range(2):
                    with pytest.raises(EngineFailure, match=f"run {fail_at} was told"):
                        detector.backend.collect(job)
            else:
                assert_faces(detector.backend.collect(job), [expected[number]])
        assert_faces(detector(pictures), expected)
        assert engine.open_slots <= 3


@pytest.mark.parametrize("streams", [1, 3])
def test_a_failing_run_reaches_the_reader_of_a_stream_after_the_frames_before_it(pictures, expected, streams):
    engine = HostEngine(MODEL, HostDevice(), fail_at=4)
    with detector_on_host(engine=engine, streams=streams) as detector:
        found = []
        with pytest.raises(EngineFailure):
            found.extend(detector.stream(pictures))
        assert_faces(found, expected[:3])
        assert_faces(detector.stream(pictures), expected)


@pytest.mark.parametrize("streams", [1, 2])
def test_a_kernel_that_cannot_be_queued_is_raised_at_once_and_costs_no_slot(pictures, expected, monkeypatch, streams):
    device = HostDevice()
    with detector_on_host(device, streams=streams, cuda_graph=False) as detector:
        launch = device.launch

        def failing(stream, name, *rest, **more):
            if name == "faces_of_few":
                raise RuntimeError("the launch failed")
            launch(stream, name, *rest, **more)

        for _ in range(5):
            with monkeypatch.context() as patch:
                patch.setattr(device, "launch", failing)
                with pytest.raises(RuntimeError, match="the launch failed"):
                    detector(pictures[0])
        # a wider format needs larger buffers, while the failed batch may not have been copied from its own yet
        assert len(detector(as_video(pictures[0], "yuv444p10"))) > 0
        assert detector.backend.engine.open_slots <= 2
        assert_faces(detector(pictures), expected)
    device.check()


# --- closing ---------------------------------------------------------------------------------------------------------


def test_closing_in_the_middle_of_a_stream_is_said_to_its_reader(pictures):
    device = HostDevice(shuffle=2)
    detector = detector_on_host(device)
    stream = detector.stream(pictures * 20)
    next(stream)
    detector.close()
    with pytest.raises(UsageError, match="the detector is closed"):
        list(stream)
    assert detector.backend.engine.is_closed
    assert detector.backend.engine.open_slots == 0
    device.check()


def test_closing_gives_all_memory_back_and_twice_is_no_harm(pictures, expected):
    device = HostDevice()
    detector = detector_on_host(device)
    job = detector.backend.submit([Frame.from_bgr(pictures[0])])
    detector(pictures[1:])
    detector.close()
    detector.close()
    with device.current():
        free, total = device.memory()
    assert free == total
    assert device.used_when_released == [0]  # by then all of it was free
    assert_faces(detector.backend.collect(job), expected[:1])
    with pytest.raises(UsageError, match="closed"):
        detector(pictures[0])
    device.check()


def test_buffers_of_old_sizes_are_let_go(pictures):
    device = HostDevice()
    with detector_on_host(device, streams=1) as detector:
        for n in range(6):
            detector(pictures[0][: 192 - 32 * n])
            detector(as_video(pictures[0][: 192 - 32 * n], "nv12"))
        assert detector.backend.engine.bound == 6
        assert detector.backend.engine.open_slots == 4
        for n in range(1, 6):  # of the same area, and larger: every one moves all buffers
            detector(pictures[0][: 32 * n, :160])
        with device.current():
            free, total = device.memory()
        alone = detector_on_host(HostDevice(), streams=1)
        with alone:
            alone(pictures[0])
            with alone.backend.engine.device.current():
                single, _ = alone.backend.engine.device.memory()
        assert total - free <= 1.01 * (total - single)
    device.check()


@pytest.mark.parametrize("sizes", [[1, 200], [200, 1], [31, 33], [1, 1]])
def test_pictures_of_any_size_are_taken(sizes):
    with detector_on_host(HostDevice(), threshold=0.0) as detector:
        faces = detector(np.full((*sizes, 3), 128, np.uint8))
        assert [faces.height, faces.width] == sizes
        assert (faces.boxes >= 0).all()
        assert_equal(detector(np.full((*sizes, 3), 128, np.uint8)), faces)
