"""Redacting and drawing: the NumPy references against hand-computed surfaces, the kernels against the references."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from backends import BareBackend, open_backend
from cuda_host import in_sanitizer, load
from hypothesis import given, settings
from hypothesis import strategies as st
from random_frames import make_frame
from tight_frames import tight_frame

from retinastream.errors import UsageError
from retinastream.kernels import colour
from retinastream.kernels.descriptors import describe_frames, pack_faces
from retinastream.kernels.draw_surface import BOX_COLOUR, LANDMARK_COLOURS, draw_faces
from retinastream.kernels.picture_kernels import (
    colour_codes,
    draw_scratch,
    fill_codes,
    queue_draw,
    queue_redact,
    record_bytes,
    redact_scratch,
)
from retinastream.kernels.redact import redact
from retinastream.kernels.surfaces import code_values
from retinastream.types import Faces, Frame

SURFACES = ("nv12", "p010", "yuv420p", "yuv420p10", "yuv422p", "yuv444p10", "gray")
SIDES = st.integers(1, 150)
METHODS = ("solid", "mosaic", "blur")


def copy_of(frame):
    """The same frame with planes of the same pitch in memory of their own."""
    planes = []
    for plane in frame.planes:
        rows, pitch = plane.shape[0], plane.strides[0]
        memory = np.zeros(rows * pitch // plane.itemsize + plane[0].size, plane.dtype)
        planes.append(np.lib.stride_tricks.as_strided(memory, plane.shape, plane.strides))
        planes[-1][...] = plane
    settings_of = {k: getattr(frame, k) for k in ("matrix", "full_range", "rotation")}
    return Frame(tuple(planes), frame.format, frame.width, frame.height, **settings_of)


def faces_with(boxes, landmarks=None):
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    points = np.full((len(boxes), 5, 2), np.nan) if landmarks is None else np.asarray(landmarks)
    return Faces(boxes, np.ones(len(boxes), np.float32), points.astype(np.float32).reshape(-1, 5, 2))


class ByKernel:
    """The references' functions, done by the kernels of a backend; ``seed`` orders its blocks and threads."""

    def __init__(self, backend, seed=0):
        self.backend = backend
        self.seed = seed

    def redact(self, frames, faces, *, colour=(0, 0, 0), cells=8, **settings):
        self._change(frames, faces, redact_scratch, fill_codes(frames, colour), queue_redact, cells=cells, **settings)

    def draw(self, frames, faces, **settings):
        self._change(frames, faces, draw_scratch, colour_codes(frames), queue_draw, **settings)

    def _change(self, frames, faces, declare_scratch, colours, queue, **settings):
        backend = self.backend.shuffled(self.seed)
        rows, counts = pack_faces(faces)
        there = [backend.frame(frame) for frame in frames]
        inputs = [backend.upload(v) for v in (record_bytes(describe_frames(there)), rows, counts)]
        declared = {"cells": settings["cells"]} if "cells" in settings else {}
        scratch = {n: backend.empty(*v) for n, v in declare_scratch(*rows.shape[:2], **declared).items()}
        for array in scratch.values():
            backend.fill(array, 0xFF)  # NaN
        largest = max(f.width for f in frames), max(f.height for f in frames)
        colours = backend.upload(colours)
        queue(backend.device, backend.stream, *inputs, scratch, colours, largest=largest, **settings)
        for frame, changed in zip(frames, there, strict=True):
            backend.fetch(changed, frame)


BACKENDS = ["numpy", "host", pytest.param("cupy", marks=pytest.mark.gpu)]


@pytest.fixture(scope="module", params=BACKENDS)
def do(request):
    """What is tested: the references, and the kernels on each backend."""
    if request.param == "numpy":
        yield SimpleNamespace(redact=redact, draw=draw_faces)
    else:
        with open_backend(request.param) as backend:
            yield ByKernel(backend)


def flat(name, width, height, y=100, u=60, v=200, **settings_of):
    """A frame of one colour, given in 8-bit code values."""
    frame = make_frame(name, width, height, **settings_of)
    factor = 1 << (frame.format.bits - 8 + frame.format.shift)
    colour.luma(frame)[...] = y * factor
    for plane, value in zip(colour.chroma(frame) if frame.format.planes > 1 else (), (u, v), strict=False):
        plane[...] = value * factor
    return frame


