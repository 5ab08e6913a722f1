"""The CUDA kernels, on the host and on a GPU, find the reference's candidates with its coordinates."""

from dataclasses import replace

import numpy as np
import pytest
from backends import BareBackend
from cuda_host import in_sanitizer, load
from faces_by_kernels import faces_by_kernels, keys_of, limits_for, placement_of
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from retinastream.errors import UsageError
from retinastream.kernels.cuda_faces import (
    BEYOND_LIMIT,
    FACES,
    FOUND,
    LIST_FULL,
    NOT_A_NUMBER,
    OVERFLOW,
    FaceLimits,
    pass_structure,
)
from retinastream.kernels.postprocess import candidates, final_faces
from retinastream.kernels.sizing import Placement
from retinastream.models.spec import DetectorSpec

SPECS = {
    "light": DetectorSpec(),
    "paper": DetectorSpec(
        strides=(4, 8, 16, 32, 64),
        anchor_sizes=tuple(tuple(2.0**k * 16 * 2 ** (s / 3) for s in range(3)) for k in range(5)),
    ),
    "uneven": DetectorSpec(strides=(8, 32), anchor_sizes=((16.0, 24.0, 32.0), (100.0,)), variances=(0.2, 0.1)),
    "one": DetectorSpec(strides=(16,), anchor_sizes=((40.0,),)),
}


def random_outputs(spec, placement, batch=2, seed=0, dtype=np.float32, spread=2.0):
    """Outputs of a network in the spec's layout; logits lie on a coarse grid, so that scores tie."""
    rng = np.random.default_rng(seed)
    height, width = placement.padded_height, placement.padded_width
    anchors = spec.anchor_count(height, width)
    if spec.output_layout == "classic":
        scores = rng.integers(0, 65, (batch, anchors)) / 64
        conf = np.stack([1 - scores, scores], -1)
        return [
            v.astype(dtype) for v in (rng.normal(size=(batch, anchors, 4)), conf, rng.normal(size=(batch, anchors, 10)))
        ]
    maps = []
    for (rows, columns), sizes in zip(spec.feature_sizes(height, width), spec.anchor_sizes, strict=True):
        level = rng.normal(0, 1, (batch, 16 * len(sizes), rows, columns))
        level[:, : 2 * len(sizes)] = np.rint(level[:, : 2 * len(sizes)] * spread * 8) / 8
        maps.append(level.astype(dtype))
    return maps


def everything(backend, spec, passes, threshold, **changes):
    """All candidates as rows: nothing is suppressed, nothing clipped."""
    limits = limits_for(spec, [p for _, p in passes], limit=16384, max_faces=4096, iou=1.0, clip=False, **changes)
    return faces_by_kernels(backend, spec, passes, threshold=threshold, limits=limits)


def compare(rows, counts, expected):
    """Rows of one frame hold these candidates (nothing was suppressed): same order, same anchors."""
    found = counts[FACES]
    assert found == len(expected)
    assert_array_equal(rows[:found, 15].view(np.int32), expected.anchors)
    assert_allclose(rows[:found, 4], expected.scores, rtol=0, atol=1e-6)
    assert_allclose(rows[:found, :4], expected.boxes, rtol=2e-6, atol=1e-3)
    assert_allclose(rows[:found, 5:15].reshape(-1, 5, 2), expected.landmarks, rtol=2e-6, atol=1e-3)
    assert not rows[found:].any()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("layout", ["fused", "classic"])
@pytest.mark.parametrize("name", SPECS)
def test_candidates_of_every_layout_equal_the_reference(backend, name, layout, dtype):
    spec = replace(SPECS[name], output_layout=layout)
    placement = placement_of(263, 140, spec, scale=0.75)
    outputs = random_outputs(spec, placement, dtype=dtype)
    threshold = 0.97 if layout == "fused" else 0.95
    rows, counts, _ = everything(backend, spec, [(outputs, placement)], threshold)
    for item in range(2):
        expected = candidates(outputs, item, placement, spec, threshold)
        assert len(expected) > 2
        # the frame lies at the top left; what has no area within it is not a face
        inside = np.clip(expected.boxes, 0, [263, 140, 263, 140])
        inside = (inside[:, 2] > inside[:, 0]) & (inside[:, 3] > inside[:, 1])
        compare(rows[item], counts[item], pick(expected, inside))
        assert counts[item].tolist() == [len(expected), 0, inside.sum(), 0]


