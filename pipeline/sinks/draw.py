"""Faces drawn on a picture: boxes, landmarks, scores; sized to the picture, readable on dark and on bright."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from retinastream.errors import UsageError
from retinastream.types import Faces

UInt8 = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_FONT_CAP_HEIGHT = 21.0  # pixels of a digit at scale 1
_DARK: Colour = (16, 16, 16)
# OpenCV takes 32-bit integers and shifts them inside; this is beyond any picture and safe.
_FAR = 1 << 20


@dataclass(frozen=True, slots=True)
class Pen:
    """Sizes in pixels for one face: the line of the box, the outline on each side of it, and the height of digits."""

    line: int
    outline: int
    text: float


def draw(image_bgr: UInt8, faces: Faces) -> None:
    """Draw the faces on a picture (height, width, 3) uint8 BGR, in place; coordinates are pixels of that picture.

    The colour goes from red (score 0.5 and less) to green (1). Lines are 6 px at a long side of 3840 and thinner on
    faces too small for that. Text stays inside the picture. Raises UsageError for another kind of array.
    """
    if image_bgr.ndim != 3 or image_bgr.shape[2] != 3 or image_bgr.dtype != np.uint8:
        raise UsageError(
            f"a picture was given as {image_bgr.dtype} {image_bgr.shape}; "
            "expected uint8 (height, width, 3) in BGR order"
        )
    # Worst score first, so that the best face lies on top.
    for i in np.argsort(faces.scores, kind="stable").tolist():
        box, landmarks = faces.boxes[i], faces.landmarks[i]
        if not (np.isfinite(box).all() and np.isfinite(landmarks).all() and np.isfinite(faces.scores[i])):
            continue
        score = float(faces.scores[i])
        label = f"{score:.2f}" if faces.track_ids is None else f"#{faces.track_ids[i]} {score:.2f}"
        pen = choose_pen(max(image_bgr.shape[:2]), float(min(box[2] - box[0], box[3] - box[1])))
        colour = score_colour(score)
        _draw_box(image_bgr, box, pen, colour)
        _draw_landmarks(image_bgr, landmarks, pen, colour)
        _put_label(image_bgr, label, box, pen, colour)


def choose_pen(long_side: int, face_side: float) -> Pen:
    """Sizes for a face of this shorter side on a picture of this longer side, in pixels."""
    full = max(1, round(long_side / 640))
    line = int(np.clip(face_side / 12, min(2, full), full))
    text = max(8.0, min(long_side / 100, max(long_side / 200, face_side * 0.3)))
    return Pen(line, max(1, line // 3), text)


def score_colour(score: float) -> Colour:
    """Red at 0.5 and below, yellow at 0.75, green at 1; BGR."""
    hue = float(np.clip((score - 0.5) * 2, 0, 1)) / 3
    red, green, blue = colorsys.hsv_to_rgb(hue, 1.0, 1.0)
    return round(blue * 255), round(green * 255), round(red * 255)


def _draw_box(image: UInt8, box: npt.NDArray[np.float32], pen: Pen, colour: Colour) -> None:
    x1, y1, x2, y2 = _box_pixels(box)
    for shade, width in ((_DARK, pen.line + 2 * pen.outline), (colour, pen.line)):
        cv2.rectangle(image, (x1, y1), (x2, y2), shade, width)


def _draw_landmarks(image: UInt8, landmarks: npt.NDArray[np.float32], pen: Pen, colour: Colour) -> None:
    radius = max(1, pen.line)
    for x, y in landmarks:
        for shade, size in ((_DARK, radius + pen.outline), (colour, radius)):
            cv2.circle(image, (_pixel(x), _pixel(y)), size, shade, cv2.FILLED, cv2.LINE_AA)


def _put_label(image: UInt8, label: str, box: npt.NDArray[np.float32], pen: Pen, colour: Colour) -> None:
    """Write dark on a plate of the colour, above the box or below it where there is no room, inside the picture."""
    left, top, _, bottom = _box_pixels(box)
    height, width = image.shape[:2]
    scale = pen.text / _FONT_CAP_HEIGHT
    weight = max(1, round(pen.text / 10))
    (text_width, text_height), _ = cv2.getTextSize(label, _FONT, scale, weight)
    pad = max(1, round(pen.text / 4))
    plate_width, plate_height = text_width + 2 * pad, text_height + 2 * pad
    if plate_width > width or plate_height > height:
        return
    reach = pen.line // 2 + pen.outline
    y = top - reach - plate_height
    if y < 0:
        y = bottom + reach + 1
    x = int(np.clip(left - reach, 0, width - plate_width))
    y = int(np.clip(y, 0, height - plate_height))
    cv2.rectangle(image, (x, y), (x + plate_width - 1, y + plate_height - 1), colour, cv2.FILLED)
    # A plate, not an outline: newer OpenCV draws letters from a font file, where thickness is weight and no outline.
    cv2.putText(image, label, (x + pad, y + pad + text_height), _FONT, scale, _DARK, weight, cv2.LINE_AA)


def _box_pixels(box: npt.NDArray[np.float32]) -> tuple[int, int, int, int]:
    """First and last column and row of a box: a far edge belongs to the pixel before it."""
    x1, y1, x2, y2 = box
    return _pixel(x1), _pixel(y1), _pixel(np.ceil(x2) - 1), _pixel(np.ceil(y2) - 1)


def _pixel(coordinate: np.float32) -> int:
    """The pixel that contains a coordinate."""
    return int(np.clip(np.floor(coordinate), -_FAR, _FAR))
