"""From outputs of a batch to final faces: merging of passes, clipping, limits, and what lies in the padding."""

from dataclasses import replace

import numpy as np
import pytest

from retinastream.kernels.decode import Candidates, encode_offsets
from retinastream.kernels.postprocess import candidates, final_faces
from retinastream.kernels.sizing import SizePolicy
from retinastream.models.spec import DetectorSpec

SPEC = DetectorSpec()


def found(*faces, overflow=False):
    """Candidates from (score, x1, y1, x2, y2), best first; all landmarks at the box's centre."""
    faces = sorted(faces, key=lambda f: -f[0])
    boxes = np.array([f[1:] for f in faces], np.float32).reshape(-1, 4)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    scores = np.array([f[0] for f in faces], np.float32)
    return Candidates(boxes, scores, centres[:, None].repeat(5, 1), np.arange(len(faces)), overflow)


def faces_of(*passes, width=100, height=80, iou=0.4, max_faces=50, **settings):
    return final_faces(passes, width=width, height=height, iou=iou, max_faces=max_faces, **settings)


def outputs_with(face_boxes, placement, batch=1, item=0):
    """Fused outputs of a batch in which ``item`` shows these boxes (input pixels) and the others show none."""
    height, width = placement.padded_height, placement.padded_width
    maps = [np.zeros((batch, 32, r, c), np.float32) for r, c in SPEC.feature_sizes(height, width)]
    for tensor in maps:
        tensor[:, [0, 2]] = 9
    for x1, y1, x2, y2 in face_boxes:
        row, column = int((y1 + y2) / 2 / 8), int((x1 + x2) / 2 / 8)
        centre = np.array([[column * 8 + 4, row * 8 + 4]], np.float32)
        box = np.array([[x1, y1, x2, y2]], np.float32)
        points = np.tile((box[:, None, :2] + box[:, None, 2:]) / 2, (1, 5, 1))
        offsets = encode_offsets(box, points, centre, np.array([16.0], np.float32), SPEC.variances)
        cell = maps[0][item, :, row, column]
        cell[1] = 12
        cell[4:8], cell[12:22] = offsets[0][0], offsets[1][0]
    return maps


@pytest.mark.parametrize(
    ("candidate", "clipped"),
    [
        pytest.param((10, 10, 30, 40), (10, 10, 30, 40), id="inside: as it is"),
        pytest.param((-5, -9, 30, 40), (0, 0, 30, 40), id="over the top left corner"),
        pytest.param((90, 70, 130, 99), (90, 70, 100, 80), id="over the bottom right corner"),
        pytest.param((-5, -5, 200, 200), (0, 0, 100, 80), id="larger than the picture"),
        pytest.param((100, 10, 120, 30), None, id="in the padding at the right"),
        pytest.param((10, 80.5, 30, 99), None, id="in the padding at the bottom"),
        pytest.param((-30, 10, 0, 30), None, id="left of the picture"),
        pytest.param((20, 20, 20, 30), None, id="without area"),
    ],
)
def test_boxes_are_clipped_to_the_picture_and_those_outside_are_dropped(candidate, clipped):
    faces = faces_of(found((0.9, *candidate)))
    assert faces.boxes.tolist() == ([] if clipped is None else [list(map(float, clipped))])
    assert (faces.width, faces.height, faces.overflow) == (100, 80, False)
    assert faces.boxes.dtype == np.float32


def test_landmarks_stay_where_they_are_also_beyond_the_edge():
    faces = faces_of(found((0.9, -50, 10, 10, 30)))
    np.testing.assert_array_equal(faces.landmarks, np.full((1, 5, 2), [-20, 20]))


def test_overlap_is_that_of_the_boxes_before_clipping():
    """Two faces that stick out differently must not merge because their visible parts are alike."""
    kept = faces_of(found((0.9, -60, 0, 10, 20), (0.8, 0, 0, 10, 20)))
    assert len(kept) == 2


def test_a_box_in_the_padding_suppresses_no_face():
    assert len(faces_of(found((0.9, 101, 0, 121, 20), (0.8, 97, 0, 117, 20)))) == 1


@pytest.mark.parametrize(
    ("count", "in_padding", "max_faces", "kept", "overflow"),
    [
        pytest.param(3, 0, 3, 3, False, id="exactly as many as wanted"),
        pytest.param(4, 0, 3, 3, True, id="one more than wanted"),
        pytest.param(3, 5, 3, 3, False, id="boxes in the padding do not count against the limit"),
        pytest.param(2, 5, 1, 1, True, id="boxes in the padding with better scores leave room for faces"),
        pytest.param(0, 5, 1, 0, False, id="only boxes in the padding"),
    ],
)
def test_the_limit_of_faces(count, in_padding, max_faces, kept, overflow):
    faces = [(0.5 - 0.01 * n, 20 * n, 0, 20 * n + 10, 10) for n in range(count)]
    outside = [(0.9 - 0.01 * n, 20 * n, 200, 20 * n + 10, 210) for n in range(in_padding)]
    result = faces_of(found(*faces, *outside), max_faces=max_faces)
    assert (len(result), result.overflow) == (kept, overflow)
    np.testing.assert_allclose(result.scores, [0.5 - 0.01 * n for n in range(kept)], rtol=1e-6)


