"""Video files of every kind, whole and broken: which frames come, which numbers they carry, which errors are said."""

from __future__ import annotations

import errno
import gc
import io
import itertools
import os
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from media.builders import (
    FASTSTART,
    FRAGMENTED,
    cut,
    cut_inside_last_sample,
    damage,
    damage_ts,
    write_audio,
    write_empty_video,
    write_size_change,
    write_video,
    write_without_decoder,
)
from retinastream.errors import InputError, UsageError
from retinastream.pipeline import demuxing, timeline
from retinastream.pipeline.decoding import PacketDecoder
from retinastream.pipeline.video import VideoSource, open_video
from retinastream.types import Frame


def read(path: Path, **options) -> tuple[list[Frame], VideoSource]:
    with open_video(path, **options) as source:
        frames = list(source)
    counts = source.counts
    assert counts.read == counts.decoded + counts.corrupt
    assert counts.decoded == counts.skipped + len(frames)
    return frames, source


def identity(frame: Frame) -> tuple:
    return frame.index, frame.pts, frame.width, frame.planes[0].tobytes()


def threads_of_this_process() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


# ---------------------------------------------------------------------------------------------- what a file says


def test_info_describes_the_file_before_its_frames_are_read(tmp_path):
    file = write_video(tmp_path / "a.mp4", frames=10, size=(64, 48), rate=25, audio=True, rotation=90)
    with open_video(file) as source:
        info = source.info
    assert (info.name, info.kind, info.width, info.height) == ("a.mp4", "video", 48, 64)
    assert (info.fps, info.promised_frames, info.codec, info.pixel_format) == (25.0, 10, "h264", "yuv420p")
    assert info.duration == pytest.approx(0.4, abs=0.01)
    assert (info.decoder, info.has_audio) == ("h264 (CPU)", True)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_frames_come_in_order_with_index_and_exact_time(threads, tmp_path):
    frames, source = read(write_video(tmp_path / "a.mp4", frames=12, b_frames=3), threads=threads)
    assert [f.index for f in frames] == list(range(12))
    assert [f.pts * f.time_base for f in frames] == [Fraction(i, 25) for i in range(12)]
    assert source.counts.packets == source.counts.decoded == 12
    assert {f.source for f in frames} == {str(tmp_path / "a.mp4")}
    assert source.warnings == []


def test_variable_frame_rate_keeps_every_timestamp(tmp_path):
    pts = [0, 1, 5, 6, 20, 21, 22, 40, 41, 90]
    frames, _ = read(write_video(tmp_path / "v.mp4", pts=pts, time_base=Fraction(1, 600), b_frames=2))
    assert [f.pts * f.time_base * 600 for f in frames] == pts


def test_ten_bit_hevc_with_hdr_tags(tmp_path):
    file = write_video(
        tmp_path / "h.mp4", codec="libx265", pix_fmt="yuv420p10le", colorspace=9, color_range=1, frames=3
    )
    frames, _ = read(file)
    assert {(f.format.name, f.matrix, f.full_range) for f in frames} == {("yuv420p10", "bt2020", False)}
    assert max(int(f.planes[0].max()) for f in frames) <= 1023


def test_full_range_tag(tmp_path):
    frames, _ = read(write_video(tmp_path / "f.mp4", pix_fmt="yuv420p", color_range=2, colorspace=1, frames=2))
    assert {(f.full_range, f.matrix) for f in frames} == {(True, "bt709")}


def test_raw_h264_has_no_timestamps_so_they_are_counted_and_this_is_said(tmp_path):
    frames, source = read(write_video(tmp_path / "x.h264", container_format="h264", frames=5))
    assert [f.seconds for f in frames] == pytest.approx([i / 25 for i in range(5)])
    assert source.warnings == ["the file gives no timestamps for some pictures; they are counted on at its frame rate"]


def test_avi_times_increase_although_the_container_stores_decoding_times_only(tmp_path):
    frames, _ = read(write_video(tmp_path / "x.avi", frames=20, b_frames=2))
    assert all(one.pts < other.pts for one, other in itertools.pairwise(frames))


