"""What it costs to answer otherwise than the teacher: against plain loops, by hand, and where its gradients go."""

import math
from dataclasses import fields, replace

import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from pydantic import BaseModel, ValidationError  # noqa: E402

from retinastream.errors import UsageError  # noqa: E402
from retinastream.models.network import RetinaFace  # noqa: E402
from retinastream.models.spec import DetectorSpec  # noqa: E402
from retinastream.training.distillation import (  # noqa: E402
    DistillationRecipe,
    distillation_loss,
    face_margin,
    left_to_labels,
    mixed_loss,
)
from retinastream.training.loss import Predictions, predictions_from_fused  # noqa: E402
from retinastream.training.matching import BACKGROUND, FACE, IGNORED, Matches  # noqa: E402

RECIPES = [
    pytest.param(DistillationRecipe(), id="defaults"),
    pytest.param(DistillationRecipe(temperature=2.5, easy_weight=0.3, positive=0.4, hard_per_positive=50), id="warm"),
    pytest.param(DistillationRecipe(margin_everywhere=0.7, offsets_everywhere=1.3), id="everywhere"),
    pytest.param(DistillationRecipe(low=0.2, positive=0.7, regress_above=0.6, hard_per_positive=1), id="bounds"),
]


def answers(seed, shape=(3, 40), dtype=torch.float32, gradients=False):
    """Random output: most anchors background, some faces, some in between."""
    draw = torch.Generator().manual_seed(seed)
    margin = torch.randn(shape, generator=draw, dtype=torch.float64) * 4 - 4
    base = torch.randn(shape, generator=draw, dtype=torch.float64)
    parts = [
        torch.stack([base, base + margin], dim=-1),
        torch.randn(*shape, 4, generator=draw, dtype=torch.float64) * 1.5,
        torch.randn(*shape, 10, generator=draw, dtype=torch.float64) * 1.5,
    ]
    return Predictions(*(p.to(dtype).requires_grad_(gradients) for p in parts))


def with_scores(*scores):
    """One picture whose anchors have these face scores and offsets of zero."""
    score = torch.tensor(scores)
    logits = torch.stack([torch.log1p(-score), torch.log(score)], dim=-1)[None]
    return Predictions(logits, torch.zeros(1, len(scores), 4), torch.zeros(1, len(scores), 10))


def softmax_score(logits):
    background, face = (float(v) for v in logits)
    top = max(background, face)
    low, high = math.exp(background - top), math.exp(face - top)
    return high / (low + high)


def smooth_l1(told, wanted):
    total = 0.0
    for a, b in zip(told.tolist(), wanted.tolist(), strict=True):
        gap = abs(a - b)
        total += 0.5 * gap * gap if gap < 1 else gap - 0.5
    return total