def test_overflow_of_a_pass_and_of_the_merge_is_reported():
    face = (0.9, 0, 0, 10, 10)
    assert faces_of(found(face, overflow=True)).overflow
    assert faces_of(found(face), found(face, overflow=True)).overflow
    assert faces_of(found(face), found(face), limit=1).overflow
    assert not faces_of(found(face), found(face), limit=2).overflow


def test_the_better_pass_wins_where_both_see_a_face():
    faces = faces_of(found((0.6, 10, 10, 50, 50), (0.55, 80, 0, 90, 9)), found((0.8, 11, 10, 51, 50)))
    np.testing.assert_allclose(faces.scores, [0.8, 0.55], rtol=1e-6)
    assert faces.boxes.tolist() == [[11, 10, 51, 50], [80, 0, 90, 9]]


def test_no_candidates_give_no_faces_of_the_right_shapes():
    faces = faces_of(found(), found())
    assert (faces.boxes.shape, faces.scores.shape, faces.landmarks.shape) == ((0, 4), (0,), (0, 5, 2))
    assert not faces.overflow


def test_counting_plus_one_changes_what_is_dropped():
    pair = found((0.9, 0, 0, 4, 4), (0.8, 0, 2, 4, 6))
    assert len(faces_of(pair, iou=0.34)) == 2  # 8 / 24
    assert len(faces_of(pair, iou=0.34, plus_one=True)) == 1  # 15 / 35


@pytest.mark.parametrize("policy", ["native", "fit:160", "short:300,max:500", "pyramid"])
def test_faces_drawn_into_the_outputs_come_back_in_source_pixels(policy):
    """One face per corner of a 1000x700 picture, drawn at every pass's own scale, in the second of three items."""
    wanted = np.array([[8, 8, 60, 70], [900, 20, 990, 100], [30, 600, 90, 690], [930, 610, 1000, 700]], np.float32)
    passes = []
    for placement in SizePolicy.parse(policy).placements(1000, 700, 32):
        scale = np.tile([placement.scale_x, placement.scale_y], 2)
        outputs = outputs_with(wanted * scale, placement, batch=3, item=1)
        assert len(candidates(outputs, 0, placement, SPEC, 0.5)) == 0
        one = candidates(outputs, 1, placement, SPEC, 0.5)
        assert len(one) == 4
        passes.append(one)
    assert len(passes) == (2 if policy == "pyramid" else 1)
    faces = faces_of(*passes, width=1000, height=700)
    assert len(faces) == 4
    order = np.lexsort((faces.boxes[:, 0], faces.boxes[:, 1] > 300))
    np.testing.assert_allclose(faces.boxes[order], wanted, atol=0.01)
    np.testing.assert_allclose(faces.landmarks[order][:, 0], (wanted[:, :2] + wanted[:, 2:]) / 2, atol=0.01)


def test_a_candidate_with_a_nan_is_counted_and_neither_a_face_nor_in_the_way_of_one():
    first, second = (0.9, 10, 10, 30, 30), (0.8, 12, 10, 32, 30)  # overlap: the first wins
    assert faces_of(found(first, second)).scores.tolist() == [pytest.approx(0.9)]
    for spoil in ("box", "landmark"):
        candidates_of = found(first, second)
        if spoil == "box":
            candidates_of.boxes[0, 3] = np.nan
        else:
            candidates_of.landmarks[0, 4, 1] = np.nan
        faces = faces_of(candidates_of)
        assert faces.scores.tolist() == [pytest.approx(0.8)]
        assert faces.not_a_number == 1
        assert np.isfinite(faces.landmarks).all()


def test_values_of_nan_count_among_the_best_candidates_only_and_are_added_to_the_scores_of_nan():
    passes = [found((0.9, 10, 10, 20, 20), (0.5, 40, 40, 50, 50)), found((0.7, 60, 10, 70, 20), (0.6, 60, 40, 70, 50))]
    passes[0].landmarks[1] = passes[1].landmarks[1] = np.nan
    passes = [replace(one, not_a_number=3) for one in passes]
    whole, cut = faces_of(*passes), faces_of(*passes, limit=3)
    assert (len(whole), whole.not_a_number, whole.overflow) == (2, 8, False)
    assert (len(cut), cut.not_a_number, cut.overflow) == (2, 7, True)


def test_infinite_landmarks_are_no_nan():
    candidates_of = found((0.9, 10, 10, 30, 30))
    candidates_of.landmarks[0, 0] = (np.inf, -np.inf)
    faces = faces_of(candidates_of)
    assert (len(faces), faces.not_a_number) == (1, 0)
