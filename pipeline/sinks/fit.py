"""Pictures made ready to be drawn on and encoded: own memory, even sizes, one size for all."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt

from retinastream.kernels.colour import to_bgr
from retinastream.types import Faces, Frame

UInt8 = npt.NDArray[np.uint8]


def own_picture(frame: Frame) -> UInt8:
    """The upright picture, contiguous uint8 (height, width, 3) BGR, in memory that is not the caller's."""
    picture = to_bgr(frame)
    if not frame.format.is_yuv or not picture.flags.c_contiguous or not picture.flags.writeable:
        picture = np.array(picture, order="C")
    return picture


def even_size(width: int, height: int) -> tuple[int, int]:
    """The next even width and height: 4:2:0 has no odd ones."""
    return width + width % 2, height + height % 2


def even_picture(picture: UInt8) -> UInt8:
    """Repeat the last row and column where the size is odd."""
    height, width = picture.shape[:2]
    if (width, height) == even_size(width, height):
        return picture
    return np.asarray(cv2.copyMakeBorder(picture, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE), np.uint8)


def letterbox(picture: UInt8, faces: Faces, width: int, height: int) -> tuple[UInt8, Faces]:
    """Scale a picture into the middle of a black one of this size, keeping its shape, and its faces alike."""
    h, w = picture.shape[:2]
    scale = min(width / w, height / h)
    inner_w, inner_h = max(1, round(w * scale)), max(1, round(h * scale))
    left, top = (width - inner_w) // 2, (height - inner_h) // 2
    canvas = np.zeros((height, width, 3), np.uint8)
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    canvas[top : top + inner_h, left : left + inner_w] = cv2.resize(picture, (inner_w, inner_h), interpolation=way)
    factor = np.array([inner_w / w, inner_h / h], np.float32)
    shift = np.array([left, top], np.float32)
    boxes = (faces.boxes.reshape(-1, 2, 2) * factor + shift).reshape(-1, 4)
    return canvas, replace(faces, boxes=boxes, landmarks=faces.landmarks * factor + shift)