def pick(found, which):
    return replace(
        found,
        boxes=found.boxes[which],
        scores=found.scores[which],
        landmarks=found.landmarks[which],
        anchors=found.anchors[which],
    )


@pytest.fixture(scope="module")
def at_4k():
    """Maps of a 3840x2160 frame in which a few anchors of every level pass."""
    spec = SPECS["light"]
    placement = Placement(3840, 2160, 3840, 2160, 3840, 2176)
    rng = np.random.default_rng(5)
    maps = []
    for rows, columns in spec.feature_sizes(2176, 3840):
        level = np.zeros((1, 32, rows, columns), np.float32)
        level[:, [0, 2]] = 9
        level[:, 4:] = rng.normal(0, 1, (1, 28, rows, columns))
        places = rng.integers(0, rows * columns, 100)
        level.reshape(32, -1)[1 + 2 * rng.integers(0, 2, 100), places] = 9 + rng.normal(3, 1, 100)
        maps.append(level)
    return spec, placement, maps


@pytest.mark.parametrize(("dtype", "pixels"), [(np.float32, 1e-3), (np.float16, 1e-3)])
def test_coordinates_at_4k_are_computed_in_single_precision_whatever_the_maps_hold(backend, at_4k, dtype, pixels):
    spec, placement, maps = at_4k
    maps = [v.astype(dtype) for v in maps]
    rows, counts, _ = everything(backend, spec, [(maps, placement)], 0.5)
    expected = candidates(maps, 0, placement, spec, 0.5)
    assert 250 < len(expected) == counts[0, FOUND]
    found = counts[0, FACES]
    kept = {int(v): k for k, v in enumerate(rows[0, :found, 15].view(np.int32))}
    places = [k for k, v in enumerate(expected.anchors) if int(v) in kept]
    assert len(places) == found
    ours = rows[0, [kept[int(expected.anchors[k])] for k in places]]
    assert_allclose(ours[:, :4], expected.boxes[places], rtol=0, atol=pixels)
    assert_allclose(ours[:, 5:15].reshape(-1, 5, 2), expected.landmarks[places], rtol=0, atol=pixels)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(list(SPECS)),
    st.sampled_from(["fused", "classic"]),
    st.integers(1, 150),
    st.integers(1, 90),
    st.sampled_from([0.0, 0.3, 0.75, 0.99, 1.0]),
    st.booleans(),
)
def test_the_keys_are_those_of_all_anchors_at_or_above_the_threshold(
    backend, seed, name, layout, width, height, threshold, half
):
    spec = replace(SPECS[name], output_layout=layout)
    placement = placement_of(width, height, spec)
    outputs = random_outputs(spec, placement, seed=seed, dtype=np.float16 if half else np.float32)
    not_numbers = plant_nans(outputs, spec, seed)
    limits = limits_for(spec, [placement], limit=64, max_faces=1)
    _, counts, buffers = faces_by_kernels(backend, spec, [(outputs, placement)], threshold=threshold, limits=limits)
    for item in range(2):
        expected = candidates(outputs, item, placement, spec, threshold, limit=10**9)
        scores, passes, anchors = keys_of(buffers, item)
        assert_array_equal(anchors, expected.anchors)
        assert_allclose(scores, expected.scores, rtol=0, atol=1e-6)
        assert not passes.any()
        assert counts[item, NOT_A_NUMBER] == expected.not_a_number == not_numbers[item]