def by_loops(student, teacher, recipe, ignore):
    """The same definition anchor by anchor, in double precision."""
    hard_sum, easy_sum, box, landmark, weights, margin, offsets = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    positives = hard = easy = 0
    pictures, count = student.logits.shape[:2]
    for b in range(pictures):
        for n in range(count):
            if ignore is not None and ignore[b, n]:
                continue
            own, aim = softmax_score(student.logits[b, n]), softmax_score(teacher.logits[b, n])
            told = softmax_score(student.logits[b, n] / recipe.temperature)
            soft = softmax_score(teacher.logits[b, n] / recipe.temperature)
            cost = -(soft * math.log(told) + (1 - soft) * math.log(1 - told)) * recipe.temperature**2
            positives += aim > recipe.positive
            if aim > recipe.low or own > recipe.low:
                hard, hard_sum = hard + 1, hard_sum + cost
            else:
                easy, easy_sum = easy + 1, easy_sum + cost
            if recipe.margin_everywhere:
                gaps = [float(p.logits[b, n, 1]) - float(p.logits[b, n, 0]) for p in (student, teacher)]
                margin += smooth_l1(*torch.tensor(gaps, dtype=torch.float64)[:, None])
            if recipe.offsets_everywhere:
                offsets += smooth_l1(student.boxes[b, n], teacher.boxes[b, n])
                offsets += smooth_l1(student.landmarks[b, n], teacher.landmarks[b, n])
            if aim > recipe.regress_above:
                weights += aim
                box += aim * smooth_l1(student.boxes[b, n], teacher.boxes[b, n])
                landmark += aim * smooth_l1(student.landmarks[b, n], teacher.landmarks[b, n])
    classification = hard_sum / max(1, positives, hard / (1 + recipe.hard_per_positive))
    classification += recipe.easy_weight * easy_sum / max(1, easy)
    box, landmark = box / max(1, weights), landmark / max(1, weights)
    margin, offsets = margin / max(1, hard + easy), offsets / max(1, 14 * (hard + easy))
    total = recipe.class_weight * classification + recipe.box_weight * box + recipe.landmark_weight * landmark
    total += recipe.margin_everywhere * margin + recipe.offsets_everywhere * offsets
    return {
        "total": total, "classification": classification, "box": box, "landmark": landmark,
        "margin": margin, "offsets": offsets, "positives": positives, "hard": hard,
    }  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("some_ignored", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_loss_is_that_of_plain_loops(recipe, some_ignored, seed):
    student, teacher = answers(seed, dtype=torch.float64), answers(seed + 100, dtype=torch.float64)
    ignore = torch.rand(3, 40, generator=torch.Generator().manual_seed(seed)) < 0.3 if some_ignored else None
    found = distillation_loss(student, teacher, recipe, ignore=ignore)
    for name, value in by_loops(student, teacher, recipe, ignore).items():
        assert getattr(found, name).item() == pytest.approx(value, rel=1e-9), name


@pytest.mark.parametrize("recipe", RECIPES)
def test_half_precision_output_is_compared_in_float32(recipe):
    student, teacher = answers(1, dtype=torch.bfloat16), answers(2, dtype=torch.float16)
    found = distillation_loss(student, teacher, recipe)
    assert found.total.dtype == torch.float32
    for name, value in by_loops(student, teacher, recipe, None).items():
        assert getattr(found, name).item() == pytest.approx(value, rel=1e-5), name


def test_a_case_worked_out_by_hand():
    teacher, student = with_scores(0.8, 0.01, 0.01), with_scores(0.5, 0.5, 0.01)
    student.boxes[0, 0] = torch.tensor([0.5, 0.0, 0.0, -3.0])
    student.boxes[0, 1] = 100.0  # the teacher sees no face there
    student.landmarks[0, 0, 9] = 1.0
    found = distillation_loss(student, teacher, DistillationRecipe(easy_weight=2.0))
    easy = -(0.01 * math.log(0.01) + 0.99 * math.log(0.99))
    # Both anchors at one half cost log 2 whatever the teacher says; one positive divides them.
    assert found.classification.item() == pytest.approx(2 * math.log(2) + 2.0 * easy, rel=1e-5)
    # 0.8 times (0.125 + 2.5) and 0.8 times 0.5; the weights sum to less than 1, so they are divided by 1.
    assert found.box.item() == pytest.approx(0.8 * 2.625, rel=1e-5)
    assert found.landmark.item() == pytest.approx(0.8 * 0.5, rel=1e-5)
    assert (int(found.positives), int(found.hard)) == (1, 2)
    expected = found.classification + 2.0 * found.box + found.landmark
    assert found.total.item() == pytest.approx(expected.item())
    assert found.parts().keys() == {"total", "classification", "box", "landmark", "margin", "offsets"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_gradients_are_those_of_finite_differences(recipe):
    teacher = answers(7, shape=(2, 9), dtype=torch.float64)
    student = answers(8, shape=(2, 9), dtype=torch.float64, gradients=True)
    ignore = torch.zeros(2, 9, dtype=torch.bool)
    ignore[:, :2] = True

    def total(*parts):
        return distillation_loss(Predictions(*parts), teacher, recipe, ignore=ignore).total

    assert torch.autograd.gradcheck(total, (student.logits, student.boxes, student.landmarks))


def test_gradients_go_to_the_student_alone():
    student, teacher = answers(1, gradients=True), answers(2, gradients=True)
    distillation_loss(student, teacher, DistillationRecipe()).total.backward()
    assert teacher.logits.grad is teacher.boxes.grad is teacher.landmarks.grad is None
    assert all(getattr(student, name).grad.abs().sum() > 0 for name in ("logits", "boxes", "landmarks"))


def test_the_classification_gradient_points_from_the_student_to_the_teacher():
    student, teacher = answers(1, gradients=True), answers(2)
    distillation_loss(student, teacher, DistillationRecipe()).classification.backward()
    gap = torch.sigmoid(face_margin(student)) - torch.sigmoid(face_margin(teacher))
    assert torch.equal(student.logits.grad[..., 1].sign(), gap.sign())


def test_warmth_keeps_the_size_of_the_gradients():
    teacher = with_scores(0.6)
    sizes = []
    for temperature in (1.0, 4.0):
        student = with_scores(0.5)
        student.logits.requires_grad_()
        distillation_loss(student, teacher, DistillationRecipe(temperature=temperature)).classification.backward()
        sizes.append(student.logits.grad.abs().sum().item())
    assert sizes[1] == pytest.approx(sizes[0], rel=0.02)


def test_ignored_anchors_take_no_part_whatever_is_in_them():
    student, teacher = answers(1, gradients=True), answers(2)
    ignore = torch.rand(3, 40, generator=torch.Generator().manual_seed(3)) < 0.5
    wanted = distillation_loss(student, teacher, DistillationRecipe(), ignore=ignore)
    wild = Predictions(*(p.detach().clone() for p in (student.logits, student.boxes, student.landmarks)))
    for part, value in ((wild.logits, torch.inf), (wild.boxes, torch.nan), (wild.landmarks, torch.inf)):
        part[ignore] = value
        part.requires_grad_()
    odd = Predictions(teacher.logits.masked_fill(ignore[..., None], torch.nan), teacher.boxes, teacher.landmarks)
    found = distillation_loss(wild, odd, DistillationRecipe(), ignore=ignore)
    found.total.backward()
    assert found.total.item() == pytest.approx(wanted.total.item())
    for part in (wild.logits, wild.boxes, wild.landmarks):
        assert part.grad.isfinite().all()
        assert (part.grad[ignore] == 0).all()


def test_without_faces_only_the_scores_cost_and_backward_works():
    teacher = with_scores(*[0.001] * 30)
    student = answers(5, shape=(1, 30), gradients=True)
    found = distillation_loss(student, teacher, DistillationRecipe())
    found.total.backward()
    assert found.box.item() == found.landmark.item() == 0.0
    assert int(found.positives) == 0
    assert student.boxes.grad is None or student.boxes.grad.abs().sum() == 0
    assert student.logits.grad.abs().sum() > 0


def test_everything_ignored_costs_nothing():
    student, teacher = answers(1, gradients=True), answers(2)
    found = distillation_loss(student, teacher, DistillationRecipe(), ignore=torch.ones(3, 40, dtype=torch.bool))
    found.total.backward()
    assert found.total.item() == 0.0
    assert student.logits.grad.abs().sum() == 0


def test_a_fresh_network_starts_with_a_loss_of_a_few_units():
    spec = DetectorSpec()
    images = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0)) * 60
    with torch.no_grad():
        student = predictions_from_fused(RetinaFace("mobilenetv1-x0.25", seed=4)(images), spec)
    scores = torch.full((2, spec.anchor_count(160, 160)), 0.001)
    scores[:, :3] = 0.9
    teacher = Predictions(torch.stack([1 - scores, scores], -1).log(), student.boxes, student.landmarks)
    found = distillation_loss(student, teacher, DistillationRecipe())
    assert int(found.hard) > 2000
    assert 1.0 < found.classification.item() < 10.0
    unbounded = distillation_loss(student, teacher, DistillationRecipe(hard_per_positive=10**6))
    assert unbounded.classification.item() > 100.0


