"""The align kernel, on the host and on a GPU, cuts the crops that the NumPy one cuts from the converted picture."""

import numpy as np
import pytest
from backends import BareBackend, check_all_written
from cuda_host import in_sanitizer, load
from hypothesis import given, settings
from hypothesis import strategies as st
from random_frames import frames, make_frame
from resampling_by_definition import picture_by_definition
from test_align import bilinear, moved, smooth_picture
from tight_frames import tight_frame

from retinastream.kernels import colour
from retinastream.kernels.align import align_faces, similarity_transforms, template
from retinastream.kernels.descriptors import describe_frames, pack_faces
from retinastream.kernels.picture_kernels import queue_align, record_bytes
from retinastream.types import PIXEL_FORMATS, Faces, Frame

ROUNDING = 0.02  # levels that single precision leaves beside the rounding to whole levels
MEAN, SCALE = (127.5, 127.0, 120.0), 1 / 128


def faces_with(landmarks):
    points = np.asarray(landmarks, np.float32).reshape(-1, 5, 2)
    return Faces(np.zeros((len(points), 4), np.float32), np.zeros(len(points), np.float32), points)


def run(backend, frame_list, landmarks, size=112, dtype=np.uint8, *, rgb=0, capacity=None, most=None, seed=0):
    """Crops and transforms of all faces, picture by picture."""
    rows, counts = pack_faces([faces_with(points) for points in landmarks], most)
    capacity = int(counts.sum()) if capacity is None else capacity
    there = [backend.frame(frame) for frame in frame_list]
    inputs = [backend.upload(v) for v in (record_bytes(describe_frames(there)), rows, counts)]
    shape = (capacity, size, size, 3) if np.dtype(dtype) == np.uint8 else (capacity, 3, size, size)
    crops, transforms = backend.empty(shape, dtype), backend.empty((capacity, 2, 3), np.float32)
    norm = {"mean": MEAN, "scale": SCALE, "channel_order": "rgb" if rgb else "bgr"}

    def queue():
        to = backend.shuffled(seed)
        queue_align(to.device, to.stream, *inputs, crops, transforms, **norm)

    return check_all_written(backend, queue, crops, transforms)


def landmarks_around(rng, width, height, count):
    """Faces of all sizes and turns, in the picture, across its edges and outside."""
    faces = []
    for _ in range(count):
        scale = rng.uniform(0.02, 0.02 + max(width, height) / 60)
        face = moved(
            template() - 56, scale=scale, degrees=rng.uniform(-180, 180), shift=rng.uniform(0, 1, 2) * (width, height)
        )
        faces.append(face + rng.normal(size=(5, 2)) * scale)
    return np.array(faces, np.float32)


@settings(max_examples=40, deadline=None)
@given(frame=frames(st.integers(1, 60)), seed=st.integers(0, 2**32 - 1), size=st.sampled_from([1, 7, 24]))
def test_crops_of_any_frame_are_those_of_the_converted_picture(backend, frame, seed, size):
    landmarks = landmarks_around(np.random.default_rng(seed), *frame.upright_size, 2)
    crops, transforms = run(backend, [frame], [landmarks], size)
    fitted = similarity_transforms(landmarks, size)
    np.testing.assert_allclose(transforms, fitted, rtol=1e-5, atol=1e-4)
    picture = np.rint(picture_by_definition(frame, *frame.upright_size))
    for crop, transform in zip(crops, fitted, strict=True):
        check_crop(crop, bilinear(picture, transform, size))


def check_crop(crop, expected):
    """Within 1 level of the rounded values everywhere, and hardly ever that: where rounding could go either way."""
    difference = np.abs(crop - np.rint(expected))
    assert difference.max() <= 1
    undecided = np.abs(expected - np.floor(expected) - 0.5) < ROUNDING
    assert (difference[~undecided] > 0).sum() <= 0.01 * crop.size


@pytest.mark.parametrize("name", ["nv12", "p010", "yuv420p", "bgr24"])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_crops_are_within_a_level_of_the_numpy_ones(backend, name, rotation):
    smooth = smooth_picture(120, 160)
    frame = make_frame(name, 160, 120, rotation=rotation)
    planes = (smooth,) if name == "bgr24" else plane_values(frame.format, smooth)
    frame = Frame(planes, frame.format, 160, 120, rotation=rotation)
    landmarks = landmarks_around(np.random.default_rng(rotation), *frame.upright_size, 5)
    crops, _ = run(backend, [frame], [landmarks])
    expected = align_faces(colour.to_bgr(frame), landmarks)
    assert np.abs(crops.astype(int) - expected).max() <= 1
    assert (expected.reshape(5, -1).max(axis=1) > 50).any()


def plane_values(fmt, smooth):
    """Slowly changing planes of a 4:2:0 format."""
    deep = smooth.astype(fmt.dtype) << (fmt.bits - 8 + fmt.shift)
    chroma = deep[::2, ::2, 1:]
    if fmt.interleaved_chroma:
        return deep[..., 0].copy(), chroma.copy()
    return deep[..., 0].copy(), chroma[..., 0].copy(), chroma[..., 1].copy()


