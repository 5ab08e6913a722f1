"""The five-level network in training: one step of matching, loss and gradient, and the order of its output."""

import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from retinastream.models.architectures import create_network, spec_of  # noqa: E402
from retinastream.training.loss import PAPER_LOSS, multi_task_loss, predictions_from_fused  # noqa: E402
from retinastream.training.matching import BACKGROUND, FACE, PAPER, anchors_of, match_batch, pad_truths  # noqa: E402

LIGHT_PAPER = "paper-mobilenetv1-x0.25"
SPEC = spec_of(LIGHT_PAPER)
SIDE = 192
ANCHORS = anchors_of(SPEC, SIDE, SIDE)


def images(batch=2):
    return torch.randn(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))


def truths():
    """Faces of an anchor of the finest, a middle and the coarsest level, in two pictures."""
    boxes = torch.tensor([[30.0, 30.0, 46.0, 46.0], [50.0, 60.0, 101.0, 110.0], [-20.0, -10.0, 240.0, 250.0]])
    points = boxes[:, None, :2] + (boxes[:, None, 2:] - boxes[:, None, :2]) * torch.tensor(
        [[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.8], [0.65, 0.8]]
    )
    none = torch.zeros(3, dtype=torch.bool)
    return pad_truths([(boxes, points, none), (boxes[:1], points[:1], none[:1])])


def test_fused_maps_become_predictions_in_the_order_of_the_classic_layout():
    network = create_network(LIGHT_PAPER, seed=1).eval()
    with torch.no_grad():
        found = predictions_from_fused(network(images()), SPEC)
        network.layout = "classic"
        loc, conf, landms = network(images())
    assert found.logits.shape == (2, len(ANCHORS), 2)
    assert torch.equal(found.boxes, loc)
    assert torch.equal(found.landmarks, landms)
    torch.testing.assert_close(torch.softmax(found.logits, dim=-1), conf)


def test_all_102300_anchors_of_a_square_of_640_are_matched_as_their_overlaps_say():
    anchors, boxes = anchors_of(SPEC, 640, 640), truths().boxes[0]
    assert len(anchors) == 102_300
    low, high = anchors[:, None, :2] - anchors[:, None, 2:] / 2, anchors[:, None, :2] + anchors[:, None, 2:] / 2
    common = (torch.minimum(high, boxes[:, 2:]) - torch.maximum(low, boxes[:, :2])).clamp(min=0).prod(2)
    iou = common / (anchors[:, None, 2:].prod(2) + (boxes[:, 2:] - boxes[:, :2]).prod(1) - common)
    found = match_batch(truths(), anchors, PAPER)
    assert torch.equal(found.labels[0] == FACE, (iou > 0.5).any(1))
    assert torch.equal(found.labels[0] == BACKGROUND, (iou < 0.3).all(1))
    positive = torch.nonzero(found.labels[0] == FACE)[:, 0]
    assert torch.equal(found.truth[0, positive], iou[positive].argmax(1))
    levels = torch.searchsorted(torch.tensor([76_800, 96_000, 100_800, 102_000]), positive, right=True)
    assert set(levels.tolist()) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("deformable", [False, True], ids=["plain", "deformable"])
def test_one_step_reaches_every_weight_and_lowers_the_loss(deformable):
    network = create_network(LIGHT_PAPER, deformable=deformable, face_prior=0.01, seed=1).train()
    wanted, pictures = truths(), images()
    matches = match_batch(wanted, ANCHORS, PAPER)
    optimiser = torch.optim.SGD(network.parameters(), lr=3e-3)
    totals = []
    for _ in range(4):
        found = multi_task_loss(
            predictions_from_fused(network(pictures), SPEC), wanted, matches, ANCHORS, PAPER_LOSS, SPEC.variances
        )
        optimiser.zero_grad()
        found.total.backward()
        if not totals:
            # Heads of levels without a face learn from hard negatives only, which need not lie on every level.
            quiet = {n for n, p in network.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)}
            assert all(name.startswith(("BboxHead", "LandmarkHead", "ClassHead", "context")) for name in quiet)
        optimiser.step()
        totals.append(float(found.total.detach()))
    assert int(found.positives) >= 4
    assert totals[-1] < totals[0]