def test_following_the_gradient_leads_to_the_teachers_answers():
    teacher = answers(11, shape=(2, 60))
    student = Predictions(
        *(torch.zeros_like(p).requires_grad_() for p in (teacher.logits, teacher.boxes, teacher.landmarks))
    )
    descent = torch.optim.Adam([student.logits, student.boxes, student.landmarks], lr=0.05)
    for _ in range(600):
        descent.zero_grad()
        distillation_loss(student, teacher, DistillationRecipe()).total.backward()
        descent.step()
    wanted, found = (torch.sigmoid(face_margin(p)).detach() for p in (teacher, student))
    assert (wanted - found).abs().max() < 0.02
    face = wanted > 0.3
    torch.testing.assert_close(student.boxes[face].detach(), teacher.boxes[face], atol=0.02, rtol=0)
    torch.testing.assert_close(student.landmarks[face].detach(), teacher.landmarks[face], atol=0.02, rtol=0)
    assert (student.boxes[~face] == 0).all()


def test_the_share_mixes_both_losses_and_leaves_out_the_one_that_has_none():
    labels, distilled, broken = torch.tensor(3.0), torch.tensor(5.0), torch.tensor(torch.nan)
    assert mixed_loss(labels, distilled, DistillationRecipe(share=0.25)).item() == pytest.approx(3.5)
    assert mixed_loss(labels, broken, DistillationRecipe(share=0.0)).item() == 3.0
    assert mixed_loss(broken, distilled, DistillationRecipe(share=1.0)).item() == 5.0
    assert mixed_loss(labels, broken, DistillationRecipe(share=0.5)).isnan()