def test_an_animated_gif_is_a_video(tmp_path):
    frames, source = read(write_video(tmp_path / "x.gif", codec="gif", pix_fmt="rgb8", frames=4))
    assert [(f.index, f.format.name) for f in frames] == [(i, "bgr24") for i in range(4)]
    assert source.warnings == ["pixel format bgra is converted on the CPU to bgr24"]


def test_size_change_in_mid_stream_delivers_frames_of_the_new_size(tmp_path):
    frames, source = read(write_size_change(tmp_path / "s.ts", [(64, 48), (128, 96)], frames=10))
    assert [(f.width, f.height) for f in frames] == [(64, 48)] * 10 + [(128, 96)] * 10
    assert [f.index for f in frames] == list(range(20))
    assert frames[10].planes[0].shape == (96, 128)
    assert (source.info.width, source.info.height) == (64, 48)


@pytest.mark.parametrize(
    "name", ["per%03dcent.mp4", "co:lon.mp4", "-dash.mp4", "with space ü 顔.mp4", "[a]*?.mp4", "http:x"]
)
def test_names_are_taken_literally(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "plain.mp4", frames=3).rename(tmp_path / name)
    frames, _ = read(Path(name))
    assert len(frames) == 3 and frames[0].source == name


def test_video_is_found_beside_other_streams(tmp_path):
    frames, source = read(write_video(tmp_path / "a.mkv", audio=True, frames=5))
    assert len(frames) == 5 and source.info.has_audio and source.counts.packets == 5


# ------------------------------------------------------------------------------------------------- parts of a file

PARTS = {
    "mp4": {"b_frames": 3, "gop": 8, "container_options": FASTSTART},
    "open_gop.mp4": {"options": {"preset": "ultrafast", "x264-params": "bframes=3:keyint=8:open-gop=1:scenecut=0"}},
    "intra_refresh.mkv": {"options": {"preset": "ultrafast", "x264-params": "intra-refresh=1:keyint=10:bframes=0"}},
    "hevc.mkv": {
        "codec": "libx265",
        "options": {"preset": "ultrafast", "x265-params": "log-level=none:bframes=3:keyint=8:min-keyint=8:open-gop=1"},
    },
    "ts": {"b_frames": 2, "gop": 8},
    "mpeg2.ts": {"codec": "mpeg2video", "b_frames": 2, "gop": 8},
    "vp8.webm": {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8"}},
    "avi": {"b_frames": 2, "gop": 8},
    "h264": {"b_frames": 2, "gop": 8, "container_format": "h264"},
    "vfr.mkv": {
        "b_frames": 2,
        "pts": list(itertools.accumulate([1, 5, 3, 40, 2, 7, 9, 11] * 5)),
        "time_base": Fraction(1, 100),
    },
}


@pytest.fixture(scope="module")
def part_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    files = {}
    for name, options in PARTS.items():
        file = write_video(folder / f"x.{name}", frames=40, **options)
        files[name] = (file, read(file)[0])
    return files


def sliced(full: list[Frame], start=None, end=None, stride=1, max_frames=None) -> list[Frame]:
    """Say by plain slicing of the whole run what a part is."""
    zero = full[0].seconds
    times = [f.seconds - zero + 1e-9 for f in full]
    first = next((i for i, t in enumerate(times) if start is None or t >= start), len(full))
    last = next((i for i, t in enumerate(times) if end is not None and t >= end), len(full))
    return full[first:last][::stride][:max_frames]


@pytest.mark.parametrize("start", [0, 0.04, 0.3, 0.32, 0.5, 1.0, 1.3])
@pytest.mark.parametrize("name", PARTS)
def test_a_run_from_the_middle_equals_that_part_of_the_whole_run(name, start, part_files):
    file, full = part_files[name]
    frames, _ = read(file, start=start)
    assert [identity(f) for f in frames] == [identity(f) for f in sliced(full, start)]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.none() | st.integers(0, 38).map(lambda i: i / 25),
    length=st.none() | st.integers(1, 40).map(lambda i: i / 25),
    stride=st.integers(1, 9),
    max_frames=st.none() | st.integers(1, 20),
)
def test_any_combination_of_limits_equals_slicing(start, length, stride, max_frames, part_files):
    file, full = part_files["mp4"]
    end = None if length is None else (start or 0) + length
    frames, source = read(file, start=start, end=end, stride=stride, max_frames=max_frames, threads=1)
    expected = sliced(full, start, end, stride, max_frames)
    assert [identity(f) for f in frames] == [identity(f) for f in expected]
    assert source.counts.delivered == len(expected)


