"""The CUDA kernels, on the host and on a GPU, keep exactly the faces that the reference keeps, in its order."""

from dataclasses import replace

import numpy as np
import pytest
from backends import BareBackend
from cuda_host import in_sanitizer, load
from faces_by_kernels import faces_by_kernels, limits_for, placement_of
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from test_cuda_decode import SPECS, random_outputs

from retinastream.kernels.cuda_faces import (
    BEYOND_LIMIT,
    BEYOND_MAX_FACES,
    FACES,
    FOUND,
    OVERFLOW,
)
from retinastream.kernels.decode import Candidates
from retinastream.kernels.postprocess import candidates, final_faces
from retinastream.kernels.sizing import Placement
from retinastream.models.spec import DetectorSpec

# One anchor per 8 pixels of a row: as many anchors as a test has candidates.
ROW = DetectorSpec(strides=(8,), anchor_sizes=((16.0,),))
# Of the two ways, which give the same faces: one block, and tiles.
BOTH = pytest.mark.parametrize("fast_limit", [1024, 0], ids=["one block", "tiled"])


def faces_of_boxes(backend, boxes, scores, *, width=400, height=300, threshold=0.02, **changes):
    """Faces of frames whose candidates are given: boxes (frames, N, 4), scores (frames, N); N may be 0 in effect."""
    boxes, scores = np.asarray(boxes, np.float32), np.asarray(scores, np.float32)
    frames, count = scores.shape
    placement = Placement(width, height, width, height, 8 * count, 8)
    points = np.repeat((boxes[..., None, :2] + boxes[..., None, 2:]) / 2, 5, 2).astype(np.float32)
    outputs = [boxes, np.stack([1 - scores, scores], -1), points.reshape(frames, count, 10)]
    limits = limits_for(ROW, [placement], **changes)
    rows, counts, _ = faces_by_kernels(
        backend, ROW, [(outputs, placement)], threshold=threshold, limits=limits, layout="decoded"
    )
    return rows, counts


def reference(boxes, scores, *, width=400, height=300, threshold=0.02, limit=5000, max_faces=750, iou=0.4, **changes):
    """Indices of the faces that final_faces keeps, in order, and its overflow."""
    boxes, scores = np.asarray(boxes, np.float32), np.asarray(scores, np.float32)
    index = np.flatnonzero(scores >= np.float32(threshold))
    order = index[np.lexsort((index, -scores[index]))]
    kept = order[:limit]
    points = np.repeat(kept[:, None], 10, 1).reshape(-1, 5, 2).astype(np.float32)  # carries the index
    found = Candidates(boxes[kept], scores[kept], points, kept, overflow=len(order) > limit)
    changes = {k: v for k, v in changes.items() if k in ("plus_one", "clip")}
    faces = final_faces([found], width=width, height=height, iou=iou, max_faces=max_faces, limit=limit, **changes)
    return faces.landmarks[:, 0, 0].astype(int), faces


def check(backend, boxes, scores, **changes):
    rows, counts = faces_of_boxes(backend, boxes, scores, **changes)
    changes.pop("fast_limit", None)
    for frame, (its_boxes, its_scores) in enumerate(zip(boxes, scores, strict=True)):
        indices, faces = reference(its_boxes, its_scores, **changes)
        found = counts[frame, FACES]
        assert found == len(indices)
        assert_array_equal(rows[frame, :found, 15].view(np.int32), indices)
        assert_array_equal(rows[frame, :found, :4], faces.boxes)
        assert_array_equal(rows[frame, :found, 4], faces.scores)
        assert not rows[frame, found:].any()
        assert (counts[frame, OVERFLOW] != 0) == faces.overflow
    return counts


