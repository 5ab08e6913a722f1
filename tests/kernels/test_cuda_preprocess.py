"""The preprocess kernel, on the host and on a GPU, equals the definition, and fills every value of its output."""

import numpy as np
import pytest
from backends import BareBackend, check_all_written
from cuda_host import in_sanitizer, load
from hypothesis import given, settings
from hypothesis import strategies as st
from random_frames import frames, make_frame
from resampling_by_definition import picture_by_definition
from test_preprocess import RGB_SPEC, SPEC, place, targets
from tight_frames import tight_frame

from retinastream.kernels.descriptors import describe_frames
from retinastream.kernels.picture_kernels import queue_preprocess, record_bytes
from retinastream.kernels.preprocess import preprocess
from retinastream.kernels.sizing import Placement
from retinastream.types import PIXEL_FORMATS

DTYPES = (np.float32, np.float16, np.int8)
STEP = 0.9  # of int8 in the tests: small enough for levels far from the mean to saturate

# Single precision leaves this much beside the rounding to whole levels, in levels.
ROUNDING = 0.02


def run(backend, frame_list, placements, dtype=np.float32, spec=SPEC, *, offsets=None, seed=0, checked=True):
    """The kernel's output, (batch, 3, height, width)."""
    there = [backend.frame(frame) for frame in frame_list]
    descriptors = backend.upload(record_bytes(describe_frames(there, placements, offsets=offsets)))
    height, width = placements[0].padded_height, placements[0].padded_width
    out = backend.empty((len(frame_list), 3, height, width), dtype)
    input_scale = STEP if out.dtype == np.int8 else None

    def queue():
        to = backend.shuffled(seed)
        queue_preprocess(to.device, to.stream, descriptors, out, spec, input_scale=input_scale)

    if checked:
        return check_all_written(backend, queue, out)[0]
    queue()
    return backend.download(out)


def levels(planar, spec=SPEC):
    """Planes of float values back to (height, width, 3) levels of B, G, R."""
    picture = planar.transpose(1, 2, 0).astype(np.float64) / spec.scale + spec.mean
    return picture if spec.channel_order == "bgr" else picture[..., ::-1]


def check_levels(found, expected):
    """Within 1 level everywhere, and on average within 0.1 of what rounding to whole levels leaves."""
    error, unavoidable = np.abs(found - expected), np.abs(np.rint(expected) - expected)
    assert error.max() <= 0.5 + ROUNDING
    assert error.mean() - unavoidable.mean() <= 0.1 * ROUNDING


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_frame_at_any_size_equals_the_definition(backend, data):
    frame = data.draw(frames())
    width, height = data.draw(targets(*frame.upright_size))
    placement = place(*frame.upright_size, width, height)
    planar = run(backend, [frame], [placement])[0]
    check_levels(levels(planar)[:height, :width], picture_by_definition(frame, width, height))
    assert (planar[:, height:] == 0).all()
    assert (planar[:, :, width:] == 0).all()

    reference = np.empty((1, *planar.shape), np.float32)
    preprocess([frame], [placement], SPEC, reference)
    assert np.abs(planar - reference[0]).max() <= 1

    np.testing.assert_array_equal(run(backend, [frame], [placement], np.float16)[0], planar.astype(np.float16))
    steps = np.clip(np.rint(planar * np.float32(1 / STEP)), -128, 127)
    np.testing.assert_array_equal(run(backend, [frame], [placement], np.int8)[0], steps)


@pytest.mark.parametrize("name", sorted(PIXEL_FORMATS))
@pytest.mark.parametrize(
    ("source", "target"),
    [
        pytest.param((64, 36), (64, 36), id="as it is"),
        pytest.param((63, 35), (63, 35), id="as it is with odd sides"),
        pytest.param((63, 35), (32, 18), id="halved with odd sides"),
        pytest.param((96, 54), (32, 18), id="exactly a third: what 4K to 1280 is"),
        pytest.param((67, 41), (29, 17), id="a fraction above two"),
        pytest.param((60, 40), (90, 60), id="enlarged"),
        pytest.param((64, 10), (16, 15), id="the width reduced by four, the height enlarged"),
        pytest.param((1, 1), (5, 9), id="a single pixel enlarged"),
        pytest.param((70, 1), (3, 1), id="a single row"),
    ],
)
def test_named_sizes_equal_the_definition(backend, name, source, target):
    for seed, content in enumerate(("noise", "extremes")):
        frame = make_frame(name, *source, seed=seed, content=content, row_padding=5)
        planar = run(backend, [frame], [place(*source, *target)], checked=False)[0]
        check_levels(levels(planar)[: target[1], : target[0]], picture_by_definition(frame, *target))


FOUR_TWO_ZERO = ("nv12", "p010", "yuv420p", "yuv420p10")


