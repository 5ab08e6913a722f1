"""The picture kernels take what the face kernels leave on the device, in order, and nothing waits for it."""

import numpy as np
import pytest
from backends import BareBackend, address_on_device
from host_device import HostDevice, UseAfterFree
from random_frames import make_frame
from test_align import template

from retinastream.errors import UsageError
from retinastream.kernels import picture_kernels
from retinastream.kernels.align import align_faces
from retinastream.kernels.colour import to_bgr
from retinastream.kernels.cuda_faces import (
    FACES,
    FOUND,
    NOT_A_NUMBER,
    OVERFLOW,
    FaceLimits,
    pass_structure,
    placed_structures,
    queue_faces,
)
from retinastream.kernels.descriptors import describe_frames, pack_faces
from retinastream.kernels.draw_surface import draw_faces
from retinastream.kernels.picture_kernels import (
    colour_codes,
    draw_scratch,
    fill_codes,
    queue_align,
    queue_draw,
    queue_preprocess,
    queue_redact,
    record_bytes,
    redact_scratch,
)
from retinastream.kernels.preprocess import preprocess
from retinastream.kernels.redact import redact
from retinastream.kernels.sizing import Placement
from retinastream.models.spec import DetectorSpec
from retinastream.types import Faces, Frame

SPEC = DetectorSpec(strides=(8,), anchor_sizes=((16.0,),))
WIDTH, HEIGHT = 96, 64
PLACEMENT = Placement(WIDTH, HEIGHT, WIDTH, HEIGHT, WIDTH, HEIGHT)
MOST = 5


