"""What a wrong answer costs: against plain loops, by hand, and where its gradients go."""

import math
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from retinastream.errors import UsageError  # noqa: E402
from retinastream.kernels.decode import anchors_at, encode_offsets  # noqa: E402
from retinastream.models.network import RetinaFace, classic_from_fused  # noqa: E402
from retinastream.models.spec import DetectorSpec  # noqa: E402
from retinastream.training.loss import (  # noqa: E402
    LIGHT_LOSS,
    PAPER_LOSS,
    LossRecipe,
    Predictions,
    encode,
    hard_negatives,
    multi_task_loss,
    predictions_from_fused,
)
from retinastream.training.matching import (  # noqa: E402
    BACKGROUND,
    FACE,
    IGNORED,
    LIGHT,
    PAPER,
    Matches,
    Truths,
    anchors_of,
    match_batch,
    pad_truths,
)

SPEC = DetectorSpec()
SIDE = 96
ANCHORS = anchors_of(SPEC, SIDE, SIDE)
RECIPES = [pytest.param(PAPER, PAPER_LOSS, id="paper"), pytest.param(LIGHT, LIGHT_LOSS, id="light")]


def random_batch(seed, counts=(4, 0, 7)):
    """Truths of some pictures, one without any, a part ignored and a part without landmarks; and outputs for them."""
    draw = torch.Generator().manual_seed(seed)
    pictures = []
    for count in counts:
        corner = torch.rand(count, 2, generator=draw) * 70
        size = torch.exp(torch.rand(count, 2, generator=draw) * 3 + 1.5)
        points = corner[:, None] + size[:, None] * torch.rand(count, 5, 2, generator=draw)
        points[torch.rand(count, generator=draw) < 0.4] = -1.0
        ignore = torch.rand(count, generator=draw) < 0.2
        if count:  # the first is near an anchor, so that the paper's bound is passed too
            corner[0], size[0] = 20 + torch.rand(2, generator=draw), 32.0
            points[0], ignore[0] = corner[0] + 32 * torch.rand(5, 2, generator=draw), False
        if count > 1:  # the second is a region that covers some small anchors
            corner[1], size[1], ignore[1] = 50 * torch.rand(2, generator=draw), 40.0, True
        pictures.append((torch.cat([corner, corner + size], dim=1), points, ignore))
    shape = (len(counts), len(ANCHORS))
    outputs = [(torch.randn(*shape, n, generator=draw) * 2).requires_grad_() for n in (2, 4, 10)]
    return pad_truths(pictures), Predictions(*outputs)


def smooth_l1(difference):
    size = abs(difference)
    return 0.5 * size * size if size < 1 else size - 0.5


def loss_in_loops(predictions, truths, matches, recipe):
    """The specification in plain Python numbers, one anchor after the other."""
    class_sum = box_sum = landmark_sum = 0.0
    positives = negatives = landmarked = 0
    logits, boxes, landmarks = (
        t.detach().double().tolist() for t in (predictions.logits, predictions.boxes, predictions.landmarks)
    )
    for b, labels in enumerate(matches.labels.tolist()):
        costs, faces = [], 0
        for n, label in enumerate(labels):
            background, face = logits[b][n]
            normaliser = math.log(math.exp(background) + math.exp(face))
            if label == BACKGROUND:
                costs.append(normaliser - background)
            if label != FACE:
                continue
            faces += 1
            class_sum += normaliser - face
            cx, cy, w, h = ANCHORS[n].tolist()
            t = int(matches.truth[b, n])
            x1, y1, x2, y2 = truths.boxes[b, t].tolist()
            wanted = [((x1 + x2) / 2 - cx) / (w * 0.1), ((y1 + y2) / 2 - cy) / (h * 0.1)]
            wanted += [math.log((x2 - x1) / w) / 0.2, math.log((y2 - y1) / h) / 0.2]
            box_sum += sum(smooth_l1(p - q) for p, q in zip(boxes[b][n], wanted, strict=True))
            points = truths.landmarks[b, t].tolist()
            if max(max(p) for p in points) >= 0:
                landmarked += 1
                wanted = [v for x, y in points for v in ((x - cx) / (w * 0.1), (y - cy) / (h * 0.1))]
                landmark_sum += sum(smooth_l1(p - q) for p, q in zip(landmarks[b][n], wanted, strict=True))
        chosen = sorted(costs, reverse=True)[: max(recipe.negatives_per_positive * faces, recipe.least_negatives)]
        class_sum += sum(chosen)
        positives += faces
        negatives += len(chosen)
    by = max(positives, (positives + negatives) / (1 + recipe.negatives_per_positive), 1)
    parts = (class_sum / by, box_sum / max(positives, 1), landmark_sum / max(landmarked, 1))
    weights = (recipe.class_weight, recipe.box_weight, recipe.landmark_weight)
    return (sum(w * p for w, p in zip(weights, parts, strict=True)), *parts), (positives, negatives, landmarked)


