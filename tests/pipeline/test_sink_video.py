"""The annotated video: right pictures at the right times, in the right colours, with the sound, also after a crash."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from retinastream.errors import OutputError, UsageError
from retinastream.pipeline.sinks.sink import RunHeader
from retinastream.pipeline.sinks.timeline import Timeline
from retinastream.pipeline.sinks.video import AnnotatedVideoSink
from retinastream.types import PIXEL_FORMATS, Faces, Frame

NOBODY = Faces()


def bgr_frame(image, index=0, pts=None, time_base=Fraction(1, 25), rotation=0):
    height, width = image.shape[:2]
    return Frame(
        (image,), PIXEL_FORMATS["bgr24"], width, height, full_range=True, rotation=rotation,
        pts=index if pts is None else pts, time_base=time_base, index=index, source="in.mp4",
    )  # fmt: skip


def flat(width, height, colour=(40, 90, 160)):
    return np.full((height, width, 3), colour, np.uint8)


def write_video(path, frames, faces=NOBODY, *, fps=25.0, complete=True, **options):
    sink = AnnotatedVideoSink(path, RunHeader("in.mp4", fps=fps), encoder="libx264", preset="ultrafast", **options)
    for frame in frames:
        sink.write(faces, frame)
    sink.close(complete=complete, summary={})
    return sink


def decode(path):
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def times(path):
    return [f.pts * f.time_base for f in decode(path)]


def bgr_of(frame):
    """Decode colours by the matrix that the stream names, independent of the sink's own conversion."""
    space = {1: "ITU709", 6: "SMPTE170M"}[frame.colorspace]
    return frame.to_ndarray(format="bgr24", src_colorspace=space, interpolation="FULL_CHR_H_INT")


@pytest.mark.parametrize(
    ("time_base", "ticks"),
    [
        pytest.param(Fraction(1, 25), [0, 1, 2, 3, 4], id="constant rate"),
        pytest.param(Fraction(1, 12800), [0, 512, 1536, 1600, 4096], id="variable rate"),
        pytest.param(Fraction(1, 90000), [900001, 903003, 906006, 909009], id="a transport stream that starts at 10 s"),
        pytest.param(Fraction(1, 1000), [33, 67, 100, 133], id="milliseconds of Matroska"),
        pytest.param(Fraction(1001, 30000), [0, 1, 2, 30, 60], id="NTSC rate with gaps, as with a stride"),
    ],
)
def test_times_are_exact(tmp_path, time_base, ticks):
    path = tmp_path / "a.mp4"
    sink = write_video(path, (bgr_frame(flat(64, 48), i, pts=t, time_base=time_base) for i, t in enumerate(ticks)))
    assert times(path) == [t * time_base for t in ticks]
    assert sink.warnings == []
    assert sink.encoder == "libx264"
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize(
    ("ticks", "placed"),
    [
        pytest.param([5, 9, 30], [5, 9, 30], id="rising times are kept"),
        pytest.param([None, None, 30], [0, 4, 30], id="missing times follow at the nominal step"),
        pytest.param([10, 10, 9, 14], [10, 11, 12, 14], id="repeated or slightly late times are nudged"),
        pytest.param([1000, 1004, 0, 4, 8], [1000, 1004, 1008, 1012, 1016], id="a clock that restarts continues"),
        pytest.param([1000, 0, 1008, 1012], [1000, 1004, 1008, 1012], id="one wrong time does not shift the rest"),
        pytest.param([-8, -4, 0], [-8, -4, 0], id="negative times are kept"),
    ],
)
def test_timeline(ticks, placed):
    timeline = Timeline(Fraction(1, 100), Fraction(4, 100))
    assert [timeline.place(t) for t in ticks] == placed
    assert timeline.mended == sum(t != p for t, p in zip(ticks, placed, strict=True))


