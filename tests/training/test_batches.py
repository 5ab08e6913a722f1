"""Batches: what a step sees is a function of (seed, step, rank), in whatever order and by however many asked for."""

import threading
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from ramp_pictures import labelled, ramp, ramp_set  # noqa: E402

from retinastream.errors import UsageError  # noqa: E402
from retinastream.training import batches as batches_module  # noqa: E402
from retinastream.training.augmentation import AugmentationSettings  # noqa: E402
from retinastream.training.batches import Batches  # noqa: E402
from retinastream.training.cache import PictureCache  # noqa: E402
from retinastream.training.epochs import Epochs  # noqa: E402

CHOSEN = AugmentationSettings(mosaic=0.3, blur=0.2, target_probability=0.2, target_heights=(10, 60))
COUNT = 7


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return ramp_set(tmp_path_factory.mktemp("pictures"), sizes=[(80 + 10 * i, 140 - 12 * i) for i in range(COUNT)])


@pytest.fixture(scope="module")
def cache(pictures):
    return PictureCache(pictures, long_side=160)


@pytest.fixture
def make(pictures, cache):
    def build(**given):
        return Batches(pictures, cache, CHOSEN, **({"batch": 4, "size": 64, "seed": 3} | given))

    return build


def tensors(batch):
    truths = batch.truths
    return [batch.images, truths.boxes, truths.landmarks, truths.ignore, truths.present, batch.scores]


def assert_same(a, b):
    assert (a.step, a.pictures) == (b.step, b.pictures)
    for first, second in zip(tensors(a), tensors(b), strict=True):
        assert first.dtype == second.dtype
        assert torch.equal(torch.nan_to_num(first.float(), 7e7), torch.nan_to_num(second.float(), 7e7))


def test_a_batch_has_the_shapes_that_the_loss_takes(make):
    batch = make().batch_at(5)
    most = batch.truths.boxes.shape[1]
    assert batch.step == 5
    assert batch.images.shape == (4, 3, 64, 64)
    assert batch.images.dtype == torch.float32
    assert batch.truths.boxes.shape == (4, most, 4)
    assert batch.truths.landmarks.shape == (4, most, 5, 2)
    assert batch.truths.ignore.shape == batch.truths.present.shape == batch.scores.shape == (4, most)
    assert batch.scores.dtype == torch.float32
    assert (batch.scores[~batch.truths.present] == 0).all()
    assert (batch.scores[batch.truths.present] >= 0.5).all()
    assert len(batch.pictures) == 4


def test_the_labels_of_a_batch_are_those_of_its_plans(make):
    batches = make()
    batch = batches.batch_at(2)
    for i, one in enumerate(batches.plans_at(2)):
        present = batch.truths.present[i]
        assert present.sum() == len(one.boxes)
        np.testing.assert_array_equal(batch.truths.boxes[i][present], one.boxes)
        np.testing.assert_array_equal(batch.truths.landmarks[i][present], one.landmarks)
        np.testing.assert_array_equal(batch.truths.ignore[i][present], one.ignore)
        np.testing.assert_array_equal(batch.scores[i][present], one.scores)
        assert batch.pictures[i] == one.picture


def test_faces_without_landmarks_are_known_to_have_none(make):
    batches = make(batch=COUNT)
    batch = batches.batch_at(0)
    plans = batches.plans_at(0)
    expected = sum(int((np.isfinite(p.landmarks).all(axis=(1, 2)) & ~p.ignore).sum()) for p in plans)
    missing = sum(int(np.isnan(p.landmarks).any()) for p in plans)
    assert int(batch.truths.has_landmarks.sum()) == expected > 0
    assert missing > 0


def test_steps_are_the_same_in_any_order_and_after_a_restart(make):
    batches = make()
    forward = [batches.batch_at(step) for step in range(5)]
    for step in (4, 0, 3, 1, 2):
        assert_same(batches.batch_at(step), forward[step])
    assert_same(make().batch_at(3), forward[3])
    assert not torch.equal(make(seed=4).batch_at(0).images, forward[0].images)


def test_every_epoch_shows_every_picture_once_in_another_order(make):
    batches = make(batch=COUNT)
    assert batches.steps_per_epoch == 1
    orders = [batches.pictures_at(step) for step in range(20)]
    assert all(sorted(order) == list(range(COUNT)) for order in orders)
    assert len(set(orders)) > 15


def test_epochs_run_on_where_batches_do_not_divide_them(make):
    batches = make(batch=3)
    seen = [i for step in range(COUNT * 4) for i in batches.pictures_at(step)]
    assert batches.steps_per_epoch == round(COUNT / 3)
    for epoch in range(12):
        assert sorted(seen[epoch * COUNT : (epoch + 1) * COUNT]) == list(range(COUNT))


