"""From decoded planes to network input, in one definition for every format.

1. Chroma is replicated to the luma grid.
2. Each channel is resampled: output pixel centre (i + 0.5) maps to (i + 0.5) * source / target. At 1:1 samples are
   taken as they are; when enlarging or reducing by less than 2, bilinear between the four nearest centres, edges
   replicated; when either axis is reduced by 2 or more, the mean over the pixel's footprint.
3. The result is converted to BGR, clipped to 0..255 and rounded, turned upright, placed at the top left and padded with
   the mean; then, for float input, the mean is subtracted and the scale applied.

Because resampling is linear and comes before the only clip, planes may be resampled at their own resolution: reducing
chroma from half size is the same mean as reducing its replicated form.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from retinastream.kernels import colour
from retinastream.kernels.area import can_reduce, reduce_plane
from retinastream.kernels.sizing import Placement
from retinastream.models.spec import DetectorSpec
from retinastream.types import Frame

UInt8 = npt.NDArray[np.uint8]


def preprocess(
    frames: Sequence[Frame], placements: Sequence[Placement], spec: DetectorSpec, out: npt.NDArray[Any]
) -> None:
    """Fill a batch of network input from frames of any format.

    ``out`` is (batch, 3, height, width) float32, normalised in the spec's channel order, or (batch, height, width, 3)
    uint8 BGR for runtimes that normalise inside their graph. Its height and width are the placements' padded size.
    """
    planar = out.dtype == np.float32
    for slot, frame, placement in zip(out, frames, placements, strict=True):
        picture = np.empty((placement.padded_height, placement.padded_width, 3), np.uint8) if planar else slot
        _fill(frame, placement, spec, picture)
        if planar:
            _normalise_planar(picture, placement, spec, slot)


def _fill(frame: Frame, placement: Placement, spec: DetectorSpec, out: UInt8) -> None:
    """Write one padded BGR picture (padded height, padded width, 3)."""
    pad = np.rint(spec.mean if spec.channel_order == "bgr" else spec.mean[::-1]).astype(np.uint8)
    out[placement.height :] = pad
    out[: placement.height, placement.width :] = pad
    target = out[: placement.height, : placement.width]
    turned = frame.rotation in (90, 270)
    width, height = (placement.height, placement.width) if turned else (placement.width, placement.height)
    if frame.rotation == 0:
        _resample(frame, width, height, target)
    else:
        stored = np.empty((height, width, 3), np.uint8)
        _resample(frame, width, height, stored)
        target[...] = colour.upright(stored, frame)


def _resample(frame: Frame, width: int, height: int, out: UInt8) -> None:
    """Write the stored (not yet upright) picture as BGR at (height, width)."""
    if (width, height) == (frame.width, frame.height):
        if frame.format.is_yuv:
            colour.apply_matrix(colour.yuv444(frame), frame, colour.sample_unit(frame), out)
        else:
            out[...] = frame.planes[0]
        return
    if not frame.format.is_yuv:
        resize_bgr(frame.planes[0], width, height, out)
        return
    colour.apply_matrix(_resampled_yuv(frame, width, height), frame, 256.0, out)


def resize_bgr(picture: UInt8, width: int, height: int, out: UInt8) -> None:
    """Write a BGR picture (rows, columns, 3) to ``out`` (height, width, 3) by step 2."""
    if _reduces(picture.shape[1], picture.shape[0], width, height):
        out[...] = _resize(picture, width, height)
        return
    # Between samples of 8 bits OpenCV rounds down on the way: 12 % of the results were one level too dark.
    cv2.add(_resize(picture.astype(np.float32), width, height), colour.NOTHING, dst=out, dtype=cv2.CV_8U)


def _resampled_yuv(frame: Frame, width: int, height: int) -> npt.NDArray[np.uint16]:
    """Return (height, width, 3) uint16 of Y, U, V in 1/256 of an 8-bit code value."""
    fmt = frame.format
    if fmt.planes == 1:
        y = _resize(_to_16_bits(colour.luma(frame), frame), width, height)
        neutral = np.full_like(y, 128 << 8)
        return np.asarray(cv2.merge([y, neutral, neutral]), np.uint16)
    # A chroma sample at an odd edge stands for fewer luma samples, so its plane's footprints would be off: replicate.
    whole_cells = frame.width % fmt.sub_x == 0 and frame.height % fmt.sub_y == 0
    if _reduces(frame.width, frame.height, width, height) and whole_cells:
        planes = [colour.luma(frame), *colour.chroma(frame)]
    else:
        planes = [colour.luma(frame), *(colour.replicate(p, frame) for p in colour.chroma(frame))]
    return np.asarray(cv2.merge([_resampled_plane(p, frame, width, height) for p in planes]), np.uint16)


def _resampled_plane(plane: npt.NDArray[Any], frame: Frame, width: int, height: int) -> npt.NDArray[Any]:
    """Resample one plane to (height, width), in 1/256 of an 8-bit code value."""
    fmt = frame.format
    means = _reduces(frame.width, frame.height, width, height)
    if means and fmt.shift == 0 and can_reduce(plane, width, height, fmt.bits):
        return reduce_plane(plane, width, height, float(1 << (16 - fmt.bits)))
    return _resize_by(_to_16_bits(plane, frame), frame, width, height)


def _to_16_bits(plane: npt.NDArray[Any], frame: Frame) -> npt.NDArray[np.uint16]:
    """Scale samples so that one 8-bit code value is 256 units: keeps the rounding of the resampling below 1/256."""
    shift = 16 - frame.format.bits - frame.format.shift
    return np.ascontiguousarray(np.left_shift(plane, shift, dtype=np.uint16))


def _reduces(width: int, height: int, to_width: int, to_height: int) -> bool:
    # At exactly 2 both definitions are the mean of 2x2; this one is four times as fast.
    return width >= 2 * to_width or height >= 2 * to_height


def _resize_by(plane: npt.NDArray[np.uint16], frame: Frame, width: int, height: int) -> npt.NDArray[Any]:
    """Resize a plane by the rule of the whole picture's ratio, also when the plane itself is smaller."""
    if plane.shape[:2] == (height, width):
        return plane
    return _scale(plane, width, height, _reduces(frame.width, frame.height, width, height))