def plant_nans(outputs, spec, seed):
    """Make up to three scores of every frame NaN; returns how many per frame."""
    rng = np.random.default_rng(seed)
    counts = []
    for item in range(len(outputs[0])):
        places = set()
        for _ in range(rng.integers(0, 4)):
            if spec.output_layout == "classic":
                anchor = int(rng.integers(0, outputs[1].shape[1]))
                outputs[1][item, anchor, 1] = np.nan
                places.add(anchor)
            else:
                level = int(rng.integers(0, len(outputs)))
                which = int(rng.integers(0, len(spec.anchor_sizes[level])))
                cell = int(rng.integers(0, outputs[level][0, 0].size))
                channel = 2 * which + int(rng.integers(0, 2))
                outputs[level][item].reshape(outputs[level].shape[1], -1)[channel, cell] = np.nan
                places.add((level, which, cell))
        counts.append(len(places))
    return counts


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_list_that_is_too_short_is_filled_and_the_overflow_counted(backend, seed):
    spec = SPECS["light"]
    placement = placement_of(160, 96, spec)
    outputs = random_outputs(spec, placement)
    limits = FaceLimits(capacity=37, limit=20, max_faces=8)
    backend = backend.shuffled(seed)
    _, counts, buffers = faces_by_kernels(backend, spec, [(outputs, placement)], threshold=0.5, limits=limits)
    for item in range(2):
        expected = candidates(outputs, item, placement, spec, 0.5)
        assert counts[item, FOUND] == len(expected) > 37
        assert counts[item, OVERFLOW] & (LIST_FULL | BEYOND_LIMIT) == LIST_FULL | BEYOND_LIMIT
        _, _, anchors = keys_of(buffers, item)
        assert len(set(anchors)) == 37
        assert set(anchors) <= set(expected.anchors)


def test_the_order_of_blocks_and_threads_does_not_show():
    spec = SPECS["paper"]
    placement = placement_of(192, 128, spec)
    passes = [(random_outputs(spec, placement, spread=3.0), placement)]
    results = [
        faces_by_kernels(BareBackend(seed=seed), spec, passes, threshold=0.9, limits=limits_for(spec, [placement]))
        for seed in (0, 1, 2)
    ]
    assert not np.array_equal(results[0][2]["lists"], results[1][2]["lists"])
    for rows, counts, _ in results[1:]:
        assert_array_equal(rows.view(np.int32), results[0][0].view(np.int32))
        assert_array_equal(counts, results[0][1])


@pytest.mark.parametrize("channel", [2, 5, 6, 15], ids=["box x", "box height", "landmark 1 x", "landmark 5 y"])
def test_a_candidate_with_a_nan_is_counted_and_neither_a_face_nor_in_the_way_of_one(backend, channel):
    spec = DetectorSpec(strides=(8,), anchor_sizes=((16.0,),))
    placement = placement_of(64, 64, spec)
    maps = [np.zeros((1, 16, 8, 8), np.float32)]
    maps[0][0, 0] = 9
    maps[0][0, 1, 4, 4], maps[0][0, 1, 4, 5] = 12, 11  # overlap: the first would win
    alone = [maps[0].copy()]
    maps[0][0, channel, 4, 4] = np.nan
    limits = limits_for(spec, [placement], iou=0.2)
    for ours, winner, expected in ((alone, 36, [2, 0, 1, 0]), (maps, 37, [2, 1, 1, 0])):
        rows, counts, _ = faces_by_kernels(backend, spec, [(ours, placement)], threshold=0.5, limits=limits)
        assert counts[0].tolist() == expected
        assert rows[0, 0, 15].view(np.int32) == winner
        faces = final_faces([candidates(ours, 0, placement, spec, 0.5)], width=64, height=64, iou=0.2, max_faces=9)
        assert [len(faces), faces.not_a_number] == [expected[FACES], expected[NOT_A_NUMBER]]
        assert_allclose(faces.boxes, rows[0, :1, :4], rtol=0, atol=1e-3)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["fused", "classic"]),
    st.sampled_from([0.0, 0.5, 0.9]),
    st.sampled_from([20, 200, 5000]),
    st.booleans(),
    st.sampled_from([0, 1024]),
)
def test_nans_anywhere_are_counted_as_the_reference_counts_them(
    backend, seed, layout, threshold, limit, half, fast_limit
):
    spec = replace(SPECS["light"], output_layout=layout)
    placements = [placement_of(90, 60, spec), placement_of(90, 60, spec, scale=0.5)]
    rng = np.random.default_rng(seed)
    passes = [
        (random_outputs(spec, p, seed=seed + k, dtype=np.float16 if half else np.float32), p)
        for k, p in enumerate(placements)
    ]
    for outputs, _ in passes:
        for tensor in outputs:
            tensor.reshape(-1)[rng.integers(0, tensor.size, rng.integers(0, 40))] = np.nan
    limits = limits_for(spec, placements, limit=limit, fast_limit=fast_limit)
    rows, counts, _ = faces_by_kernels(backend, spec, passes, threshold=threshold, limits=limits)
    for item in range(2):
        each = [candidates(outputs, item, p, spec, threshold, limit) for outputs, p in passes]
        faces = final_faces(each, width=90, height=60, iou=0.4, max_faces=750, limit=limit)
        assert counts[item, [FACES, NOT_A_NUMBER]].tolist() == [len(faces), faces.not_a_number]
        assert (counts[item, OVERFLOW] != 0) == faces.overflow
        assert_allclose(rows[item, : len(faces), :4], faces.boxes, rtol=0, atol=1e-3)
        assert_allclose(rows[item, : len(faces), 5:15].reshape(-1, 5, 2), faces.landmarks, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"limit": 16385}, "limit 16385 is out of range"),
        ({"max_faces": 0}, "max_faces 0 is out of range"),
        ({"max_faces": 4097}, "max_faces 4097 is out of range"),
        ({"capacity": 0}, "capacity 0 is out of range"),
        ({"fast_limit": 1025}, "fast_limit 1025 is out of range; allowed are 0 to 1024"),
    ],
)
def test_limits_beyond_the_kernels_are_refused(change, message):
    with pytest.raises(UsageError, match=message):
        FaceLimits(**({"capacity": 10} | change))