def compare(found, expected):
    parts, counts = expected
    assert (int(found.positives), int(found.negatives), int(found.landmarked)) == counts
    names = ("total", "classification", "box", "landmark")
    np.testing.assert_allclose([float(found.parts()[n]) for n in names], parts, rtol=2e-5)


@pytest.mark.parametrize("least", [0, 20])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("matching", "recipe"), RECIPES)
def test_loss_equals_plain_loops(matching, recipe, seed, least):
    recipe = replace(recipe, least_negatives=least)
    truths, predictions = random_batch(seed)
    matches = match_batch(truths, ANCHORS, matching)
    found = multi_task_loss(predictions, truths, matches, ANCHORS, recipe, SPEC.variances)
    assert found.landmarked > 0
    compare(found, loss_in_loops(predictions, truths, matches, recipe))


def by_hand(labels, *, logits=None, landmarks=-1.0, box=(0.0, 0.0, 16.0, 16.0)):
    """One picture, anchors of 16 x 16 around (8, 8), one face of just that box; outputs of zero unless given."""
    count = len(labels)
    anchors = torch.tensor([[8.0, 8.0, 16.0, 16.0]]).repeat(count, 1)
    truths = pad_truths([(torch.tensor([box]), torch.full((1, 5, 2), landmarks), torch.tensor([False]))])
    kinds = torch.tensor([labels], dtype=torch.int8)
    given = torch.zeros(1, count, 2) if logits is None else torch.tensor([logits])
    outputs = Predictions(given, torch.zeros(1, count, 4), torch.zeros(1, count, 10))
    return outputs, truths, Matches(kinds, torch.where(kinds == FACE, 0, -1)), anchors


def test_two_classes_of_equal_score_cost_ln_2_per_anchor_told():
    found = multi_task_loss(*by_hand([FACE, *[BACKGROUND] * 9, IGNORED]), PAPER_LOSS)
    assert float(found.classification) == pytest.approx(4 * math.log(2))  # one face and three of the nine
    assert float(found.box) == 0
    found = multi_task_loss(*by_hand([FACE, *[BACKGROUND] * 9, IGNORED]), LIGHT_LOSS)
    assert float(found.classification) == pytest.approx(8 * math.log(2))


def test_box_loss_is_quadratic_below_one_and_linear_above():
    # The centre lies 0.8 px to the right (0.5 encoded) and 4 px down (2.5 encoded); the size is that of the anchor.
    case = by_hand([FACE], box=(0.8, 4.0, 16.8, 20.0))
    assert float(multi_task_loss(*case, PAPER_LOSS).box) == pytest.approx(0.5 * 0.25 + (2.5 - 0.5), rel=1e-5)


def test_weights_of_both_recipes():
    # Landmarks at (11.2, 11.2): 3.2 px off the centre, 2 encoded, 1.5 each for ten numbers. Size e times the anchor's:
    # ln e / 0.2 = 5 encoded, 4.5 each for two numbers. Class: ln 2 for the one face.
    half = 8 * math.e
    case = by_hand([FACE], landmarks=11.2, box=(8 - half, 8 - half, 8 + half, 8 + half))
    light, paper = (multi_task_loss(*case, r).total.item() for r in (LIGHT_LOSS, PAPER_LOSS))
    assert light == pytest.approx(2 * 9 + 15 + math.log(2), rel=1e-5)
    assert paper == pytest.approx(0.25 * 9 + 0.1 * 15 + math.log(2), rel=1e-5)


