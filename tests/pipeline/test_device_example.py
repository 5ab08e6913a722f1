"""The example of docs/gpu.md that goes from faces on the device to crops and blurred frames there."""

import re

import numpy as np
import pytest
from gpu_on_host import ROOT, as_video, detector_on_host, on_device, pictures_of, small_picture
from host_device import HostDevice, UseAfterFree

from retinastream.kernels.align import align_faces
from retinastream.kernels.colour import to_bgr
from retinastream.kernels.redact import redact

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed, and it is the engine of these tests")


@pytest.fixture(scope="module")
def crop_and_blur():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "gpu.md").read_text(), re.DOTALL)
    (block,) = [text for text in blocks if "def crop_and_blur" in text]
    names = {}
    exec(block, names)
    return names["crop_and_blur"]


@pytest.mark.parametrize("name", ["nv12", "p010"])
def test_faces_are_cropped_and_blurred_where_they_are(crop_and_blur, name):
    frames = [as_video(picture, name) for picture in pictures_of(small_picture(), 3)]
    device = HostDevice()
    with device.current():
        stream = device.stream()
    with detector_on_host(device, batch=2) as detector:
        surfaces = [on_device(frame, device) for frame in frames]
        found = detector.detect_device(surfaces, stream=stream.handle)
        crops, kept = crop_and_blur(surfaces, found, stream.handle, most=64)
        assert device.synchronizations == 0
        with device.current():
            stream.synchronize()
        faces = found.to_host()
    device.check()
    expected = np.concatenate([align_faces(to_bgr(f), one.landmarks) for f, one in zip(frames, faces, strict=True)])
    assert 0 < len(expected) <= 64
    assert np.abs(np.asarray(crops)[: len(expected)].astype(int) - expected).max() <= 1
    before = [np.array(frame.planes[0]) for frame in frames]
    redact(frames, faces)
    for surface, frame, was in zip(surfaces, frames, before, strict=True):
        assert not np.array_equal(frame.planes[0], was)
        for plane, wanted in zip(surface.planes, frame.planes, strict=True):
            there = np.asarray(plane.base).view(wanted.dtype)[:, : wanted[0].size].reshape(wanted.shape)
            unit = 1 << frame.format.shift
            assert np.abs(there.astype(int) - wanted).max() <= unit
    assert kept


def test_what_the_example_says_must_be_kept_must_be_kept(crop_and_blur):
    frames = [as_video(small_picture(), "nv12")]
    device = HostDevice()
    with device.current():
        stream = device.stream()
    with detector_on_host(device) as detector:
        surfaces = [on_device(frame, device) for frame in frames]
        found = detector.detect_device(surfaces, stream=stream.handle)
        crop_and_blur(surfaces, found, stream.handle)
        with device.current(), pytest.raises(UseAfterFree):
            stream.synchronize()
