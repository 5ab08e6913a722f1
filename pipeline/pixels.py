"""From a decoded AVFrame to a Frame: planes viewed where they lie, colour and rotation read from the tags."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import Type as SideDataType
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane

from retinastream.types import PIXEL_FORMATS, Frame, Matrix, PixelFormat, Rotation

# FFmpeg's name -> ours, for the formats whose samples are used as they are. The yuvj names are the old way of saying
# "full range"; rgb24 is seen through a view with its channels reversed.
NATIVE_FORMATS: dict[str, PixelFormat] = {
    "nv12": PIXEL_FORMATS["nv12"],
    "p010le": PIXEL_FORMATS["p010"],
    "yuv420p": PIXEL_FORMATS["yuv420p"],
    "yuvj420p": PIXEL_FORMATS["yuv420p"],
    "yuv420p10le": PIXEL_FORMATS["yuv420p10"],
    "yuv422p": PIXEL_FORMATS["yuv422p"],
    "yuvj422p": PIXEL_FORMATS["yuv422p"],
    "yuv422p10le": PIXEL_FORMATS["yuv422p10"],
    "yuv444p": PIXEL_FORMATS["yuv444p"],
    "yuvj444p": PIXEL_FORMATS["yuv444p"],
    "yuv444p10le": PIXEL_FORMATS["yuv444p10"],
    "gray": PIXEL_FORMATS["gray"],
    "bgr24": PIXEL_FORMATS["bgr24"],
    "rgb24": PIXEL_FORMATS["bgr24"],
}

# ITU-T H.273 table 4. FCC (4) differs from BT.601 in the third decimal, SMPTE 240M (7) from BT.709 in the second.
_MATRICES: dict[int, Matrix] = {
    1: "bt709", 7: "bt709", 4: "bt601", 5: "bt601", 6: "bt601", 9: "bt2020", 10: "bt2020",
}  # fmt: skip
_UNSPECIFIED = (0, 2, 3)
_SWSCALE_MATRIX: dict[Matrix, int] = {"bt709": 1, "bt601": 5, "bt2020": 9}
_LIMITED, _FULL = 1, 2


@dataclass(slots=True)
class FrameBuilder:
    """Wraps the AVFrames of one source as Frames; ``warnings`` collects what a person should know, each line once."""

    source: str
    warnings: list[str] = field(default_factory=list)
    _rotation_tag: int | None = None
    _known_orientation: tuple[Rotation, bool] = (0, False)

    def to_frame(self, picture: VideoFrame, *, index: int, pts: int | None, time_base: Fraction | None) -> Frame:
        """Wrap one picture; its planes are read-only views that keep the decoder's buffer alive.

        Pixel formats that are not in ``NATIVE_FORMATS`` are converted by swscale, which is said once in ``warnings``.
        """
        matrix = self._matrix(picture)
        full_range = is_full_range(picture)
        rotation, mirrored = self._orientation(picture)
        native = self._to_native(picture, matrix, full_range=full_range)
        planes = plane_views(native)
        if mirrored:
            planes = tuple(np.ascontiguousarray(plane[:, ::-1]) for plane in planes)
        if picture.interlaced_frame:
            self._warn_once(
                "the video is interlaced: each picture holds two moments; moving faces may show combing "
                "(deinterlace it first, for example with FFmpeg's bwdif, if they are missed)"
            )
        return Frame(
            planes=planes,
            format=NATIVE_FORMATS[native.format.name],
            width=picture.width,
            height=picture.height,
            matrix=matrix,
            full_range=full_range,
            rotation=rotation,
            pts=pts,
            time_base=time_base,
            index=index,
            source=self.source,
            interlaced=picture.interlaced_frame,
            corrupt=picture.is_corrupt,
        )

    def _to_native(self, picture: VideoFrame, matrix: Matrix, *, full_range: bool) -> VideoFrame:
        name = picture.format.name
        # The rows of a bottom-up picture (negative line size) lie in reverse order: swscale turns it over.
        upside_down = any(plane.line_size < 0 for plane in picture.planes)
        if name in NATIVE_FORMATS and not upside_down:
            return picture
        target = name if name in NATIVE_FORMATS else nearest_format(picture.format)
        if target != name:
            self._warn_once(f"pixel format {name} is converted on the CPU to {target}")
        colour_range = _FULL if full_range else _LIMITED
        same = _SWSCALE_MATRIX[matrix]
        return picture.reformat(
            format=target,
            src_colorspace=same,
            dst_colorspace=same,
            src_color_range=colour_range,
            dst_color_range=colour_range,
            threads=1,
        )

    def _matrix(self, picture: VideoFrame) -> Matrix:
        tag = picture.colorspace
        if tag in _MATRICES:
            return _MATRICES[tag]
        guess: Matrix = "bt709" if picture.height >= 720 else "bt601"
        if tag not in _UNSPECIFIED and not picture.format.is_rgb:
            self._warn_once(f"colour matrix {tag} of ITU-T H.273 is not supported; colours are read as {guess}")
        return guess

    def _orientation(self, picture: VideoFrame) -> tuple[Rotation, bool]:
        tag = picture.rotation
        # Reading side_data ties a picture into a reference cycle (seen with PyAV 18.1), so that its memory, 12 MB at
        # 4K, waits for the garbage collector: it is read only where the tag changes. A picture without a tag keeps the
        # orientation, which belongs to the stream, because pictures that were recovered apart from it carry none.
        if tag == self._rotation_tag or (tag == 0 and self._rotation_tag is not None):
            return self._known_orientation
        self._rotation_tag = tag
        matrix = display_matrix(picture)
        if matrix is None:
            return self._known_orientation
        degrees, mirrored = orientation(matrix)
        rotation: Rotation = _QUARTER_TURNS[round(degrees / 90) % 4]
        if abs((degrees - rotation + 180) % 360 - 180) > 1:
            self._warn_once(f"the video asks for a rotation of {degrees:.0f} degrees; the nearest quarter turn is used")
        self._known_orientation = (rotation, mirrored)
        return self._known_orientation

    def _warn_once(self, line: str) -> None:
        if line not in self.warnings:
            self.warnings.append(line)


_QUARTER_TURNS: tuple[Rotation, Rotation, Rotation, Rotation] = (0, 90, 180, 270)


def display_matrix(picture: VideoFrame) -> tuple[int, ...] | None:
    """Return the nine 16.16 / 2.30 fixed-point numbers of the picture's display matrix, or None without one."""
    side_data: Any = picture.side_data
    for entry in side_data:
        if entry.type == SideDataType.DISPLAYMATRIX:
            return tuple(int(v) for v in np.frombuffer(entry, np.int32))
    return None