@pytest.mark.parametrize(
    ("spec", "maps", "number", "message"),
    [
        (DetectorSpec(strides=(8,), anchor_sizes=((1.0, 2.0, 3.0, 4.0),)), 1, 0, "up to 5 levels of up to 3 sizes"),
        (DetectorSpec(strides=(1, 2, 3, 4, 5, 6), anchor_sizes=((1.0,),) * 6), 6, 0, "up to 5 levels"),
        (DetectorSpec(), 2, 0, "2 output tensors were given; the fused layout has 3"),
        (DetectorSpec(), 3, 4, "pass 4 is out of range"),
        (DetectorSpec(strides=(1,), anchor_sizes=((1.0, 2.0),)), 1, 0, "too many anchors"),
    ],
)
def test_specs_beyond_the_kernels_are_refused(spec, maps, number, message):
    with pytest.raises(UsageError, match=message):
        pass_structure(spec, 16384, 16384, 0.5, [0] * maps, half=False, number=number)


def find_under_sanitizer(kernels, layout, half, threads):
    """The keys of a small frame, found by one library under a sanitizer and the rest of the way left out."""
    spec = replace(SPECS["paper"], output_layout=layout)
    placement = placement_of(70, 64, spec)
    outputs = random_outputs(spec, placement, dtype=np.float16 if half else np.float32)
    limits = FaceLimits(capacity=100)

    class Find(BareBackend):
        def launch(self, stream, name, grid, block, arguments, *, shared=0):
            if name.startswith("find_"):
                super().launch(stream, name, grid, block, arguments)
            elif name == "faces_of_few":
                arguments[4][...] = 0  # rows and counts, which nobody writes here
                arguments[3][:, 2:] = 0

    backend = Find(kernels, threads=threads)
    _, counts, buffers = faces_by_kernels(backend, spec, [(outputs, placement)], threshold=0.9, limits=limits)
    return counts[:, FOUND].tolist(), [sorted(keys_of(buffers, item)[2].tolist()) for item in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("layout", ["fused", "classic"])
@pytest.mark.parametrize(("flavour", "threads"), [("asan", 256), ("tsan", 32)])
def test_sanitizers_find_nothing_in_decode(flavour, threads, layout, half):
    found, anchors = in_sanitizer(flavour, find_under_sanitizer, "decode.cu", layout=layout, half=half, threads=threads)
    expected = find_under_sanitizer(load("decode.cu"), layout, half, 256)
    assert found == expected[0]
    if max(found) <= 100:
        assert anchors == expected[1]