@pytest.mark.parametrize("name", ["open_gop.mp4", "hevc.mkv", "ts"])
def test_a_very_long_group_of_pictures_is_not_held_in_memory_and_changes_nothing(name, part_files, monkeypatch):
    monkeypatch.setattr(timeline, "_MAX_HELD_PACKETS", 3)
    file, full = part_files[name]
    frames, source = read(file, start=1.0)
    assert [identity(f) for f in frames] == [identity(f) for f in sliced(full, 1.0)]
    assert source.counts.decoded > len(frames) + 8


def test_packets_before_the_start_are_not_decoded(part_files):
    file, _ = part_files["mp4"]
    _, source = read(file, start=1.3)
    assert source.counts.packets == 40 and source.counts.decoded <= 8 + 1


def test_start_counts_from_the_first_picture_also_where_the_container_starts_later(tmp_path):
    file = write_video(tmp_path / "x.ts", frames=20, b_frames=2)
    first = read(file)[0][0]
    assert first.seconds > 0
    assert read(file, start=0.4)[0][0].index == 10


def test_a_printed_time_selects_its_picture(tmp_path):
    file = write_video(tmp_path / "x.mkv", frames=9, rate=3, time_base=Fraction(1, 3))
    printed = f"{read(file)[0][4].seconds:.6f}"
    assert read(file, start=float(printed))[0][0].index == 4


def test_ranges_that_touch_share_no_picture(part_files):
    file, full = part_files["ts"]
    left, right = read(file, end=0.52)[0], read(file, start=0.52)[0]
    assert [f.index for f in left + right] == [f.index for f in full]


def test_a_start_behind_the_end_names_the_duration(tmp_path):
    file = write_video(tmp_path / "a.mp4", frames=10)
    with open_video(file, start=99) as source, pytest.raises(UsageError, match=r"start \(99 s\).* 0\.400 s long"):
        list(source)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 0}, "stride was given as 0; expected a whole number, 1"),
        ({"stride": -2}, "stride was given as -2"),
        ({"stride": 1.5}, "stride was given as 1.5"),
        ({"stride": True}, "stride was given as True"),
        ({"max_frames": 0}, "max_frames was given as 0; expected a whole number, 1 or more"),
        ({"start": -1}, "start was given as -1; expected seconds"),
        ({"start": float("nan")}, "start was given as nan"),
        ({"end": float("inf")}, "end was given as inf"),
        ({"start": "1"}, "start was given as '1'"),
        ({"start": 2, "end": 1}, "end .1 s. is not after start .2 s."),
        ({"start": 2, "end": 2}, "expected end > start"),
        ({"threads": -1}, "threads was given as -1; expected a whole number, 0"),
    ],
)
def test_values_that_are_not_allowed_are_refused_before_the_file_is_touched(options, message):
    with pytest.raises(UsageError, match=message):
        open_video("does-not-exist.mp4", **options)


# ---------------------------------------------------------------------------------------------------- broken files


def test_a_file_cut_short_delivers_what_exists_and_says_how_many_were_promised(tmp_path):
    whole = write_video(tmp_path / "a.mp4", frames=120, container_options=FASTSTART)
    frames, source = read(cut(whole, tmp_path / "b.mp4", 0.6))
    assert 50 < len(frames) < 90
    assert source.info.promised_frames == 120
    assert source.warnings == [f"{len(frames)} of 120 promised frames exist (file is cut short)"]


