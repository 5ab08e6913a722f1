"""From pictures on the device to faces on the device: nothing waits, and streams order everything."""

import gc
import sys
import weakref
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from gpu_on_host import MODEL, as_video, assert_same, detector_on_host, on_device, pictures_of, small_picture
from host_device import HostDevice
from host_engine import EngineFailure, HostEngine

from retinastream.errors import DeviceMemoryError, UsageError
from retinastream.pipeline.device_pictures import DeviceSurface, device_frames, stream_handle
from retinastream.types import Frame

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed, and it is the engine of these tests")


@pytest.fixture(scope="module")
def pictures():
    return pictures_of(small_picture(320, 192), 6)


@pytest.fixture(scope="module")
def expected(pictures):
    with detector_on_host() as detector:
        found = detector(pictures)
    assert sum(map(len, found)) > 6
    return found


def uploaded(device, array):
    with device.current():
        return device.upload(array)


def assert_faces(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.scores, other.scores)
        np.testing.assert_array_equal(one.landmarks, other.landmarks)


# --- what it gives ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 4, 8])
@pytest.mark.parametrize("kind", ["one picture", "a list", "a batch", "a batch with gaps"])
def test_pictures_on_the_device_have_the_faces_that_they_have_on_the_host(pictures, expected, kind, batch):
    device = HostDevice(shuffle=batch)
    stack = np.stack(pictures)
    with detector_on_host(device, batch=batch) as detector:
        if kind == "one picture":
            faces, wanted = detector.detect_device(uploaded(device, pictures[2])), expected[2:3]
        elif kind == "a list":
            faces, wanted = detector.detect_device([uploaded(device, p) for p in pictures]), expected
        elif kind == "a batch":
            faces, wanted = detector.detect_device(uploaded(device, stack)), expected
        else:
            wide = np.zeros((6, 200, 330, 3), np.uint8)
            wide[:, :192, :320] = stack
            faces, wanted = detector.detect_device(uploaded(device, wide)[:, :192, :320]), expected
        assert len(faces) == len(wanted)
        assert faces.rows.shape == (len(wanted), 750, 16)
        assert_faces(faces.to_host(), wanted)
    device.check()


def test_the_arrays_on_the_device_are_the_faces(pictures, expected):
    device = HostDevice()
    with detector_on_host(device) as detector:
        faces = detector.detect_device(uploaded(device, np.stack(pictures)))
        device.drain()
        counts = np.asarray(faces.face_counts)
        assert list(counts) == [len(f) for f in expected]
        for number, wanted in enumerate(expected):
            found = slice(0, counts[number])
            np.testing.assert_array_equal(np.asarray(faces.boxes)[number, found], wanted.boxes)
            np.testing.assert_array_equal(np.asarray(faces.scores)[number, found], wanted.scores)
            np.testing.assert_array_equal(np.asarray(faces.landmarks)[number, found], wanted.landmarks)
            assert not np.asarray(faces.scores)[number, counts[number] :].any()
        for view in (faces.boxes, faces.scores, faces.landmarks):
            assert np.shares_memory(view, faces.rows)


def test_frames_of_any_format_and_sizes_may_be_mixed(pictures, expected):
    device = HostDevice()
    video, tall = as_video(pictures[1], "nv12", index=7, source="v"), np.ascontiguousarray(np.rot90(pictures[0]))
    with detector_on_host(device, batch=3) as detector:
        wanted = [detector(video), detector(tall), expected[0]]
        given = [on_device(video, device), uploaded(device, tall), uploaded(device, pictures[0])]
        found = detector.detect_device(given).to_host()
    assert_faces(found, wanted)
    assert (found[0].index, found[0].source) == (7, "v")
    assert_same(found[0], wanted[0])


def test_a_pyramid_works_there_too(pictures):
    wide = np.hstack([pictures[0]] * 3)
    device = HostDevice()
    with detector_on_host(device, size="pyramid") as detector:
        assert_faces(detector.detect_device(uploaded(device, wide)).to_host(), [detector(wide)])


def test_no_pictures_are_no_faces():
    with detector_on_host() as detector:
        assert detector.detect_device([]).to_host() == []