def test_the_costliest_background_is_chosen_picture_by_picture():
    labels = torch.tensor([[FACE, 0, 0, 0, 0, IGNORED], [0, 0, 0, 0, 0, 0], [FACE, FACE, 0, 0, 0, 0]], dtype=torch.int8)
    face_logit = torch.tensor([[9.0, 1.0, 5.0, 3.0, 2.0, 9.0]]).repeat(3, 1)
    logits = torch.stack([torch.zeros_like(face_logit), face_logit], dim=2)
    chosen = hard_negatives(logits, labels, replace(PAPER_LOSS, negatives_per_positive=2))
    assert chosen.nonzero().tolist() == [[0, 2], [0, 3], [2, 2], [2, 3], [2, 4], [2, 5]]
    chosen = hard_negatives(logits, labels, replace(PAPER_LOSS, negatives_per_positive=2, least_negatives=3))
    assert chosen[1].nonzero().flatten().tolist() == [0, 2, 5]
    assert chosen[0].nonzero().flatten().tolist() == [2, 3, 4]


def test_scores_that_saturate_are_still_ranked():
    logits = torch.tensor([[[0.0, 0.0], [-90.0, 0.0], [-95.0, 0.0], [-92.0, 0.0]]], dtype=torch.float16)
    labels = torch.tensor([[FACE, 0, 0, 0]], dtype=torch.int8)
    chosen = hard_negatives(logits, labels, replace(PAPER_LOSS, negatives_per_positive=1))
    assert chosen.tolist() == [[False, False, True, False]]


@pytest.mark.parametrize(("matching", "recipe"), RECIPES)
def test_gradients_reach_only_what_was_told(matching, recipe):
    truths, predictions = random_batch(5)
    matches = match_batch(truths, ANCHORS, matching)
    chosen = hard_negatives(predictions.logits, matches.labels, recipe)
    multi_task_loss(predictions, truths, matches, ANCHORS, recipe).total.backward()
    moved = [t.grad.abs().sum(2) > 0 for t in (predictions.logits, predictions.boxes, predictions.landmarks)]
    face = matches.labels == FACE
    known = face & truths.has_landmarks.gather(1, matches.truth.clamp(min=0))
    assert face.any()
    assert (matches.labels == IGNORED).any()
    assert known.sum() < face.sum()
    assert torch.equal(moved[0], face | chosen)
    assert torch.equal(moved[1], face)
    assert torch.equal(moved[2], known)


def test_infinities_at_ignored_anchors_reach_nothing():
    truths, predictions = random_batch(5)
    matches = match_batch(truths, ANCHORS, PAPER)
    ignored = matches.labels == IGNORED
    spoilt = [t.detach().clone() for t in (predictions.logits, predictions.boxes, predictions.landmarks)]
    for t in spoilt:
        t[ignored] = float("inf")
        t.requires_grad_()
    expected = multi_task_loss(predictions, truths, matches, ANCHORS, PAPER_LOSS)
    found = multi_task_loss(Predictions(*spoilt), truths, matches, ANCHORS, PAPER_LOSS)
    found.total.backward()
    assert torch.equal(found.total.detach(), expected.total.detach())
    assert all(t.grad.isfinite().all() and (t.grad[ignored] == 0).all() for t in spoilt)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_face_that_is_not_a_number_shows_in_the_total(bad):
    outputs, truths, matches, anchors = by_hand([FACE, BACKGROUND])
    outputs.boxes[0, 0, 0] = bad
    assert not multi_task_loss(outputs, truths, matches, anchors, LIGHT_LOSS).total.isfinite()


@pytest.mark.parametrize(
    ("what", "labels", "least", "expected"),
    [
        ("only background counts for nothing", [BACKGROUND] * 5, 0, 0.0),
        ("all ignored counts for nothing, whatever is asked for", [IGNORED] * 5, 3, 0.0),
        # 16 anchors of ln 2 each, divided by 16 / (1 + 7) = 2.
        ("background of an empty picture weighs as much as beside faces", [BACKGROUND] * 20, 16, 8 * math.log(2)),
        ("fewer than that are divided by one", [BACKGROUND] * 20, 4, 4 * math.log(2)),
    ],
)
def test_without_faces(what, labels, least, expected):
    outputs, truths, matches, anchors = by_hand(labels)
    for t in (outputs.logits, outputs.boxes, outputs.landmarks):
        t.requires_grad_()
    found = multi_task_loss(outputs, truths, matches, anchors, replace(LIGHT_LOSS, least_negatives=least))
    found.total.backward()
    assert float(found.total.detach()) == pytest.approx(expected), what
    assert found.parts()["box"] == found.parts()["landmark"] == 0, what
    assert all((t.grad == 0).all() for t in (outputs.boxes, outputs.landmarks)), what
    assert bool((outputs.logits.grad != 0).any()) == (expected > 0), what