def orientation(matrix: tuple[int, ...]) -> tuple[float, bool]:
    """Split a display matrix into (degrees counter-clockwise, mirrored); mirrored means flipped left-right first.

    The matrix maps (x, y), y down, to (a x + c y, b x + d y) with a, b = matrix[0:2] and c, d = matrix[3:5]
    (ISO/IEC 14496-12, 6.2.2).
    """
    a, b, c, d = matrix[0], matrix[1], matrix[3], matrix[4]
    if a * d - b * c == 0:
        return 0.0, False
    mirrored = a * d - b * c < 0
    if mirrored:
        a, b = -a, -b
    return -math.degrees(math.atan2(b, a)), mirrored


def is_full_range(picture: VideoFrame) -> bool:
    """Whether black is 0 and white the largest value; grey without a tag counts as full, as swscale has it."""
    name = picture.format.name
    if name.startswith("yuvj") or picture.format.is_rgb or picture.format.has_palette:
        return True
    if name.startswith(("gray", "ya", "mono")):
        return picture.color_range != _LIMITED
    return picture.color_range == _FULL


def nearest_format(given: VideoFormat) -> str:
    """FFmpeg's name of the native format that keeps most of ``given``: colour model, chroma resolution, then depth.

    More than 8 bits become 10, except in grey and RGB, where they become 8.
    """
    if given.is_rgb or given.has_palette or given.is_bayer or given.name.startswith("xyz"):
        return "bgr24"
    if len(given.components) < 3:
        return "gray"
    # 64 is a multiple of every subsampling, so these divisions are exact.
    sub_x, sub_y = 64 // given.chroma_width(64), 64 // given.chroma_height(64)
    sampling = "420" if sub_x > 1 and sub_y > 1 else "422" if sub_x > 1 else "444"
    depth = "p10le" if given.components[0].bits > 8 else "p"
    return f"yuv{sampling}{depth}"


def plane_views(picture: VideoFrame) -> tuple[npt.NDArray[Any], ...]:
    """View the planes of a picture in a native format without copying: shapes of ``PixelFormat.plane_shapes``."""
    layout = NATIVE_FORMATS[picture.format.name]
    shapes = layout.plane_shapes(picture.width, picture.height)
    views = tuple(_view(plane, shape, layout) for plane, shape in zip(picture.planes, shapes, strict=True))
    return (views[0][..., ::-1],) if picture.format.name == "rgb24" else views


def _view(plane: VideoPlane, shape: tuple[int, ...], layout: PixelFormat) -> npt.NDArray[Any]:
    # Through the buffer and not DLPack, whose export rounds the chroma size of odd NV12 and P010 pictures down and so
    # loses their last column and row (seen with PyAV 18.1), and which PyAV 17 has for these two formats only.
    size = layout.dtype.itemsize
    strides = (plane.line_size, size) if len(shape) == 2 else (plane.line_size, shape[2] * size, size)
    view: npt.NDArray[Any] = np.ndarray(shape, layout.dtype, buffer=plane, strides=strides)
    view.flags.writeable = False
    return view
