"""Where a decoded picture belongs: its index in the file, its timestamp, its time since the first picture."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction

from av.video.frame import VideoFrame

from retinastream.pipeline.demuxing import VideoPacket

# Packets of one group of pictures that are held while looking for the start; beyond, decoding begins at once.
_MAX_HELD_PACKETS = 4096
_MAX_HELD_BYTES = 256 * 2**20


@dataclass(slots=True)
class Approach:
    """The way to the start without decoding: which packets to decode first and which timestamps were passed.

    ``held`` are the packets from the last keyframe at or before the start. ``passed`` are the timestamps of all packets
    that will be or would have been pictures; the place of a timestamp among them is the index of its picture.
    """

    held: list[VideoPacket] = field(default_factory=list)
    passed: list[int] = field(default_factory=list)
    key_pts: int | None = None

    @property
    def first_pts(self) -> int | None:
        """The timestamp of the file's first picture, known where something was passed."""
        return min(self.passed, default=None)

    def index_of(self, pts: int) -> int:
        """How many pictures come before this timestamp."""
        return bisect_left(sorted(self.passed), pts)


def approach(packets: Iterable[VideoPacket], start: float, time_base: Fraction) -> Approach | None:
    """Read packets up to the first keyframe after ``start`` (seconds from the first picture).

    Reading a packet costs at most 2 ms at 4K where decoding it costs 25, needs no seeking (whose landing point
    differs between containers), and is the only way to know the index of what follows. Returns None where timestamps
    are missing or jump backwards, so that packets cannot be told apart by time: then decode from the beginning.
    """
    way = Approach()
    first_key: int | None = None
    first_pts: int | None = None
    held_bytes = 0
    for packet in packets:
        pts = packet.pts
        if pts is None:
            return None
        if packet.is_keyframe:
            if way.key_pts is not None and pts <= way.key_pts:
                return None
            first_key = pts if first_key is None else first_key
            is_after = first_pts is not None and (pts - first_pts) * time_base > start
            if not is_after:
                way.held, way.key_pts, held_bytes = [], pts, 0
        else:
            is_after = False
        if first_key is None:
            continue  # before the first keyframe nothing can be decoded
        way.held.append(packet)
        held_bytes += packet.size
        # Pictures before the first keyframe in time refer to packets that the file does not have.
        if pts >= first_key and not packet.is_discard:
            way.passed.append(pts)
            first_pts = pts if first_pts is None else min(first_pts, pts)
        if is_after or len(way.held) >= _MAX_HELD_PACKETS or held_bytes > _MAX_HELD_BYTES:
            break
    return way


@dataclass(frozen=True, slots=True)
class PlacedPicture:
    """A decoded picture, its index, its timestamp in ``time_base`` units and its seconds since the first picture."""

    picture: VideoFrame
    index: int
    pts: int | None
    time_base: Fraction
    since_first: Fraction | None


@dataclass(slots=True)
class Timeline:
    """Places the pictures of one pass; pictures without a timestamp continue from the one before.

    ``step`` is the distance of two pictures in ``time_base`` units where the rate is known; ``invented`` says whether a
    timestamp had to be made from it.
    """

    time_base: Fraction
    step: int | None
    way: Approach
    next_index: int = 0
    last_pts: int | None = None
    invented: bool = False
    _first_pts: int | None = None
    _seen_pts: int | None = None
    _seen_dts: int | None = None
    _pts_faults: int = 0
    _dts_faults: int = 0
    _is_counting: bool = False

    def __post_init__(self) -> None:
        """Count from the first picture where nothing was passed."""
        self._is_counting = self.way.key_pts is None

    def note(self, packet: VideoPacket) -> VideoPacket:
        """Return a packet read behind the approach; its time is remembered until pictures can be told by counting."""
        if not self._is_counting and packet.pts is not None and not packet.is_discard:
            self.way.passed.append(packet.pts)
        return packet

    def place(self, picture: VideoFrame) -> PlacedPicture:
        """Give a picture its index and time; to be called in the order of decoding."""
        pts = self._timestamp(picture)
        if not self._is_counting and pts is not None:
            self.next_index = self.way.index_of(pts)
            # Up to the keyframe, pictures may be missing that an unbroken run has.
            self._is_counting = self.way.key_pts is None or pts >= self.way.key_pts
        if self._first_pts is None:
            self._first_pts = pts if self.way.first_pts is None else self.way.first_pts
        index, self.next_index, self.last_pts = self.next_index, self.next_index + 1, pts
        since = None if pts is None or self._first_pts is None else (pts - self._first_pts) * self.time_base
        return PlacedPicture(picture, index, pts, self.time_base, since)

    def _timestamp(self, picture: VideoFrame) -> int | None:
        pts, dts = picture.pts, picture.dts
        self._pts_faults += _is_backward(pts, self._seen_pts)
        self._dts_faults += _is_backward(dts, self._seen_dts)
        self._seen_pts, self._seen_dts = pts, dts
        # AVI stores decoding times only, from which FFmpeg makes presentation times that jump back and forth where
        # pictures are reordered. As soon as they jump more often than the decoding times, they are not believed.
        if pts is not None and self._pts_faults <= self._dts_faults:
            return pts
        self.invented = self.invented or (pts is None and dts is None)
        if self.last_pts is None:
            return dts if dts is not None or self.step is None else 0
        distance = picture.duration or self.step
        if distance is None:
            return dts if dts is not None and dts > self.last_pts else None
        # A picture is never shown before its decoding time, nor before the picture that precedes it.
        return self.last_pts + distance if dts is None else max(dts, self.last_pts + distance)


def _is_backward(time: int | None, before: int | None) -> bool:
    return time is not None and before is not None and time <= before
