"""The text formats: each is valid on its own, all say the same, and JSONL can be read back."""

import csv
import json
import os
import signal
import subprocess
import sys
import textwrap
import warnings
from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from retinastream.errors import InputError, OutputError
from retinastream.pipeline.sinks.coco import CocoSink
from retinastream.pipeline.sinks.csv import CsvSink
from retinastream.pipeline.sinks.jsonl import JsonlSink, read_jsonl
from retinastream.pipeline.sinks.sink import RunHeader
from retinastream.pipeline.sinks.wider import WiderSink
from retinastream.types import Faces

HEADER = RunHeader("in, put.mp4", width=1920, height=1080, fps=25.0, model="mnet025", threshold=0.5, tool_version="1")
SINKS = [JsonlSink, CsvSink, WiderSink, CocoSink]


def random_faces(rng, count, index, *, tracked=False, source="in, put.mp4"):
    corner = rng.uniform(-20, 1900, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.5, 400, (count, 2))], 1).astype(np.float32)
    return Faces(
        boxes,
        np.sort(rng.random(count).astype(np.float32))[::-1].copy(),
        rng.uniform(-20, 1900, (count, 5, 2)).astype(np.float32),
        rng.integers(0, 1000, count) if tracked else None,
        source=source,
        index=index,
        pts=index / 25,
        width=1920,
        height=1080,
    )


def write_all(sink, faces, **end):
    for f in faces:
        sink.write(f, None)
    sink.close(complete=end.pop("complete", True), summary=end)
    return sink.path


def test_all_formats_say_the_same(tmp_path):
    rng = np.random.default_rng(7)
    frames = [random_faces(rng, count, 3 * i, tracked=True) for i, count in enumerate((3, 0, 50, 1))]
    paths = {sink: write_all(sink(tmp_path / sink.__name__, HEADER), frames) for sink in SINKS}

    lines = [json.loads(line) for line in paths[JsonlSink].read_text().splitlines()]
    reference = [
        (record["index"], face["box"], face["score"], face["landmarks"], face["track_id"], record["pts"])
        for record in lines[1:-1]
        for face in record["faces"]
    ]
    assert len(reference) == 54
    np.testing.assert_allclose([r[1] for r in reference], np.concatenate([f.boxes for f in frames]), atol=0.00501)
    np.testing.assert_allclose([r[2] for r in reference], np.concatenate([f.scores for f in frames]), atol=0.0000501)

    with paths[CsvSink].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [
        (
            int(r["frame"]),
            [float(r[k]) for k in ("x1", "y1", "x2", "y2")],
            float(r["score"]),
            [[float(r[f"lm{i}x"]), float(r[f"lm{i}y"])] for i in range(5)],
            int(r["track_id"]),
            float(r["pts"]),
        )
        for r in rows
    ] == reference
    assert {r["source"] for r in rows} == {"in, put.mp4"}

    boxes = [[x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)] for _, (x1, y1, x2, y2), *_ in reference]
    results = json.loads(paths[CocoSink].read_text())
    assert [(r["image_id"], r["bbox"], r["score"], r["track_id"]) for r in results] == [
        (r[0], box, r[2], r[4]) for r, box in zip(reference, boxes, strict=True)
    ]
    assert [r["keypoints"] for r in results] == [[v for x, y in r[3] for v in (x, y, 2)] for r in reference]
    assert {r["category_id"] for r in results} == {1}

    text = iter(paths[WiderSink].read_text().splitlines())
    seen = []
    for name in text:
        source, _, index = name.rpartition("#")
        assert source == "in, put.mp4"
        seen += [(int(index), *map(float, next(text).split())) for _ in range(int(next(text)))]
    assert seen == [(r[0], *box, r[2]) for r, box in zip(reference, boxes, strict=True)]


def test_wider_lists_pictures_without_faces(tmp_path):
    header = RunHeader("photos", kind="images")
    path = write_all(WiderSink(tmp_path / "w", header), [Faces(source="a b/c.jpg"), Faces(source="d\ne.jpg", index=1)])
    assert path.read_text() == "a b/c.jpg\n0\nd\\ne.jpg\n0\n"


def test_images_carry_their_names(tmp_path):
    header = RunHeader("photos", kind="images")
    faces = random_faces(np.random.default_rng(0), 1, 4, source="a/b.jpg")
    record = json.loads(write_all(JsonlSink(tmp_path / "j", header), [faces]).read_text().splitlines()[1])
    assert (record["source"], record["width"], record["height"]) == ("a/b.jpg", 1920, 1080)
    (result,) = json.loads(write_all(CocoSink(tmp_path / "c", header), [faces]).read_text())
    assert (result["file_name"], result["image_id"]) == ("a/b.jpg", 4)