# --- nothing waits ---------------------------------------------------------------------------------------------------


def test_the_host_waits_for_nothing(pictures, expected):
    device = HostDevice()
    with detector_on_host(device, batch=2) as detector:
        stack = uploaded(device, np.stack(pictures))
        results = [detector.detect_device(stack) for _ in range(4)]
        assert device.synchronizations == 0
        assert sum(device.executed.values()) == 0
        for faces in results:
            assert_faces(faces.to_host(), expected)
        assert device.synchronizations == 4
    device.check()


def test_results_are_not_overwritten_by_later_calls(pictures, expected):
    device = HostDevice(shuffle=4)
    with detector_on_host(device) as detector:
        arrays = [uploaded(device, p) for p in pictures]
        results = [detector.detect_device(array) for array in arrays]
        device.drain()
        assert_faces([faces.to_host()[0] for faces in results], expected)
    device.check()


def test_pictures_and_results_are_held_until_the_work_is_done(pictures):
    device = HostDevice()
    with detector_on_host(device) as detector:
        array = uploaded(device, pictures[0])
        faces = detector.detect_device(array)
        seen = [weakref.ref(array), weakref.ref(faces.rows)]
        del array, faces
        gc.collect()
        assert all(reference() is not None for reference in seen)
        device.drain()
        detector.detect_device(uploaded(device, pictures[1]))
        gc.collect()
        assert all(reference() is None for reference in seen)
    device.check()


def test_blocks_of_parameters_are_used_again_when_their_copy_has_run(pictures, expected, monkeypatch):
    device = HostDevice()
    made, make = [], device.empty_pinned
    monkeypatch.setattr(device, "empty_pinned", lambda *a: (made.append(a), make(*a))[1])
    with detector_on_host(device) as detector:
        array = uploaded(device, pictures[0])
        for _ in range(5):
            detector.detect_device(array)
            device.drain()
        assert len(made) == 1
        for _ in range(3):
            detector.detect_device(array)
        assert len(made) == 3
    device.check()


# --- streams ---------------------------------------------------------------------------------------------------------


class Produced:
    """A picture that a producer's stream writes, when the device comes to it."""

    def __init__(self, device, picture, stream, declared):
        with device.current():
            self.array = device.empty(picture.shape, np.uint8)
            self.source = device.empty_pinned(picture.shape, np.uint8)
            self.source[...] = picture
            device.copy_in(self.array, self.source, stream)
        self.base = self.array
        self.__cuda_array_interface__ = {
            "shape": picture.shape,
            "typestr": "|u1",
            "data": (self.array.ctypes.data, False),
            "strides": None,
            "version": 3,
            **({"stream": declared} if declared is not None else {}),
        }


@pytest.mark.parametrize("seed", [None, 0, 1], ids=["late", "0", "1"])
@pytest.mark.parametrize("way", ["given", "declared", "default"])
def test_pictures_are_read_after_what_writes_them_and_results_before_what_follows(pictures, expected, way, seed):
    device = HostDevice(shuffle=seed)
    with device.current():
        stream = device.foreign_stream(0) if way == "default" else device.stream()
    with detector_on_host(device) as detector:
        for picture, wanted in zip(pictures, expected, strict=True):
            produced = Produced(device, picture, stream, stream.handle if way == "declared" else None)
            named = SimpleNamespace(ptr=stream.handle) if way == "given" else None
            faces = detector.detect_device(produced, stream=named)
            if seed is None:
                # nothing but this result is waited for: the picture is written because the work waits for it
                assert_faces(faces.to_host(), [wanted])
            with device.current():
                # the producer's next picture in the same memory, and a look at the result, both on its stream
                device.clear(produced.array, stream)
                rows = device.empty_pinned(faces.rows.shape, np.float32)
                device.copy_out(rows, faces.rows, stream)
                done = device.event()
                stream.record(done)
                done.synchronize()
            np.testing.assert_array_equal(np.asarray(rows)[0, : len(wanted), :4], wanted.boxes)
    device.check()