def test_missing_and_backward_times_are_mended_and_said_once(tmp_path, caplog):
    frames = [bgr_frame(flat(64, 48), i, pts=p) for i, p in enumerate([100, 101, 0, 1, 2])]
    frames[1].pts = None
    sink = write_video(tmp_path / "a.mp4", frames)
    assert times(tmp_path / "a.mp4") == [Fraction(n, 25) for n in (100, 101, 102, 103, 104)]
    assert len(sink.warnings) == 1
    assert caplog.text.count("missing or run backwards") == 1


@pytest.mark.parametrize(("width", "height", "matrix"), [(320, 240, 6), (1280, 720, 1)])
def test_colours_survive_and_are_tagged(tmp_path, width, height, matrix):
    patches = [(0, 0, 255), (0, 255, 0), (255, 0, 0), (255, 255, 255), (0, 0, 0), (128, 128, 128), (30, 200, 220)]
    image = np.zeros((height, width, 3), np.uint8)
    step = width // len(patches)
    for i, colour in enumerate(patches):
        image[:, i * step : (i + 1) * step] = colour
    write_video(tmp_path / "a.mp4", [bgr_frame(image, i) for i in range(2)], crf=5)
    frame = decode(tmp_path / "a.mp4")[1]
    assert (frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc) == (matrix, 1, matrix, matrix)
    shown = bgr_of(frame)
    for i, colour in enumerate(patches):
        middle = shown[height // 2 - 8 : height // 2 + 8, i * step + step // 2 - 4 : i * step + step // 2 + 4]
        np.testing.assert_allclose(middle.mean((0, 1)), colour, atol=3)


def test_face_is_drawn_where_it_is_and_the_callers_picture_is_not_touched(tmp_path):
    image = flat(320, 240)
    before = image.copy()
    landmarks = np.array([[[150, 90], [190, 90], [170, 110], [155, 130], [185, 130]]], np.float32)
    faces = Faces(np.array([[120, 60, 220, 180]], np.float32), np.array([0.99], np.float32), landmarks)
    write_video(tmp_path / "a.mp4", [bgr_frame(image)], faces, crf=5)
    assert (image == before).all()
    changed = np.abs(bgr_of(decode(tmp_path / "a.mp4")[0]).astype(int) - image).max(2) > 60
    rows, columns = np.nonzero(changed[60:])
    assert abs(columns.min() - 120) <= 3
    assert abs(columns.max() - 219) <= 3
    assert abs(rows.max() + 60 - 179) <= 3
    for x, y in landmarks[0].astype(int):
        assert changed[y - 1 : y + 2, x - 1 : x + 2].any()
    assert not changed[150:170, 130:200].any()


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotated_source_is_upright(tmp_path, rotation):
    image = flat(160, 96, (0, 0, 0))
    image[:32, :32] = 255
    write_video(tmp_path / "a.mp4", [bgr_frame(image, rotation=rotation)], crf=5)
    (frame,) = decode(tmp_path / "a.mp4")
    assert frame.rotation == 0
    np.testing.assert_allclose(bgr_of(frame), np.rot90(image, rotation // 90), atol=40)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (641, 361), (64, 47)])
def test_odd_sizes_repeat_the_last_row_and_column(tmp_path, width, height):
    image = np.zeros((height, width, 3), np.uint8)
    image[:] = np.linspace(40, 220, width, dtype=np.uint8)[None, :, None]
    write_video(tmp_path / "a.mp4", [bgr_frame(image)], crf=5)
    shown = bgr_of(decode(tmp_path / "a.mp4")[0])
    assert shown.shape == (height + height % 2, width + width % 2, 3)
    np.testing.assert_allclose(shown[height // 2, -1], image[height // 2, -1], atol=6)


def test_change_of_size_is_scaled_into_the_first_with_its_faces(tmp_path):
    faces = Faces(np.array([[40, 20, 80, 60]], np.float32), np.array([0.99], np.float32), np.full((1, 5, 2), 50, "f4"))
    sink = AnnotatedVideoSink(tmp_path / "a.mp4", RunHeader("in.mp4"), encoder="libx264", crf=5)
    sink.write(NOBODY, bgr_frame(flat(640, 480), 0))
    for i in (1, 2):
        sink.write(faces, bgr_frame(flat(160, 90), i))
    sink.close(complete=True, summary={})
    assert len(sink.warnings) == 1
    assert "640x480 to 160x90" in sink.warnings[0]
    shown = bgr_of(decode(tmp_path / "a.mp4")[2]).astype(int)
    assert shown.shape == (480, 640, 3)
    # 160x90 fits four times: 640x360, with 60 black rows above and below.
    assert shown[:56].max() < 20
    assert shown[-56:].max() < 20
    changed = np.abs(shown[140:420] - (40, 90, 160)).max(2) > 60
    rows, columns = np.nonzero(changed)
    assert abs(columns.min() - 160) <= 4
    assert abs(columns.max() - 319) <= 4
    assert abs(rows.max() + 140 - 299) <= 4


def make_source(path, *, seconds=3.0, sound_seconds=None, codec="aac", container_format=None, sound_from=0.0):
    """A video of 25 fps with a tone, made for the test."""
    rate = 8000 if codec == "pcm_mulaw" else 48000
    with av.open(str(path), "w", format=container_format) as out:
        video = out.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = 128, 96, "yuv420p"
        sound = out.add_stream(codec, rate=rate)
        sound.codec_context.layout = "mono"
        sound.codec_context.open()
        size = sound.codec_context.frame_size or 1024
        layout = sound.codec_context.format.name
        for i in range(round(seconds * 25)):
            picture = av.VideoFrame.from_ndarray(flat(128, 96, (i % 200, 90, 90)), format="bgr24")
            picture.pts = i
            out.mux(video.encode(picture))
        kind = np.int16 if layout.startswith("s16") else np.float32
        for start in range(0, round((sound_seconds or seconds) * rate), size):
            tone = np.sin(np.arange(start, start + size) / rate * 2 * np.pi * 440) * 0.3
            samples = (tone * 32767 if kind is np.int16 else tone).astype(kind)[None]
            piece = av.AudioFrame.from_ndarray(samples, format=layout, layout="mono")
            piece.sample_rate, piece.pts, piece.time_base = rate, start + round(sound_from * rate), Fraction(1, rate)
            out.mux(sound.encode(piece))
        out.mux(video.encode(None))
        out.mux(sound.encode(None))
    return path


def sound_packets(path):
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return []
        stream = container.streams.audio[0]
        return [(p.pts * p.time_base, bytes(p)) for p in container.demux(stream) if p.size and p.pts is not None]


def source_frames(path):
    with av.open(str(path)) as container:
        for i, picture in enumerate(container.decode(video=0)):
            planes = tuple(np.from_dlpack(p).copy() for p in picture.planes)
            yield Frame(
                planes, PIXEL_FORMATS["yuv420p"], picture.width, picture.height, matrix="bt601",
                pts=picture.pts, time_base=picture.time_base, index=i,
            )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("a.mp4", {}, id="MP4 with AAC and its priming"),
        pytest.param("a.mkv", {}, id="Matroska"),
        pytest.param("a.mp4", {"sound_from": 0.4}, id="sound that begins later than the picture"),
        pytest.param("a.mp4", {"sound_seconds": 1.0}, id="sound that ends before the picture"),
        pytest.param("a.mp4", {"sound_seconds": 5.0}, id="sound that ends after the picture"),
        pytest.param("a.mkv", {"codec": "flac"}, id="FLAC"),
    ],
)
def test_sound_is_copied_in_sync(tmp_path, name, options):
    source = make_source(tmp_path / name, **options)
    path = tmp_path / "out.mp4"
    sink = write_video(path, source_frames(source), source_path=source)
    assert sink.warnings == []
    assert times(path) == times(source)
    given, copied = sound_packets(source), sound_packets(path)
    assert len(given) > 10
    assert [data for _, data in copied] == [data for _, data in given]
    # Exact, but for a source in milliseconds, where the track of the output has the clock of its samples.
    for (before, _), (after, _) in zip(given, copied, strict=True):
        assert abs(before - after) < Fraction(1, 40000)


def test_sound_of_a_transport_stream_is_copied(tmp_path):
    # ADTS headers are stripped on the way into MP4, so the packets shrink by them.
    source = make_source(tmp_path / "a.ts", container_format="mpegts")
    path = tmp_path / "out.mp4"
    sink = write_video(path, source_frames(source), source_path=source)
    assert sink.warnings == []
    assert times(path) == times(source)
    given, copied = sound_packets(source), sound_packets(path)
    assert [d[7:] for _, d in given] == [d for _, d in copied]
    for (before, _), (after, _) in zip(given, copied, strict=True):
        assert abs(after - before) < Fraction(1, 40000)
    with av.open(str(path)) as container:
        assert sum(f.samples for f in container.decode(audio=0)) >= 3 * 48000


def test_excerpt_keeps_only_its_sound(tmp_path):
    source = make_source(tmp_path / "a.mp4")
    path = tmp_path / "out.mp4"
    frames = list(source_frames(source))[25:50:5]
    write_video(path, frames, source_path=source, from_start=False, to_end=False)
    assert times(path) == [Fraction(n, 5) for n in range(5, 10)]
    copied = sound_packets(path)
    given = dict(sound_packets(source))
    assert all(given[t] == data for t, data in copied)
    packet = Fraction(1024, 48000)
    assert 1 - packet < copied[0][0] <= 1
    assert Fraction(184, 100) - packet <= copied[-1][0] < Fraction(184, 100)


def test_interrupted_video_has_the_sound_of_its_pictures_only(tmp_path):
    source = make_source(tmp_path / "a.mp4")
    path = tmp_path / "out.mp4"
    write_video(path, list(source_frames(source))[:25], source_path=source, complete=False)
    assert sound_packets(path)[-1][0] < 1
    assert len(decode(path)) == 25


def test_sound_that_mp4_cannot_carry_is_left_out_with_a_warning(tmp_path):
    source = make_source(tmp_path / "a.avi", codec="pcm_mulaw")
    sink = write_video(tmp_path / "out.mp4", source_frames(source), source_path=source)
    assert sound_packets(tmp_path / "out.mp4") == []
    assert len(decode(tmp_path / "out.mp4")) == 75
    assert len(sink.warnings) == 1
    assert "pcm_mulaw, which MP4 cannot carry" in sink.warnings[0]


def test_source_without_sound_or_unreadable_gives_a_silent_video(tmp_path):
    (tmp_path / "bad.mp4").write_text("no video")
    sink = write_video(tmp_path / "out.mp4", [bgr_frame(flat(64, 48))], source_path=tmp_path / "bad.mp4")
    assert len(decode(tmp_path / "out.mp4")) == 1
    assert "could not be opened" in sink.warnings[0]


KILLED = """
    import sys, time
    from pathlib import Path
    from fractions import Fraction
    import numpy as np
    from retinastream.pipeline.sinks.sink import RunHeader
    from retinastream.pipeline.sinks.video import AnnotatedVideoSink
    from retinastream.types import PIXEL_FORMATS, Faces, Frame
    source = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    sink = AnnotatedVideoSink(Path(sys.argv[1]), RunHeader("a", fps=25.0), encoder="libx264", preset="ultrafast",
                              source_path=source)
    for i in range(110):
        image = np.full((96, 128, 3), i, np.uint8)
        sink.write(Faces(), Frame((image,), PIXEL_FORMATS["bgr24"], 128, 96, pts=i, time_base=Fraction(1, 25), index=i))
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("sound", [None, 10.0, 1.0], ids=["silent", "with sound", "with sound that ended early"])
def test_killed_writer_leaves_a_playable_part(tmp_path, sound):
    arguments = [str(tmp_path / "out.mp4")]
    if sound is not None:
        arguments.append(str(make_source(tmp_path / "a.mp4", sound_seconds=sound)))
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), *arguments], stdout=subprocess.PIPE, env={**os.environ}
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "out.mp4").exists()
    shown = times(tmp_path / "out.mp4.part")
    # Written: 110 frames of 4.4 s. A fragment is a second, and the muxer may hold one more second for the sound.
    assert len(shown) >= 110 - (26 if sound is None else 52)
    assert shown == [Fraction(i, 25) for i in range(len(shown))]


def test_aborted_video_is_playable_under_its_part_name(tmp_path):
    sink = AnnotatedVideoSink(tmp_path / "a.mp4", RunHeader("in.mp4"), encoder="libx264")
    for i in range(30):
        sink.write(NOBODY, bgr_frame(flat(64, 48), i))
    sink.abort()
    sink.abort()
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4.part"]
    assert len(decode(tmp_path / "a.mp4.part")) == 30


def test_video_without_pictures_is_not_written(tmp_path):
    sink = write_video(tmp_path / "a.mp4", [])
    assert list(tmp_path.iterdir()) == []
    assert "there was no picture" in sink.warnings[0]


def noise_frames(count):
    rng = np.random.default_rng(0)
    for i in range(count):
        yield bgr_frame(rng.integers(0, 255, (240, 320, 3), dtype=np.uint8), i)


def test_full_disk_is_an_output_error_that_names_the_part(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        with pytest.raises(OutputError, match=r"a\.mp4: the disk is full.*a\.mp4\.part"):
            write_video(folder / "a.mp4", noise_frames(200))
        assert not (folder / "a.mp4").exists()
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_failed_write_is_reported_and_the_old_file_kept(tmp_path, monkeypatch, call):
    path = tmp_path / "a.mp4"
    path.write_text("old")
    sink = AnnotatedVideoSink(path, RunHeader("in.mp4"), overwrite=True, encoder="libx264", preset="ultrafast")
    monkeypatch.setattr(os, call, lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OutputError, match="the disk is full"):
        for frame in noise_frames(60):
            sink.write(NOBODY, frame)
        sink.close(complete=True, summary={})
    with contextlib.suppress(OutputError):
        sink.close(complete=True, summary={})
    sink.abort()
    assert path.read_text() == "old"
    assert Path(f"{path}.part").exists()


def test_encoder_names_are_checked(tmp_path):
    with pytest.raises(UsageError, match=r"encoder 'x265' is unknown; expected auto, libx264 or h264_nvenc"):
        AnnotatedVideoSink(tmp_path / "a.mp4", RunHeader("in.mp4"), encoder="x265")
    sink = AnnotatedVideoSink(tmp_path / "a.mp4", RunHeader("in.mp4"))
    if sink.encoder == "libx264":
        with pytest.raises(UsageError, match="h264_nvenc does not open here"):
            AnnotatedVideoSink(tmp_path / "b.mp4", RunHeader("in.mp4"), encoder="h264_nvenc")
    sink.close(complete=True, summary={})
    assert list(tmp_path.iterdir()) == []


def test_picture_that_the_encoder_does_not_take_is_an_output_error(tmp_path):
    sink = AnnotatedVideoSink(tmp_path / "a.mp4", RunHeader("in.mp4"), encoder="libx264")
    with pytest.raises(OutputError, match="does not take pictures of 16400x16"):
        sink.write(NOBODY, bgr_frame(flat(16400, 16)))
    sink.abort()


def test_frame_is_needed(tmp_path):
    sink = AnnotatedVideoSink(tmp_path / "a.mp4", RunHeader("in.mp4"), encoder="libx264")
    with pytest.raises(UsageError, match="needs the frame"):
        sink.write(NOBODY, None)
    sink.abort()