def test_jsonl_records(tmp_path):
    odd = replace(Faces(index=5, width=640, height=360), corrupt=True, interlaced=True, overflow=True, not_a_number=7)
    summary = {"written": 2, "rate": float("inf"), "base": Fraction(1, 30), "path": Path("x"), "n": np.int64(3)}
    path = write_all(
        JsonlSink(tmp_path / "j", HEADER), [Faces(width=1920, height=1080), odd], complete=False, **summary
    )
    header, first, second, end = map(json.loads, path.read_text().splitlines())
    assert header["type"] == "header"
    assert (header["schema_version"], header["model"], header["width"], header["fps"]) == (1, "mnet025", 1920, 25.0)
    assert first == {"type": "frame", "index": 0, "pts": None, "faces": []}
    assert second == {
        **{"type": "frame", "index": 5, "pts": None, "width": 640, "height": 360},
        **{"corrupt": True, "interlaced": True, "overflow": True, "not_a_number": 7, "faces": []},
    }
    assert end == {"written": 2, "rate": None, "base": "1/30", "path": "x", "n": 3, "type": "end", "complete": False}


@pytest.mark.parametrize("sink", SINKS)
def test_faces_that_are_not_finite_are_left_out_and_said(tmp_path, caplog, sink):
    faces = random_faces(np.random.default_rng(1), 3, 0, tracked=True)
    faces.boxes[1, 2] = np.nan
    faces.landmarks[2, 0, 0] = np.inf
    path = write_all(sink(tmp_path / "o", HEADER), [faces])
    assert "2 faces with values that are not finite" in caplog.text
    text = path.read_text().lower()
    assert "nan" not in text
    assert "inf" not in text.replace("infinite", "")
    assert f"{float(faces.scores[0]):.4f}".rstrip("0") in text
    if sink is JsonlSink:
        assert json.loads(text.splitlines()[1])["not_finite"] == 2


coordinates = st.floats(-50, 20000, width=32)


@st.composite
def any_faces(draw):
    n = draw(st.integers(0, 6))
    tracked = draw(st.booleans()) and n > 0
    return Faces(
        draw(hnp.arrays(np.float32, (n, 4), elements=coordinates)),
        draw(hnp.arrays(np.float32, (n,), elements=st.floats(0, 1, width=32))),
        draw(hnp.arrays(np.float32, (n, 5, 2), elements=coordinates)),
        draw(hnp.arrays(np.int64, (n,), elements=st.integers(0, 2**62))) if tracked else None,
        source=draw(st.text(st.characters(codec="utf-8"), min_size=1)),
        index=draw(st.integers(0, 10**9)),
        pts=draw(st.none() | st.floats(-1e6, 1e9)),
        width=draw(st.integers(1, 16384)),
        height=draw(st.integers(1, 16384)),
        corrupt=draw(st.booleans()),
        interlaced=draw(st.booleans()),
        overflow=draw(st.booleans()),
        not_a_number=draw(st.integers(0, 3)),
    )


@settings(max_examples=60, deadline=None)
@given(frames=st.lists(any_faces(), max_size=4))
def test_jsonl_round_trip(tmp_path_factory, frames):
    path = tmp_path_factory.mktemp("j") / "x.jsonl"
    write_all(JsonlSink(path, RunHeader("photos", kind="images")), frames, written=len(frames))
    header, records = read_jsonl(path)
    back = list(records)
    assert (header["source"], header["kind"]) == ("photos", "images")
    assert records.end == {"type": "end", "complete": True, "written": len(frames)}
    assert len(back) == len(frames)
    for got, put in zip(back, frames, strict=True):
        np.testing.assert_allclose(got.boxes, put.boxes, atol=0.007)
        np.testing.assert_allclose(got.landmarks, put.landmarks, atol=0.007)
        np.testing.assert_allclose(got.scores, put.scores, atol=0.000051)
        assert (got.track_ids is None) == (put.track_ids is None)
        if put.track_ids is not None:
            np.testing.assert_array_equal(got.track_ids, put.track_ids)
        for name in ("source", "index", "pts", "width", "height", "corrupt", "interlaced", "overflow", "not_a_number"):
            assert getattr(got, name) == getattr(put, name)