def _resize(plane: npt.NDArray[Any], width: int, height: int) -> npt.NDArray[Any]:
    return _scale(plane, width, height, _reduces(plane.shape[1], plane.shape[0], width, height))


def _scale(plane: npt.NDArray[Any], width: int, height: int, area: bool) -> npt.NDArray[Any]:
    if not area:
        return np.asarray(cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR))
    rows, columns = plane.shape[:2]
    if width > columns or height > rows:
        # INTER_AREA takes means only where neither axis is enlarged; over repeated samples they are the same means.
        plane = plane.repeat(-(-height // rows), axis=0).repeat(-(-width // columns), axis=1)
    return np.asarray(cv2.resize(plane, (width, height), interpolation=cv2.INTER_AREA))


def normalise(pictures: UInt8, spec: DetectorSpec, out: npt.NDArray[np.float32]) -> None:
    """Write (batch, height, width, 3) float32 from uint8 BGR: channels in the spec's order, minus mean, times scale."""
    mean = spec.mean if spec.channel_order == "bgr" else spec.mean[::-1]
    scalar = np.array([*mean, 0.0])  # four values: OpenCV then takes them for one pixel, not for a picture
    for picture, target in zip(pictures, out, strict=True):
        cv2.subtract(picture, scalar, dst=target, dtype=cv2.CV_32F)
        if spec.channel_order == "rgb":
            cv2.cvtColor(target, cv2.COLOR_BGR2RGB, dst=target)
        if spec.scale != 1.0:
            np.multiply(target, np.float32(spec.scale), out=target)


def _normalise_planar(picture: UInt8, placement: Placement, spec: DetectorSpec, out: npt.NDArray[np.float32]) -> None:
    """Write (3, height, width) float32 from padded BGR; the padding becomes exactly zero."""
    channels = cv2.split(picture)
    order = (0, 1, 2) if spec.channel_order == "bgr" else (2, 1, 0)
    for plane, source, mean in zip(out, order, spec.mean, strict=True):
        np.subtract(channels[source], np.float32(mean), out=plane)
        if spec.scale != 1.0:
            np.multiply(plane, np.float32(spec.scale), out=plane)
        plane[placement.height :] = 0
        plane[: placement.height, placement.width :] = 0