def clusters(rng, count, *, span=380, sizes=(4, 40), grid=1.0, levels=64):
    """Boxes around few centres, on a grid, with scores that tie."""
    centres = rng.uniform(0, span, (max(1, count // 8), 2))
    middle = centres[rng.integers(0, len(centres), count)] + rng.normal(0, 4, (count, 2))
    extent = rng.uniform(*sizes, (count, 2))
    boxes = np.rint(np.concatenate([middle - extent / 2, middle + extent / 2], 1) / grid) * grid
    return boxes.astype(np.float32), (rng.integers(1, levels + 1, count) / levels).astype(np.float32)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 200),
    st.sampled_from([0.0, 0.25, 0.3, 0.4, 0.5, 1.0]),
    st.sampled_from([1, 3, 40, 750]),
    st.sampled_from([7, 64, 5000]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0, 1024]),
)
def test_clusters_with_ties_and_limits(backend, seed, count, iou, max_faces, limit, plus_one, clip, fast_limit):
    rng = np.random.default_rng(seed)
    boxes, scores = zip(*[clusters(rng, count, grid=float(rng.choice([0.25, 1, 4]))) for _ in range(2)], strict=True)
    check(
        backend,
        boxes,
        scores,
        iou=iou,
        max_faces=max_faces,
        limit=limit,
        plus_one=plus_one,
        clip=clip,
        fast_limit=fast_limit,
    )


@BOTH
def test_frames_of_one_batch_with_none_one_and_many_candidates(backend, fast_limit):
    rng = np.random.default_rng(1)
    boxes, scores = (np.stack(v) for v in zip(*[clusters(rng, 300) for _ in range(4)], strict=True))
    scores[0] = 0
    scores[1] = 0
    scores[1, 17], boxes[1, 17] = 0.5, (10, 10, 20, 20)
    scores[2, 65:] = 0
    counts = check(backend, boxes, scores, fast_limit=fast_limit)
    assert counts[:2, FOUND].tolist() == [0, 1]
    assert counts[:2, FACES].tolist() == [0, 1]


@BOTH
def test_identical_boxes_leave_the_one_with_the_lowest_anchor(backend, fast_limit):
    boxes = np.tile(np.array([10, 10, 50, 60], np.float32), (1, 700, 1))
    scores = np.full((1, 700), 0.75, np.float32)
    scores[0, :3] = 0.5
    rows, counts = faces_of_boxes(backend, boxes, scores, fast_limit=fast_limit)
    assert counts[0].tolist() == [700, 0, 1, 0]
    assert rows[0, 0, 15].view(np.int32) == 3
    check(backend, boxes, scores, fast_limit=fast_limit)


@BOTH
def test_a_score_of_minus_zero_ties_with_zero(backend, fast_limit):
    boxes = np.array([[[10, 10, 20, 20], [40, 10, 50, 20], [70, 10, 80, 20]]], np.float32)
    scores = np.array([[-0.0, 0.0, -0.0]], np.float32)
    rows, _ = faces_of_boxes(backend, boxes, scores, threshold=0.0, fast_limit=fast_limit)
    assert rows[0, :3, 15].view(np.int32).tolist() == [0, 1, 2]


@BOTH
@pytest.mark.parametrize("iou", [0.5, np.nextafter(np.float32(0.5), np.float32(0))])
def test_an_overlap_of_exactly_the_threshold_suppresses_nothing(backend, fast_limit, iou):
    boxes = np.array([[[0, 0, 20, 10], [0, 0, 10, 10], [100, 0, 119, 9], [100, 0, 109, 9]]], np.float32)
    counts = check(backend, boxes, np.array([[0.9, 0.8, 0.7, 0.6]]), iou=float(iou), fast_limit=fast_limit)
    assert counts[0, FACES] == (4 if iou == 0.5 else 3)
    counts = check(
        backend, boxes, np.array([[0.9, 0.8, 0.7, 0.6]]), iou=float(iou), fast_limit=fast_limit, plus_one=True
    )
    assert counts[0, FACES] == (3 if iou == 0.5 else 2)


@BOTH
def test_what_lies_outside_of_the_frame_suppresses_nothing_and_is_no_face(backend, fast_limit):
    boxes = np.array([[[401, 10, 441, 50], [380, 10, 420, 50], [399, 10, 439, 50], [-30, 0, 0, 20]]], np.float32)
    counts = check(backend, boxes, np.array([[0.9, 0.8, 0.7, 0.99]]), fast_limit=fast_limit)
    assert counts[0, FACES] == 2


