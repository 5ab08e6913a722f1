"""What a person who is not at a terminal is told of how far a run is."""

import pytest

from retinastream.cli import picture_progress
from retinastream.cli.picture_progress import PictureProgress


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(picture_progress.time, "monotonic", lambda: now[0])

    def pass_by(seconds):
        now[0] += seconds

    return pass_by


@pytest.fixture
def lines(capsys):
    def read():
        return capsys.readouterr().err.splitlines()

    return read


def test_a_line_comes_every_few_seconds_with_what_is_left(clock, lines):
    with PictureProgress("checking") as shown:
        for done in range(1, 11):
            clock(2)
            shown(done, 10)
    assert lines() == [
        "checking: 3 of 10 pictures, 14 s left",
        "checking: 6 of 10 pictures, 8 s left",
        "checking: 9 of 10 pictures, 2 s left",
    ]


def test_what_came_before_the_first_picture_is_not_counted(clock, lines):
    with PictureProgress("checking") as shown:
        clock(100)
        shown(1, 10)
        clock(5)
        shown(2, 10)
    assert lines() == ["checking: 1 of 10 pictures", "checking: 2 of 10 pictures, 40 s left"]


def test_another_run_is_counted_for_itself(clock, lines):
    with PictureProgress("checking") as shown:
        for seconds in (10, 1):
            for done in range(1, 11):
                clock(seconds)
                shown(done, 10)
    assert lines()[-2] == "checking: 5 of 10 pictures, 5 s left"


def test_another_stage_has_a_name_and_a_unit_of_its_own(clock, lines):
    with PictureProgress("calibrating") as shown:
        shown(1, 2)
        shown.begin("ranking", unit="layers")
        clock(6)
        shown(2, 50)
        clock(6)
        shown.begin("ranking", unit="layers")
        shown(3, 50)
    assert lines() == ["ranking: 2 of 50 layers", "ranking: 3 of 50 layers, 282 s left"]


def test_quiet_says_nothing(clock, lines):
    with PictureProgress("checking", quiet=True) as shown:
        clock(60)
        shown(1, 2)
    assert lines() == []
