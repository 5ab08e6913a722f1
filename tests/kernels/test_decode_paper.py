"""Decoding of five levels with three anchors per cell equals a loop over all of them, and so do the final faces."""

import math
from dataclasses import replace

import numpy as np
import pytest

from retinastream.kernels.decode import anchors_at, decode_classic, decode_fused, encode_offsets, level_offsets
from retinastream.kernels.postprocess import candidates, final_faces
from retinastream.kernels.sizing import SizePolicy
from retinastream.models.spec_registry import SPECS

SPEC = SPECS["retinaface-paper"]
STRIDES = (4, 8, 16, 32, 64)
EVERYTHING = 10**6
SIZES = [
    pytest.param(64, 64, id="one cell on the coarsest level"),
    pytest.param(64, 128, id="a wide picture"),
    pytest.param(192, 128, id="an upright picture"),
    pytest.param(96, 160, id="multiples of 32 and not of 64"),
]


def random_maps(seed, height, width, batch=None):
    rng = np.random.default_rng(seed)
    shapes = [(48, math.ceil(height / stride), math.ceil(width / stride)) for stride in STRIDES]
    return [rng.normal(0, 2, shape if batch is None else (batch, *shape)).astype(np.float32) for shape in shapes]


def all_anchors(maps):
    """(centre x, centre y, size, logits, box offsets, landmark offsets) of every anchor in the classic order.

    Sizes are written out from the paper: 16 on the finest level, thirds of an octave apart.
    """
    anchors = []
    for level, (tensor, stride) in enumerate(zip(maps, STRIDES, strict=True)):
        for row in range(tensor.shape[1]):
            for column in range(tensor.shape[2]):
                cell = tensor[:, row, column].astype(np.float64)
                logits, boxes, points = cell[:6].reshape(3, 2), cell[6:18].reshape(3, 4), cell[18:].reshape(3, 5, 2)
                for third in range(3):
                    size = 16 * 2 ** (level + third / 3)
                    place = ((column + 0.5) * stride, (row + 0.5) * stride, size)
                    anchors.append((*place, logits[third], boxes[third], points[third]))
    return anchors


def faces_by_loops(maps, threshold):
    """(score, anchor index, box, landmarks) of every anchor that reaches the threshold, best first."""
    faces = []
    for index, (x, y, size, logits, box, points) in enumerate(all_anchors(maps)):
        score = 1 / (1 + math.exp(logits[0] - logits[1]))
        if score >= threshold:
            middle = np.array([x, y]) + box[:2] * 0.1 * size
            extent = size * np.exp(box[2:] * 0.2)
            corners = np.concatenate([middle - extent / 2, middle + extent / 2])
            faces.append((score, index, corners, np.array([x, y]) + points * 0.1 * size))
    return sorted(faces, key=lambda f: (-f[0], f[1]))


def assert_same_faces(found, expected):
    """Compare by anchor: rounding may exchange two faces of nearly the same score."""
    order, wanted = np.argsort(found.anchors), sorted(expected, key=lambda f: f[1])
    assert found.anchors[order].tolist() == [f[1] for f in wanted]
    np.testing.assert_allclose(found.scores[order], [f[0] for f in wanted], atol=1e-6)
    np.testing.assert_allclose(found.boxes[order], [f[2] for f in wanted], rtol=1e-5, atol=1e-2)
    np.testing.assert_allclose(found.landmarks[order], [f[3] for f in wanted], rtol=1e-5, atol=1e-2)


def test_levels_start_where_the_finer_ones_end():
    assert level_offsets(SPEC, 640, 640) == (0, 76_800, 96_000, 100_800, 102_000)
    centres, sizes = anchors_at(np.array([0, 2, 76_799, 76_800, 102_000, 102_299]), SPEC, 640, 640)
    assert centres.tolist() == [[2, 2], [2, 2], [638, 638], [4, 4], [32, 32], [608, 608]]
    np.testing.assert_allclose(sizes, [16, 25.40, 25.40, 32, 256, 406.37], atol=0.01)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_every_anchor_is_that_of_the_explicit_list(height, width):
    expected = np.array([a[:3] for a in all_anchors(random_maps(0, height, width))])
    assert SPEC.anchor_count(height, width) == len(expected)
    order = np.random.default_rng(1).permutation(len(expected))
    centres, sizes = anchors_at(order, SPEC, height, width)
    np.testing.assert_array_equal(centres, expected[order, :2])
    np.testing.assert_allclose(sizes, expected[order, 2], rtol=1e-6)


