"""BGR pictures to H.264: the choice of the encoder, its settings, and the conversion of colours."""

from __future__ import annotations

import logging
from fractions import Fraction
from typing import Any, Literal

import av
import av.error
import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from retinastream.errors import UsageError

logger = logging.getLogger(__name__)

EncoderName = Literal["libx264", "h264_nvenc"]
EncoderChoice = Literal["auto", "libx264", "h264_nvenc"]

# H.273 code points of matrix, primaries and transfer (the same number for each of the two standards).
_BT709 = 1
_BT601 = 6

# swscale truncates by default, which darkens by half a level and takes up to 4 levels from pure colours; with these
# flags it rounds (22 instead of 16 ms for 4K).
_ROUNDING = int(
    Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP | Interpolation.BITEXACT
)


def choose_encoder(choice: EncoderChoice, width: int, height: int) -> EncoderName:
    """Return the encoder to use for pictures of this size; "auto" takes NVENC where it opens.

    That an encoder is compiled in says nothing about a GPU, and Hopper GPUs have no NVENC: only opening one tells.
    Raises UsageError for an unknown name, and for ``h264_nvenc`` where it does not open.
    """
    if choice not in ("auto", "libx264", "h264_nvenc"):
        raise UsageError(f"encoder {choice!r} is unknown; expected auto, libx264 or h264_nvenc")
    if choice == "libx264":
        return "libx264"
    reason = _why_not_nvenc(width, height)
    if reason is None:
        return "h264_nvenc"
    if choice == "h264_nvenc":
        raise UsageError(f"encoder h264_nvenc does not open here ({reason}); use auto or libx264")
    logger.debug("h264_nvenc does not open (%s): using libx264", reason)
    return "libx264"


def _why_not_nvenc(width: int, height: int) -> str | None:
    try:
        context: Any = av.CodecContext.create("h264_nvenc", "w")
        context.width, context.height, context.pix_fmt = width, height, "yuv420p"
        context.time_base = Fraction(1, 25)
        context.open()
    except (av.error.FFmpegError, ValueError) as error:
        return str(error)
    return None


def encoder_options(name: EncoderName, crf: int, preset: str) -> dict[str, str]:
    """Settings of one quality for either encoder, without frames held back: a crash then loses none of them."""
    if name == "libx264":
        return {"crf": str(crf), "preset": preset, "tune": "zerolatency"}
    return {"rc": "vbr", "cq": str(crf), "b": "0", "bf": "0", "zerolatency": "1", "delay": "0"}


def tag_colours(context: Any, height: int) -> None:
    """State in the stream what ``ColourConverter`` does for this height."""
    standard = _BT709 if height >= 720 else _BT601
    context.color_range = int(ColorRange.MPEG)
    context.colorspace = context.color_primaries = context.color_trc = standard


class ColourConverter:
    """BGR to limited-range 4:2:0, BT.709 from a height of 720 on and BT.601 below, as players assume."""

    def __init__(self) -> None:
        # One for all frames: a converter per frame costs megabytes of memory each.
        self._reformatter = VideoReformatter()

    def convert(self, image_bgr: npt.NDArray[np.uint8]) -> VideoFrame:
        """Return a contiguous picture (even height, even width, 3) uint8 as a frame in yuv420p."""
        high = image_bgr.shape[0] >= 720
        frame = self._reformatter.reformat(
            VideoFrame.from_numpy_buffer(image_bgr, format="bgr24"),
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709 if high else Colorspace.ITU601,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
            interpolation=_ROUNDING,
            threads=1,
        )
        frame.colorspace = frame.color_primaries = frame.color_trc = _BT709 if high else _BT601
        frame.color_range = int(ColorRange.MPEG)
        return frame