@pytest.mark.parametrize("seed", [None, 0], ids=["late", "0"])
def test_decoded_frames_are_read_after_their_decoder_whatever_stream_is_given(pictures, expected, seed):
    device = HostDevice(shuffle=seed)
    with device.current():
        decoder, own = device.foreign_stream(0), device.stream()
    with detector_on_host(device, batch=6) as detector:
        frames = [on_device(Frame.from_bgr(picture), device, stream=decoder) for picture in pictures]
        assert_faces(detector.detect_device(frames, stream=own.handle).to_host(), expected)
    device.check()


@pytest.mark.parametrize("way", ["given", "declared", "default"])
def test_results_are_memory_of_the_stream_that_may_use_them_at_once(pictures, way):
    """It may drop them while it reads them: whoever gets their memory next comes after it. All else is the lane's."""
    device = HostDevice()
    with device.current():
        stream = device.foreign_stream(0) if way == "default" else device.stream()
    with detector_on_host(device) as detector:
        produced = Produced(device, pictures[0], stream, stream.handle if way == "declared" else None)
        device.allocations.clear()
        faces = detector.detect_device(produced, stream=stream.handle if way == "given" else None)
    theirs = [nbytes for nbytes, handle in device.allocations if handle == stream.handle]
    assert theirs == [faces.rows.nbytes, faces.counts.nbytes]
    others = {handle for _, handle in device.allocations} - {stream.handle}
    assert len(others) == 1
    assert not {None, 0} & others


