"""Which anchor answers for which face: against plain loops, by hand, and on random boxes."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from retinastream.errors import UsageError  # noqa: E402
from retinastream.kernels.decode import anchors_at  # noqa: E402
from retinastream.models.spec import DetectorSpec  # noqa: E402
from retinastream.training import matching  # noqa: E402
from retinastream.training.matching import (  # noqa: E402
    BACKGROUND,
    FACE,
    IGNORED,
    LIGHT,
    PAPER,
    MatchRecipe,
    Truths,
    anchors_of,
    match,
    match_batch,
    pad_truths,
)

PAPER_SPEC = DetectorSpec(
    strides=(4, 8, 16, 32, 64),
    anchor_sizes=tuple(tuple(4.0 * s * 2 ** (k / 3) for k in range(3)) for s in (4, 8, 16, 32, 64)),
)
LIGHT_SPEC = DetectorSpec()
ONE = torch.tensor([[8.0, 8.0, 16.0, 16.0]])  # covers 0..16 both ways
ROW = torch.tensor([[8.0 + 16 * i, 8.0, 16.0, 16.0] for i in range(4)])


def boxes_of(*rows):
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def overlap(box, anchor):
    """IoU and share of the anchor, one pair, in float32 as the specification of both recipes has it."""
    x, y, w, h = anchor
    left, top, right, bottom = x - w / 2, y - h / 2, x + w / 2, y + h / 2
    zero = np.float32(0)
    common = max(min(box[2], right) - max(box[0], left), zero) * max(min(box[3], bottom) - max(box[1], top), zero)
    own = (right - left) * (bottom - top)
    return common / (own + (box[2] - box[0]) * (box[3] - box[1]) - common), common / own


def match_in_loops(boxes, anchors, recipe, ignore):
    """The rules in words: one anchor after the other, then the claims, one face after the other."""
    boxes, anchors = boxes.numpy(), anchors.numpy()
    faces = [t for t in range(len(boxes)) if not ignore[t]]
    regions = [t for t in range(len(boxes)) if ignore[t]]
    pairs = [[overlap(box, anchor) for anchor in anchors] for box in boxes]
    labels, truth = [], []
    for a in range(len(anchors)):
        best, owner, blocked, covered = np.float32(0), -1, np.float32(0), False
        for t in faces:
            if pairs[t][a][0] > best:
                best, owner = pairs[t][a][0], t
        for t in regions:
            blocked = max(blocked, pairs[t][a][0])
            covered = covered or pairs[t][a][1] > 0.5
        edge = recipe.positive == recipe.background and best == np.float32(recipe.positive)
        if owner >= 0 and best >= blocked and (best > np.float32(recipe.positive) or edge):
            labels.append(FACE)
        elif best < np.float32(recipe.background) and blocked < np.float32(recipe.background) and not covered:
            labels.append(BACKGROUND)
        else:
            labels.append(IGNORED)
        truth.append(owner if labels[-1] == FACE else -1)
    waiting = faces if recipe.claim_above is not None else []
    taken = {}
    while waiting:
        asked = {}
        for t in waiting:
            free = [
                a for a in range(len(anchors)) if a not in taken and pairs[t][a][0] > np.float32(recipe.claim_above)
            ]
            if free:
                wish = max(free, key=lambda a: (pairs[t][a][0], -a))
                asked.setdefault(wish, []).append(t)
        waiting = []
        for a, rivals in asked.items():
            taken[a] = max(rivals, key=lambda t: (pairs[t][a][0], -t))
            waiting += [t for t in rivals if t != taken[a]]
    for a, t in taken.items():
        labels[a], truth[a] = FACE, t
    return labels, truth


def random_truths(seed, count, side=96):
    draw = np.random.default_rng(seed)
    size = np.exp(draw.uniform(np.log(2), np.log(side), (count, 2)))
    corner = draw.uniform(-0.2, 0.9, (count, 2)) * side
    boxes = np.hstack([corner, corner + size])
    if seed % 2:  # whole numbers make equal overlaps, which is where an order matters
        boxes = np.round(boxes) + np.array([0, 0, 1, 1])
    return torch.tensor(boxes, dtype=torch.float32), torch.tensor(draw.random(count) < 0.3)


@pytest.mark.parametrize("spec", [LIGHT_SPEC, PAPER_SPEC], ids=["light", "paper"])
@pytest.mark.parametrize("size", [(640, 640), (96, 160), (100, 37)], ids=str)
def test_anchors_are_those_that_decoding_uses(spec, size):
    ours = anchors_of(spec, *size)
    centres, sizes = anchors_at(np.arange(spec.anchor_count(*size)), spec, *size)
    np.testing.assert_array_equal(ours[:, :2].numpy(), centres)
    np.testing.assert_array_equal(ours[:, 2].numpy(), sizes)
    np.testing.assert_array_equal(ours[:, 3].numpy(), sizes)


def test_anchor_counts_at_640_are_the_published_ones():
    assert len(anchors_of(LIGHT_SPEC, 640, 640)) == 16_800
    assert len(anchors_of(PAPER_SPEC, 640, 640)) == 102_300


@pytest.mark.parametrize("recipe", [PAPER, LIGHT, replace(LIGHT, claim_above=0.2)], ids=["paper", "light", "floor"])
@pytest.mark.parametrize("seed", range(6))
def test_matching_equals_plain_loops(recipe, seed):
    anchors = anchors_of(LIGHT_SPEC, 96, 96)
    boxes, ignore = random_truths(seed, 9)
    found = match(boxes, anchors, recipe, ignore=ignore)
    labels, truth = match_in_loops(boxes, anchors, recipe, ignore.tolist())
    assert found.labels.tolist() == labels
    assert found.truth.tolist() == truth


@pytest.mark.parametrize(
    ("what", "recipe", "box", "label"),
    [
        ("the paper needs more than half: exactly 0.5 is ignored", PAPER, (0, 0, 16, 8), IGNORED),
        ("a little more than half is a face", PAPER, (0, 0, 16, 8.1), FACE),
        ("between the bounds of the paper is ignored", PAPER, (0, 0, 16, 6), IGNORED),
        ("below 0.3 is background", PAPER, (0, 0, 16, 4), BACKGROUND),
        ("without a band the bound itself is a face", MatchRecipe(0.25, 0.25), (0, 0, 16, 4), FACE),
        ("without a band all below is background", MatchRecipe(0.25, 0.25), (0, 0, 16, 3.9), BACKGROUND),
        ("light: 0.375 is a face", replace(LIGHT, claim_above=None), (0, 0, 16, 6), FACE),
        ("light: 0.3125 is background", replace(LIGHT, claim_above=None), (0, 0, 16, 5), BACKGROUND),
        ("light: a claim makes it a face", LIGHT, (0, 0, 16, 5), FACE),
        ("a face beside the anchor cannot claim it", LIGHT, (20, 0, 30, 8), BACKGROUND),
        ("a face that only touches the anchor cannot claim it", LIGHT, (16, 0, 30, 8), BACKGROUND),
        ("the floor of a claim is itself too little", replace(LIGHT, claim_above=0.25), (0, 0, 16, 4), BACKGROUND),
        ("bounds of zero make no faces of anchors far from any", MatchRecipe(0.0, 0.0), (20, 0, 30, 8), IGNORED),
    ],
)
def test_bounds_by_hand(what, recipe, box, label):
    found = match(boxes_of(box), ONE, recipe)
    assert found.labels.tolist() == [label], what
    assert found.truth.tolist() == [0 if label == FACE else -1], what


@pytest.mark.parametrize(
    ("what", "recipe", "face", "region", "label"),
    [
        ("IoU 0.3 or more with a region is not background", PAPER, None, (0, 0, 16, 5), IGNORED),
        ("a region that touches little changes nothing", PAPER, None, (0, 0, 16, 4), BACKGROUND),
        ("a region that covers 0.75 of the anchor, at IoU 0.03", PAPER, None, (-200, 0, 200, 12), IGNORED),
        ("a region that covers exactly half of it", PAPER, None, (-200, 0, 200, 8), BACKGROUND),
        ("a face that fits better than the region stays", PAPER, (0, 0, 16, 14), (0, 0, 16, 13), FACE),
        ("a face that fits as well as the region stays", PAPER, (0, 0, 16, 14), (0, 2, 16, 16), FACE),
        ("a region that fits better than the face wins", PAPER, (0, 0, 16, 13), (0, 0, 16, 14), IGNORED),
        ("a face inside a large region stays", LIGHT, (0, 0, 16, 16), (-99, -99, 99, 99), FACE),
        ("a claim stands against a region that fits better", LIGHT, (0, 0, 16, 13), (0, 0, 16, 14), FACE),
        ("a region claims nothing", LIGHT, None, (0, 0, 4, 4), BACKGROUND),
    ],
)
def test_ignored_regions_by_hand(what, recipe, face, region, label):
    rows = [region] if face is None else [region, face]
    found = match(boxes_of(*rows), ONE, recipe, ignore=torch.tensor([True, False][: len(rows)]))
    assert found.labels.tolist() == [label], what
    assert found.truth.tolist() == [1 if label == FACE else -1], what


def test_rivals_for_one_anchor_the_better_gets_it_and_the_other_the_next():
    found = match(boxes_of((4, 0, 17, 16), (2, 0, 16, 16)), ROW, LIGHT)
    assert found.labels.tolist() == [FACE, FACE, BACKGROUND, BACKGROUND]
    assert found.truth.tolist() == [1, 0, -1, -1]


def test_equal_rivals_are_served_in_order_until_no_free_anchor_overlaps():
    found = match(boxes_of(*[(15, 0, 17, 16)] * 3), ROW, LIGHT)
    assert found.truth.tolist() == [0, 1, -1, -1]


def test_a_claim_takes_an_anchor_from_a_face_that_overlaps_it_above_the_bound():
    # Both faces overlap the second anchor enough; the first has a better one of its own.
    anchors = torch.tensor([[8.0, 8.0, 16.0, 16.0], [10.0, 8.0, 16.0, 16.0]])
    found = match(boxes_of((0, 0, 16, 16), (12, 0, 18, 16)), anchors, LIGHT)
    assert found.truth.tolist() == [0, 1]


@pytest.mark.parametrize("recipe", [PAPER, LIGHT], ids=["paper", "light"])
def test_a_picture_without_truths_is_all_background(recipe):
    anchors = anchors_of(LIGHT_SPEC, 64, 64)
    found = match(torch.zeros(0, 4), anchors, recipe)
    assert (found.labels == BACKGROUND).all()
    assert (found.truth == -1).all()


def test_a_region_over_the_whole_picture_leaves_nothing_to_learn_from_inside_it():
    anchors = anchors_of(LIGHT_SPEC, 64, 64)
    found = match(boxes_of((-600, -600, 700, 700)), anchors, LIGHT, ignore=torch.tensor([True]))
    assert (found.labels == IGNORED).all()


@pytest.mark.parametrize(
    ("what", "box"),
    [
        ("no width", (5, 5, 5, 9)),
        ("corners swapped", (9, 9, 5, 5)),
        ("upside down, with an area that cancels that of the anchor", (16, 16, 32, 0)),
        ("not a number", (float("nan"), 0, 9, 9)),
        ("infinite", (0, 0, float("inf"), 9)),
    ],
)
@pytest.mark.parametrize("ignore", [False, True])
def test_boxes_that_are_none_are_left_out(what, box, ignore):
    found = match(boxes_of(box, (0, 0, 16, 16)), ROW, LIGHT, ignore=torch.tensor([ignore, False]))
    assert found.labels.tolist() == [FACE, BACKGROUND, BACKGROUND, BACKGROUND], what
    assert found.truth.tolist() == [1, -1, -1, -1], what


@pytest.mark.parametrize(
    ("what", "box"),
    [
        ("a hundredth of a pixel", (50.0, 50.0, 50.01, 50.01)),
        ("larger than any anchor", (-5000, -5000, 5000, 5000)),
        ("a line across the picture", (0, 48, 96, 48.5)),
    ],
)
def test_huge_and_tiny_faces_get_an_anchor_in_the_light_recipe_and_none_in_the_paper(what, box):
    anchors = anchors_of(LIGHT_SPEC, 96, 96)
    assert (match(boxes_of(box), anchors, LIGHT).labels == FACE).sum() == 1, what
    assert (match(boxes_of(box), anchors, PAPER).labels == FACE).sum() == 0, what


@pytest.mark.parametrize("recipe", [PAPER, LIGHT], ids=["paper", "light"])
def test_a_batch_equals_its_pictures_one_by_one(recipe):
    anchors = anchors_of(LIGHT_SPEC, 96, 96)
    pictures = [random_truths(seed, count) for seed, count in enumerate((5, 0, 1, 12))]
    padded = pad_truths([(boxes, torch.full((len(boxes), 5, 2), -1.0), ignore) for boxes, ignore in pictures])
    together = match_batch(padded, anchors, recipe)
    for i, (boxes, ignore) in enumerate(pictures):
        alone = match(boxes, anchors, recipe, ignore=ignore)
        assert torch.equal(together.labels[i], alone.labels)
        assert torch.equal(together.truth[i], alone.truth)


def test_padding_is_not_matched_whatever_it_holds():
    boxes = boxes_of((0, 0, 16, 16), (16, 0, 32, 16))[None]
    truths = Truths(boxes, torch.ones(1, 2, 5, 2), torch.tensor([[False, False]]), torch.tensor([[True, False]]))
    assert match_batch(truths, ROW, LIGHT).truth.tolist() == [[0, -1, -1, -1]]
    assert truths.has_landmarks.tolist() == [[True, False]]


@pytest.mark.parametrize("recipe", [PAPER, LIGHT], ids=["paper", "light"])
def test_slices_of_the_anchors_change_nothing(recipe, monkeypatch):
    anchors = anchors_of(LIGHT_SPEC, 96, 96)
    boxes, ignore = random_truths(3, 12)
    boxes[5] = boxes[4]
    ignore[4:6] = False
    whole = match(boxes, anchors, recipe, ignore=ignore)
    monkeypatch.setattr(matching, "PAIRS_AT_ONCE", 12 * 7)
    sliced = match(boxes, anchors, recipe, ignore=ignore)
    assert torch.equal(whole.labels, sliced.labels)
    assert torch.equal(whole.truth, sliced.truth)


def test_hundreds_of_faces_against_the_anchors_of_the_paper_all_get_one():
    anchors = anchors_of(PAPER_SPEC, 640, 640)
    draw = torch.Generator().manual_seed(7)
    corner = torch.rand(400, 2, generator=draw) * 600
    boxes = torch.cat([corner, corner + 3 + 20 * torch.rand(400, 2, generator=draw)], dim=1)
    found = match(boxes, anchors, LIGHT)
    assert set(found.truth[found.labels == FACE].tolist()) == set(range(400))


@st.composite
def face_boxes(draw):
    """Up to six faces with at least part of them on a picture of 96 x 96, sometimes the same one twice."""
    number = st.floats(0, 1, width=32)
    rows = []
    for _ in range(draw(st.integers(1, 6))):
        x, y = draw(number) * 94, draw(number) * 94
        rows.append((x, y, x + 0.5 + draw(number) * 120, y + 0.5 + draw(number) * 120))
    return boxes_of(*rows, *draw(st.sampled_from([[], rows[:1]])))


SMALL = anchors_of(LIGHT_SPEC, 96, 96)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(boxes=face_boxes())
def test_every_face_gets_an_anchor_in_the_light_recipe(boxes):
    found = match(boxes, SMALL, LIGHT)
    assert set(found.truth[found.labels == FACE].tolist()) == set(range(len(boxes)))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(boxes=face_boxes())
def test_the_paper_recipe_makes_a_face_of_an_anchor_exactly_above_its_bound(boxes):
    found = match(boxes, SMALL, PAPER)
    iou = np.array([[overlap(box, anchor)[0] for box in boxes.numpy()] for anchor in SMALL[::5].numpy()])
    labels, truth = found.labels[::5].numpy(), found.truth[::5].numpy()
    np.testing.assert_array_equal(labels == FACE, iou.max(axis=1) > 0.5)
    np.testing.assert_array_equal(labels == BACKGROUND, iou.max(axis=1) < np.float32(0.3))
    positive = labels == FACE
    np.testing.assert_array_equal(iou[positive, truth[positive]], iou[positive].max(axis=1))


@pytest.mark.parametrize(
    ("what", "points", "expected"),
    [
        ("all inside", [3.0] * 10, True),
        ("all of -1, the mark of absence", [-1.0] * 10, False),
        ("three points outside the picture to the left", [-4.0, 5.0] * 3 + [2.0, 5.0] * 2, True),
        ("one that is not a number", [float("nan")] + [3.0] * 9, False),
    ],
)
def test_landmarks_are_known_or_not(what, points, expected):
    truths = pad_truths([(boxes_of((0, 0, 9, 9)), torch.tensor(points).view(1, 5, 2), torch.tensor([False]))])
    assert truths.has_landmarks.tolist() == [[expected]], what
    region = Truths(truths.boxes, truths.landmarks, torch.tensor([[True]]), truths.present)
    assert region.has_landmarks.tolist() == [[False]]


@pytest.mark.parametrize(
    "bounds", [(0.3, 0.5, None), (1.5, 0.3, None), (0.5, -0.1, None), (0.5, 0.3, 1.0), (0.5, 0.3, -0.1)]
)
def test_bounds_that_contradict_each_other_are_refused(bounds):
    with pytest.raises(UsageError):
        MatchRecipe(*bounds)


@pytest.mark.gpu
def test_a_gpu_finds_the_same_matches():
    anchors = anchors_of(LIGHT_SPEC, 96, 96)
    pictures = [random_truths(seed, 9) for seed in range(6)]
    truths = pad_truths([(boxes, torch.full((len(boxes), 5, 2), -1.0), ignore) for boxes, ignore in pictures])
    for recipe in (PAPER, LIGHT):
        here = match_batch(truths, anchors, recipe)
        there = match_batch(truths.to("cuda"), anchors.to("cuda"), recipe)
        # A fused multiply-add may move an overlap by one bit, which decides only what is equal otherwise.
        assert (here.labels == there.labels.cpu()).float().mean() > 0.995