@pytest.mark.parametrize("threads", [1, 4])
def test_a_fragmented_file_cut_inside_its_last_sample_loses_that_sample_only(threads, tmp_path):
    whole = write_video(
        tmp_path / "f.mp4", frames=60, gop=30, b_frames=2, size=(320, 240), container_options=FRAGMENTED
    )
    frames, source = read(cut_inside_last_sample(whole, tmp_path / "g.mp4"), threads=threads)
    assert len(frames) == 59
    assert (source.counts.packets, source.counts.decoded, source.counts.corrupt) == (60, 59, 1)


def replace_demux(monkeypatch, demux) -> None:
    """Let containers that are opened from now on read through ``demux(container, stream)``."""
    real_open = demuxing.open_container

    class Container:
        def __init__(self, path):
            self.real = real_open(path)

        def __getattr__(self, name):
            return getattr(self.real, name)

        def demux(self, stream):
            return demux(self.real, stream)

    monkeypatch.setattr(demuxing, "open_container", Container)


def break_png(file: Path, number: int) -> None:
    """Damage the signature of the PNG picture with this number, which its decoder refuses."""
    signature = b"\x89PNG\r\n\x1a\n"
    parts = file.read_bytes().split(signature)
    file.write_bytes(signature.join(parts[: number + 1]) + b"!garbage" + signature.join(parts[number + 1 :]))


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("broken", [0, 4, 9, 10, 11])
def test_a_packet_that_the_decoder_refuses_costs_itself_only(broken, threads, tmp_path):
    file = write_video(tmp_path / "p.mov", codec="png", pix_fmt="rgb24", frames=12)
    expected = [f.pts for i, f in enumerate(read(file)[0]) if i != broken]
    break_png(file, broken)
    frames, source = read(file, threads=threads)
    assert [f.pts for f in frames] == expected
    assert (source.counts.packets, source.counts.decoded, source.counts.corrupt) == (12, 11, 1)


def test_the_recovery_of_the_tail_is_what_saves_the_pictures_behind_the_broken_packet(tmp_path, monkeypatch):
    file = write_video(tmp_path / "p.mov", codec="png", pix_fmt="rgb24", frames=12)
    break_png(file, 9)
    monkeypatch.setattr(PacketDecoder, "_lost_tail", lambda self: [])
    assert len(read(file, threads=4)[0]) < 11


def test_recovered_pictures_keep_the_rotation_of_their_stream(tmp_path):
    file = write_video(tmp_path / "p.mov", codec="png", pix_fmt="rgb24", frames=12, rotation=90)
    break_png(file, 9)
    frames, _ = read(file, threads=4)
    assert [f.rotation for f in frames] == [90] * 11


def test_a_damaged_container_gives_what_lies_before_and_behind_the_damage(tmp_path):
    whole = write_video(tmp_path / "a.mkv", frames=100, size=(320, 240), gop=10)
    frames, _ = read(damage(whole, tmp_path / "b.mkv", spots=30))
    assert 50 < len(frames) <= 100
    assert frames[-1].seconds > 3.5
    assert [f.index for f in frames] == list(range(len(frames)))


def test_a_container_that_ends_in_rubbish_says_where(tmp_path, monkeypatch):
    file = write_video(tmp_path / "a.mp4", frames=10)

    taken = iter([6])

    def demux(real, stream):
        yield from itertools.islice(real.demux(stream), next(taken, 0))
        raise av.error.InvalidDataError(1094995529, "Invalid data found when processing input", str(file))

    with open_video(file) as source:
        replace_demux(monkeypatch, demux)
        assert len(list(source)) == 6
        assert source.warnings == [
            "the container is damaged: nothing could be read behind packet 6",
            "6 of 10 promised frames exist (file is cut short)",
        ]