def test_a_batch_without_any_truths_at_all():
    truths, predictions = random_batch(1, counts=(0, 0))
    assert truths.boxes.shape == (2, 0, 4)
    matches = match_batch(truths, ANCHORS, LIGHT)
    found = multi_task_loss(predictions, truths, matches, ANCHORS, replace(LIGHT_LOSS, least_negatives=9))
    found.total.backward()
    assert int(found.negatives) == 18
    assert found.parts()["total"] > 0


@pytest.mark.parametrize(("matching", "recipe"), RECIPES)
def test_a_batch_is_its_pictures_weighed_by_their_faces(matching, recipe):
    truths, predictions = random_batch(2, counts=(5, 3, 0, 6))
    matches = match_batch(truths, ANCHORS, matching)
    together = multi_task_loss(predictions, truths, matches, ANCHORS, recipe)
    sums = np.zeros(3)
    counts = np.zeros(2)
    for i in range(4):
        part = slice(i, i + 1)
        alone = multi_task_loss(
            Predictions(predictions.logits[part], predictions.boxes[part], predictions.landmarks[part]),
            Truths(truths.boxes[part], truths.landmarks[part], truths.ignore[part], truths.present[part]),
            Matches(matches.labels[part], matches.truth[part]),
            ANCHORS,
            recipe,
        )
        faces, known = int(alone.positives), int(alone.landmarked)
        parts = [float(alone.parts()[name]) for name in ("classification", "box", "landmark")]
        sums += np.array(parts) * (faces, faces, known)
        counts += (faces, known)
    found = [float(together.parts()[name]) for name in ("classification", "box", "landmark")]
    np.testing.assert_allclose(found, sums / counts[[0, 0, 1]], rtol=1e-5)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_outputs_are_summed_in_float32(kind):
    truths, predictions = random_batch(3)
    matches = match_batch(truths, ANCHORS, LIGHT)
    assert (matches.labels == FACE).any()
    tensors = (predictions.logits, predictions.boxes, predictions.landmarks)
    low = [t.detach().to(kind).requires_grad_() for t in tensors]
    found = multi_task_loss(Predictions(*low), truths, matches, ANCHORS, LIGHT_LOSS)
    same = multi_task_loss(Predictions(*(t.float() for t in low)), truths, matches, ANCHORS, LIGHT_LOSS)
    assert found.total.dtype == torch.float32
    assert found.total.item() == same.total.item()
    found.total.backward()
    assert all(t.grad.dtype == kind and t.grad.isfinite().all() for t in low)


def test_a_sum_beyond_the_range_of_float16_stays_finite():
    outputs, truths, matches, anchors = by_hand([FACE] * 40)
    wide = Predictions(outputs.logits.half(), outputs.boxes.half() + 60_000, outputs.landmarks.half())
    assert float(multi_task_loss(wide, truths, matches, anchors, LIGHT_LOSS).box) == pytest.approx(4 * 60_000, rel=1e-3)


def test_encoding_is_that_of_the_decoder():
    draw = np.random.default_rng(4)
    index = draw.integers(0, len(ANCHORS), 200)
    corner, size = draw.uniform(-20, 90, (200, 2)), np.exp(draw.uniform(-3, 8, (200, 2)))
    boxes = np.hstack([corner, corner + size]).astype(np.float32)
    landmarks = draw.uniform(-50, 150, (200, 5, 2)).astype(np.float32)
    expected = encode_offsets(boxes, landmarks, *anchors_at(index, SPEC, SIDE, SIDE), SPEC.variances)
    found = encode(torch.tensor(boxes), torch.tensor(landmarks), ANCHORS[torch.tensor(index)], SPEC.variances)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("anchors_per_cell", [2, 3])
