"""The size of a picture file from its first bytes, without decoding it: JPEG and PNG, the rest is left to OpenCV.

JPEG: ITU-T T.81, annex B (markers); EXIF 2.32, clause 4.6.4 (orientation). PNG: W3C PNG 3, clause 11.2.1 (IHDR).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from retinastream.errors import InputError

# Frame headers: all of FFC0..FFCF but DHT (C4), JPG (C8) and DAC (CC).
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_END_OF_IMAGE = b"\xff\xd9"
_TURNED = (5, 6, 7, 8)


@dataclass(frozen=True, slots=True)
class PictureHeader:
    """Size of a picture, upright: ``width`` and ``height`` after the EXIF orientation (1..8) is applied."""

    width: int
    height: int
    orientation: int = 1


def read_header(content: bytes) -> PictureHeader | None:
    """Read the header of the picture file ``content``; None where only a decoder can tell the size.

    Raises InputError, with a reason for a report, for a JPEG or PNG file that is damaged or cut short.
    """
    if content.startswith(b"\xff\xd8"):
        return _read_jpeg(content)
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return _read_png(content)
    return None


def _read_png(content: bytes) -> PictureHeader | None:
    if content[12:16] != b"IHDR" or len(content) < 24:
        raise InputError("is a PNG file without a header")
    # Not at the very end: files with something appended still decode.
    if b"IEND" not in content[-4096:]:
        raise InputError("is a PNG file that is cut short")
    if b"eXIf" in content:
        return None
    width, height = struct.unpack(">II", content[16:24])
    return PictureHeader(width, height)


def _read_jpeg(content: bytes) -> PictureHeader | None:
    at, orientation = 2, 1
    while at + 4 <= len(content):
        if content[at] != 0xFF:
            return None  # decoders skip what lies between two segments
        marker = content[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # markers without a length
            at += 2
            continue
        length = int.from_bytes(content[at + 2 : at + 4], "big")
        segment = content[at + 4 : at + 2 + length]
        if marker in _FRAME_MARKERS and len(segment) >= 5:
            height, width = struct.unpack(">HH", segment[1:5])
            return _finish_jpeg(content, at, width, height, orientation)
        if marker in (0xD9, 0xDA):
            break
        if marker == 0xE1 and segment.startswith(b"Exif\0\0"):
            orientation = _orientation(segment[6:])
        at += 2 + length
    raise InputError("is a JPEG file without a frame header; is it cut short?")


def _finish_jpeg(content: bytes, at: int, width: int, height: int, orientation: int) -> PictureHeader:
    if content.rfind(_END_OF_IMAGE, at) < 0:
        raise InputError("is a JPEG file that is cut short")
    if not width or not height:
        raise InputError(f"is a JPEG file of {width}x{height} pixels")
    if orientation in _TURNED:
        width, height = height, width
    return PictureHeader(width, height, orientation)


def _orientation(tiff: bytes) -> int:
    """Read tag 0x0112 of the first directory of an EXIF block; 1 where it is absent or damaged, as decoders do."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return 1
    (start,) = struct.unpack(order + "I", tiff[4:8])
    if start + 2 > len(tiff):
        return 1
    (count,) = struct.unpack(order + "H", tiff[start : start + 2])
    for n in range(count):
        entry = tiff[start + 2 + 12 * n : start + 14 + 12 * n]
        if len(entry) == 12 and struct.unpack(order + "H", entry[:2])[0] == 0x0112:
            value: int = struct.unpack(order + "H", entry[8:10])[0]
            return value if 1 <= value <= 8 else 1
    return 1