def test_faces_that_the_teacher_missed_are_left_to_the_labels():
    labels = torch.tensor([[FACE, FACE, BACKGROUND, BACKGROUND, IGNORED, IGNORED]], dtype=torch.int8)
    matches = Matches(labels, torch.where(labels == FACE, 0, -1))
    teacher = with_scores(0.9, 0.1, 0.9, 0.1, 0.9, 0.1)
    recipe = DistillationRecipe(regress_above=0.3)
    assert left_to_labels(matches, teacher, recipe).tolist() == [[False, True, False, False, False, False]]
    both = left_to_labels(matches, teacher, recipe, ignored_too=True)
    assert both.tolist() == [[False, True, False, False, True, True]]


def test_a_pydantic_config_holds_the_recipe_and_refuses_unknown_keys():
    class Config(BaseModel):
        recipe: DistillationRecipe = DistillationRecipe()

    found = Config.model_validate({"recipe": {"share": 0.5, "temperature": 2}})
    assert found.recipe == DistillationRecipe(share=0.5, temperature=2.0)
    assert Config.model_validate(found.model_dump()) == found
    with pytest.raises(ValidationError, match="shar"):
        Config.model_validate({"recipe": {"shar": 0.5}})
    with pytest.raises(ValidationError, match="out of range; allowed is 0 to 1"):
        Config.model_validate({"recipe": {"share": 1.5}})


@pytest.mark.parametrize("field", [field.name for field in fields(DistillationRecipe)])
@pytest.mark.parametrize("value", [-0.1, math.nan])
def test_numbers_that_mean_nothing_are_refused_by_name(field, value):
    with pytest.raises(UsageError, match=field):
        replace(DistillationRecipe(), **{field: value})


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(UsageError, match="temperature"):
        DistillationRecipe(temperature=0.0)


def test_answers_for_other_anchors_are_refused():
    with pytest.raises(
        UsageError, match=r"logits of the student have shape \(3, 40, 2\) and the teacher's \(3, 41, 2\)"
    ):
        distillation_loss(answers(1), answers(2, shape=(3, 41)), DistillationRecipe())
    for ignore in (torch.zeros(3, 41, dtype=torch.bool), torch.zeros(3, 40)):
        with pytest.raises(UsageError, match=r"expected bool of shape \(3, 40\)"):
            distillation_loss(answers(1), answers(2), DistillationRecipe(), ignore=ignore)