def test_ranks_share_a_step_as_one_process_would_see_it(make):
    whole = make(batch=6).batch_at(4)
    parts = [make(batch=3, rank=rank, world=2).batch_at(4) for rank in (0, 1)]
    assert parts[0].pictures + parts[1].pictures == whole.pictures
    assert torch.equal(torch.cat([p.images for p in parts]), whole.images)
    assert make(batch=3, world=2).steps_per_epoch == make(batch=6).steps_per_epoch


@pytest.mark.parametrize(
    ("size", "batch", "expected"),
    [
        (64, 4, [(64, 4)]),
        ([32, 32, 64], 8, [(32, 8), (32, 8), (64, 2)]),
        ([64, 32], 2, [(64, 2), (32, 8)]),
        ([(32, 5), (96, 1)], 4, [(32, 5), (96, 1)]),
        ([64, 640], 4, [(64, 4), (640, 1)]),
    ],
)
def test_sizes_take_turns_and_keep_the_work_of_a_step_equal(make, size, batch, expected):
    batches = make(size=size, batch=batch)
    for step in range(2 * len(expected)):
        side, count = expected[step % len(expected)]
        assert batches.size_at(step) == (side, count)
        assert batches.batch_at(step).images.shape == (count, 3, side, side)


def test_sizes_that_take_turns_still_show_every_picture_once_per_epoch(make):
    batches = make(size=[(32, 5), (64, 2)])
    seen = [i for step in range(40) for i in batches.pictures_at(step)]
    assert batches.steps_per_epoch == 2
    for epoch in range(len(seen) // COUNT):
        assert sorted(seen[epoch * COUNT : (epoch + 1) * COUNT]) == list(range(COUNT))
    again = [
        i
        for step in range(40)
        for r in (0, 1)
        for i in make(size=[(32, 5), (64, 2)], rank=r, world=2).pictures_at(step)
    ]
    assert sorted(again[: COUNT * 10]) == sorted(list(range(COUNT)) * 10)


def test_weights_say_how_often_a_picture_is_seen(make):
    weights = [1, 0, 0.25, 2, 1, 0.5, 0.25]
    batches = make(batch=5, weights=weights)
    assert batches.steps_per_epoch == 1
    seen = Counter(i for step in range(800) for i in batches.pictures_at(step))
    np.testing.assert_allclose([seen[i] / 800 for i in range(COUNT)], weights, atol=0.06)


@settings(max_examples=100, deadline=None)
@given(
    weights=st.lists(st.floats(0, 4), min_size=1, max_size=12).filter(lambda w: sum(w) >= 0.5),
    seed=st.integers(0, 2**31),
    epoch=st.integers(0, 1000),
)
def test_every_epoch_gives_each_picture_its_weight_rounded_up_or_down(weights, seed, epoch):
    epochs = Epochs(np.array(weights), seed)
    assert epochs.length == max(1, round(sum(weights)))
    counts = Counter(epochs.picture(epoch * epochs.length + i) for i in range(epochs.length))
    for i, weight in enumerate(weights):
        share = weight * epochs.length / sum(weights)
        assert np.floor(share - 1e-9) <= counts[i] <= np.ceil(share + 1e-9)


def test_repeats_of_a_picture_are_spread_over_the_epoch():
    epochs = Epochs(np.full(20, 4.0), 1)
    seen = np.array([epochs.picture(i) for i in range(80 * 20)])
    # By chance a picture follows itself with probability 3 / 79.
    assert np.mean(seen[1:] == seen[:-1]) < 0.08


def test_rare_pictures_meet_all_others_in_an_epoch():
    epochs = Epochs(np.full(6, 0.5), 1)
    met = {frozenset(epochs.picture(3 * epoch + i) for i in range(3)) for epoch in range(300)}
    assert len(met) == 20


def test_images_are_the_rendered_pictures_without_their_mean_in_the_wanted_order(make):
    bgr = make().batch_at(1).images
    rgb = make(mean=(123.0, 117.0, 104.0), channel_order="rgb").batch_at(1).images
    assert torch.equal(rgb, bgr.flip(1))
    samples = bgr + torch.tensor([104.0, 117.0, 123.0])[:, None, None]
    assert torch.equal(samples, samples.round())
    assert samples.min() >= 0 and samples.max() <= 255
    assert torch.equal(make(scale=0.5).batch_at(1).images, bgr * 0.5)
    last = make(channels_last=True).batch_at(1).images
    assert torch.equal(last, bgr)
    assert last.is_contiguous(memory_format=torch.channels_last)


def test_the_void_around_a_picture_is_zero_to_the_network(tmp_path):
    one = labelled(tmp_path / "a.png", ramp(100, 50))
    chosen = AugmentationSettings(shrink_probability=1.0, shrink=(2.0, 2.0))
    for order, mean in (("bgr", (104.0, 117.0, 123.0)), ("rgb", (50.0, 60.0, 70.0))):
        made = Batches([one], PictureCache([one]), chosen, batch=2, size=64, seed=1, mean=mean, channel_order=order)
        images = made.batch_at(0).images
        assert ((images == 0).all(dim=1).float().mean((1, 2)) > 0.7).all()


def test_prefetched_batches_are_those_of_their_steps(make):
    batches = make()
    found = list(batches.prefetch(2, 7))
    assert [batch.step for batch in found] == [2, 3, 4, 5, 6]
    for batch in found:
        assert_same(batch, batches.batch_at(batch.step))
    assert list(batches.prefetch(3, 3)) == []


def workers():
    return [t for t in threading.enumerate() if t.name == "training-batches"]


def test_the_thread_ends_with_its_iterator_wherever_that_stops(make):
    for taken in (0, 1, 3):
        ahead = make().prefetch(0, 10**9)
        for _ in range(taken):
            next(ahead)
        ahead.close()
        assert workers() == []
    assert len(list(make().prefetch(0, 4))) == 4
    assert workers() == []


def test_the_thread_runs_ahead_but_not_away(make, monkeypatch):
    batches = make()
    asked = []
    real = batches.batch_at
    monkeypatch.setattr(Batches, "batch_at", lambda _, step: asked.append(step) or real(step))
    ahead = batches.prefetch(0, 1000)
    next(ahead)
    deadline = time.monotonic() + 20
    while len(asked) < 2 + batches_module.READY and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    ahead.close()
    # One in use, those that are ready, and one in the hands of the thread.
    assert asked == list(range(2 + batches_module.READY))


def test_an_error_of_the_thread_is_raised_where_the_batches_are_used(make, monkeypatch):
    batches = make()
    real = batches.batch_at

    def failing(_, step):
        if step == 2:
            raise RuntimeError("broken at 2")
        return real(step)

    monkeypatch.setattr(Batches, "batch_at", failing)
    steps = []
    with pytest.raises(RuntimeError, match="broken at 2"):
        steps.extend(batch.step for batch in batches.prefetch(0, 5))
    assert steps == [0, 1]
    assert workers() == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch": 0}, "batch 0"),
        ({"size": 8}, "size 8 "),
        ({"size": [64, (64, 0)]}, r"size \(64, 0\)"),
        ({"size": []}, "no size"),
        ({"rank": 2, "world": 2}, "rank 2 of 2"),
        ({"weights": [0.0] * COUNT}, "above 0"),
        ({"weights": [1.0]}, "weights"),
        ({"weights": [-1.0] + [1.0] * (COUNT - 1)}, "not negative"),
    ],
)
def test_arguments_without_sense_are_refused(make, given, message):
    with pytest.raises(UsageError, match=message):
        make(**given)


