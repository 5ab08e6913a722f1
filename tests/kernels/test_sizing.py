"""Size policies: what they parse, at which size they show a picture, and how coordinates map back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinastream.errors import UsageError
from retinastream.kernels.sizing import PYRAMID_LONG_SIDE, SizePolicy

SIDES = st.integers(1, 16384)
POLICIES = st.one_of(
    st.sampled_from(["native", "pyramid"]),
    st.integers(32, 16384).map("fit:{}".format),
    st.tuples(st.integers(32, 16384), st.integers(32, 16384)).map(lambda s: f"short:{min(s)},max:{max(s)}"),
)


@pytest.mark.parametrize(
    ("text", "width", "height", "passes"),
    [
        pytest.param("native", 3840, 2160, [(3840, 2160, 3840, 2176)], id="native keeps 4K and pads the bottom"),
        pytest.param("native", 1, 1, [(1, 1, 32, 32)], id="native of a single pixel"),
        pytest.param("native", 16384, 9, [(16384, 9, 16384, 32)], id="native of the widest picture"),
        pytest.param("fit:1280", 3840, 2160, [(1280, 720, 1280, 736)], id="fit reduces 4K"),
        pytest.param(
            "fit:1280", 2160, 3840, [(720, 1280, 736, 1280)], id="fit takes the long side of an upright video"
        ),
        pytest.param("fit:1280", 640, 480, [(640, 480, 640, 480)], id="fit never enlarges"),
        pytest.param("fit:1280", 1280, 720, [(1280, 720, 1280, 736)], id="fit leaves what fits exactly"),
        pytest.param("fit:1280", 16384, 3, [(1280, 1, 1280, 32)], id="fit leaves at least one pixel"),
        pytest.param("short:800,max:1200", 1000, 1000, [(800, 800, 800, 800)], id="short side decides"),
        pytest.param("short:800,max:1200", 1920, 1080, [(1200, 675, 1216, 704)], id="long side decides"),
        pytest.param("short:800,max:1200", 100, 100, [(800, 800, 800, 800)], id="short enlarges"),
        pytest.param(
            "pyramid",
            3840,
            2160,
            [(3840, 2160, 3840, 2176), (640, 360, 640, 384)],
            id="pyramid has a reduced second pass",
        ),
        pytest.param("pyramid", 2160, 3840, [(2160, 3840, 2176, 3840), (360, 640, 384, 640)], id="pyramid upright"),
        pytest.param("pyramid", 640, 480, [(640, 480, 640, 480)], id="pyramid of a small picture has one pass"),
        pytest.param("pyramid", 641, 480, [(641, 480, 672, 480), (640, 479, 640, 480)], id="pyramid just above 640"),
    ],
)
def test_a_policy_shows_a_picture_at_this_size(text, width, height, passes):
    placements = SizePolicy.parse(text).placements(width, height, 32)
    assert [(p.width, p.height, p.padded_width, p.padded_height) for p in placements] == passes
    assert all((p.source_width, p.source_height) == (width, height) for p in placements)


@given(POLICIES, SIDES, SIDES, st.sampled_from([8, 16, 32, 64]))
def test_every_placement_keeps_the_promises_of_its_policy(text, width, height, stride):
    policy = SizePolicy.parse(text)
    assert SizePolicy.parse(str(policy)) == policy
    for number, p in enumerate(policy.placements(width, height, stride)):
        assert p.width >= 1
        assert p.height >= 1
        assert 0 <= p.padded_width - p.width < stride
        assert 0 <= p.padded_height - p.height < stride
        assert p.padded_width % stride == 0
        assert p.padded_height % stride == 0
        if policy.kind in ("native", "pyramid") and number == 0:
            assert (p.width, p.height) == (width, height)
        if policy.kind == "fit":
            assert p.width <= width
            assert p.height <= height
            assert max(p.width, p.height) == min(max(width, height), policy.long_side)
        if policy.kind == "short":
            assert max(p.width, p.height) <= policy.long_side
            assert min(p.width, p.height) <= policy.short_side
            assert max(p.width, p.height) == policy.long_side or min(p.width, p.height) == policy.short_side
        if policy.kind == "pyramid" and number == 1:
            assert max(p.width, p.height) == PYRAMID_LONG_SIDE
        # both axes by the same factor, but for the rounding to whole pixels
        scale = p.width / width if width >= height else p.height / height
        assert abs(p.width - width * scale) <= 0.51 + (p.width == 1)
        assert abs(p.height - height * scale) <= 0.51 + (p.height == 1)


def test_scales_are_those_of_the_whole_pixels_that_were_really_used():
    (p,) = SizePolicy.parse("fit:100").placements(333, 77, 32)
    assert (p.width, p.height) == (100, 23)
    assert p.scale_x == 100 / 333
    assert p.scale_y == 23 / 77


@pytest.mark.parametrize(
    ("text", "same_as"),
    [
        pytest.param(" Native ", "native", id="case and spaces around do not matter"),
        pytest.param("FIT:640", "fit:640", id="capitals"),
        pytest.param("fit:0640", "fit:640", id="leading zeros"),
        pytest.param("short:32,max:16384", "short:32,max:16384", id="the extremes"),
    ],
)
def test_text_is_understood(text, same_as):
    assert str(SizePolicy.parse(text)) == same_as


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("", "allowed are native, fit:<long side>", id="nothing"),
        pytest.param("full", "allowed are native, fit:<long side>", id="an unknown word"),
        pytest.param("fit", "allowed are native, fit:<long side>", id="fit without a number"),
        pytest.param("fit:12.5", "allowed are", id="half a pixel"),
        pytest.param("fit:-640", "allowed are", id="a negative side"),
        pytest.param("fit:31", "31 is out of range; a side is 32 to 16384", id="a side that is too short"),
        pytest.param("fit:16385", "16385 is out of range; a side is 32 to 16384", id="a side that is too long"),
        pytest.param("short:800", "short:<short side>,max:<long side>", id="short without max"),
        pytest.param("short:800,max:600", "expected short <= max", id="a limit below the short side"),
        pytest.param("short:8,max:600", "8 is out of range", id="a short side that is too short"),
        pytest.param("1280x720", "allowed are", id="a width and a height"),
    ],
)
def test_a_wrong_size_says_what_is_allowed(text, reason):
    with pytest.raises(UsageError) as caught:
        SizePolicy.parse(text)
    assert repr(text) in str(caught.value)
    assert reason in str(caught.value)