def test_faces_of_a_batch_lie_one_behind_the_other(backend):
    batch = [make_frame("nv12", 50, 40, seed=k, rotation=90 * k) for k in range(3)]
    rng = np.random.default_rng(0)
    landmarks = [landmarks_around(rng, *f.upright_size, n) for f, n in zip(batch, (2, 0, 3), strict=True)]
    crops, transforms = run(backend, batch, landmarks, 20, most=6, seed=3)
    assert len(crops) == 5
    for frame, points, own in zip(batch, landmarks, (slice(0, 2), slice(2, 2), slice(2, 5)), strict=True):
        if len(points):
            alone = run(backend, [frame], [points], 20)
            np.testing.assert_array_equal(crops[own], alone[0])
            np.testing.assert_array_equal(transforms[own], alone[1])


def test_faces_beyond_the_room_for_crops_are_left_out(backend):
    frame = make_frame("nv12", 50, 40)
    landmarks = landmarks_around(np.random.default_rng(1), 50, 40, 4)
    np.testing.assert_array_equal(
        run(backend, [frame], [landmarks], 20, capacity=3)[0], run(backend, [frame], [landmarks], 20)[0][:3]
    )


def test_networks_get_planes_of_their_order_and_scale(backend):
    frame = make_frame("p010", 60, 50)
    landmarks = landmarks_around(np.random.default_rng(2), 60, 50, 3)
    bgr = run(backend, [frame], [landmarks], 40)[0].transpose(0, 3, 1, 2).astype(np.float32)
    mean = np.array(MEAN, np.float32)[:, None, None]
    for rgb, channels in ((0, bgr), (1, bgr[:, ::-1])):
        values = (channels - mean) * np.float32(SCALE)
        np.testing.assert_array_equal(run(backend, [frame], [landmarks], 40, np.float32, rgb=rgb)[0], values)
        np.testing.assert_array_equal(
            run(backend, [frame], [landmarks], 40, np.float16, rgb=rgb)[0], values.astype(np.float16)
        )


@pytest.mark.parametrize(
    ("what", "face"),
    [
        ("not a number", np.full((5, 2), np.nan)),
        ("infinite", np.full((5, 2), np.inf)),
        ("one point", np.full((5, 2), 123.4)),
        ("one point but for rounding", 3000 + np.arange(10).reshape(5, 2) * 1e-6),
        ("a single missing point", np.vstack([template()[:4], [[np.nan, 1.0]]])),
    ],
)
def test_faces_without_a_transform_are_black_and_leave_the_others_alone(backend, what, face):
    frame = make_frame("nv12", 120, 120)
    crops, transforms = run(backend, [frame], [np.stack([template(), face, template()])])
    assert np.isnan(transforms[1]).all(), what
    assert (crops[1] == 0).all()
    assert np.abs(crops[0].astype(int) - colour.to_bgr(frame)[:112, :112]).max() <= 1
    np.testing.assert_array_equal(crops[2], crops[0])


@pytest.mark.parametrize("far", [1e5, 1e15, 1e30])
def test_faces_far_outside_are_black(backend, far):
    face = (template() - 56) * far / 100 + far
    crops, _ = run(backend, [make_frame("nv12", 30, 30)], [face[None]], 24)
    assert (crops == 0).all()


def test_positions_are_exact_far_from_the_origin(backend):
    frame = make_frame("gray", 16000, 120, content="noise")
    face = moved(template(), shift=(15870.3, 4.7)).astype(np.float32)
    (crop,), _ = run(backend, [frame], [face[None]])
    part = Frame((frame.planes[0][:, 15800:],), PIXEL_FORMATS["gray"], 200, 120)
    (transform,) = similarity_transforms(face[None].astype(np.float64) - (15800, 0))
    check_crop(crop, bilinear(np.rint(picture_by_definition(part, 200, 120)), transform, 112))


def sanitized_cases(kernels):
    """Crops over every edge of planes that end where their memory ends."""
    backend, total = BareBackend(kernels), 0
    for name in sorted(PIXEL_FORMATS):
        frame = tight_frame(name, 21, 13, rotation=90)
        landmarks = landmarks_around(np.random.default_rng(3), *frame.upright_size, 4)
        total += int(run(backend, [frame], [landmarks], 16)[0].sum())
    return total


@pytest.mark.slow  # to compile
def test_no_byte_outside_of_planes_and_crops_is_touched():
    assert in_sanitizer("asan", sanitized_cases, "align.cu") == sanitized_cases(load("align.cu"))


def racing_case(kernels):
    backend = BareBackend(kernels)
    frame = make_frame("nv12", 20, 20)
    return run(backend, [frame], [landmarks_around(np.random.default_rng(4), 20, 20, 1)], 40)[0].sum()


@pytest.mark.slow  # to compile, and to start
def test_the_threads_of_a_block_wait_for_the_transform():
    assert in_sanitizer("tsan", racing_case, "align.cu") == racing_case(load("align.cu"))
