"""The path of the GPU finds the faces that the CPU finds: the same network, other pre- and postprocessing.

Both sides run the model in ONNX Runtime in single precision, so that only what comes before and after it differs: on
one side NumPy and OpenCV, on the other the CUDA kernels, compiled as host C++. Where there is a GPU, the kernels run on
it and torch runs the network, in single precision, too.

Every face has a partner on the other side: overlap above 0.99, scores within 1e-3. A face less than 1e-3 above the
threshold may lack one, as its score may be below the threshold there; nothing else may.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from resampling_by_definition import picture_by_definition

from retinastream.kernels import colour
from retinastream.pipeline.detector import Detector
from retinastream.pipeline.video import open_video
from retinastream.types import PIXEL_FORMATS, Frame

cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed, and both sides run the network in it")

SAMPLE = Path(__file__).resolve().parents[1] / "media" / "sample_4k.mp4"
THRESHOLD, SCORE, OVERLAP = 0.5, 1e-3, 0.99
GPU = pytest.param("gpu", marks=pytest.mark.gpu)


@dataclass
class Differences:
    """What two detectors found in the same pictures: pairs of faces, how far apart, and faces without a partner."""

    pairs: int = 0
    score: float = 0.0
    overlap: float = 1.0
    pixels: float = 0.0
    lone: list = field(default_factory=list)

    def add(self, one, other):
        """Pair the faces of one picture, those that overlap most first."""
        overlaps = overlap_of_all(one.boxes, other.boxes)
        without = [set(range(len(one))), set(range(len(other)))]
        while overlaps.size and overlaps.max() > 0.5:
            i, j = (int(k) for k in np.unravel_index(overlaps.argmax(), overlaps.shape))
            self.pairs += 1
            self.score = max(self.score, abs(float(one.scores[i]) - float(other.scores[j])))
            self.overlap = min(self.overlap, float(overlaps[i, j]))
            self.pixels = max(self.pixels, float(np.abs(one.landmarks[i] - other.landmarks[j]).max()))
            overlaps[i], overlaps[:, j] = -1, -1
            without[0].remove(i)
            without[1].remove(j)
        for side, faces in enumerate((one, other)):
            self.lone += [(side, faces.source, faces.index, float(faces.scores[k])) for k in sorted(without[side])]

    def check(self, *, least, score=SCORE, overlap=OVERLAP):
        """Hold them against the rule; ``least`` pairs must have been there to look at."""
        assert self.pairs >= least, self
        assert [face for face in self.lone if face[-1] >= THRESHOLD + score] == [], self
        assert self.score <= score, self
        assert self.overlap > overlap, self


def overlap_of_all(boxes, others):
    """Intersection over union of every box with every other."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    areas = [(b[:, 2:] - b[:, :2]).prod(-1) for b in (boxes, others)]
    return shared / (areas[0][:, None] + areas[1][None] - shared)


def on_cpu(size):
    return Detector("mnet025", device="cpu", runtime="onnxruntime", size=size, threads=1, threshold=THRESHOLD)


def exact_input(frames, placements, spec, out):
    """What preprocessing is defined to be, rounded once: on every side of the comparison but the device's."""
    for target, frame, placement in zip(out, frames, placements, strict=True):
        picture = np.rint(picture_by_definition(frame, placement.width, placement.height))
        target[...] = 0
        order = (0, 1, 2) if spec.channel_order == "bgr" else (2, 1, 0)
        for plane, channel, mean in zip(target, order, spec.mean, strict=True):
            plane[: placement.height, : placement.width] = (picture[..., channel] - mean) * spec.scale


def on_device(way, size, **types):
    """A detector by the path of the GPU; ``types`` are those of the host engine's buffers."""
    if way == "gpu":
        return Detector("mnet025", device="cuda", runtime="torch", precision="f32", size=size, threshold=THRESHOLD)
    from host_device import HostDevice
    from host_engine import HostEngine

    from retinastream.models.zoo import resolve_model

    engine = HostEngine(resolve_model("mnet025"), HostDevice(), **types)
    return Detector.from_engine(engine, size=size, threshold=THRESHOLD)


def compare(frames, size, way="host", **types):
    found = Differences()
    with on_cpu(size) as cpu, on_device(way, size, **types) as device:
        for frame in frames:
            found.add(cpu(frame), device(frame))
    print(f"{way} {size} {types or ''}: {found}")
    return found


def frames_of(clip, every, count):
    with open_video(clip) as source:
        yield from islice(source, 0, every * count, every)


def pictures_of(folder, every=1):
    paths = sorted(p for p in folder.glob("*") if p.suffix in (".jpg", ".png"))[::every]
    if not paths:
        pytest.skip(f"{folder} is absent or has no pictures")
    for path in paths:
        yield Frame.from_bgr(cv2.imread(str(path)), source=path.name)