@pytest.mark.parametrize("name", FOUR_TWO_ZERO)
@pytest.mark.parametrize("pitch", [0, 2, 6, 64], ids=lambda p: f"{p} bytes more than a row")
def test_the_path_for_native_size_equals_the_general_one(backend, name, pitch):
    """Moved by a pixel, the picture takes the general path."""
    for width, height in [(63, 33), (64, 34), (40, 17), (7, 3), (1, 1), (2, 1), (9, 2)]:
        frame = tight_frame(name, width, height, pitch_of=lambda n: (n + n % 2) + pitch, seed=width)
        native = Placement(width, height, width, height, 72, 40)
        for dtype in (np.float32, np.float16):
            found = run(backend, [frame], [native], dtype)[0]
            moved = run(backend, [frame], [native], dtype, offsets=[(1, 0)], checked=False)[0]
            np.testing.assert_array_equal(found[..., :-1], moved[..., 1:])


@pytest.mark.parametrize("width", [61, 66, 67, 68])
def test_outputs_whose_rows_are_not_aligned_are_written_too(backend, width):
    frame = make_frame("nv12", 60, 20)
    odd = Placement(60, 20, 60, 20, width, 21)
    for dtype in DTYPES:
        found, usual = run(backend, [frame], [odd], dtype)[0], run(backend, [frame], [place(60, 20, 60, 20)], dtype)[0]
        np.testing.assert_array_equal(found[:, :20, :60], usual[:, :20, :60])
        assert (found[:, 20:] == 0).all()
        assert (found[:, :, 60:] == 0).all()


def test_a_network_that_takes_rgb_gets_its_own_mean_and_scale(backend):
    for name, rotation in (("nv12", 0), ("p010", 90), ("bgr24", 0)):
        frame = make_frame(name, 40, 22, rotation=rotation)
        width, height = frame.upright_size
        planar = run(backend, [frame], [place(width, height, width, height)], spec=RGB_SPEC)[0]
        check_levels(levels(planar, RGB_SPEC)[:height, :width], picture_by_definition(frame, width, height))
        assert (planar[:, height:] == 0).all()


def test_a_batch_of_mixed_formats_sizes_and_turns_is_its_frames_one_by_one(backend):
    batch = [
        make_frame("nv12", 70, 30, seed=1),
        make_frame("p010", 30, 70, seed=2, rotation=90, matrix="bt2020"),
        make_frame("yuv422p10", 140, 66, seed=3, full_range=True),
        make_frame("bgr24", 50, 20, seed=4, rotation=180),
        make_frame("yuv420p", 71, 29, seed=5),
    ]
    sizes = [(70, 30), (70, 30), (47, 22), (70, 28), (71, 29)]
    placements = [Placement(*f.upright_size, *size, 96, 32) for f, size in zip(batch, sizes, strict=True)]
    for dtype in DTYPES:
        together = run(backend, batch, placements, dtype, seed=7)
        for k, frame in enumerate(batch):
            np.testing.assert_array_equal(together[k], run(backend, [frame], [placements[k]], dtype, checked=False)[0])


def test_a_picture_is_placed_where_its_offset_says(backend):
    frame = make_frame("yuv444p", 20, 10, seed=3)
    placement = Placement(20, 10, 9, 5, 32, 16)
    usual, moved = (run(backend, [frame], [placement], offsets=[corner])[0] for corner in ((0, 0), (13, 6)))
    np.testing.assert_array_equal(moved[:, 6:11, 13:22], usual[:, :5, :9])
    assert np.count_nonzero(moved) == np.count_nonzero(usual)


def test_a_flipped_picture_is_read_from_its_last_row(backend):
    frame = make_frame("nv12", 32, 16, seed=8)
    frame.planes = tuple(plane[::-1] for plane in frame.planes)
    planar = run(backend, [frame], [place(32, 16, 32, 16)])[0]
    check_levels(levels(planar)[:16, :32], picture_by_definition(frame, 32, 16))


def test_positions_and_footprints_are_exact_far_from_the_origin(backend):
    for width, reduced in ((3840, 1100), (3840, 2999)):
        frame = make_frame("nv12", width, 8, content="extremes", seed=width)
        planar = run(backend, [frame], [place(width, 8, reduced, 8)], checked=False)[0]
        check_levels(levels(planar)[:8, :reduced], picture_by_definition(frame, reduced, 8))


def sanitized_cases(kernels):
    """Every path over planes that end where their memory ends; returns the sums of the outputs."""
    backend = BareBackend(kernels)
    sums = []
    for name in sorted(PIXEL_FORMATS):
        for width, height, rotation, size in ((40, 18, 0, (40, 18)), (39, 17, 0, (39, 17)), (33, 9, 270, (5, 12))):
            frame = tight_frame(name, width, height, rotation=rotation)
            for dtype in DTYPES:
                out = run(backend, [frame], [place(*frame.upright_size, *size)], dtype, checked=False)
                sums.append(float(out.astype(np.float64).sum()))
    return sums


@pytest.mark.slow  # to compile
def test_no_byte_outside_of_planes_and_output_is_touched():
    assert in_sanitizer("asan", sanitized_cases, "preprocess.cu") == sanitized_cases(load("preprocess.cu"))
