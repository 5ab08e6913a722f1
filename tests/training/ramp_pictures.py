"""Labelled pictures whose colours say where they were taken from: blue rises with x, green with y, red names them."""

import cv2
import numpy as np

from retinastream.evaluation.labelled_set import LabelledPicture

FIRST, LAST = 20.0, 235.0


def ramp(width, height, red=0):
    """A picture whose pixel centred at (x, y) has blue FIRST + x / width * (LAST - FIRST), green likewise of y."""
    x = (np.arange(width) + 0.5) / width
    y = (np.arange(height) + 0.5) / height
    picture = np.empty((height, width, 3), np.uint8)
    picture[..., 0] = np.rint(FIRST + (LAST - FIRST) * x)
    picture[..., 1] = np.rint(FIRST + (LAST - FIRST) * y)[:, None]
    picture[..., 2] = red
    return picture


def noise(width, height, seed):
    """Smooth noise: neighbouring pixels differ by some levels, so that a shift by a part of a pixel shows."""
    rng = np.random.default_rng(seed)
    rough = rng.integers(0, 256, (max(2, height // 6), max(2, width // 6), 3)).astype(np.float32)
    return np.clip(np.rint(cv2.resize(rough, (width, height), interpolation=cv2.INTER_CUBIC)), 0, 255).astype(np.uint8)


def faces(count, width, height, rng, *, low=6.0, landmarks=True):
    """Boxes (count, 4) inside the picture and landmarks (count, 5, 2) inside the boxes."""
    sides = np.exp(rng.uniform(np.log(low), np.log(0.6 * min(width, height)), (count, 1))) * rng.uniform(
        0.8, 1.2, (count, 2)
    )
    corner = rng.random((count, 2)) * (np.array([width, height]) - sides)
    boxes = np.concatenate([corner, corner + sides], axis=1).astype(np.float32)
    unit = np.array([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.8], [0.65, 0.8]])
    points = (corner[:, None] + sides[:, None] * unit).astype(np.float32)
    if not landmarks:
        points[:] = np.nan
    return boxes, points


def labelled(path, picture, boxes=(), landmarks=None, ignore=None, scores=None, *, sized=True):
    """Write a picture losslessly and label it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture)
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    count = len(boxes)
    if landmarks is None:
        landmarks = np.full((count, 5, 2), np.nan)
    return LabelledPicture(
        name=path.name,
        path=path,
        width=picture.shape[1] if sized else None,
        height=picture.shape[0] if sized else None,
        boxes=boxes,
        landmarks=np.asarray(landmarks, np.float32),
        ignore=np.zeros(count, bool) if ignore is None else np.asarray(ignore, bool),
        scores=np.ones(count, np.float32) if scores is None else np.asarray(scores, np.float32),
    )


def ramp_set(folder, *, seed=0, sizes=((400, 300), (250, 380), (640, 200), (320, 320))):
    """One ramp with some faces for each size."""
    rng = np.random.default_rng(seed)
    pictures = []
    for i, (width, height) in enumerate(sizes):
        boxes, points = faces(4 + i, width, height, rng)
        points[1] = np.nan
        ignore = np.zeros(len(boxes), bool)
        ignore[2] = True
        scores = np.linspace(0.5, 1, len(boxes))
        pictures.append(labelled(folder / f"{i}.png", ramp(width, height, 40 * i), boxes, points, ignore, scores))
    return pictures