def test_damaged_pictures_of_a_transport_stream_are_delivered_and_flagged(tmp_path):
    whole = write_video(tmp_path / "a.ts", frames=100, size=(320, 240))
    frames, source = read(damage_ts(whole, tmp_path / "b.ts", range(100, 600, 40)))
    assert 90 <= len(frames) <= 100
    assert source.counts.damaged == sum(f.corrupt for f in frames) > 0
    assert not frames[0].corrupt


def test_damaged_spots_of_an_mp4_cost_no_frame(tmp_path):
    whole = write_video(tmp_path / "a.mp4", frames=100, size=(320, 240), container_options=FASTSTART)
    frames, source = read(damage(whole, tmp_path / "b.mp4", spots=40))
    assert [f.index for f in frames] == list(range(len(frames)))
    assert source.counts.read == 100
    assert source.counts.damaged > 0


def test_a_read_error_of_the_disk_is_named(tmp_path, monkeypatch):
    file = write_video(tmp_path / "a.mp4", frames=10)

    def demux(real, stream):
        yield from itertools.islice(real.demux(stream), 4)
        raise av.error.OSError(errno.EIO, "Input/output error", str(file))

    with open_video(file) as source:
        replace_demux(monkeypatch, demux)
        with pytest.raises(InputError, match=r"a\.mp4: reading failed after 4 video packets .*check the disk"):
            list(source)


def make_unreadable_text(folder: Path) -> Path:
    (folder / "notes.mp4").write_text("These are notes.\nNot a video.\n")
    return folder / "notes.mp4"


def make_empty(folder: Path) -> Path:
    (folder / "empty.mp4").write_bytes(b"")
    return folder / "empty.mp4"


def make_noise(folder: Path) -> Path:
    (folder / "noise.mkv").write_bytes(np.random.default_rng(0).integers(0, 256, 5000).astype(np.uint8).tobytes())
    return folder / "noise.mkv"


def make_undecodable(folder: Path) -> Path:
    file = write_video(folder / "p.mov", codec="png", pix_fmt="rgb24", frames=3)
    file.write_bytes(file.read_bytes().replace(b"\x89PNG\r\n\x1a\n", b"!garbage"))
    return file


def make_fifo(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.mp4")
    return folder / "pipe.mp4"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: d / "nope.mp4", r"nope\.mp4: no such file"),
        (lambda d: make_empty(d) / "x.mp4", "no such file"),
        (lambda d: d / ("x" * 300), "name is too long"),
        (lambda d: d, "is a directory; expected a video file"),
        (make_fifo, "is not a regular file"),
        (make_empty, r"is empty \(0 bytes\)"),
        (make_unreadable_text, "holds text, not video"),
        (make_noise, "is not a media file that FFmpeg recognises"),
        (lambda d: cut(write_video(d / "w.mp4"), d / "c.mp4", 0.5), "without its index .no moov box."),
        (lambda d: write_audio(d / "a.m4a"), r"contains no video \(found audio\)"),
        (lambda d: write_audio(d / "c.m4a", cover=True), "only pictures being cover art"),
        (lambda d: write_empty_video(d / "e.mp4"), "contains no decodable frame"),
        (lambda d: write_empty_video(d / "e.mkv"), "contains no decodable frame"),
        (make_undecodable, "contains no decodable frame .none of its 3 packets"),
        (lambda d: write_without_decoder(d / "n.mp4"), "no decoder for its video codec"),
    ],
)
def test_what_is_no_video_is_said_in_words_at_opening(make, message, tmp_path):
    file = make(tmp_path)
    with pytest.raises(InputError, match=message) as raised:
        open_video(file)
    assert str(raised.value).startswith(f"{file}: ")


def test_a_file_that_may_not_be_read_says_so(tmp_path, monkeypatch):
    file = write_video(tmp_path / "a.mp4", frames=2)

    def refuse(self, *arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"a\.mp4: permission denied; allow this user to read it"):
        open_video(file)


@pytest.mark.parametrize("address", ["http://example.org/a.mp4", "rtsp://camera/1", "https://x"])
def test_addresses_are_not_supported_yet(address):
    with pytest.raises(UsageError, match="live and network sources are not supported yet"):
        open_video(address)


