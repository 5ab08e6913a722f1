"""Real media files made on the fly with PyAV, for every kind of input that tests need.

All functions return the path that they wrote. Pictures are deterministic: ``test_picture(width, height, i)``.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.stream import Disposition
from av.video.frame import VideoFrame

TS_PACKET = 188
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
FASTSTART = {"movflags": "faststart"}


def test_picture(width: int, height: int, index: int = 0) -> npt.NDArray[np.uint8]:
    """Return an RGB picture (height, width, 3): gradients and a bright square that moves with ``index``."""
    y, x = np.mgrid[0:height, 0:width]
    picture = np.stack([x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1), (x + y + 16 * index) % 256], -1)
    side = max(1, min(width, height) // 4)
    left = (index * 3) % max(1, width - side)
    picture[:side, left : left + side] = 250
    return picture.astype(np.uint8)


test_picture.__test__ = False  # type: ignore[attr-defined]


def rgb_frame(picture: npt.NDArray[np.uint8]) -> VideoFrame:
    """Wrap an RGB picture."""
    return VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")


def random_frame(width: int, height: int, pix_fmt: str, seed: int = 0) -> VideoFrame:
    """Return a frame whose samples are random within their depth, padding included."""
    frame = VideoFrame(width, height, pix_fmt)
    rng = np.random.default_rng(seed)
    bits = frame.format.components[0].bits
    for plane in frame.planes:
        if bits == 8:
            samples = rng.integers(0, 256, plane.buffer_size).astype(np.uint8)
        else:
            samples = rng.integers(0, 2**bits, plane.buffer_size // 2).astype(np.uint16)
            samples = samples << 6 if pix_fmt.startswith("p010") else samples
        plane.update(samples.tobytes())
    return frame


def write_video(
    path: Path,
    *,
    frames: int = 10,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rate: int = 25,
    gop: int = 5,
    b_frames: int = 0,
    pts: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    pictures: Sequence[VideoFrame] | None = None,
    colorspace: int | None = None,
    color_range: int | None = None,
    rotation: float | None = None,
    hflip: bool = False,
    vflip: bool = False,
    interlaced: bool = False,
    audio: bool = False,
    options: Mapping[str, str] | None = None,
    container_options: Mapping[str, str] | None = None,
    container_format: str | None = None,
) -> Path:
    """Write ``frames`` test pictures, or the given ``pictures``; ``pts`` (in ``time_base``) makes a variable rate."""
    settings = dict(options or {})
    if codec == "libx264":
        interlace = ":tff=1" if interlaced else ""
        settings.setdefault("preset", "ultrafast")
        settings.setdefault("x264-params", f"bframes={b_frames}:keyint={gop}:scenecut=0:threads=1{interlace}")
    if codec == "libx265":
        settings.setdefault("preset", "ultrafast")
        settings.setdefault("x265-params", f"log-level=none:bframes={b_frames}:keyint={gop}:pools=1:frame-threads=1")
    if pictures is not None:
        frames, size = len(pictures), (pictures[0].width, pictures[0].height)
    with av.open(str(path), "w", format=container_format, options=dict(container_options or {})) as output:
        stream: Any = output.add_stream(codec, rate=rate, options=settings)
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        if codec not in ("libx264", "libx265"):
            stream.gop_size = gop
            stream.max_b_frames = b_frames
        if time_base is not None:
            stream.codec_context.time_base = time_base
        if colorspace is not None:
            stream.codec_context.colorspace = colorspace
        if color_range is not None:
            stream.codec_context.color_range = color_range
        if rotation is not None or hflip or vflip:
            stream.set_display_rotation(rotation or 0, hflip=hflip, vflip=vflip)
        sound = output.add_stream("aac", rate=48000, layout="mono") if audio else None
        for i in range(frames):
            frame = pictures[i] if pictures is not None else rgb_frame(test_picture(*size, i))
            if frame.format.name != pix_fmt:
                frame = frame.reformat(format=pix_fmt)
            frame.pts = i if pts is None else pts[i]
            frame.time_base = time_base or Fraction(1, rate)
            if colorspace is not None:
                frame.colorspace = colorspace
            if color_range is not None:
                frame.color_range = color_range
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if sound is not None:
            _write_tone(output, sound, seconds=frames / rate)
    return path


def _write_tone(output: Any, stream: Any, *, seconds: float) -> None:
    for start in range(0, int(seconds * 48000), 1024):
        wave = np.sin((np.arange(start, start + 1024)) * 0.05).astype(np.float32)[None] * 0.2
        frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
        output.mux(stream.encode(frame))
    output.mux(stream.encode(None))


def write_audio(path: Path, *, seconds: float = 0.5, cover: bool = False) -> Path:
    """Write a tone without video; ``cover`` adds a picture marked as cover art (use .mp4 or .m4a)."""
    with av.open(str(path), "w", format="mp4") as output:
        sound: Any = output.add_stream("aac", rate=48000, layout="mono")
        if cover:
            art: Any = output.add_stream("png")
            art.width, art.height, art.pix_fmt = 32, 32, "rgb24"
            art.disposition = Disposition.attached_pic
            packets = [*art.encode(rgb_frame(test_picture(32, 32))), *art.encode(None)]
            output.mux(packets)
        _write_tone(output, sound, seconds=seconds)
    return path


def write_empty_video(path: Path) -> Path:
    """Write a container with a video stream that holds no picture."""
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        output.start_encoding()
    return path


def write_size_change(path: Path, sizes: Sequence[tuple[int, int]], *, frames: int = 10) -> Path:
    """Write a transport stream whose picture size changes: one part of ``frames`` pictures per size, joined."""
    parts = []
    for i, size in enumerate(sizes):
        part = write_video(path.with_name(f"{path.stem}_part{i}.ts"), frames=frames, size=size)
        parts.append(part.read_bytes())
        part.unlink()
    path.write_bytes(b"".join(parts))
    return path


def write_without_decoder(path: Path) -> Path:
    """Write an MP4 whose codec tag no decoder knows."""
    write_video(path)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zq9x"))
    return path


def cut(source: Path, target: Path, fraction: float) -> Path:
    """Copy the first ``fraction`` of a file's bytes."""
    content = source.read_bytes()
    target.write_bytes(content[: int(len(content) * fraction)])
    return target


