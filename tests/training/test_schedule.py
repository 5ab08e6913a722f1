"""The learning rate by step, against values computed by hand."""

import math
from itertools import pairwise

import pytest

pytest.importorskip("torch", reason="the train extra is not installed")

from retinastream.errors import UsageError
from retinastream.training.schedule import (
    LIGHT_MNET025,
    LIGHT_RESNET50,
    PAPER,
    Schedule,
    rate_at,
    total_steps,
)

PER_EPOCH = 100


def at(schedule, epoch):
    return rate_at(schedule, round(epoch * PER_EPOCH), PER_EPOCH)


@pytest.mark.parametrize(
    ("schedule", "epoch", "rate"),
    [
        (LIGHT_MNET025, 0, 1e-3),
        (LIGHT_MNET025, 189.99, 1e-3),
        (LIGHT_MNET025, 190, 1e-4),
        (LIGHT_MNET025, 220, 1e-5),
        (LIGHT_MNET025, 249.99, 1e-5),
        (LIGHT_RESNET50, 69.99, 1e-3),
        (LIGHT_RESNET50, 70, 1e-4),
        (LIGHT_RESNET50, 90, 1e-5),
        (PAPER, 0, 1e-3),
        (PAPER, 2.5, 5.5e-3),
        (PAPER, 5, 1e-2),
        (PAPER, 54.99, 1e-2),
        (PAPER, 55, 1e-3),
        (PAPER, 68, 1e-4),
        (PAPER, 79.99, 1e-4),
    ],
)
def test_published_schedules_have_these_rates(schedule, epoch, rate):
    assert at(schedule, epoch) == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize(("schedule", "epochs"), [(LIGHT_MNET025, 250), (LIGHT_RESNET50, 100), (PAPER, 80)])
def test_published_schedules_have_these_lengths(schedule, epochs):
    assert total_steps(schedule, PER_EPOCH) == epochs * PER_EPOCH


def test_a_cosine_falls_from_the_full_rate_after_warm_up_to_the_final_rate_with_the_last_step():
    schedule = Schedule("cosine", rate=0.02, epochs=11, warmup_epochs=1, warmup_rate=0.002, final_rate=0.0002)
    steps = total_steps(schedule, PER_EPOCH)
    rates = [rate_at(schedule, step, PER_EPOCH) for step in range(steps)]
    assert rates[0] == 0.002
    assert rates[50] == pytest.approx(0.011)
    assert rates[100] == 0.02
    assert rates[-1] == 0.0002
    # A third of the way from step 100 to step 1099: cos(60 degrees) = 1 / 2.
    assert rates[433] == pytest.approx(0.0002 + 0.0198 * 0.75)
    assert all(a < b for a, b in pairwise(rates[:101]))
    assert all(a > b for a, b in pairwise(rates[100:]))


def test_steps_beyond_the_end_keep_the_last_rate():
    schedule = Schedule("cosine", rate=1.0, epochs=2, final_rate=0.1)
    assert rate_at(schedule, 10_000, PER_EPOCH) == 0.1
    assert rate_at(PAPER, 10_000_000, PER_EPOCH) == pytest.approx(1e-4)


def test_a_fraction_of_an_epoch_is_a_length_of_its_own():
    assert total_steps(Schedule("steps", rate=1, epochs=0.25), PER_EPOCH) == 25
    assert total_steps(Schedule("steps", rate=1, epochs=0.001), PER_EPOCH) == 1


def test_a_cosine_of_one_step_ends_with_it():
    schedule = Schedule("cosine", rate=1.0, epochs=1, final_rate=0.5)
    assert rate_at(schedule, 0, 1) == 0.5


@pytest.mark.parametrize(
    "values",
    [
        {"rate": 0.0},
        {"rate": math.nan},
        {"epochs": 0},
        {"epochs": math.inf},
        {"warmup_epochs": 10},
        {"warmup_epochs": -1},
        {"warmup_rate": -1e-3},
        {"factor": 0},
        {"factor": 2},
        {"drops": (6, 5)},
        {"drops": (5, 5)},
        {"warmup_epochs": 5, "drops": (4,)},
        {"shape": "cosine", "drops": (5,)},
        {"shape": "linear"},
    ],
    ids=str,
)
def test_schedules_that_contradict_themselves_are_refused(values):
    with pytest.raises(UsageError, match="schedule"):
        Schedule(**{"shape": "steps", "rate": 1e-3, "epochs": 10, **values})
