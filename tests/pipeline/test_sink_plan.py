"""Names of outputs are predictable, and everything that must not happen is refused before anything is opened."""

import os

import numpy as np
import pytest

from retinastream.errors import OutputError, UsageError
from retinastream.pipeline.sinks.coco import CocoSink
from retinastream.pipeline.sinks.csv import CsvSink
from retinastream.pipeline.sinks.images import AnnotatedImagesSink
from retinastream.pipeline.sinks.jsonl import JsonlSink
from retinastream.pipeline.sinks.plan import check_outputs, open_sinks, plan_outputs
from retinastream.pipeline.sinks.sink import RunHeader
from retinastream.pipeline.sinks.video import AnnotatedVideoSink
from retinastream.pipeline.sinks.wider import WiderSink
from retinastream.types import Faces, Frame

HEADER = RunHeader("in.mp4")
ALL = ["jsonl", "csv", "wider", "coco"]


def test_names_of_a_video(tmp_path):
    names = [p.name for p in plan_outputs("holiday ä", tmp_path, ALL, True, "video")]
    assert names == [
        "holiday ä.faces.jsonl",
        "holiday ä.faces.csv",
        "holiday ä.faces.wider.txt",
        "holiday ä.faces.coco.json",
        "holiday ä.annotated.mp4",
    ]


def test_names_of_pictures(tmp_path):
    assert plan_outputs("photos", tmp_path, ["csv", "csv"], True, "images") == [
        tmp_path / "photos.faces.csv",
        tmp_path / "photos.annotated",
    ]
    assert plan_outputs("a/b", tmp_path, [], True, "video") == [tmp_path / "a_b.annotated.mp4"]
    assert plan_outputs("x", tmp_path, [], False, "video") == []


def test_unknown_format_names_the_nearest():
    with pytest.raises(UsageError, match=r"'json' is unknown; did you mean jsonl\? Expected jsonl, csv, wider, coco"):
        plan_outputs("x", None, ["json"], False, "video")


def test_every_kind_opens_by_its_name(tmp_path):
    kinds = [JsonlSink, CsvSink, WiderSink, CocoSink]
    for annotated, kind in (("video", AnnotatedVideoSink), ("images", AnnotatedImagesSink)):
        paths = plan_outputs("in", tmp_path / annotated, ALL, True, annotated)
        sinks = open_sinks(paths, HEADER)
        assert [type(s) for s in sinks] == [*kinds, kind]
        assert [s.needs_frame for s in sinks] == [False] * 4 + [True]
        assert [s.path for s in sinks] == paths
        frame = Frame.from_bgr(np.zeros((48, 64, 3), np.uint8), source="x.png")
        for sink in sinks:
            sink.write(Faces(source="x.png", width=64, height=48), frame)
            sink.close(complete=True, summary={"written": 1})
        assert all(p.exists() for p in paths)
        with pytest.raises(UsageError, match=r"--overwrite"):
            open_sinks(paths, HEADER)
        for sink in open_sinks(paths, HEADER, overwrite=True):
            sink.abort()


def test_output_equal_to_an_input_is_refused(tmp_path):
    source = tmp_path / "clip.mp4"
    source.write_text("video")
    hard, soft = tmp_path / "hard.mp4", tmp_path / "soft.mp4"
    os.link(source, hard)
    soft.symlink_to(source)
    spelled = tmp_path / "x" / ".." / "clip.mp4"
    (tmp_path / "x").mkdir()
    for path in (source, hard, soft, spelled):
        with pytest.raises(UsageError, match=r"is the input .*clip\.mp4"):
            open_sinks([path], HEADER, overwrite=True, source_path=source)
    with pytest.raises(UsageError, match=r"is the input"):
        check_outputs([tmp_path / "b.mp4"], [tmp_path / "b.mp4.part"], overwrite=True)
    assert source.read_text() == "video"


def test_folder_that_contains_an_input_is_refused(tmp_path):
    folder = tmp_path / "photos.annotated"
    folder.mkdir()
    (folder / "a.jpg").write_text("picture")
    with pytest.raises(UsageError, match="lies in the output folder"):
        open_sinks([folder], HEADER, overwrite=True, inputs=[folder / "a.jpg"])


def test_one_name_for_two_outputs_is_refused(tmp_path):
    with pytest.raises(UsageError, match="named twice"):
        open_sinks([tmp_path / "a.csv", tmp_path / "." / "a.csv"], HEADER)


def test_unknown_ending_lists_the_known(tmp_path):
    with pytest.raises(UsageError, match=r"faces\.xml has an ending .* expected \.jsonl, \.csv, \.txt"):
        open_sinks([tmp_path / "faces.xml"], HEADER)


def test_nothing_is_left_when_one_output_cannot_be_opened(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        open_sinks([tmp_path / "a.jsonl", tmp_path / "file" / "b.csv"], HEADER)
    with pytest.raises(UsageError):
        open_sinks([tmp_path / "a.jsonl", tmp_path / "b.mp4"], HEADER, encoder="nothing")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
