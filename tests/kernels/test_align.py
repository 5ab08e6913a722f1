"""Alignment: against Umeyama's own formula, hand-computed transforms, and bilinear resampling by definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinastream.errors import UsageError
from retinastream.kernels.align import align_faces, similarity_transforms, template

OPENCV_ROUNDING = 1 / 32  # OpenCV 4 rounds sampling positions to this many pixels; 5 does not


def umeyama(source, target):
    """The least-squares similarity by singular values, equations 34 to 42 of the paper, of one pair of point sets."""
    mean_s, mean_t = source.mean(0), target.mean(0)
    s, t = source - mean_s, target - mean_t
    covariance = t.T @ s / len(s)
    u, singular, vt = np.linalg.svd(covariance)
    sign = np.array([1.0, 1.0 if np.linalg.det(u) * np.linalg.det(vt) > 0 else -1.0])
    rotation = u @ np.diag(sign) @ vt
    scale = (singular * sign).sum() / (s**2).sum() * len(s)
    return np.column_stack([scale * rotation, mean_t - scale * rotation @ mean_s])


def moved(points, *, scale=1.0, degrees=0.0, shift=(0.0, 0.0)):
    angle = np.radians(degrees)
    rotation = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return points @ rotation.T + np.asarray(shift)


def bilinear(picture, transform, size):
    """Sample the picture where every pixel of the crop lies in it, black outside, in float64."""
    height, width = picture.shape[:2]
    framed = np.zeros((height + 2, width + 2, 3))
    framed[1:-1, 1:-1] = picture
    crop = np.zeros((size, size, 3))
    inverse = np.linalg.inv(transform[:, :2])
    for y in range(size):
        for x in range(size):
            px, py = inverse @ (np.array([x, y]) - transform[:, 2])
            if not (-1 <= px < width and -1 <= py < height):
                continue
            x0, y0 = int(np.floor(px)), int(np.floor(py))
            wx, wy = px - x0, py - y0
            around = framed[y0 + 1 : y0 + 3, x0 + 1 : x0 + 3]
            crop[y, x] = (around * np.outer([1 - wy, wy], [1 - wx, wx])[..., None]).sum((0, 1))
    return crop


def smooth_picture(height, width, seed=0):
    """Noise whose neighbours differ by a few levels, so that rounding of positions hardly shows."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = sum(np.sin(x * a + y * b + c) for a, b, c in rng.uniform(-0.15, 0.15, (4, 3)))
    grey = 127 + 30 * waves
    return np.clip(np.stack([grey, grey[::-1], grey[:, ::-1]], -1), 0, 255).astype(np.uint8)


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), spread=st.floats(0.5, 2000), far=st.floats(-5000, 5000))
def test_transforms_are_those_of_umeyamas_formula(seed, spread, far):
    faces = np.random.default_rng(seed).normal(size=(3, 5, 2)) * spread + far
    found = similarity_transforms(faces)
    for face, transform in zip(faces, found, strict=True):
        np.testing.assert_allclose(transform, umeyama(face, template()), rtol=1e-7, atol=1e-7 * (1 + abs(far)))


def test_no_other_similarity_comes_closer():
    rng = np.random.default_rng(5)
    face = rng.normal(size=(5, 2)) * 30 + 100
    best = similarity_transforms(face[None])[0]

    def error(a, b, tx, ty):
        return ((face @ np.array([[a, b], [-b, a]]) + [tx, ty] - template()) ** 2).sum()

    found = np.array([best[0, 0], best[1, 0], best[0, 2], best[1, 2]])
    for step in rng.normal(size=(200, 4)) * [1e-3, 1e-3, 0.1, 0.1]:
        assert error(*(found + step)) > error(*found)


@pytest.mark.parametrize(("scale", "degrees", "shift"), [(1, 0, (0, 0)), (3, 90, (500, 20)), (0.1, -170, (-4, 9))])
def test_a_moved_template_is_brought_back_exactly(scale, degrees, shift):
    face = moved(template(), scale=scale, degrees=degrees, shift=shift)
    (transform,) = similarity_transforms(face[None])
    np.testing.assert_allclose(face @ transform[:, :2].T + transform[:, 2], template(), atol=1e-9)


def test_the_template_is_the_published_one_and_grows_with_the_crop():
    np.testing.assert_array_equal(template()[[0, 4]], [[38.2946, 51.6963], [70.7299, 92.2041]])
    np.testing.assert_allclose(template(224), 2 * template())


