"""Boxes and landmarks drawn in place, on the surface that an encoder takes.

A pixel belongs to the outline of a box where its centre lies within half the line's width of the box's border, to a
landmark where its centre lies within the radius of the point. Landmarks are above their box, left eye topmost, and the
first face is above the second. A chroma sample takes the colour of the topmost mark of the pixels that it stands for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from retinastream.errors import UsageError
from retinastream.kernels.surfaces import (
    chroma_cells,
    code_values,
    pixel_ranges,
    stored_boxes,
    stored_points,
    writable_channels,
)
from retinastream.types import Faces, Frame

Bgr = tuple[float, float, float]

BOX_COLOUR: Bgr = (0, 255, 0)
LANDMARK_COLOURS: tuple[Bgr, Bgr, Bgr, Bgr, Bgr] = (
    (255, 0, 0),
    (0, 0, 255),
    (0, 255, 255),
    (255, 0, 255),
    (255, 255, 0),
)
_BOX_MARK = 5  # after the five landmarks
_NO_MARK = np.iinfo(np.int32).max
_LARGEST = 1000.0


def draw_faces(
    frames: Sequence[Frame],
    faces: Sequence[Faces],
    *,
    thickness: float = 2.0,
    radius: float = 2.0,
    box_colour: Bgr = BOX_COLOUR,
    landmark_colours: Sequence[Bgr] = LANDMARK_COLOURS,
) -> None:
    """Draw the faces of every frame, in place.

    ``thickness`` of lines and ``radius`` of landmarks are pixels, colours B, G, R from 0 to 255. Frames are luma and
    chroma of any format. Boxes without area and points that are not finite are left out. UsageError for settings that
    are not allowed, for packed and for read-only pictures.
    """
    check_settings(thickness, radius, landmark_colours)
    for frame, found in zip(frames, faces, strict=True):
        channels = writable_channels(frame)
        colours = mark_colours(frame, box_colour, landmark_colours)
        marks = _marks(frame, found, thickness, radius)
        for k, channel in enumerate(channels):
            topmost = marks if k == 0 else chroma_cells(marks, frame, _NO_MARK).min(axis=2)
            drawn = topmost != _NO_MARK
            codes = colours[topmost[drawn] % (_BOX_MARK + 1), k] << frame.format.shift
            channel[drawn] = codes.astype(channel.dtype)


def check_settings(thickness: float, radius: float, landmark_colours: Sequence[Bgr]) -> None:
    """Raise UsageError for settings that no backend takes."""
    if not 0 <= thickness <= _LARGEST or not 0 <= radius <= _LARGEST:
        raise UsageError(f"thickness {thickness!r} and radius {radius!r} were given; expected 0 to 1000 pixels")
    if len(landmark_colours) != 5:
        raise UsageError(f"{len(landmark_colours)} landmark colours were given; expected 5")


def mark_colours(frame: Frame, box_colour: Bgr, landmark_colours: Sequence[Bgr]) -> npt.NDArray[np.int32]:
    """Return (6, 3) Y, U, V of the five landmarks and the box at the frame's depth."""
    return np.array([code_values(c, frame) for c in (*landmark_colours, box_colour)], np.int32)


def _marks(frame: Frame, faces: Faces, thickness: float, radius: float) -> npt.NDArray[np.int32]:
    """The topmost mark of every pixel, 6 * face + mark, painted from the last face to the first."""
    marks = np.full((frame.height, frame.width), _NO_MARK, np.int32)
    boxes, points = stored_boxes(faces.boxes, frame), stored_points(faces.landmarks, frame)
    half, radius = float(np.float32(thickness)) / 2, float(np.float32(radius))
    for face in reversed(range(len(faces))):
        _paint_outline(marks, boxes[face], half, 6 * face + _BOX_MARK)
        for landmark in reversed(range(5)):
            _paint_disc(marks, points[face, landmark], radius, 6 * face + landmark)
    return marks


def _paint_outline(marks: npt.NDArray[np.int32], box: npt.NDArray[np.float64], half: float, mark: int) -> None:
    if not (np.isfinite(box).all() and box[0] < box[2] and box[1] < box[3]):
        return
    outward = np.array([-half, -half, half, half])
    outer, inner = (np.maximum(pixel_ranges(b), 0) for b in (box + outward, box - outward))
    chosen = np.zeros(marks.shape, bool)
    chosen[outer[1] : outer[3], outer[0] : outer[2]] = True
    chosen[inner[1] : inner[3], inner[0] : inner[2]] = False
    marks[chosen] = mark


def _paint_disc(marks: npt.NDArray[np.int32], point: npt.NDArray[np.float64], radius: float, mark: int) -> None:
    if not np.isfinite(point).all():
        return
    reach = radius + 1
    x0, y0, x1, y1 = np.maximum(pixel_ranges(np.concatenate([point - reach, point + reach])), 0)
    area = marks[y0:y1, x0:x1]
    x, y = np.arange(area.shape[1]) + x0 + 0.5 - point[0], np.arange(area.shape[0]) + y0 + 0.5 - point[1]
    area[x**2 + (y**2)[:, None] <= radius**2] = mark