def test_fused_maps_are_reordered_as_the_network_does_it(anchors_per_cell):
    sizes = tuple(tuple(float(2**level * (k + 4)) for k in range(anchors_per_cell)) for level in range(3))
    spec = DetectorSpec(anchor_sizes=sizes)
    draw = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, anchors_per_cell * 16, r, r + 1, generator=draw) for r in (6, 3, 2)]
    found = predictions_from_fused(maps, spec)
    loc, conf, landms = classic_from_fused(maps, anchors_per_cell)
    assert torch.equal(found.boxes, loc)
    assert torch.equal(found.landmarks, landms)
    assert torch.equal(torch.softmax(found.logits, dim=-1), conf)


@pytest.mark.parametrize(("matching", "recipe"), RECIPES)
def test_the_network_learns_one_picture(matching, recipe):
    torch.manual_seed(0)
    network = RetinaFace("mobilenetv1-x0.25", seed=1).train()
    image = torch.randn(2, 3, SIDE, SIDE)
    # Boxes of the size of an anchor, so that the paper's bound leaves some positive.
    boxes = torch.tensor([[20.0, 20.0, 52.0, 52.0], [40.0, 44.0, 56.0, 60.0]])
    points = torch.tensor([[[30.0, 30.0], [42.0, 30.0], [36.0, 36.0], [31.0, 44.0], [41.0, 44.0]], [[-1.0, -1.0]] * 5])
    nothing = torch.tensor([False, False])
    truths = pad_truths([(boxes, points, nothing), (boxes[:1], points[:1], nothing[:1])])
    matches = match_batch(truths, ANCHORS, matching)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    totals = []
    for _ in range(25):
        found = multi_task_loss(
            predictions_from_fused(network(image), SPEC), truths, matches, ANCHORS, recipe, SPEC.variances
        )
        optimiser.zero_grad()
        found.total.backward()
        optimiser.step()
        totals.append(float(found.total.detach()))
    assert int(found.positives) > 0
    assert totals[-1] < 0.5 * totals[0]


@pytest.mark.parametrize(
    ("what", "shapes"),
    [
        ("a level is missing", [(1, 32, 12, 12), (1, 32, 6, 6)]),
        ("channels of three anchors", [(1, 48, 12, 12), (1, 32, 6, 6), (1, 32, 3, 3)]),
        ("no batch", [(32, 12, 12), (32, 6, 6), (32, 3, 3)]),
    ],
)
def test_maps_of_another_detector_are_refused(what, shapes):
    with pytest.raises(UsageError, match=r"expected|levels"):
        predictions_from_fused([torch.zeros(s) for s in shapes], SPEC)


def test_outputs_of_another_size_are_refused():
    truths, predictions = random_batch(0)
    matches = match_batch(truths, ANCHORS, LIGHT)
    with pytest.raises(UsageError, match="logits have shape"):
        multi_task_loss(replace(predictions, logits=predictions.logits[:, 1:]), truths, matches, ANCHORS, LIGHT_LOSS)
    with pytest.raises(UsageError, match="anchors"):
        multi_task_loss(predictions, truths, matches, ANCHORS[1:], LIGHT_LOSS)


def test_negative_numbers_in_a_recipe_are_refused():
    with pytest.raises(UsageError, match="box_weight -1"):
        LossRecipe(-1.0, 0.1, 1.0, 3)


@pytest.mark.gpu
@pytest.mark.parametrize(("matching", "recipe"), RECIPES)
def test_a_gpu_computes_the_same_loss(matching, recipe):
    truths, predictions = random_batch(6)
    matches = match_batch(truths, ANCHORS, matching)
    here = multi_task_loss(predictions, truths, matches, ANCHORS, recipe)
    outputs = (predictions.logits, predictions.boxes, predictions.landmarks)
    there = multi_task_loss(
        Predictions(*(t.detach().cuda() for t in outputs)),
        truths.to("cuda"),
        Matches(matches.labels.cuda(), matches.truth.cuda()),
        ANCHORS.cuda(),
        recipe,
    )
    for name, value in here.parts().items():
        assert float(there.parts()[name]) == pytest.approx(float(value), rel=1e-4)