def cut_inside_last_sample(source: Path, target: Path, *, missing: int = 20) -> Path:
    """Copy a fragmented MP4 up to ``missing`` bytes before the end of its last mdat box."""
    content = source.read_bytes()
    end = 0
    position = 0
    while position + 8 <= len(content):
        length, kind = struct.unpack(">I4s", content[position : position + 8])
        position += length
        if kind == b"mdat":
            end = position
    target.write_bytes(content[: end - missing])
    return target


def damage(
    source: Path, target: Path, *, spots: int = 10, first: float = 0.2, last: float = 0.9, seed: int = 0
) -> Path:
    """Copy a file with ``spots`` runs of 16 random bytes between the given fractions of its length."""
    content = bytearray(source.read_bytes())
    rng = np.random.default_rng(seed)
    for place in rng.integers(int(len(content) * first), int(len(content) * last), spots):
        content[place : place + 16] = rng.integers(0, 256, 16).astype(np.uint8).tobytes()
    target.write_bytes(bytes(content))
    return target


def damage_ts(source: Path, target: Path, packets: Sequence[int]) -> Path:
    """Copy a transport stream with the payload of these packets replaced by noise."""
    content = bytearray(source.read_bytes())
    rng = np.random.default_rng(1)
    for number in packets:
        start = number * TS_PACKET
        content[start + 24 : start + TS_PACKET] = rng.integers(0, 256, TS_PACKET - 24).astype(np.uint8).tobytes()
    target.write_bytes(bytes(content))
    return target


def with_orientation(jpeg: bytes, orientation: int) -> bytes:
    """Return a JPEG with an EXIF block that holds this orientation (1..8)."""
    tag = struct.pack("<HHII", 0x0112, 3, 1, orientation)
    tiff = b"II*\0" + struct.pack("<IH", 8, 1) + tag + struct.pack("<I", 0)
    block = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + jpeg[2:]