@BOTH
@pytest.mark.parametrize("max_faces", [63, 64, 65, 199, 200, 201])
def test_reaching_the_most_faces_is_told_from_exceeding_them(backend, fast_limit, max_faces):
    corner = np.stack(np.meshgrid(np.arange(20) * 20, np.arange(10) * 20), -1).reshape(1, 200, 2)
    boxes = np.concatenate([corner, corner + 10], -1)
    scores = np.random.default_rng(3).permutation(np.arange(1, 201) / 200)[None]
    counts = check(backend, boxes, scores, max_faces=max_faces, fast_limit=fast_limit)
    assert counts[0].tolist() == [197, 0, min(197, max_faces), 0 if max_faces >= 197 else BEYOND_MAX_FACES]


@pytest.mark.parametrize("count", [1023, 1024, 1025, 2048, 3000])
def test_both_sides_of_the_fast_way_in_one_batch(backend, count):
    rng = np.random.default_rng(count)
    boxes, scores = zip(*[clusters(rng, count, levels=1000) for _ in range(2)], strict=True)
    scores[1][scores[1] < 0.7] = 0
    counts = check(backend, boxes, scores, limit=2500)
    assert counts[0, OVERFLOW] & BEYOND_LIMIT == (BEYOND_LIMIT if counts[0, FOUND] > 2500 else 0)


@pytest.mark.parametrize(("count", "limit"), [pytest.param(16384, 16384, marks=pytest.mark.slow), (20000, 3000)])
def test_many_candidates(backend, count, limit):
    rng = np.random.default_rng(count)
    boxes, scores = clusters(rng, count, span=3000, levels=3000)
    counts = check(
        backend, boxes[None], scores[None], width=3840, height=2160, limit=limit, max_faces=4096, threshold=0.0, iou=0.3
    )
    assert counts[0, FOUND] == count
    assert counts[0, FACES] > 900


@pytest.mark.parametrize("seed", [1, 2])
@BOTH
def test_the_order_of_blocks_and_threads_does_not_show(fast_limit, seed):
    boxes, scores = clusters(np.random.default_rng(9), 900)
    check(BareBackend(seed=seed), boxes[None], scores[None], fast_limit=fast_limit)
    check(BareBackend(seed=seed, threads=64), boxes[None], scores[None], fast_limit=fast_limit)


@BOTH
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("layout", ["fused", "classic"])
@pytest.mark.parametrize("name", ["light", "paper"])
def test_faces_of_a_pyramid_equal_the_reference(backend, name, layout, dtype, fast_limit):
    spec = replace(SPECS[name], output_layout=layout)
    # as many candidates of either: the paper's grid is twice as fine
    width, height = {"light": (300, 200), "paper": (160, 110)}[name]
    placements = [placement_of(width, height, spec), placement_of(width, height, spec, scale=0.4)]
    passes = [(random_outputs(spec, p, seed=k, dtype=dtype), p) for k, p in enumerate(placements)]
    for clip, limit, max_faces in ((True, 5000, 750), (False, 100, 20)):
        limits = limits_for(spec, placements, limit=limit, max_faces=max_faces, clip=clip, fast_limit=fast_limit)
        rows, counts, _ = faces_by_kernels(backend, spec, passes, threshold=0.9, limits=limits)
        for item in range(2):
            each = [candidates(outputs, item, p, spec, 0.9, limit) for outputs, p in passes]
            faces = final_faces(each, width=width, height=height, iou=0.4, max_faces=max_faces, clip=clip, limit=limit)
            found = counts[item, FACES]
            assert found == len(faces) > 10
            assert_allclose(rows[item, :found, :4], faces.boxes, rtol=0, atol=1e-3)
            assert_allclose(rows[item, :found, 4], faces.scores, rtol=0, atol=1e-6)
            assert_allclose(rows[item, :found, 5:15].reshape(-1, 5, 2), faces.landmarks, rtol=0, atol=1e-3)
            assert (counts[item, OVERFLOW] != 0) == faces.overflow
            for row in rows[item, :found]:
                low = int(row[15:16].view(np.uint32)[0])
                source = each[low >> 28]
                at = np.flatnonzero(source.anchors == low & 0x0FFFFFFF)
                assert_array_equal(np.isclose(source.scores[at], row[4], rtol=0, atol=1e-6), [True])


