"""Aligned face crops: five landmarks to a similarity transform, and the picture resampled through it.

The transform is the least-squares similarity of Umeyama (1991, "Least-squares estimation of transformation parameters
between two point patterns", IEEE PAMI 13(4), equations 34 to 42). In two dimensions it needs no singular value
decomposition: with points as complex numbers, centred, a similarity without reflection is z -> a z + b, and the best
``a`` is sum(conj(z) w) / sum(|z|^2). The template is the one that ArcFace's published networks were trained on.

Positions here are OpenCV's, in the picture and in the crop: the centre of the top left pixel is at (0, 0). Landmarks of
this package, which has that centre at (0.5, 0.5), are nevertheless passed as they are, because ArcFace's published code
does so with its detectors: an embedder sees crops like those that it was trained on. It is half a pixel of the picture,
which shows on small faces only. Measured on 9 pairs of a person among 7 faces, mean similarity without and with
the shift: 0.749 and 0.742 at 175 px of face width, 0.697 and 0.682 at 45 px, 0.574 and 0.537 at 26 px.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from retinastream.errors import UsageError

Float64 = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]

ARCFACE_SIZE = 112
# Left eye, right eye (left as seen in the picture), nose, left and right mouth corner of a crop of 112x112.
ARCFACE_TEMPLATE: Float64 = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
ARCFACE_TEMPLATE.setflags(write=False)

# Below this fraction of the size of the points, what is left after centring is rounding of their coordinates.
_ROUNDING = 1e-6


def template(size: int = ARCFACE_SIZE) -> Float64:
    """Return the target points (5, 2) in a crop of ``size`` pixels: the published ones, in proportion."""
    return ARCFACE_TEMPLATE * (size / ARCFACE_SIZE)


def similarity_transforms(landmarks: npt.ArrayLike, size: int = ARCFACE_SIZE) -> Float64:
    """Fit the similarity that brings each face's landmarks closest to the template, in the sense of least squares.

    ``landmarks`` (N, 5, 2) are pixels of the picture, the result (N, 2, 3) float64 maps them to pixels of the crop:
    ``crop = m[:, :2] @ point + m[:, 2]``, as cv2.warpAffine takes it (this module says where pixels have their centre).
    It never mirrors.

    A face has no such transform where a landmark is not finite, where all five are one point, or where they lie so
    that no rotation is better than another: its six numbers are NaN. Raises UsageError for other shapes.
    """
    points = _landmarks(landmarks)
    target = template(size) @ np.array([1.0, 1.0j])
    with np.errstate(invalid="ignore", over="ignore"):
        source = points[..., 0] + 1j * points[..., 1]
        middle = source.mean(axis=1, keepdims=True)
        centred, goal = source - middle, target - target.mean()
        spread = (np.abs(centred) ** 2).sum(axis=1)
        product = centred.conj() @ goal
        floor = (_ROUNDING * np.abs(source).max(axis=1, initial=0.0)) ** 2
        reach = np.sqrt(spread) * np.linalg.norm(goal)
        usable = np.isfinite(spread) & (spread > floor) & (np.abs(product) > _ROUNDING * reach)
    a = np.full(len(points), complex(np.nan, np.nan))
    np.divide(product, spread, out=a, where=usable)
    b = target.mean() - a * np.where(usable, middle[:, 0], 0.0)
    rows = np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])
    return np.ascontiguousarray(rows.transpose(2, 0, 1))


def align_faces(picture_bgr: Pixels, landmarks: npt.ArrayLike, size: int = ARCFACE_SIZE) -> Pixels:
    """Cut every face out of a picture, turned and scaled onto the template.

    ``picture_bgr`` is (height, width, 3) uint8, ``landmarks`` (N, 5, 2) pixels of it, as a detector of
    this package gives them; the result is (N, size, size, 3) uint8 in the picture's channel order. Bilinear, without
    averaging when a face is made smaller, as the crops were made that such networks are trained on; outside the picture
    is black. Raises UsageError for other shapes, and for faces without a transform (it names them): ask
    ``similarity_transforms`` first where that can happen.
    """
    picture = _picture(picture_bgr)
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= 4096:
        raise UsageError(f"size is {size!r}; expected a whole number of pixels from 1 to 4096")
    transforms = similarity_transforms(landmarks, size)
    lost = np.flatnonzero(~np.isfinite(transforms).all(axis=(1, 2)))
    if len(lost):
        raise UsageError(
            f"the landmarks of face {', '.join(map(str, lost[:5]))} (of {len(transforms)}) cannot be aligned: they are "
            "not finite, or do not have the extent of a face; leave these faces out (similarity_transforms gives NaN)"
        )
    crops = np.zeros((len(transforms), size, size, 3), np.uint8)
    for crop, transform in zip(crops, transforms, strict=True):
        _warp(picture, transform, crop)
    return crops


def _warp(picture: Pixels, transform: Float64, crop: Pixels) -> None:
    """Resample the part of the picture that the crop sees; OpenCV 4 takes no source from 32,767 pixels on."""
    size = len(crop)
    linear, shift = transform[:, :2], transform[:, 2]
    inverse = np.linalg.inv(linear)
    corners = (np.array([[0, 0], [size, 0], [0, size], [size, size]]) - shift) @ inverse.T
    limits = np.array(picture.shape[1::-1])
    # One pixel for the neighbour that bilinear interpolation takes, one for OpenCV's rounding of positions.
    first = np.clip(np.floor(corners.min(axis=0)) - 2, 0, limits).astype(int)
    last = np.clip(np.ceil(corners.max(axis=0)) + 2, 0, limits).astype(int)
    if (last <= first).any():
        return
    part = picture[first[1] : last[1], first[0] : last[0]]
    offset = linear @ first + shift
    cv2.warpAffine(
        part,
        np.column_stack([linear, offset]),
        (size, size),
        dst=crop,
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(0, 0, 0),
    )


def _landmarks(landmarks: npt.ArrayLike) -> Float64:
    points = np.asarray(landmarks, np.float64)
    if points.ndim != 3 or points.shape[1:] != (5, 2):
        raise UsageError(f"landmarks have the shape {points.shape}; expected (N, 5, 2): five points x, y of each face")
    return points


def _picture(picture: Any) -> Pixels:
    if not (isinstance(picture, np.ndarray) and picture.ndim == 3 and picture.shape[2] == 3 and picture.size):
        given = f"{picture.dtype} {picture.shape}" if isinstance(picture, np.ndarray) else type(picture).__name__
        raise UsageError(f"a picture was given as {given}; expected a uint8 array (height, width, 3), not empty")
    if picture.dtype != np.uint8:
        raise UsageError(f"a picture was given as {picture.dtype} {picture.shape}; expected uint8 samples")
    return picture