def test_something_that_is_no_path_is_refused():
    with pytest.raises(UsageError, match="a video was given as BytesIO; expected the path of a file"):
        open_video(io.BytesIO(b""))


def test_a_file_that_vanishes_between_opening_and_reading_is_named(tmp_path):
    file = write_video(tmp_path / "a.mp4", frames=2)
    with open_video(file) as source:
        file.unlink()
        with pytest.raises(InputError, match=r"a\.mp4: no such file"):
            list(source)


# ------------------------------------------------------------------------------------------------ passes and release


def test_every_iteration_is_a_fresh_pass_with_fresh_counts(tmp_path):
    with open_video(write_video(tmp_path / "a.mp4", frames=6)) as source:
        first = [identity(f) for f in source]
        assert [identity(f) for f in source] == first
        assert source.counts.decoded == 6


def test_warnings_are_said_once_over_several_passes(tmp_path):
    with open_video(write_video(tmp_path / "i.mp4", interlaced=True, frames=3)) as source:
        for _ in range(2):
            list(source)
        assert len(source.warnings) == 1


def test_a_closed_source_cannot_be_read_again(tmp_path):
    source = open_video(write_video(tmp_path / "a.mp4", frames=2))
    source.close()
    source.close()
    with pytest.raises(UsageError, match="the source is closed; call open_video again"):
        iter(source)


def open_descriptors_of(file: Path) -> int:
    return sum(os.path.realpath(link) == os.path.realpath(file) for link in Path("/proc/self/fd").iterdir())


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads and descriptors through /proc")
@pytest.mark.parametrize("way", ["close", "break", "max_frames"])
def test_leaving_early_closes_the_file_and_ends_the_decoders_threads(way, tmp_path):
    file = write_video(tmp_path / "a.mp4", frames=60, size=(320, 240))
    before = threads_of_this_process()
    with open_video(file, threads=4, max_frames=3 if way == "max_frames" else None) as source:
        frames = iter(source)
        next(frames)
        assert threads_of_this_process() > before and open_descriptors_of(file) == 1
        if way == "max_frames":
            assert len(list(frames)) == 2
        elif way == "break":
            del frames
            for _ in source:
                break
    gc.collect()
    deadline = time.monotonic() + 5
    while threads_of_this_process() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads_of_this_process() <= before
    assert open_descriptors_of(file) == 0


def test_closing_from_another_thread_ends_the_iteration_there(tmp_path):
    file = write_video(tmp_path / "a.mp4", frames=60, size=(320, 240))
    source = open_video(file)
    began, ended = threading.Event(), threading.Event()

    def consume():
        while not source._closed:
            try:
                for _ in source:
                    began.set()
            except UsageError:  # closed between two passes
                break
        ended.set()

    consumer = threading.Thread(target=consume)
    consumer.start()
    assert began.wait(10)
    source.close()
    assert ended.wait(10)
    consumer.join()
    gc.collect()
    assert open_descriptors_of(file) == 0


def test_closing_while_frames_are_taken_ends_the_iteration(tmp_path):
    source = open_video(write_video(tmp_path / "a.mp4", frames=60))
    frames = iter(source)
    next(frames)
    source.close()
    assert list(frames) == []


# ---------------------------------------------------------------------------------------------------- real recordings


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "frames", "size", "matrix", "full_range"),
    [
        ("facenet_pytorch_video.mp4", 105, (1920, 1080), "bt709", False),
        ("asl_sister.mkv", 87, (640, 480), "bt601", True),
        ("one-by-one-person-detection.mp4", 1394, (768, 432), "bt601", False),
    ],
)
def test_real_clips(name, frames, size, matrix, full_range, data):
    with open_video(data / "videos" / name, threads=2) as source:
        seen = [(f.index, f.width, f.height, f.matrix, f.full_range) for f in source]
    assert seen == [(i, *size, matrix, full_range) for i in range(frames)]
    assert source.counts.corrupt == source.counts.damaged == 0 and source.warnings == []
