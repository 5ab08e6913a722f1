"""Pictures of CuPy, torch and PyCUDA on a GPU: taken without a copy, in the order of their streams."""

import numpy as np
import pytest
from gpu_on_host import MODEL, SAMPLE, assert_same, pictures_of, small_picture

from retinastream.pipeline.detector import Detector
from retinastream.pipeline.video import open_video

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def detector():
    with Detector(MODEL, size="native", threshold=0.5, device="cuda", batch=2) as detector:
        yield detector


@pytest.fixture(scope="module")
def pictures():
    return np.stack(pictures_of(small_picture(), 5))


@pytest.fixture(scope="module")
def expected(pictures):
    """What the CPU finds; half precision on the GPU moves boxes a little."""
    with Detector(MODEL, size="native", threshold=0.5, device="cpu", threads=2) as detector:
        return detector(list(pictures))


def assert_faces(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other, pixels=1.0, score=0.02)


def test_pictures_of_the_host_as_a_list_and_as_a_stream(detector, pictures, expected):
    for _ in range(3):  # plain, recorded, replayed
        assert_faces(detector(list(pictures)), expected)
    assert_faces(list(detector.stream(pictures)), expected)
    assert detector.execution["cuda_graph"] == "on"


def test_frames_of_a_video(detector):
    with open_video(SAMPLE, max_frames=4) as source:
        assert [len(faces) > 0 for faces in detector.stream(source)] == [True] * 4


def test_cupy(detector, pictures, expected):
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    stream = cupy.cuda.Stream(non_blocking=True)
    for way in ("declared", "given"):
        with stream:
            array = cupy.asarray(pictures)
            faces = detector.detect_device(array, stream=stream if way == "given" else None)
            array[...] = 0  # after the picture has been read
            boxes, counts = faces.boxes.get(stream=stream), faces.face_counts.get(stream=stream)
        assert list(counts) == [len(f) for f in expected]
        np.testing.assert_allclose(boxes[0, : counts[0]], expected[0].boxes, atol=1.0)
        assert_faces(faces.to_host(), expected)


@pytest.mark.parametrize("way", ["array interface", "DLPack"])
def test_torch(detector, pictures, expected, way):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        tensor = torch.from_numpy(pictures).cuda()
        given = tensor if way == "array interface" else OnlyDlpack(tensor)
        faces = detector.detect_device(given, stream=stream)
        tensor.zero_()
        rows = torch.from_dlpack(faces.rows).cpu().numpy()
    np.testing.assert_allclose(rows[0, : len(expected[0]), :4], expected[0].boxes, atol=1.0)
    assert_faces(faces.to_host(), expected)


def test_pycuda_in_the_primary_context(detector, pictures, expected):
    driver = pytest.importorskip("pycuda.driver", reason="PyCUDA is not installed")
    gpuarray = pytest.importorskip("pycuda.gpuarray", reason="PyCUDA is not installed")
    driver.init()
    context = driver.Device(0).retain_primary_context()
    context.push()
    try:
        stream = driver.Stream()
        array = gpuarray.to_gpu_async(pictures, stream=stream)
        faces = detector.detect_device(array, stream=stream)
        assert_faces(faces.to_host(), expected)
        del array
    finally:
        context.pop()


class OnlyDlpack:
    """A tensor whose only interface is DLPack."""

    def __init__(self, tensor):
        self._tensor = tensor

    def __dlpack__(self, **settings):
        return self._tensor.__dlpack__(**settings)

    def __dlpack_device__(self):
        return self._tensor.__dlpack_device__()