@pytest.mark.parametrize(
    ("what", "face"),
    [
        ("not a number", np.full((5, 2), np.nan)),
        ("infinite", np.full((5, 2), np.inf)),
        ("one point", np.full((5, 2), 123.4)),
        ("one point but for rounding", 3000 + np.arange(10).reshape(5, 2) * 1e-6),
        ("too large to square", np.arange(10).reshape(5, 2) * 1e200),
        ("a single missing point", np.vstack([template()[:4], [[np.nan, 1.0]]])),
    ],
)
def test_landmarks_without_a_transform_give_nan_and_leave_the_other_faces_alone(what, face):
    found = similarity_transforms(np.stack([template(), face, template()]))
    assert np.isnan(found[1]).all(), what
    np.testing.assert_allclose(found[[0, 2]], [np.eye(2, 3)] * 2, atol=1e-12)
    with pytest.raises(UsageError, match=r"face 1 \(of 3\)"):
        align_faces(np.zeros((50, 50, 3), np.uint8), np.stack([template(), face, template()]))


def test_landmarks_for_which_all_angles_are_equally_good_give_nan():
    target = (template() - template().mean(0)) @ np.array([1, 1j])
    # Of points orthogonal to the template's, seen as complex vectors, every rotation leaves the same error.
    rng = np.random.default_rng(2)
    points = rng.normal(size=5) + 1j * rng.normal(size=5)
    points -= points.mean()
    points -= (target.conj() @ points) / (target.conj() @ target) * target
    face = np.stack([points.real, points.imag], -1) * 40 + 100
    assert np.isnan(similarity_transforms(face[None])).all()


def test_no_faces_give_no_transforms_and_no_crops():
    assert similarity_transforms(np.zeros((0, 5, 2))).shape == (0, 2, 3)
    assert align_faces(np.zeros((9, 9, 3), np.uint8), np.zeros((0, 5, 2))).shape == (0, 112, 112, 3)


@pytest.mark.parametrize(
    ("scale", "degrees", "shift"),
    [(1, 0, (20, 10)), (1.7, 25, (90, 20)), (0.4, -60, (40, 90)), (1, 0, (-22, 30)), (1.3, 200, (150, 260))],
)
def test_crops_are_the_picture_resampled_bilinearly(scale, degrees, shift):
    picture = smooth_picture(300, 260)
    face = moved(template(48), scale=scale, degrees=degrees, shift=shift)[None]
    expected = bilinear(picture, similarity_transforms(face, 48)[0], 48)
    steepest = max(np.abs(np.diff(picture.astype(int), axis=axis)).max() for axis in (0, 1))
    found = align_faces(picture, face, 48)[0].astype(float)
    inside = expected.min(-1) > 0  # at the border of the picture a step of 255 levels is as steep as can be
    assert inside.mean() > 0.3
    assert np.abs(found - expected)[inside].max() <= 0.5 + 1 + 2 * OPENCV_ROUNDING * steepest
    # Border pixels are off by as much as a position is rounded, of up to 255 levels.
    assert np.abs(found - expected).max() <= 1 + 2 * OPENCV_ROUNDING * 255


def test_a_crop_at_the_template_is_the_picture_itself():
    picture = np.random.default_rng(0).integers(0, 256, (200, 220, 3), dtype=np.uint8)
    (crop,) = align_faces(picture, template()[None] + [31, 17])
    np.testing.assert_array_equal(crop, picture[17:129, 31:143])


def test_what_lies_outside_the_picture_is_black():
    picture = np.full((40, 40, 3), 200, np.uint8)
    crops = align_faces(picture, np.stack([template() + 1000, template() - [20, 0]]))
    assert not crops[0].any()
    seen = np.zeros((112, 112, 3), np.uint8)
    seen[:40, 20:60] = 200
    np.testing.assert_array_equal(crops[1], seen)


def test_pictures_wider_than_opencv_takes_are_aligned():
    picture = np.zeros((150, 40_000, 3), np.uint8)
    picture[:, 39_000:] = np.random.default_rng(3).integers(0, 256, (150, 1000, 3), dtype=np.uint8)
    (crop,) = align_faces(picture, template()[None] + [39_500, 9])
    np.testing.assert_array_equal(crop, picture[9:121, 39_500:39_612])


@pytest.mark.parametrize(
    ("picture", "landmarks", "size", "words"),
    [
        (np.zeros((9, 9), np.uint8), np.zeros((1, 5, 2)), 112, r"uint8 \(9, 9\); expected"),
        (np.zeros((9, 9, 3)), np.zeros((1, 5, 2)), 112, "expected uint8"),
        (np.zeros((0, 9, 3), np.uint8), np.zeros((1, 5, 2)), 112, "not empty"),
        (np.zeros((9, 9, 3), np.uint8), np.zeros((5, 2)), 112, r"shape \(5, 2\); expected \(N, 5, 2\)"),
        (np.zeros((9, 9, 3), np.uint8), np.zeros((1, 68, 2)), 112, r"expected \(N, 5, 2\)"),
        (np.zeros((9, 9, 3), np.uint8), np.zeros((1, 5, 2)), 0, "size is 0"),
        ("face.png", np.zeros((1, 5, 2)), 112, "given as str"),
    ],
)
def test_wrong_arguments_are_refused_with_what_is_allowed(picture, landmarks, size, words):
    with pytest.raises(UsageError, match=words):
        align_faces(picture, landmarks, size)