def test_a_cache_of_other_pictures_and_negative_steps_are_refused(pictures, cache, make):
    with pytest.raises(UsageError, match="the cache holds 7"):
        Batches(pictures[:3], cache, CHOSEN, batch=1, size=64, seed=0)
    with pytest.raises(UsageError, match="step -1"):
        make().batch_at(-1)


def test_batches_drawn_by_torch_are_close_to_those_drawn_by_opencv(make, monkeypatch):
    """What happens on a device, with the pictures left in the memory of the CPU."""
    host = make(channel_order="rgb", scale=0.5)
    monkeypatch.setattr(Batches, "_upload", lambda self: self._cache.to("cpu"))
    device = make(channel_order="rgb", scale=0.5)
    assert (host.rendering, device.rendering) == ("cpu", "device")
    for step in range(4):
        one, other = host.batch_at(step), device.batch_at(step)
        difference = 2 * (one.images - other.images).abs()
        assert difference.mean() < 0.6
        assert (difference > 12).float().mean() < 1e-4
        assert torch.equal(one.truths.boxes, other.truths.boxes)


@pytest.mark.gpu
def test_batches_rendered_on_the_device_are_close_to_those_of_the_cpu(make):
    host, device = make(), make(device="cuda")
    assert (host.rendering, device.rendering) == ("cpu", "device")
    for step in range(4):
        one, other = host.batch_at(step), device.batch_at(step)
        assert other.images.is_cuda and other.truths.boxes.is_cuda and other.scores.is_cuda
        difference = (one.images - other.images.cpu()).abs()
        assert difference.mean() < 0.6
        assert (difference > 12).float().mean() < 1e-4
        assert torch.equal(one.truths.boxes, other.truths.boxes.cpu())


@pytest.mark.gpu
def test_pictures_that_do_not_fit_on_the_device_are_rendered_on_the_cpu(make, monkeypatch):
    monkeypatch.setattr(PictureCache, "fits", lambda *_: False)
    device = make(device="cuda")
    assert device.rendering == "cpu"
    assert torch.equal(device.batch_at(1).images.cpu(), make().batch_at(1).images)