class OnlyDlpack:
    """An array that can be taken by DLPack alone."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **settings):
        raise AssertionError("asked for by CuPy only")


@pytest.fixture
def cupy(monkeypatch):
    """As much of CuPy as takes DLPack: what it was asked for, and on which stream."""
    taken, current = [], []

    @contextmanager
    def use(stream):
        current.append(stream.__cuda_stream__()[1])
        yield
        current.pop()

    def from_dlpack(given):
        if given.array is None:
            raise BufferError("it lies elsewhere")
        taken.append((given, current[-1]))
        return given.array

    stream = SimpleNamespace(from_external=use)
    monkeypatch.setitem(
        sys.modules, "cupy", SimpleNamespace(from_dlpack=from_dlpack, cuda=SimpleNamespace(Stream=stream))
    )
    return taken


def test_what_has_dlpack_alone_is_made_ready_on_the_stream_that_reads_it(pictures, expected, cupy):
    device = HostDevice()
    with detector_on_host(device) as detector:
        given = [OnlyDlpack(uploaded(device, picture)) for picture in pictures]
        assert_faces(detector.detect_device(given).to_host(), expected)
        assert [one for one, _ in cupy] == given
        assert {handle for _, handle in cupy} == {detector.backend._lane._stream.handle}
        with pytest.raises(UsageError, match="OnlyDlpack cannot be taken by DLPack: it lies elsewhere"):
            detector.detect_device(OnlyDlpack(None))


@pytest.mark.parametrize(
    ("stream", "handle"),
    [
        pytest.param(SimpleNamespace(ptr=77), 77, id="CuPy"),
        pytest.param(SimpleNamespace(cuda_stream=0), 1, id="torch's default"),
        pytest.param(SimpleNamespace(handle=78), 78, id="PyCUDA"),
        pytest.param(SimpleNamespace(__cuda_stream__=lambda: (0, 79)), 79, id="the protocol"),
        pytest.param(2, 2, id="a number"),
        pytest.param(0, 1, id="zero"),
    ],
)
def test_streams_of_every_package_are_taken(stream, handle):
    assert stream_handle(stream) == handle


@pytest.mark.parametrize("stream", ["default", -1, True, 1.5, SimpleNamespace()])
def test_what_is_no_stream_is_refused(stream):
    with pytest.raises(UsageError, match="stream was given as"):
        stream_handle(stream)


# --- what is refused, and what fails ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        pytest.param(lambda d: np.zeros((8, 8, 3), np.uint8), "lies in host memory.*cuda:0", id="the host's"),
        pytest.param(
            lambda d: [Frame.from_bgr(np.zeros((8, 8, 3), np.uint8))], "in host memory", id="the host's frame"
        ),
        pytest.param(lambda d: uploaded(d, np.zeros((8, 8, 3), np.float32)), r"float32 \(8, 8, 3\)", id="floats"),
        pytest.param(lambda d: uploaded(d, np.zeros((3, 8, 8), np.uint8)), r"uint8 \(3, 8, 8\)", id="planar"),
        pytest.param(lambda d: uploaded(d, np.zeros((8, 8), np.uint8)), r"uint8 \(8, 8\)", id="grey"),
        pytest.param(lambda d: uploaded(d, np.zeros((0, 8, 3), np.uint8)), "not empty", id="empty"),
        pytest.param(
            lambda d: uploaded(d, np.zeros((3, 8, 9), np.uint8)).transpose(1, 2, 0), "strides", id="a transposed view"
        ),
        pytest.param(lambda d: uploaded(d, np.zeros((8, 8, 3), np.uint8))[:, ::-1], "strides", id="a mirrored view"),
        pytest.param(lambda d: "photo.jpg", "given as str", id="a path"),
        pytest.param(lambda d: [None], "given as NoneType", id="a list of nothing"),
        pytest.param(lambda d: (n for n in ()), "given as generator", id="a generator"),
    ],
)
def test_what_is_no_picture_on_the_device_is_refused(make, says):
    device = HostDevice()
    with detector_on_host(device) as detector, pytest.raises(UsageError, match=says):
        detector.detect_device(make(device))


def test_pictures_of_another_device_are_refused_by_name():
    other = HostDevice(index=2)
    with detector_on_host() as detector, pytest.raises(UsageError, match=r"lies on cuda:2.*device='cuda:2'"):
        detector.detect_device(uploaded(other, np.zeros((8, 8, 3), np.uint8)))


def test_a_closed_detector_says_so(pictures):
    device = HostDevice()
    detector = detector_on_host(device)
    faces = detector.detect_device(uploaded(device, pictures[0]))
    detector.close()
    assert len(faces.to_host()) == 1
    with pytest.raises(UsageError, match="closed"):
        detector.detect_device(uploaded(device, pictures[0]))
    device.check()


def test_a_failing_run_is_raised_where_the_faces_are_taken(pictures):
    engine = HostEngine(MODEL, HostDevice(), fail_at=1)
    with detector_on_host(engine=engine) as detector:
        array = uploaded(engine.device, pictures[0])
        with pytest.raises(EngineFailure):
            detector.detect_device(array).to_host()
        assert len(detector.detect_device(array).to_host()[0]) > 0


def test_too_little_memory_is_an_error_with_remedies_and_the_detector_goes_on(pictures):
    device = HostDevice(memory_limit=8 << 20)
    with detector_on_host(device) as detector:
        array, small = uploaded(device, np.vstack([pictures[0]] * 6)), uploaded(device, pictures[0][:64])
        with pytest.raises(DeviceMemoryError, match=r"MB were asked for.*--size"):
            detector.detect_device(array)
        assert len(detector.detect_device(small).to_host()) == 1
    device.check()


def test_overflow_is_said_when_the_faces_are_taken(pictures, caplog):
    device = HostDevice()
    with detector_on_host(device, max_faces=1) as detector:
        found = detector.detect_device(uploaded(device, pictures[0])).to_host()
    assert found[0].overflow
    assert "max_faces" in caplog.text


def test_surfaces_are_arrays_by_pointer_and_pitch():
    device = HostDevice()
    memory = uploaded(device, np.arange(6 * 64, dtype=np.uint8).reshape(6, 64))
    surface = DeviceSurface(memory.ctypes.data, 64, (6, 5, 2), np.dtype(np.uint16), memory)
    interface = surface.__cuda_array_interface__
    assert (interface["strides"], interface["typestr"], interface["shape"]) == ((64, 4, 2), "<u2", (6, 5, 2))
    assert surface.nbytes == 120
    assert device.device_of(surface) == 0
    with device.current():
        consumer = device.stream()
        colour = DeviceSurface(memory.ctypes.data, 64, (6, 20, 3), np.dtype(np.uint8), memory)
        (frame,) = device_frames([colour], device, consumer)
    assert (frame.width, frame.height, frame.planes[0].pitch, frame.planes[0].base) == (20, 6, 64, colour)