class SmallPipeline:
    """Everything from frames on the device to changed frames on one stream, allocated once."""

    def __init__(self, device, frames):
        self.device = device
        self.stream = device.stream()
        batch = len(frames)
        self.planes = [[device.upload(np.ascontiguousarray(p)) for p in frame.planes] for frame in frames]
        self.frames = [
            Frame(tuple(planes), f.format, f.width, f.height) for planes, f in zip(self.planes, frames, strict=True)
        ]
        self.descriptors = device.upload(record_bytes(describe_frames(self.frames, [PLACEMENT] * batch)))
        self.image = device.empty((batch, 3, HEIGHT, WIDTH), np.float16)
        self.maps = [device.empty((batch, 16, HEIGHT // 8, WIDTH // 8), np.float32)]
        self.limits = FaceLimits(capacity=SPEC.anchor_count(HEIGHT, WIDTH), max_faces=MOST)
        self.buffers = {n: device.empty(*v) for n, v in self.limits.buffers(batch).items()}
        placed = placed_structures([[(item, PLACEMENT)] for item in range(batch)])
        self.placed = device.upload(placed.view(np.int32).reshape(batch, -1))
        addresses = [address_on_device(v) for v in self.maps]
        self.passes = [pass_structure(SPEC, HEIGHT, WIDTH, 0.5, addresses, half=False)]
        self.crops = device.empty((batch * MOST, 24, 24, 3), np.uint8)
        self.transforms = device.empty((batch * MOST, 2, 3), np.float32)
        declared = redact_scratch(batch, MOST) | draw_scratch(batch, MOST)
        self.scratch = {n: device.empty(*v) for n, v in declared.items()}
        self.fills = device.upload(fill_codes(self.frames))
        self.colours = device.upload(colour_codes(self.frames))
        self.counts_out = device.empty_pinned((batch, 4), np.int32)
        self.crops_out = device.empty_pinned(self.crops.shape, np.uint8)

    def network(self):
        """Answers with a face wherever a block of the input is bright."""
        blocks = np.asarray(self.image, np.float32)[:, 1].reshape(-1, HEIGHT // 8, 8, WIDTH // 8, 8).mean((2, 4))
        answer = self.maps[0]
        answer[...] = 0
        answer[:, 1] = np.where(blocks > 100, 5, -5)
        answer[:, 1] += np.arange(blocks[0].size).reshape(blocks[0].shape) / 100  # no scores tie
        # eyes, nose and mouth around the centre
        points = (template() - 56) / 56 * 8 / (16 * 0.1)
        answer[:, 6:] = points.reshape(10, 1, 1)

    def queue(self):
        device, stream, buffers = self.device, self.stream, self.buffers
        queue_preprocess(device, stream, self.descriptors, self.image, SPEC)
        device.call(stream, self.network, self.image, *self.maps)
        device.clear(buffers["counts"], stream)
        queue_faces(
            lambda *arguments: device.launch(stream, *arguments), self.passes, self.placed, buffers, self.limits
        )
        rows, counts = buffers["rows"], buffers["counts"]
        queue_align(device, stream, self.descriptors, rows, counts, self.crops, self.transforms)
        where = {"largest": (WIDTH, HEIGHT)}
        queue_redact(device, stream, self.descriptors, rows, counts, self.scratch, self.fills, **where)
        queue_draw(device, stream, self.descriptors, rows, counts, self.scratch, self.colours, **where)
        device.copy_out(self.counts_out, counts, stream)
        device.copy_out(self.crops_out, self.crops, stream)


def bright_frames():
    """Two dark frames, one with two bright blocks of 8x8 pixels, one with one, one with none."""
    frames = [make_frame("nv12", WIDTH, HEIGHT, seed=seed) for seed in range(3)]
    for frame in frames:
        frame.planes[0][...] //= 8
        frame.planes[1][...] = 128
    frames[0].planes[0][16:24, 24:32] = 240
    frames[0].planes[0][48:56, 80:88] = 240
    frames[2].planes[0][24:32, 40:48] = 240
    return frames


@pytest.mark.parametrize("graph", [False, True], ids=["queued", "graph"])
@pytest.mark.parametrize("mode", ["late", "eager"])
def test_faces_go_from_the_face_kernels_into_pictures_without_the_host(mode, graph):
    frames = bright_frames()
    device = HostDevice(mode)
    with device.current():
        pipeline = SmallPipeline(device, frames)
        device.reset_counts()
        launch = device.capture(pipeline.stream, pipeline.queue) if graph else pipeline.queue
        launch()
        assert device.synchronizations == 0
        pipeline.stream.synchronize()
        assert pipeline.counts_out[:, [FOUND, FACES]].tolist() == [[2, 2], [0, 0], [1, 1]]
        assert not pipeline.counts_out[:, [NOT_A_NUMBER, OVERFLOW]].any()
        rows = np.array(pipeline.buffers["rows"], subok=False)
        faces = [as_faces(r[:n]) for r, n in zip(rows, pipeline.counts_out[:, FACES], strict=True)]

        crops = np.concatenate([align_faces(to_bgr(f), x.landmarks, 24) for f, x in zip(frames, faces, strict=True)])
        assert np.abs(pipeline.crops_out[:3].astype(int) - crops).max() <= 1
        assert (pipeline.crops_out[3:] == 0xA5).all()  # crops beyond the faces are not written
        redact(frames, faces)
        draw_faces(frames, faces)
        for planes, frame in zip(pipeline.planes, frames, strict=True):
            for plane, expected in zip(planes, frame.planes, strict=True):
                assert np.abs(np.asarray(plane).astype(int) - expected).max() <= 1
        device.check()
        assert device.executed["redact"] == device.executed["faces_of_few"] == 1
        assert device.graph_launches == graph


def as_faces(rows):
    return Faces(rows[:, :4].copy(), rows[:, 4].copy(), rows[:, 5:15].reshape(-1, 5, 2).copy())


def test_a_graph_finds_what_the_frames_hold_when_it_is_launched():
    frames = bright_frames()
    device = HostDevice()
    with device.current():
        pipeline = SmallPipeline(device, frames)
        launch = device.capture(pipeline.stream, pipeline.queue)
        for planes in (frames, [frames[1], frames[0], frames[0]]):
            for there, frame in zip(pipeline.planes, planes, strict=True):
                for plane, source in zip(there, frame.planes, strict=True):
                    plane[...] = source
            launch()
            pipeline.stream.synchronize()
            assert pipeline.counts_out[:, FACES].tolist() == [2 * (f is frames[0]) + (f is frames[2]) for f in planes]
        device.check()


def test_what_is_freed_before_the_picture_kernels_ran_is_noticed():
    device = HostDevice()
    with device.current():
        pipeline = SmallPipeline(device, bright_frames())
        pipeline.queue()
        del pipeline.scratch
        with pytest.raises(UseAfterFree, match=r"find_regions: memory .* was freed before it ran"):
            pipeline.stream.synchronize()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_preprocessing_is_that_of_the_reference(backend, dtype):
    frames = [make_frame("nv12", 40, 24), make_frame("p010", 24, 40, seed=1, rotation=90)]
    placements = [Placement(40, 24, 40, 24, 64, 32), Placement(40, 24, 20, 12, 64, 32)]
    expected = np.empty((2, 3, 32, 64), np.float32)
    preprocess(frames, placements, SPEC, expected)
    there = [backend.frame(frame) for frame in frames]
    descriptors = backend.upload(record_bytes(describe_frames(there, placements)))
    out = backend.empty(expected.shape, dtype)
    queue_preprocess(backend.device, backend.stream, descriptors, out, SPEC)
    assert np.abs(backend.download(out).astype(np.float32) - expected).max() <= 1


def test_counts_of_the_face_kernels_and_those_of_packed_faces_give_the_same(backend):
    boxes = np.array([[4, 4, 20, 20], [30, 8, 50, 30]], np.float32)
    faces = [Faces(boxes[:n], np.ones(n, np.float32), np.full((n, 5, 2), 9, np.float32)) for n in (2, 1)]
    results = []
    for columns in (1, 4):
        frames = [make_frame("nv12", 64, 40, seed=seed) for seed in range(2)]
        there = [backend.frame(frame) for frame in frames]
        rows, counts = pack_faces(faces, most=3)
        if columns == 4:
            counts = np.stack([counts + 7, counts * 0, counts, counts * 0 + 1], 1).astype(np.int32)
        inputs = [backend.upload(v) for v in (record_bytes(describe_frames(there)), rows, counts)]
        scratch = {n: backend.empty(*v) for n, v in redact_scratch(2, 3).items()}
        fills = backend.upload(fill_codes(frames))
        queue_redact(backend.device, backend.stream, *inputs, scratch, fills, largest=(64, 40), method="solid")
        for frame, changed in zip(frames, there, strict=True):
            backend.fetch(changed, frame)
        results.append(frames)
    expected = [make_frame("nv12", 64, 40, seed=seed) for seed in range(2)]
    redact(expected, faces, method="solid")
    for found in results:
        for frame, other in zip(found, expected, strict=True):
            for plane, wanted in zip(frame.planes, other.planes, strict=True):
                np.testing.assert_array_equal(plane, wanted)


def wrong(function, message, **changes):
    return pytest.param(function, changes, message, id=f"{function}, {message[:40]}")


@pytest.mark.parametrize(
    ("function", "changes", "message"),
    [
        wrong("preprocess", "expected uint8 \\(batch, 128\\)", descriptors=np.zeros(2, np.uint8)),
        wrong("preprocess", "was given for 2 frames", out=np.zeros((3, 3, 8, 8), np.float32)),
        wrong("preprocess", "of float32, float16, int8", out=np.zeros((2, 3, 8, 8), np.float64)),
        wrong("preprocess", "input_scale None was given for int8", out=np.zeros((2, 3, 8, 8), np.int8)),
        wrong("preprocess", "input_scale 0.5 was given for float32", input_scale=0.5),
        wrong("align", "face rows float32 \\(1, 3, 16\\)", rows=np.zeros((1, 3, 16), np.float32)),
        wrong("align", "face counts int64 \\(2,\\)", counts=np.zeros(2, np.int64)),
        wrong("align", "face counts int32 \\(2, 3\\)", counts=np.zeros((2, 3), np.int32)),
        wrong("align", "crops uint8 \\(4, 3, 8, 8\\)", crops=np.zeros((4, 3, 8, 8), np.uint8)),
        wrong("align", "crops float32 \\(4, 8\\)", crops=np.zeros((4, 8), np.float32)),
        wrong("align", "and transforms \\(3, 2, 3\\)", transforms=np.zeros((3, 2, 3), np.float32)),
        wrong("redact", "scratch memory 'regions' is missing", scratch={}),
        wrong("redact", "means has the shape", cells=9),
        wrong("redact", "fills has the shape \\(1, 3\\)", fills=np.zeros((1, 3), np.int32)),
        wrong("redact", "method 'pixelate'", method="pixelate"),
        wrong("draw", "marks has the shape \\(2, 4, 16\\)", scratch={"marks": np.zeros((2, 4, 16))}),
        wrong("draw", "colours has the shape \\(2, 3\\)", colours=np.zeros((2, 3), np.int32)),
        wrong("draw", "thickness -1", thickness=-1),
    ],
)
def test_arrays_and_settings_that_do_not_fit_are_refused_before_anything_is_queued(function, changes, message):
    faces = {"rows": np.zeros((2, 3, 16), np.float32), "counts": np.zeros((2, 4), np.int32)}
    given = {"descriptors": np.zeros((2, 128), np.uint8)} | {
        "preprocess": {"out": np.zeros((2, 3, 8, 8), np.float32), "spec": SPEC},
        "align": faces | {"crops": np.zeros((4, 8, 8, 3), np.uint8), "transforms": np.zeros((4, 2, 3), np.float32)},
        "redact": faces
        | {"scratch": arrays(redact_scratch(2, 3)), "fills": np.zeros((2, 3), np.int32), "largest": (8, 8)},
        "draw": faces
        | {"scratch": arrays(draw_scratch(2, 3)), "colours": np.zeros((2, 6, 3), np.int32), "largest": (8, 8)},
    }[function]
    device = Nowhere()
    queue = getattr(picture_kernels, f"queue_{function}")
    queue(device, None, **given)
    assert device.launched
    device.launched = 0
    with pytest.raises(UsageError, match=message):
        queue(device, None, **(given | changes))
    assert not device.launched


def arrays(declared):
    return {name: np.zeros(*what) for name, what in declared.items()}


class Nowhere(BareBackend):
    launched = 0

    def launch(self, stream, name, grid, block, arguments, *, shared=0):
        self.launched += 1
