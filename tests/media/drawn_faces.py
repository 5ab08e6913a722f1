"""Pictures with faces that are drawn, with their labels: skin, eyes, nose and mouth on a textured background."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

# Landmarks of an upright face of height 1 and width 0.8, as parts of its box: eyes, nose, mouth corners.
_POINTS = ((0.3, 0.4), (0.7, 0.4), (0.5, 0.6), (0.34, 0.78), (0.66, 0.78))


def background(width: int, height: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Return noise of several sizes in a few colours, with bars and discs that are no faces."""
    picture = np.zeros((height, width, 3), np.float32)
    for cells in (3, 9, 27):
        noise = rng.uniform(0, 255, (cells, cells, 3)).astype(np.float32)
        picture += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) / 3
    image = np.ascontiguousarray(np.clip(picture, 0, 255).astype(np.uint8))
    for _ in range(4):
        x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
        colour = tuple(int(v) for v in rng.integers(0, 256, 3))
        if rng.random() < 0.5:
            cv2.circle(image, (x, y), int(rng.integers(5, 30)), colour, -1, cv2.LINE_AA)
        else:
            cv2.rectangle(image, (x, y), (x + int(rng.integers(5, 60)), y + int(rng.integers(5, 60))), colour, -1)
    return image


def draw_face(
    image: npt.NDArray[np.uint8], left: float, top: float, height: float, rng: np.random.Generator
) -> tuple[list[float], list[float]]:
    """Draw one face; returns its box x0, y0, x1, y1 and the ten coordinates of its landmarks."""
    width = 0.8 * height
    points = [(left + px * width, top + py * height) for px, py in _POINTS]
    tone = rng.uniform(0.75, 1.05)
    skin = tuple(int(v * tone) for v in (150, 180, 225))
    centre = (left + width / 2, top + height / 2)
    _ellipse(image, centre, (width / 2, height / 2), skin)
    _ellipse(image, (centre[0], top + 0.14 * height), (0.36 * width, 0.14 * height), (30, 40, 60))
    for eye in points[:2]:
        _ellipse(image, eye, (0.12 * width, 0.06 * height), (245, 245, 245))
        _ellipse(image, eye, (0.05 * width, 0.05 * height), (40, 30, 30))
    _ellipse(image, points[2], (0.06 * width, 0.07 * height), tuple(int(v * 0.8) for v in skin))
    middle = ((points[3][0] + points[4][0]) / 2, points[3][1])
    _ellipse(image, middle, (0.16 * width, 0.05 * height), (60, 50, 170))
    return [left, top, left + width, top + height], [value for point in points for value in point]


def _ellipse(
    image: npt.NDArray[np.uint8], centre: tuple[float, float], axes: tuple[float, float], colour: tuple[int, ...]
) -> None:
    shift = 4
    at = tuple(round(v * 2**shift) for v in centre)
    size = tuple(max(1, round(v * 2**shift)) for v in axes)
    cv2.ellipse(image, at, size, 0, 0, 360, colour, -1, cv2.LINE_AA, shift)


def write_faces(
    folder: Path,
    *,
    pictures: int = 20,
    size: tuple[int, int] = (192, 160),
    heights: tuple[float, float] = (20, 90),
    most: int = 3,
    empty: int = 0,
    seed: int = 0,
) -> Path:
    """Write PNG pictures and their labels in the format "pack"; the last ``empty`` pictures show no face.

    Faces do not overlap. Returns the label file; the pictures lie in ``images`` beside it.
    """
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    labels: dict[str, Any] = {}
    for index in range(pictures):
        image = background(*size, rng)
        faces: list[list[float]] = []
        wanted = 0 if index >= pictures - empty else int(rng.integers(1, most + 1))
        for _ in range(50):
            if len(faces) == wanted:
                break
            height = float(np.exp(rng.uniform(*np.log(heights))))
            left, top = rng.uniform(0, size[0] - 0.8 * height), rng.uniform(0, size[1] - height)
            box = (left, top, left + 0.8 * height, top + height)
            if all(box[2] < f[0] or f[2] < box[0] or box[3] < f[1] or f[3] < box[1] for f in faces):
                drawn, points = draw_face(image, left, top, height, rng)
                faces.append([*drawn, *points, 0.99])
        name = f"drawn_{index:03d}.png"
        cv2.imwrite(str(folder / "images" / name), image)
        labels[name] = {
            "width": size[0],
            "height": size[1],
            "src": "drawn",
            "orig_size": list(size),
            "faces": [[round(v, 3) for v in face] for face in faces],
        }
    path = folder / "labels.json"
    path.write_text(json.dumps(labels), encoding="utf-8")
    return path