def units(frame):
    """Y, U, V planes in 8-bit code values."""
    channels = (colour.luma(frame), *(colour.chroma(frame) if frame.format.planes > 1 else ()))
    return [c / colour.sample_unit(frame) for c in channels]


# -- what the references and the kernels do, computed by hand


@pytest.mark.parametrize("name", ["nv12", "p010"])
def test_a_box_is_filled_and_nothing_else_is_touched(do, name):
    frame = flat(name, 12, 10)
    do.redact([frame], [faces_with([[3, 2, 7, 5]])], method="solid", shape="box", enlarge=1.0)
    y, u, v = units(frame)
    expected = np.full((10, 12), 100.0)
    expected[2:5, 3:7] = 16
    np.testing.assert_array_equal(y, expected)
    cells = np.zeros((5, 6), bool)
    cells[1:3, 1:4] = True  # chroma of every cell that a filled pixel belongs to
    np.testing.assert_array_equal(u, np.where(cells, 128, 60))
    np.testing.assert_array_equal(v, np.where(cells, 128, 200))


def test_a_turned_picture_is_changed_where_the_upright_box_lies(do):
    for rotation in (90, 180, 270):
        frame = flat("nv12", 30, 20, rotation=rotation)
        do.redact([frame], [faces_with([[2, 4, 8, 12]])], method="solid", shape="box", enlarge=1.0)
        upright = np.rot90(units(frame)[0], rotation // 90)
        expected = np.full(upright.shape, 100.0)
        expected[4:12, 2:8] = 16
        np.testing.assert_array_equal(upright, expected)


def test_mosaic_leaves_the_means_of_whole_cells(do):
    frame = make_frame("nv12", 16, 16, seed=2)
    before = frame.planes[0].astype(float), frame.planes[1].astype(float)
    do.redact([frame], [faces_with([[4, 4, 12, 12]])], method="mosaic", shape="box", enlarge=1.0, cells=2)
    luma = before[0].copy()
    luma[4:12, 4:12] = before[0][4:12, 4:12].reshape(2, 4, 2, 4).mean((1, 3)).repeat(4, 0).repeat(4, 1)
    chroma = before[1].copy()
    chroma[2:6, 2:6] = before[1][2:6, 2:6].reshape(2, 2, 2, 2, 2).mean((1, 3)).repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(frame.planes[0], np.rint(luma))
    np.testing.assert_array_equal(frame.planes[1], np.rint(chroma))


def test_blur_keeps_flat_pictures_and_straight_slopes_within_the_grid(do):
    even = flat("p010", 64, 64)
    do.redact([even], [faces_with([[10, 10, 50, 50]])])
    for found, value in zip(units(even), (100, 60, 200), strict=True):
        assert (found == value).all()
    slope = make_frame("gray", 128, 64)
    slope.planes[0][...] = np.arange(128) + 60
    before = slope.planes[0].copy().astype(int)
    do.redact([slope], [faces_with([[24, 8, 104, 56]])], shape="box", enlarge=1.0, cells=10)
    inner = np.s_[8:56, 36:92]  # a cell and a half from the edges, where means are not repeated
    assert np.abs(slope.planes[0].astype(int) - before)[inner].max() <= 1


@pytest.mark.parametrize("method", ["mosaic", "blur"])
def test_of_fine_detail_nothing_is_left(do, method):
    frame = make_frame("nv12", 128, 128, content="extremes")
    do.redact([frame], [faces_with([[16, 16, 112, 112]])], method=method, shape="box", enlarge=1.0, cells=6)
    inner = frame.planes[0][16:112, 16:112].astype(int)
    assert np.abs(inner - 127).max() < 64
    if method == "mosaic":
        assert len(np.unique(inner)) <= 7 * 7


def test_an_ellipse_covers_the_pixels_whose_centres_lie_in_it(do):
    frame = flat("gray", 40, 30)
    do.redact([frame], [faces_with([[10, 8, 26, 20]])], method="solid", enlarge=1.5)
    y, x = np.mgrid[:30, :40] + 0.5
    inside = ((x - 18) / 12) ** 2 + ((y - 14) / 9) ** 2 <= 1
    np.testing.assert_array_equal(units(frame)[0] == 16, inside)


def test_where_regions_overlap_the_larger_cells_count_and_means_are_the_originals(do):
    frame = make_frame("gray", 64, 64, seed=5)
    before = frame.planes[0].astype(float)
    small, large = [8, 8, 24, 24], [16, 16, 48, 48]
    do.redact([frame], [faces_with([small, large])], method="mosaic", shape="box", enlarge=1.0, cells=4)
    expected = before.copy()
    expected[8:24, 8:24] = before[8:24, 8:24].reshape(4, 4, 4, 4).mean((1, 3)).repeat(4, 0).repeat(4, 1)
    expected[16:48, 16:48] = before[16:48, 16:48].reshape(4, 8, 4, 8).mean((1, 3)).repeat(8, 0).repeat(8, 1)
    np.testing.assert_array_equal(frame.planes[0], np.rint(expected))


@pytest.mark.parametrize(
    "box",
    [
        pytest.param([np.nan, 2, 8, 9], id="not a number"),
        pytest.param([2, 2, np.inf, 9], id="infinite"),
        pytest.param([8, 2, 2, 9], id="reversed"),
        pytest.param([3, 3, 3, 3], id="empty"),
        pytest.param([50, 50, 60, 60], id="outside"),
        pytest.param([-9, -9, -3, -3], id="before the picture"),
        pytest.param([3.1, 3, 3.2, 9], id="between pixel centres"),
    ],
)
def test_boxes_that_cover_no_pixel_change_nothing(do, box):
    frame = make_frame("nv12", 20, 20)
    before = copy_of(frame)
    for method in METHODS:
        do.redact([frame], [faces_with([box])], method=method, enlarge=1.0)
    for plane, other in zip(frame.planes, before.planes, strict=True):
        np.testing.assert_array_equal(plane, other)


def test_a_box_far_larger_than_the_picture_covers_all_of_it(do):
    for method in METHODS:
        frame = make_frame("nv12", 21, 13, content="extremes")
        do.redact([frame], [faces_with([[-1e9, -1e9, 1e9, 1e9]])], method=method)
        assert len(np.unique(frame.planes[0])) == 1


def test_lines_and_landmarks_are_drawn_with_their_colours(do):
    frame = flat("nv12", 20, 16)
    points = [[4.5, 4.5], [100, 100], [10, 8], [np.nan, 3], [-50, -50]]
    do.draw([frame], [faces_with([[2, 2, 18, 14]], [points])], thickness=2, radius=1)
    y, u, _ = units(frame)
    eye, nose, box = (code_values(c, frame) for c in (LANDMARK_COLOURS[0], LANDMARK_COLOURS[2], BOX_COLOUR))
    expected = np.full((16, 20), 100.0)
    expected[1:15, 1:19] = box[0]
    expected[3:13, 3:17] = 100
    expected[4, 3:6] = expected[3:6, 4] = eye[0]
    expected[7:9, 9:11] = nose[0]  # four centres at 0.7 pixels from the point
    np.testing.assert_array_equal(y, expected)
    assert u[0, 0] == box[1]  # one of its four pixels is in the line
    assert u[2, 2] == eye[1]
    assert u[3, 5] == nose[1]
    assert u[3, 6] == 60


def test_the_first_face_is_above_the_second_and_landmarks_above_their_box(do):
    frame = flat("nv12", 20, 20)
    faces = faces_with([[2, 2, 10, 10], [2, 2, 10, 16]], [[[2, 2]] * 5, [[10, 10]] * 5])
    do.draw([frame], [faces], radius=1.6)
    luma = units(frame)[0]
    eye, box = (code_values(c, frame)[0] for c in (LANDMARK_COLOURS[0], BOX_COLOUR))
    assert luma[2, 2] == eye
    assert luma[9, 9] == box  # the first face's box lies over the second one's landmark
    assert luma[10, 10] == box
    assert luma[11, 9] == eye  # where the first face ends, the second one's landmark lies over its own box


# -- the kernels against the references


def same(found, expected, tolerance=0):
    """Planes are equal to within so many code values, and not a bit is set below them."""
    for plane, other in zip(found.planes, expected.planes, strict=True):
        difference = np.abs(plane.astype(int) - other.astype(int)) >> found.format.shift
        assert difference.max() <= tolerance
        assert not (plane & ((1 << found.format.shift) - 1)).any()


@st.composite
def pictures_with_faces(draw):
    """A surface and faces in it, across its edges, around and outside of it, some overlapping."""
    frame = make_frame(
        draw(st.sampled_from(SURFACES)),
        draw(SIDES),
        draw(SIDES),
        seed=draw(st.integers(0, 2**32 - 1)),
        row_padding=draw(st.sampled_from([0, 1, 7])),
        rotation=draw(st.sampled_from([0, 90, 180, 270])),
        matrix=draw(st.sampled_from(["bt601", "bt709"])),
        full_range=draw(st.booleans()),
    )
    count = draw(st.sampled_from([0, 1, 2, 5, 30]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    centres, halves = rng.uniform(-20, 170, (count, 2)), rng.uniform(0, draw(st.sampled_from([4, 30, 200])), (count, 2))
    boxes, points = (
        np.concatenate([centres - halves, centres + halves], 1),
        centres[:, None] + rng.normal(size=(count, 5, 2)) * 9,
    )
    if draw(st.booleans()):  # borders on pixel centres and between pixels, where rounding would show
        boxes, points = np.rint(boxes * 2) / 2, np.rint(points * 2) / 2
    return frame, faces_with(boxes, points)


@settings(max_examples=150, deadline=None)
@given(
    case=pictures_with_faces(),
    method=st.sampled_from(sorted(METHODS)),
    shape=st.sampled_from(["box", "ellipse"]),
    enlarge=st.sampled_from([0.5, 1.0, 1.3, 2.0]),
    cells=st.sampled_from([1, 3, 8, 16]),
    seed=st.integers(0, 3),
)
def test_redaction_by_the_kernel_is_that_of_the_reference(backend, case, method, shape, enlarge, cells, seed):
    frame, faces = case
    expected = copy_of(frame)
    chosen = {"method": method, "shape": shape, "enlarge": enlarge, "cells": cells, "colour": (30, 60, 200)}
    redact([expected], [faces], **chosen)
    ByKernel(backend, seed).redact([frame], [faces], **chosen)
    same(frame, expected, tolerance=1 if method == "blur" else 0)


@settings(max_examples=100, deadline=None)
@given(
    case=pictures_with_faces(),
    thickness=st.sampled_from([0.0, 1.0, 2.0, 3.5, 40.0]),
    radius=st.sampled_from([0.0, 0.5, 2.0, 2.5, 25.0]),
    seed=st.integers(0, 3),
)
def test_drawing_by_the_kernel_is_that_of_the_reference(backend, case, thickness, radius, seed):
    frame, faces = case
    expected = copy_of(frame)
    draw_faces([expected], [faces], thickness=thickness, radius=radius)
    ByKernel(backend, seed).draw([frame], [faces], thickness=thickness, radius=radius)
    same(frame, expected)


def crowd(count, width, height):
    rng = np.random.default_rng(6)
    corners = rng.uniform(0, 1, (count, 2)) * (width, height)
    boxes = np.concatenate([corners, corners + rng.uniform(5, 60, (count, 2))], 1)
    return faces_with(boxes, corners[:, None] + rng.uniform(0, 30, (count, 5, 2)))


@pytest.mark.parametrize(("reference", "name"), [(redact, "redact"), (draw_faces, "draw")])
def test_a_batch_of_sizes_formats_and_counts_beyond_a_tiles_list(backend, reference, name):
    """300 faces touch one tile, whose list holds 256: all are still looked at."""
    frames = [make_frame("nv12", 140, 70), make_frame("p010", 63, 150, rotation=90), make_frame("yuv420p", 5, 5)]
    faces = [crowd(300, 140, 70), crowd(3, 150, 63), crowd(0, 5, 5)]
    expected = [copy_of(frame) for frame in frames]
    reference(expected, faces)
    getattr(ByKernel(backend), name)(frames, faces)
    for frame, other in zip(frames, expected, strict=True):
        same(frame, other, tolerance=1 if reference is redact else 0)


def sanitized_redactions(kernels):
    total = 0
    for name in SURFACES:
        for method in METHODS:
            frame = tight_frame(name, 35, 21, rotation=90)
            ByKernel(BareBackend(kernels)).redact([frame], [crowd(9, 30, 40)], method=method)
            total += sum(int(plane.sum()) for plane in frame.planes)
    return total


def sanitized_drawings(kernels):
    total = 0
    for name in SURFACES:
        frame = tight_frame(name, 35, 21, rotation=270)
        ByKernel(BareBackend(kernels)).draw([frame], [crowd(9, 30, 40)])
        total += sum(int(plane.sum()) for plane in frame.planes)
    return total


@pytest.mark.slow  # to compile
@pytest.mark.parametrize(
    ("source", "cases"), [("redact.cu", sanitized_redactions), ("draw.cu", sanitized_drawings)], ids=["redact", "draw"]
)
def test_no_byte_outside_of_the_planes_is_touched(source, cases):
    assert in_sanitizer("asan", cases, source) == cases(load(source))


def racing_case(kernels):
    frame = make_frame("nv12", 20, 10)
    ByKernel(BareBackend(kernels)).draw([frame], [crowd(3, 20, 10)])
    return int(frame.planes[0].sum())


@pytest.mark.slow  # to compile, and to start
def test_the_threads_of_a_block_wait_for_the_list_of_their_tile():
    assert in_sanitizer("tsan", racing_case, "draw.cu") == racing_case(load("draw.cu"))


# -- what is refused


def test_packed_and_read_only_pictures_are_refused():
    faces = [faces_with([[1, 1, 5, 5]])]
    frozen = make_frame("nv12", 8, 8)
    frozen.planes[1].flags.writeable = False
    for do in (redact, draw_faces):
        with pytest.raises(UsageError, match="bgr24"):
            do([make_frame("bgr24", 8, 8)], faces)
        with pytest.raises(UsageError, match="read-only"):
            do([frozen], faces)


@pytest.mark.parametrize(
    ("do", "wrong", "message"),
    [
        (redact, {"method": "pixelate"}, "'pixelate' is not known"),
        (redact, {"shape": "circle"}, "'circle' is not known"),
        (redact, {"enlarge": 0}, "enlarge is 0"),
        (redact, {"enlarge": math.nan}, "enlarge is nan"),
        (redact, {"cells": 0}, "cells is 0"),
        (redact, {"cells": 2.5}, "cells is 2.5"),
        (draw_faces, {"thickness": -1}, "thickness -1"),
        (draw_faces, {"radius": math.nan}, "radius nan"),
        (draw_faces, {"landmark_colours": [(0, 0, 0)]}, "1 landmark colours"),
    ],
)
def test_settings_that_are_not_allowed_are_refused(do, wrong, message):
    with pytest.raises(UsageError, match=message):
        do([make_frame("nv12", 8, 8)], [faces_with([[1, 1, 5, 5]])], **wrong)


@pytest.mark.parametrize("bgr", [(0, 0, 0), (255, 255, 255), (0, 0, 255), (200, 30, 90)])
@pytest.mark.parametrize("name", ["nv12", "p010"])
def test_colours_survive_the_way_to_code_values_and_back(name, bgr):
    for settings_of in ({"matrix": "bt601"}, {"matrix": "bt2020", "full_range": True}):
        frame = make_frame(name, 2, 2, **settings_of)
        y, u, v = (code << frame.format.shift for code in code_values(bgr, frame))
        frame.planes[0][...] = y
        frame.planes[1][...] = (u, v)
        assert np.abs(colour.to_bgr(frame).astype(int) - bgr).max() <= 3