@pytest.mark.parametrize("lost", [1, 10, 60])
def test_reader_tolerates_a_cut_file_and_says_so(tmp_path, lost):
    path = write_all(JsonlSink(tmp_path / "j", HEADER), [Faces(index=i) for i in range(5)])
    path.write_bytes(path.read_bytes()[:-lost])
    _, records = read_jsonl(path)
    with pytest.warns(UserWarning, match="has no end record"):
        back = list(records)
    assert [f.index for f in back] == list(range(len(back)))
    assert len(back) >= 4
    assert records.end is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, "cannot read", id="a missing file"),
        pytest.param("", "line 1: not a JSON record", id="an empty file"),
        pytest.param("\x00\x01\n", "line 1: not a JSON record", id="a binary file"),
        pytest.param("[1]\n", "line 1: a list; expected a JSON object", id="JSON of another kind"),
        pytest.param('{"a":1}\n', "does not begin with a header record", id="JSON lines of another program"),
        pytest.param('{"type":"header","schema_version":99}\n', "schema version 99.*reads 1", id="a newer schema"),
    ],
)
def test_reader_refuses_what_is_not_ours(tmp_path, content, message):
    path = tmp_path / "x.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_jsonl(path)


def test_reader_names_the_bad_line(tmp_path):
    path = write_all(JsonlSink(tmp_path / "j", HEADER), [Faces(), Faces(index=1)])
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1] + '{"type":"frame","index":1,"pts":null,"faces":[{"box":[1,2]}]}\n' + lines[3])
    _, records = read_jsonl(path)
    assert next(records).index == 0
    with pytest.raises(InputError, match="line 3: not the record of a frame"):
        next(records)


@pytest.mark.parametrize("sink", SINKS)
def test_aborted_output_stays_under_its_part_name(tmp_path, sink):
    output = sink(tmp_path / "out", HEADER)
    output.write(random_faces(np.random.default_rng(2), 2, 0), None)
    output.abort()
    output.abort()
    assert [p.name for p in tmp_path.iterdir()] == ["out.part"]
    assert (tmp_path / "out.part").stat().st_size > 50


KILLED = """
    import sys, time
    from pathlib import Path
    from retinastream.pipeline.sinks.coco import CocoSink
    from retinastream.pipeline.sinks.jsonl import JsonlSink
    from retinastream.pipeline.sinks.sink import RunHeader
    from retinastream.types import Faces
    import numpy as np
    folder = Path(sys.argv[1])
    sinks = [kind(folder / name, RunHeader("a.mp4")) for kind, name in ((JsonlSink, "j"), (CocoSink, "c"))]
    one = np.ones((1, 4), np.float32), np.ones(1, np.float32), np.ones((1, 5, 2), np.float32)
    for i in range(100_000):
        for sink in sinks:
            sink.write(Faces(*one, index=i), None)
        if i == 3000:
            print("ready", flush=True)
            time.sleep(60)
"""


def test_killed_writer_leaves_readable_parts(tmp_path):
    code = textwrap.dedent(KILLED)
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, env={**os.environ}
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.part", "j.part"]
    results = json.loads((tmp_path / "c.part").read_text())
    _, records = read_jsonl(tmp_path / "j.part")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frames = [f.index for f in records]
    for indices in ([r["image_id"] for r in results], frames):
        assert indices == list(range(len(indices)))
        assert len(indices) > 1000


def test_interrupted_outputs_are_valid_and_say_so(tmp_path):
    frames = [random_faces(np.random.default_rng(3), 2, i) for i in range(3)]
    path = write_all(JsonlSink(tmp_path / "j", HEADER), frames, complete=False)
    _, records = read_jsonl(path)
    assert len(list(records)) == 3
    assert records.end["complete"] is False
    assert len(json.loads(write_all(CocoSink(tmp_path / "c", HEADER), frames, complete=False).read_text())) == 6


def test_coco_without_faces_is_an_empty_list(tmp_path):
    assert json.loads(write_all(CocoSink(tmp_path / "c", HEADER), [Faces()]).read_text()) == []


@pytest.mark.parametrize("sink", SINKS)
def test_full_disk_is_an_output_error_from_every_format(tmp_path, monkeypatch, sink):
    output = sink(tmp_path / "out", HEADER)
    monkeypatch.setattr(os, "pwrite", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    output.write(random_faces(np.random.default_rng(2), 2, 0), None)
    with pytest.raises(OutputError, match="the disk is full"):
        output.close(complete=True, summary={})
    assert not (tmp_path / "out").exists()


def test_example_in_the_documentation_can_be_read(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "outputs.md").read_text(encoding="utf-8")
    example = text.split("```json\n", 1)[1].split("```", 1)[0]
    (tmp_path / "x").write_text(example.replace("\n ", ""), encoding="utf-8")
    header, records = read_jsonl(tmp_path / "x")
    assert set(header) == {"type", *(f.name for f in fields(RunHeader))}
    assert [len(f) for f in records] == [1]
    assert records.end is not None