def in_format(frame, name):
    """A frame of yuv420p as another format with the same picture."""
    fmt = PIXEL_FORMATS[name]
    y, u, v = frame.planes
    if fmt.interleaved_chroma:
        planes = (y, np.stack([u, v], -1))
    elif fmt.is_yuv:
        planes = (y, u, v)
    else:
        planes = (colour.to_bgr(frame),)
    widened = tuple(np.ascontiguousarray(p).astype(fmt.dtype) << (fmt.bits - 8 + fmt.shift) for p in planes)
    return replace(frame, planes=widened, format=fmt, full_range=frame.full_range or not fmt.is_yuv)


@pytest.fixture(scope="module")
def sample_frames():
    return list(frames_of(SAMPLE, 12, 3))


# -- quick


@pytest.mark.parametrize("way", ["host", GPU])
@pytest.mark.parametrize("size", ["fit:640", "fit:1280"])
def test_the_same_faces_in_the_sample(way, size, sample_frames):
    compare(sample_frames, size, way).check(least=15)


@pytest.mark.parametrize("way", ["host", GPU])
@pytest.mark.parametrize(
    ("name", "rotation"), [("nv12", 0), ("nv12", 90), ("p010", 180), ("yuv420p10", 270), ("bgr24", 90)]
)
def test_the_same_faces_in_every_format_and_turn(way, name, rotation, sample_frames):
    still_frame = sample_frames[0]
    stored = np.rot90(colour.to_bgr(still_frame), -rotation // 90)
    if name == "bgr24":
        frame = replace(Frame.from_bgr(np.ascontiguousarray(stored)), rotation=rotation)
    else:
        turned = tuple(np.ascontiguousarray(np.rot90(p, -rotation // 90)) for p in still_frame.planes)
        height, width = turned[0].shape
        frame = in_format(replace(still_frame, planes=turned, width=width, height=height), name)
        frame = replace(frame, rotation=rotation)
    compare([frame], "fit:480", way).check(least=6)


@pytest.mark.data
@pytest.mark.parametrize("way", ["host", GPU])
@pytest.mark.parametrize("size", ["native", "fit:640"])
def test_the_same_faces_in_photographs(way, size, data):
    compare(pictures_of(data / "stills"), size, way).check(least=31)


def test_a_face_without_a_partner_and_one_that_is_elsewhere_are_noticed(sample_frames):
    with on_cpu("fit:640") as cpu:
        faces = cpu(sample_frames[0])
    assert len(faces) >= 2
    moved = replace(faces, boxes=faces.boxes + np.float32(0.01) * (faces.boxes[:, 2:3] - faces.boxes[:, :1]))
    fewer = faces.above(float(faces.scores[-1]) + 1e-6)
    for other in (moved, fewer, replace(faces, scores=faces.scores - np.float32(0.002))):
        for pair in ((faces, other), (other, faces)):
            found = Differences()
            found.add(*pair)
            with pytest.raises(AssertionError, match="Differences"):
                found.check(least=1)
    same = Differences()
    same.add(faces, faces)
    same.check(least=len(faces))
    near = Differences(pairs=1, lone=[(0, "", 0, THRESHOLD + 0.0009)])
    near.check(least=1)


# -- slow


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("way", ["host", GPU])
def test_the_same_faces_in_500_photographs_of_crowds(way, data):
    compare(pictures_of(data / "facemask" / "images"), "native", way).check(least=1700)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("way", ["host", GPU])
def test_the_same_faces_in_wider_face(way, data):
    compare(pictures_of(data / "widerface" / "val_subset_416"), "native", way).check(least=580)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("way", ["host", GPU])
@pytest.mark.parametrize(
    ("size", "every", "least", "score"),
    [("native", 7, 110, SCORE), ("fit:1280", 5, 140, SCORE), ("fit:640", 5, 100, 3e-3), ("pyramid", 35, 25, SCORE)],
)
def test_the_same_faces_in_a_clip_of_1080p(way, size, every, least, score, data):
    """Reduced YUV goes through 1/256 levels on the CPU, after which one sample in 800 is one level off at fit:640.

    That moves scores by up to 2.2e-3; the next test shows that the side which is off is not the device.
    """
    clip = data / "videos" / "facenet_pytorch_video.mp4"
    compare(frames_of(clip, every, 105 // every), size, way).check(least=least, score=score)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("way", ["host", GPU])
def test_the_same_faces_in_a_reduced_clip_where_the_cpu_rounds_once(way, data, monkeypatch):
    monkeypatch.setattr("retinastream.pipeline.cpu_backend.preprocess", exact_input)
    clip = data / "videos" / "facenet_pytorch_video.mp4"
    compare(frames_of(clip, 95, 2), "fit:640", way).check(least=9, score=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["host", GPU])
def test_the_same_faces_in_the_sample_at_4k(way):
    compare(frames_of(SAMPLE, 30, 4), "native", way).check(least=25)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize(
    "types",
    [
        {"dtype": np.float16, "output_dtype": np.float32},
        {"dtype": np.float32, "output_dtype": np.float16},
        {"dtype": np.float16},
    ],
    ids=["input", "maps", "both"],
)
def test_half_precision_around_a_network_in_single_precision_stays_close(types, data):
    """What the formats cost, without the network's own arithmetic in half precision."""
    frames = [*pictures_of(data / "stills"), *pictures_of(data / "facemask" / "images", 5)]
    compare(frames, "native", **types).check(least=350)
