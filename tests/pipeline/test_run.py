"""Whole runs on real media: the sample clip against its truth, and outputs against each other."""

import csv
import json
import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from media.builders import damage_ts, write_video
from retinastream.errors import OutputError
from retinastream.pipeline.run import run
from retinastream.settings import DetectSettings

SAMPLE = Path(__file__).parents[1] / "media" / "sample_4k.mp4"
# Random weights see a face everywhere; where it does not matter how many, this is enough to write and to draw.
FEW = 40


class Silent:
    """An observer that counts what it is told."""

    def __init__(self):
        self.ended = []
        self.progress = 0

    def run_started(self, report):
        pass

    def input_started(self, report):
        pass

    def progressed(self, report):
        self.progress += 1

    def input_ended(self, report):
        self.ended.append(report)


def overlap(a, b):
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    shared = np.prod(np.maximum(high - low, 0))
    return shared / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared)


def records(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return lines[0], lines[1:-1], lines[-1]


@pytest.mark.data
@pytest.mark.slow
def test_sample_clip_every_face_is_found_and_no_other_and_times_are_exact(real_model, tmp_path):
    settings = DetectSettings(model=str(real_model), output=tmp_path)
    report = run(settings, [str(SAMPLE)], Silent())
    assert report.exit_code == 0
    truth = json.loads(SAMPLE.with_suffix(".json").read_text())["frames"]
    header, frames, _ = records(tmp_path / "sample_4k.faces.jsonl")
    assert header["size_policy"] == "fit:1280"
    assert len(frames) == len(truth) == 100
    worst = 1.0
    for found, true in zip(frames, truth, strict=True):
        assert found["index"] == true["index"]
        assert Fraction(found["pts"]).limit_denominator(1000) == Fraction(true["index"], 25)
        assert len(found["faces"]) == len(true["boxes"]), f"frame {true['index']}"
        for box in true["boxes"]:
            best = max(overlap(np.array(box), np.array(f["box"])) for f in found["faces"])
            assert best >= 0.7, f"frame {true['index']}: the face at {box} is met by {best:.3f}"
            worst = min(worst, best)
    print(f"lowest overlap of all {sum(len(t['boxes']) for t in truth)} faces: {worst:.3f}")


@pytest.mark.data
@pytest.mark.slow
def test_outputs_of_one_run_agree_and_sound_stays_in_sync(real_model, data, tmp_path):
    clip = data / "videos" / "facenet_pytorch_video.mp4"
    formats = ("jsonl", "csv", "wider", "coco")
    settings = DetectSettings(model=str(real_model), output=tmp_path, format=formats, annotate=True)
    report = run(settings, [str(clip)], Silent())
    assert report.exit_code == 0
    _, frames, end = records(tmp_path / "facenet_pytorch_video.faces.jsonl")
    assert len(frames) == 105
    assert end["complete"] is True
    counts = [len(f["faces"]) for f in frames]
    assert 6 <= np.mean(counts) <= 8

    with (tmp_path / "facenet_pytorch_video.faces.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    flat = [(f["index"], f["pts"], *face["box"], face["score"]) for f in frames for face in f["faces"]]
    assert len(rows) == len(flat)
    for row, (index, pts, *numbers) in zip(rows, flat, strict=True):
        assert int(row["frame"]) == index
        assert float(row["pts"]) == pytest.approx(pts, abs=1e-6)
        assert [float(row[k]) for k in ("x1", "y1", "x2", "y2", "score")] == pytest.approx(numbers, abs=0.02)

    coco = json.loads((tmp_path / "facenet_pytorch_video.faces.coco.json").read_text())
    assert [c["image_id"] for c in coco] == [f[0] for f in flat]
    assert [c["score"] for c in coco] == pytest.approx([f[-1] for f in flat], abs=1e-3)
    wider = (tmp_path / "facenet_pytorch_video.faces.wider.txt").read_text().splitlines()
    assert len(wider) == 2 * len(frames) + len(flat)

    with av.open(str(clip)) as before, av.open(str(tmp_path / "facenet_pytorch_video.annotated.mp4")) as after:
        assert [f.time for f in before.decode(video=0)] == pytest.approx([f.time for f in after.decode(video=0)])
    assert sound(clip) == pytest.approx(sound(tmp_path / "facenet_pytorch_video.annotated.mp4"), abs=0.03)
    boxes_drawn(tmp_path / "facenet_pytorch_video.annotated.mp4", clip, frames[50])


def sound(path):
    """(first, last) time of the audio in seconds, against the first picture."""
    with av.open(str(path)) as container:
        first = next(container.decode(video=0)).time
    with av.open(str(path)) as container:
        times = [f.time for f in container.decode(audio=0)]
    return times[0] - first, times[-1] - first


def boxes_drawn(annotated, original, record):
    """The pictures differ along the boxes of the record, and nowhere far from any face."""
    pictures = []
    for path in (annotated, original):
        with av.open(str(path)) as container:
            pictures.append(next(f for n, f in enumerate(container.decode(video=0)) if n == record["index"]))
    new, old = (p.to_ndarray(format="rgb24").astype(int) for p in pictures)
    change = np.abs(new - old).max(axis=2)  # a green line on skin differs more in red and blue than in brightness
    assert record["faces"]
    for face in record["faces"]:
        x1, y1, x2, y2 = (round(v) for v in face["box"])
        for edge in (change[y2, x1 + 5 : x2 - 5], change[y1 + 5 : y2 - 5, x1], change[y1 + 5 : y2 - 5, x2]):
            assert np.median(edge) > 30, f"no line along an edge of {face['box']}"
    assert change[:100, :100].mean() < 6


def test_corrupt_packets_cost_only_themselves_and_all_frames_are_accounted_for(tiny_model, tmp_path):
    whole = write_video(tmp_path / "whole.ts", frames=60, size=(320, 192), gop=10)
    packets = len(whole.read_bytes()) // 188
    broken = damage_ts(whole, tmp_path / "broken.ts", range(packets // 3, packets // 3 + 12))
    settings = DetectSettings(model=str(tiny_model["fused"]), output=tmp_path, size="native", max_faces=FEW)
    report = run(settings, [str(broken)], Silent())
    counts = report.inputs[0].counts()
    assert report.exit_code == 0
    assert counts["read"] == counts["decoded"] + counts["corrupt"]
    assert counts["decoded"] == counts["skipped"] + counts["detected"]
    assert counts["detected"] == counts["written"] >= 40
    assert counts["damaged"] + counts["corrupt"] + (60 - counts["read"]) > 0
    _, frames, _ = records(tmp_path / "broken.faces.jsonl")
    assert sum(f.get("corrupt", False) for f in frames) == counts["damaged"]


def test_resolution_change_in_mid_stream_keeps_going(tiny_model, tmp_path):
    from media.builders import write_size_change

    clip = write_size_change(tmp_path / "change.ts", [(320, 192), (160, 96)], frames=10)
    settings = DetectSettings(
        model=str(tiny_model["fused"]), output=tmp_path, size="native", max_faces=FEW, annotate=True, batch=4
    )
    report = run(settings, [str(clip)], Silent())
    assert report.exit_code == 0, report.inputs[0].error
    assert report.inputs[0].written == 20


def test_output_that_is_an_input_fails_alone(tiny_model, tmp_path):
    clip = write_video(tmp_path / "clip.mp4", frames=5, size=(320, 192))
    other = write_video(tmp_path / "other.mp4", frames=5, size=(320, 192))
    (tmp_path / "clip.annotated.mp4").symlink_to(clip)
    settings = DetectSettings(
        model=str(tiny_model["fused"]), output=tmp_path, annotate=True, overwrite=True, size="native", max_faces=FEW
    )
    before = clip.read_bytes()
    report = run(settings, [str(clip), str(other)], Silent())
    assert [r.status for r in report.inputs] == ["failed", "done"]
    assert "input" in str(report.inputs[0].error)
    assert clip.read_bytes() == before
    assert report.exit_code == 1


def test_failure_of_one_output_leaves_the_others_readable(tiny_model, tmp_path, monkeypatch):
    from retinastream.pipeline.sinks.csv import CsvSink

    clip = write_video(tmp_path / "clip.mp4", frames=30, size=(320, 192))
    real = CsvSink.write

    def fail(self, faces, frame):
        if faces.index == 7:
            raise OutputError(f"cannot write {self.path}: for the test")
        real(self, faces, frame)

    monkeypatch.setattr(CsvSink, "write", fail)
    settings = DetectSettings(model=str(tiny_model["fused"]), output=tmp_path, size="native", format=("jsonl", "csv"))
    before = threading.active_count()
    report = run(settings, [str(clip)], Silent())
    assert report.exit_code == 3
    outcome = report.inputs[0]
    assert outcome.written == 7
    assert outcome.lost == outcome.source.delivered - 7 > 0
    _, frames, end = records(tmp_path / "clip.faces.jsonl")
    assert end["complete"] is False
    assert len(frames) >= 8
    assert threading.active_count() == before


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("long") / "clip.mp4", frames=200, size=(320, 192))


@pytest.mark.parametrize("batch", [1, 3])
def test_stop_finishes_what_is_in_flight(tiny_model, tmp_path, long_clip, batch):
    stop = threading.Event()

    class Stopper(Silent):
        def progressed(self, report):
            super().progressed(report)
            if self.progress == 5:
                stop.set()

    settings = DetectSettings(
        model=str(tiny_model["fused"]), output=tmp_path, size="native", batch=batch, max_faces=FEW
    )
    report = run(settings, [str(long_clip)], Stopper(), stop)
    assert report.exit_code == 130
    outcome = report.inputs[0]
    assert outcome.status == "interrupted"
    assert 5 * batch <= outcome.written < 200
    assert outcome.lost == 0
    assert outcome.source.decoded == outcome.source.skipped + outcome.detected
    _, frames, end = records(tmp_path / "clip.faces.jsonl")
    assert end["complete"] is False
    assert len(frames) == outcome.written


@pytest.fixture(scope="module")
def unbroken(tiny_model, tmp_path_factory):
    """A clip, the settings of a run over all of it, and its frames by their index."""
    folder = tmp_path_factory.mktemp("unbroken")
    clip = write_video(folder / "clip.mp4", frames=30, size=(320, 192))
    settings = {"model": str(tiny_model["fused"]), "size": "native", "threshold": 0.4, "max_faces": FEW}
    run(DetectSettings(**settings, output=folder / "all"), [str(clip)], Silent())
    return clip, settings, {f["index"]: f for f in records(folder / "all" / "clip.faces.jsonl")[1]}


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ({"stride": 4}, list(range(0, 30, 4))),
        ({"start": 0.4, "end": 0.8}, list(range(10, 20))),
        ({"max_frames": 3}, [0, 1, 2]),
        ({"start": 0.4, "stride": 5, "max_frames": 2}, [10, 15]),
    ],
)
def test_selection_gives_the_frames_of_an_unbroken_run(unbroken, tmp_path, selection, expected):
    clip, settings, whole = unbroken
    run(DetectSettings(**settings, output=tmp_path, **selection), [str(clip)], Silent())
    part = records(tmp_path / "clip.faces.jsonl")[1]
    assert [f["index"] for f in part] == expected
    assert part == [whole[i] for i in expected]
