"""Detectors whose GPU is a HostDevice, the pictures that they look at, and what a CPU finds in them."""

import functools
from pathlib import Path

import cv2
import numpy as np
from host_device import HostDevice
from host_engine import HostEngine

from retinastream.kernels.colour import to_bgr
from retinastream.pipeline.detector import Detector
from retinastream.pipeline.device_pictures import DeviceSurface
from retinastream.pipeline.video import open_video
from retinastream.types import PIXEL_FORMATS, Frame

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "weights" / "mnet025.onnx"
SAMPLE = ROOT / "tests" / "media" / "sample_4k.mp4"


def sample_frames(count):
    """The first frames of the 4K sample, as they are decoded."""
    with open_video(SAMPLE, max_frames=count) as source:
        return list(source)


@functools.cache
def small_picture(width=320, height=192):
    """A BGR picture with faces; not to be written to."""
    return cv2.resize(to_bgr(sample_frames(1)[0]), (width, height), interpolation=cv2.INTER_AREA)


def pictures_of(picture, count):
    """Pictures whose faces lie elsewhere in each: the same one, moved to the right."""
    return [np.ascontiguousarray(np.roll(picture, 24 * n, 1)) for n in range(count)]


def detector_on_host(device=None, *, engine=None, model=MODEL, **settings):
    """A detector whose engine runs on a HostDevice: ``detector.backend.engine`` has both."""
    chosen = {"size": "native", "threshold": 0.3} | settings
    return Detector.from_engine(engine or HostEngine(model, device or HostDevice()), **chosen)


def as_video(picture, name, matrix="bt709", **identity):
    """The same picture as a frame of another pixel format, in host memory."""
    fmt = PIXEL_FORMATS[name]
    height, width = picture.shape[:2]
    i420 = cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420)
    y, (u, v) = i420[:height], i420[height:].reshape(2, height // 2, width // 2)
    if (fmt.sub_x, fmt.sub_y) != (2, 2):
        u, v = (plane.repeat(2 // fmt.sub_x, 1).repeat(2 // fmt.sub_y, 0) for plane in (u, v))
    planes = (y, np.stack([u, v], -1)) if fmt.interleaved_chroma else (y, u, v)
    planes = tuple(p.astype(fmt.dtype) << (fmt.bits - 8 + fmt.shift) for p in planes)
    return Frame(planes, fmt, width, height, matrix="bt601", **identity)


def on_device(frame, device, *, pitch=512, stream=None):
    """The frame with its planes on the device, as a hardware decoder leaves them: pitched surfaces.

    With a ``stream``, they are written there, when the device comes to it.
    """
    planes = []
    with device.current():
        for plane in frame.planes:
            rows = np.ascontiguousarray(plane).view(np.uint8).reshape(len(plane), -1)
            step = -(-rows.shape[1] // pitch) * pitch
            wide = np.zeros((len(plane), step), np.uint8)
            wide[:, : rows.shape[1]] = rows
            if stream is None:
                memory = device.upload(wide)
            else:
                memory, source = device.empty(wide.shape, np.uint8), device.empty_pinned(wide.shape, np.uint8)
                source[...] = wide
                device.copy_in(memory, source, stream)
                _KEPT.append(source)
            planes.append(DeviceSurface(memory.ctypes.data, step, plane.shape, plane.dtype, memory))
    made = Frame(tuple(planes), frame.format, frame.width, frame.height, frame.matrix, frame.full_range)
    made.index, made.source, made.rotation = frame.index, frame.source, frame.rotation
    return made


_KEPT = []  # pinned sources of copies that may not have run yet


def assert_same(found, expected, pixels=0.1, score=1e-3):
    assert len(found) == len(expected)
    np.testing.assert_allclose(found.scores, expected.scores, atol=score)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=pixels)
    np.testing.assert_allclose(found.landmarks, expected.landmarks, atol=pixels)
    for name in ("source", "index", "pts", "width", "height", "corrupt", "interlaced", "overflow"):
        assert getattr(found, name) == getattr(expected, name)


def assert_equal(found, expected):
    assert_same(found, expected, pixels=0, score=0)
