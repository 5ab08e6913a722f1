"""Packets in, pictures out: decoding that loses no more than the packet that is broken."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import av.error
from av.codec.context import CodecContext, ThreadType
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from retinastream.pipeline.demuxing import VideoPacket

logger = logging.getLogger(__name__)

# What is kept for the recovery of the tail: whole groups of pictures with at least as many packets as FFmpeg can have
# in flight (16 threads and 16 pictures of reordering). A long 4K group is 20 MB.
_MIN_KEPT_PACKETS = 48
_MAX_KEPT_PACKETS = 1024
_MAX_KEPT_BYTES = 128 * 2**20


class PacketDecoder:
    """Decodes the packets of one stream with FFmpeg's threads.

    ``packets`` were given to the decoder, ``corrupt`` of them it refused, ``pictures`` came out.

    Frame threading returns the last pictures of a file all at once, and PyAV drops those that follow an error there
    (the call that would fetch them is refused once draining has begun). ``flush`` therefore decodes the last group of
    pictures again on one thread when the numbers do not add up, and returns the pictures that were lost.
    """

    def __init__(self, stream: VideoStream, *, threads: int) -> None:
        self.packets = 0
        self.corrupt = 0
        self.pictures = 0
        self._context = stream.codec_context
        self._context.thread_type = ThreadType.AUTO
        self._context.thread_count = threads
        self._groups: list[list[VideoPacket]] = []
        self._refused_before: list[int] = []
        self._kept_packets = 0
        self._kept_bytes = 0
        self._last_pts: int | None = None

    def decode(self, packet: VideoPacket) -> Iterator[VideoFrame]:
        """Yield the pictures that became ready with this packet; a packet that the decoder refuses is counted."""
        self.packets += 1
        self._keep(packet)
        try:
            pictures = self._context.decode(packet)
        except (av.error.FFmpegError, ValueError) as error:
            self._refuse(error)
            return
        yield from self._count(pictures)

    def flush(self) -> Iterator[VideoFrame]:
        """Yield the pictures that the decoder still holds; to be called once, after the last packet."""
        try:
            pictures = self._context.decode(None)
        except (av.error.FFmpegError, ValueError) as error:
            self._refuse(error)
            pictures = []
        yield from self._count(pictures)
        if self.pictures + self.corrupt < self.packets:
            yield from self._count(self._lost_tail())

    def _keep(self, packet: VideoPacket) -> None:
        groups = self._groups
        if packet.is_keyframe:
            groups.append([])
            self._refused_before.append(self.corrupt)
        if groups:
            groups[-1].append(packet)
            self._kept_packets += 1
            self._kept_bytes += packet.size
        while groups and (
            self._kept_packets - len(groups[0]) >= _MIN_KEPT_PACKETS
            or self._kept_packets > _MAX_KEPT_PACKETS
            or self._kept_bytes > _MAX_KEPT_BYTES
        ):
            dropped = groups.pop(0)
            self._refused_before.pop(0)
            self._kept_packets -= len(dropped)
            self._kept_bytes -= sum(packet.size for packet in dropped)

    def _refuse(self, error: Exception) -> None:
        self.corrupt += 1
        logger.debug("packet %d was refused: %s", self.packets, error)

    def _count(self, pictures: list[VideoFrame]) -> Iterator[VideoFrame]:
        for picture in pictures:
            self.pictures += 1
            if picture.pts is not None:
                self._last_pts = picture.pts
            yield picture

    def _lost_tail(self) -> list[VideoFrame]:
        """Decode the kept packets again, one after the other, and return what has not been seen of them."""
        if not self._groups or self._last_pts is None:
            return []
        alone = CodecContext.create(self._context.codec, "r")
        if not isinstance(alone, VideoCodecContext):
            return []
        alone.extradata = self._context.extradata
        alone.width, alone.height = self._context.width, self._context.height
        alone.pix_fmt = self._context.pix_fmt
        alone.thread_count = 1
        pictures: list[VideoFrame] = []
        refused = 0
        for packet in [*(packet for group in self._groups for packet in group), None]:
            try:
                pictures += alone.decode(packet)
            except (av.error.FFmpegError, ValueError):
                refused += 1
        self.corrupt = max(self.corrupt, self._refused_before[0] + refused)
        return [p for p in pictures if p.pts is not None and p.pts > self._last_pts]