def test_equal_scores_of_two_passes_go_to_the_earlier_pass(backend):
    outputs = [
        np.array([[[10, 10, 50, 50]]], np.float32),
        np.array([[[0.25, 0.75]]], np.float32),
        np.full((1, 1, 10), 30, np.float32),
    ]
    placement = Placement(400, 300, 400, 300, 8, 8)
    limits = limits_for(ROW, [placement] * 2)
    for fast_limit in (1024, 0):
        rows, counts, _ = faces_by_kernels(
            backend,
            ROW,
            [(outputs, placement)] * 2,
            threshold=0.5,
            limits=replace(limits, fast_limit=fast_limit),
            layout="decoded",
        )
        assert counts[0].tolist() == [2, 0, 1, 0]
        assert rows[0, 0, 15].view(np.int32) == 0


def test_frames_of_different_size_and_a_frame_that_is_in_one_pass_only(backend):
    spec = SPECS["light"]
    shapes = [
        placement_of(300, 200, spec),
        Placement(600, 400, 300, 200, 320, 224),
        Placement(77, 50, 299, 194, 320, 224),
    ]
    outputs = random_outputs(spec, shapes[0], batch=3)
    small = placement_of(300, 200, spec, scale=0.4)
    small_outputs = random_outputs(spec, small, batch=1, seed=8)
    small = replace(small, source_width=600, source_height=400)
    frames = [[(2, shapes[0]), None], [(0, shapes[1]), (0, small)], [(1, shapes[2]), None]]
    limits = limits_for(spec, [shapes[0], small], max_faces=100)
    launches = [(outputs, shapes[0]), (small_outputs, small)]
    rows, counts, _ = faces_by_kernels(backend, spec, launches, threshold=0.9, limits=limits, frames=frames)
    for frame, passes in enumerate(frames):
        each = [
            candidates(source, found[0], found[1], spec, 0.9)
            for found, source in zip(passes, (outputs, small_outputs), strict=True)
            if found is not None
        ]
        place = passes[0][1]
        faces = final_faces(each, width=place.source_width, height=place.source_height, iou=0.4, max_faces=100)
        found = counts[frame, FACES]
        assert found == len(faces) > 5
        assert_allclose(rows[frame, :found, :4], faces.boxes, rtol=0, atol=1e-3)


def test_the_second_way_is_not_queued_where_no_frame_can_need_it():
    names = []

    class Recorded(BareBackend):
        def launch(self, stream, name, grid, block, arguments, *, shared=0):
            names.append(name)
            super().launch(stream, name, grid, block, arguments)

    boxes, scores = clusters(np.random.default_rng(0), 100)
    faces_of_boxes(Recorded(), boxes[None], scores[None])
    assert set(names) == {"find_classic_float", "faces_of_few"}


def nms_under_sanitizer(kernels, decode, count, threads, fast_limit, limit=5000):
    boxes, scores = clusters(np.random.default_rng(4), count)
    bare = BareBackend(load("decode.cu", decode), kernels, threads=threads)
    rows, counts = faces_of_boxes(bare, boxes[None], scores[None], fast_limit=fast_limit, limit=limit)
    return rows.view(np.int32).tolist(), counts.tolist()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flavour", "count", "threads", "fast_limit", "limit"),
    [
        ("asan", 1000, 1024, 1024, 5000),
        ("asan", 1000, 1024, 0, 5000),
        ("asan", 5000, 1024, 1024, 4999),
        ("tsan", 200, 64, 1024, 5000),
        ("tsan", 200, 64, 0, 5000),
        ("tsan", 200, 64, 0, 150),
    ],
)
def test_sanitizers_find_nothing_in_nms(flavour, count, threads, fast_limit, limit):
    arguments = {"count": count, "fast_limit": fast_limit, "limit": limit}
    # what finds the candidates is not looked at here
    ours = in_sanitizer(flavour, nms_under_sanitizer, "nms.cu", decode="plain", threads=threads, **arguments)
    plain = nms_under_sanitizer(load("nms.cu"), "plain", threads=1024, **arguments)
    assert ours == plain