@pytest.mark.parametrize("threshold", [0.0, 0.02, 0.5, 0.97])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_fused_maps_decode_as_a_loop_over_all_anchors_does(height, width, threshold):
    maps = random_maps(height + width, height, width)
    expected = faces_by_loops(maps, threshold)
    found = decode_fused(maps, SPEC, height, width, threshold, EVERYTHING)
    np.testing.assert_allclose(found.scores, [f[0] for f in expected], atol=1e-6)
    assert_same_faces(found, expected)
    assert not found.overflow


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_classic_layout_decodes_to_the_same_faces(height, width):
    maps = random_maps(7, height, width)
    anchors = all_anchors(maps)
    loc = np.array([a[4] for a in anchors], np.float32)
    logits = np.array([a[3] for a in anchors])
    conf = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)
    landms = np.array([a[5] for a in anchors], np.float32).reshape(-1, 10)
    expected = faces_by_loops(maps, 0.3)
    spec = replace(SPEC, output_layout="classic")
    found = decode_classic(loc, conf, landms, spec, height, width, 0.3, EVERYTHING)
    assert_same_faces(found, expected)


@pytest.mark.parametrize("level", range(5))
@pytest.mark.parametrize("third", range(3))
def test_a_face_written_at_one_anchor_is_read_back_from_it(level, third):
    height, width = 128, 192
    maps = [np.zeros_like(m) for m in random_maps(0, height, width)]
    row, column = maps[level].shape[1] - 1, maps[level].shape[2] // 2
    centre = np.array([[(column + 0.5) * STRIDES[level], (row + 0.5) * STRIDES[level]]], np.float32)
    size = np.array([16 * 2 ** (level + third / 3)], np.float32)
    box = np.concatenate([centre - size * 0.4 + 1.5, centre + size * 0.6 + 1.5], axis=1).astype(np.float32)
    points = (
        centre[:, None] + size * np.array([[[-0.2, -0.1], [0.2, -0.1], [0, 0.1], [-0.1, 0.3], [0.1, 0.3]]])
    ).astype(np.float32)
    offsets, landmark = encode_offsets(box, points, centre, size, (0.1, 0.2))
    maps[level][2 * third + 1, row, column] = 4.0
    maps[level][6 + 4 * third : 10 + 4 * third, row, column] = offsets[0]
    maps[level][18 + 10 * third : 28 + 10 * third, row, column] = landmark[0]
    found = decode_fused(maps, SPEC, height, width, 0.9, EVERYTHING)
    assert len(found) == 1
    np.testing.assert_allclose(found.boxes, box, atol=1e-3)
    np.testing.assert_allclose(found.landmarks, points, atol=1e-3)


def suppress_by_loops(faces, iou):
    """Greedy suppression, one pair at a time; faces are best first."""
    kept = []
    for face in faces:
        for other in kept:
            low, high = np.maximum(face[2][:2], other[2][:2]), np.minimum(face[2][2:], other[2][2:])
            common = np.prod(np.clip(high - low, 0, None))
            areas = [np.prod(f[2][2:] - f[2][:2]) for f in (face, other)]
            if common / (sum(areas) - common) > iou:
                break
        else:
            kept.append(face)
    return kept


@pytest.mark.parametrize(("width", "height"), [(100, 60), (60, 100), (64, 64)])
def test_final_faces_are_those_of_the_loops_in_pixels_of_the_picture(width, height):
    """A picture padded to multiples of 64; batch item 1 of 2; faces of all levels suppress each other."""
    placement = SizePolicy.parse("native").placements(width, height, SPEC.max_stride)[0]
    padded = placement.padded_width, placement.padded_height
    assert padded == (math.ceil(width / 64) * 64, math.ceil(height / 64) * 64)
    maps = random_maps(11, placement.padded_height, placement.padded_width, batch=2)
    for tensor in maps:
        tensor[:, 6:] /= 4  # boxes near their anchors, so that many overlap
    found = final_faces(
        [candidates(maps, 1, placement, SPEC, 0.9)], width=width, height=height, iou=0.4, max_faces=1000
    )
    border = np.array([width, height, width, height])
    inside = [
        f for f in faces_by_loops([m[1] for m in maps], 0.9) if (f[2][:2] < border[:2]).all() and (f[2][2:] > 0).all()
    ]
    expected = suppress_by_loops(inside, 0.4)
    assert len(inside) > len(expected) > 10
    assert len(found) == len(expected)
    np.testing.assert_allclose(found.scores, [f[0] for f in expected], atol=1e-6)
    np.testing.assert_allclose(found.boxes, [np.clip(f[2], 0, border) for f in expected], atol=1e-2)
    np.testing.assert_allclose(found.landmarks, [f[3] for f in expected], rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("policy", ["native", "fit:500", "short:300,max:900", "pyramid"])
def test_every_pass_is_padded_to_multiples_of_64(policy):
    for width, height in ((1, 1), (640, 480), (641, 1000), (1920, 1080)):
        for placement in SizePolicy.parse(policy).placements(width, height, SPEC.max_stride):
            for side, padded in (
                (placement.width, placement.padded_width),
                (placement.height, placement.padded_height),
            ):
                assert padded % 64 == 0
                assert 0 <= padded - side < 64
