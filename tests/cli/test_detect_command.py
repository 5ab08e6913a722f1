"""`retinastream detect`: what a person sees, what is written, and how it ends."""

import json
import re
import signal
import sys
import time
from pathlib import Path

import pytest
import yaml

from media.builders import write_video


@pytest.fixture
def clip(tmp_path):
    return write_video(tmp_path / "clip.mp4", size=(320, 192), frames=12)


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_writes_jsonl_by_default_under_a_predictable_name(retinastream, clip, tiny_model):
    code, out, err = retinastream("detect", clip, "--model", tiny_model["fused"])
    assert code == 0
    assert out == ""
    lines = records(Path("clip.faces.jsonl"))
    assert [line["type"] for line in lines] == ["header"] + ["frame"] * 12 + ["end"]
    assert [line["index"] for line in lines[1:-1]] == list(range(12))
    header = lines[0]
    for name in ("schema_version", "tool_version", "source", "model", "model_sha256", "runtime", "precision", "device"):
        assert header[name]
    assert header["size_policy"] == "fit:1280"
    assert "clip.faces.jsonl" in err
    assert "fit:1280" in err
    assert "openvino" in err


def test_json_summary_accounts_for_every_frame(retinastream, clip, tiny_model):
    code, out, _ = retinastream("detect", clip, "-m", tiny_model["fused"], "--stride", "5", "--json", "--quiet")
    assert code == 0
    summary = json.loads(out)
    frames = summary["inputs"][0]["frames"]
    assert frames["read"] == frames["decoded"] + frames["corrupt"] == 12
    assert frames["decoded"] == frames["skipped"] + frames["detected"]
    assert frames["detected"] == frames["written"] == 3
    assert frames["lost"] == 0
    stages = summary["inputs"][0]["stats"]["stages"]
    assert [s["name"] for s in stages] == ["decode", "preprocess", "inference", "postprocess", "write jsonl"]
    assert summary["inputs"][0]["stats"]["bottleneck"] in {s["name"] for s in stages}
    assert all(s["items"] == 3 for s in stages)


def test_quiet_prints_nothing(retinastream, clip, tiny_model):
    code, out, err = retinastream("detect", clip, "-m", tiny_model["fused"], "--quiet")
    assert (code, out, err) == (0, "", "")


def test_stats_name_the_bottleneck(retinastream, clip, tiny_model):
    code, _, err = retinastream("detect", clip, "-m", tiny_model["fused"], "--stats")
    assert code == 0
    assert re.search(r"bottleneck is (decode|preprocess|inference|postprocess|write jsonl)", err)


def test_existing_results_are_kept_without_overwrite(retinastream, clip, tiny_model):
    Path("clip.faces.jsonl").write_text("precious")
    code, _, err = retinastream("detect", clip, "-m", tiny_model["fused"])
    assert code == 2
    assert "--overwrite" in err
    assert Path("clip.faces.jsonl").read_text() == "precious"
    assert retinastream("detect", clip, "-m", tiny_model["fused"], "--overwrite")[0] == 0
    assert len(records(Path("clip.faces.jsonl"))) == 14


def test_all_formats_and_annotation_at_once(retinastream, clip, tiny_model, tmp_path):
    formats = [word for name in ("jsonl", "csv", "wider", "coco") for word in ("--format", name)]
    target = tmp_path / "results"
    code, _, _ = retinastream(
        "detect", clip, "-m", tiny_model["fused"], *formats, "--annotate", "--max-faces", 40, "-o", target
    )
    assert code == 0
    assert sorted(p.name for p in target.iterdir()) == [
        "clip.annotated.mp4",
        "clip.faces.coco.json",
        "clip.faces.csv",
        "clip.faces.jsonl",
        "clip.faces.wider.txt",
    ]


def test_one_bad_input_does_not_cost_the_others(retinastream, clip, tiny_model, tmp_path):
    text = tmp_path / "text.mp4"
    text.write_text("this is no video")
    code, out, err = retinastream("detect", tmp_path / "missing.mp4", text, clip, "-m", tiny_model["fused"], "--json")
    assert code == 1
    summary = json.loads(out)
    assert {Path(i["name"]).name: i["status"] for i in summary["inputs"]} == {
        "missing.mp4": "failed",
        "text.mp4": "failed",
        "clip.mp4": "done",
    }
    assert summary["failed"] == 2
    assert "missing.mp4" in err
    assert "text.mp4" in err
    assert len(records(Path("clip.faces.jsonl"))) == 14


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--threshold", "2"], ["threshold", "2"]),
        (["--size", "huge"], ["huge", "fit:<long side>"]),
        (["--runtime", "caffe"], ["caffe", "openvino"]),
        (["--device", "tpu"], ["tpu", "cpu"]),
        (["--format", "xml"], ["xml", "coco"]),
        (["--stride", "0"], ["stride", "0"]),
        (["--start", "5", "--end", "2"], ["end", "start"]),
        (["--no-such-option"], ["no-such-option"]),
        (["--model", "mnet52"], ["mnet52", "mnet025"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml"]),
    ],
)
def test_wrong_usage_exits_2_and_names_what_is_allowed(retinastream, clip, tiny_model, arguments, words):
    model = [] if "--model" in arguments else ["--model", tiny_model["fused"]]
    code, _, err = retinastream("detect", clip, *model, *arguments)
    assert code == 2
    for word in words:
        assert word in err
    assert list(Path().iterdir()) == []


def test_gpu_is_refused_aloud_instead_of_replaced(retinastream, clip, tiny_model):
    code, _, err = retinastream("detect", clip, "-m", tiny_model["fused"], "--device", "cuda:0")
    assert code == 3
    assert "cuda:0" in err


def test_no_source_is_wrong_usage(retinastream):
    assert retinastream("detect")[0] == 2


def test_dump_config_prints_the_settings_in_effect(retinastream, monkeypatch):
    monkeypatch.setenv("RETINASTREAM_IOU", "0.3")
    code, out, _ = retinastream("detect", "--dump-config", "--size", "native", "--format", "csv")
    values = yaml.safe_load(out)
    assert code == 0
    assert (values["size"], values["iou"], values["format"], values["threshold"]) == ("native", 0.3, ["csv"], 0.5)


def test_unicode_spaces_and_a_leading_dash_in_names(retinastream, clip, tiny_model):
    for name in ("Gesichter und Zöpfe 顔.mp4", "-dash.mp4", "50%done:a.mp4"):
        Path(name).write_bytes(clip.read_bytes())
    code, _, err = retinastream(
        "detect", "-m", tiny_model["fused"], "--", "-dash.mp4", "Gesichter und Zöpfe 顔.mp4", "50%done:a.mp4"
    )
    assert code == 0, err
    assert sorted(p.name for p in Path().glob("*.faces.jsonl")) == [
        "-dash.faces.jsonl",
        "50%done:a.faces.jsonl",
        "Gesichter und Zöpfe 顔.faces.jsonl",
    ]


def test_pictures_of_a_directory_are_one_input(retinastream, tiny_model, tmp_path):
    import cv2
    import numpy as np

    folder = tmp_path / "holiday"
    folder.mkdir()
    for n, size in enumerate([(64, 48), (1, 1), (200, 100)]):
        cv2.imwrite(str(folder / f"{n}.png"), np.full((size[1], size[0], 3), 90, np.uint8))
    (folder / "broken.jpg").write_bytes(b"no picture")
    code, out, err = retinastream("detect", folder, "-m", tiny_model["fused"], "--annotate", "--json")
    assert code == 1
    assert "broken.jpg" in err
    summary = json.loads(out)["inputs"][0]
    assert (summary["status"], summary["frames"]["written"], summary["frames"]["corrupt"]) == ("done", 3, 1)
    frames = records(Path("holiday.faces.jsonl"))[1:-1]
    assert [Path(f["source"]).name for f in frames] == ["0.png", "1.png", "2.png"]
    assert sorted(p.name for p in Path("holiday.annotated").iterdir()) == ["0.png", "1.png", "2.png"]


def test_very_wide_and_very_small_pictures_at_native_size(retinastream, tiny_model, tmp_path):
    import cv2
    import numpy as np

    names = []
    for width, height in ((1, 1), (16384, 48), (48, 16384)):
        names.append(tmp_path / f"{width}x{height}.png")
        cv2.imwrite(str(names[-1]), np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
    code, _, err = retinastream("detect", *names, "-m", tiny_model["fused"], "--size", "native", "--threshold", "0.2")
    assert code == 0, err
    [result] = Path().glob("*.faces.jsonl")
    frames = {Path(f["source"]).stem: f for f in records(result)[1:-1]}
    assert set(frames) == {"1x1", "16384x48", "48x16384"}
    boxes = np.array([face["box"] for face in frames["16384x48"]["faces"]])
    assert len(boxes) > 100
    assert boxes[:, 2].max() > 15000, "boxes must reach to the far end"
    assert (boxes[:, [1, 3]] <= 48).all()


def test_truncated_file_delivers_what_exists_and_says_what_was_promised(retinastream, tiny_model, tmp_path):
    whole = write_video(tmp_path / "whole.mp4", size=(320, 192), frames=60, container_options={"movflags": "faststart"})
    data = whole.read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(data[: int(len(data) * 0.6)])
    code, out, err = retinastream("detect", cut, "-m", tiny_model["fused"], "--json")
    frames = json.loads(out)["inputs"][0]["frames"]
    assert frames["promised"] == 60
    assert 0 < frames["written"] < 60
    assert "60" in err
    assert "warning" in err
    assert code == 0


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 64 KiB."""
    import subprocess

    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("a small file system cannot be mounted here (needs root)")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_full_disk_keeps_what_was_there_and_exits_3(retinastream, clip, tiny_model, tiny_disk):
    (tiny_disk / "clip.faces.jsonl").write_text("precious")
    arguments = ["-m", tiny_model["fused"], "--threshold", "0.01", "-o", tiny_disk, "--overwrite"]
    code, _, err = retinastream("detect", clip, *arguments)
    assert code == 3
    assert re.search("no space|full|disk", err, re.IGNORECASE), err
    assert (tiny_disk / "clip.faces.jsonl").read_text() == "precious"
    assert (tiny_disk / "clip.faces.jsonl.part").read_text().startswith('{"type":"header"')


def test_output_directory_that_cannot_be_made_exits_3(retinastream, clip, tiny_model):
    code, _, err = retinastream("detect", clip, "-m", tiny_model["fused"], "-o", "/proc/nothing/here")
    assert code == 3
    assert "/proc/nothing" in err


def test_help_and_version(retinastream):
    code, out, _ = retinastream("--help")
    assert code == 0
    for word in ("detect", "doctor", "model", "130 interrupted"):
        assert word in out
    assert re.fullmatch(r"retinastream \d+\.\d+\.\d+\n", retinastream("--version")[1])


@pytest.mark.skipif(sys.platform == "win32", reason="signals work differently there")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_finishes_what_is_in_flight_and_exits_130(start, tiny_model, tmp_path, number):
    # Hundreds of faces of random weights are drawn on each picture, so that all take far longer than the first three.
    long = write_video(tmp_path / "long.mp4", size=(320, 192), frames=100)
    process = start("detect", long, "-m", tiny_model["fused"], "--json", "--annotate")
    part = tmp_path / "long.faces.jsonl.part"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (part.is_file() and part.read_text().count("\n") > 3):
        time.sleep(0.05)
        assert process.poll() is None, process.stderr.read()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    frames = json.loads(out)["inputs"][0]["frames"]
    assert frames["lost"] == 0
    assert 0 < frames["written"] < 100
    lines = records(tmp_path / "long.faces.jsonl")
    assert lines[-1]["type"] == "end"
    assert lines[-1]["complete"] is False
    assert len(lines) == frames["written"] + 2
    assert not part.exists()
    import av

    with av.open(str(tmp_path / "long.annotated.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == frames["written"]


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals there")
def test_terminal_shows_nested_progress_and_leaves_plain_lines(clip, tiny_model, tmp_path):
    import os
    import pty
    import subprocess

    second = tmp_path / "second [1].mp4"
    second.write_bytes(clip.read_bytes())
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "retinastream", "detect", clip, second, "-m", tiny_model["fused"]]
    process = subprocess.Popen(
        [*map(str, command)], cwd=tmp_path, stderr=theirs, env={**os.environ, "TERM": "xterm", "COLUMNS": "160"}
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            data = os.read(ours, 65536)
        except OSError:
            break
        if not data:
            break
        shown += data
    os.close(ours)
    assert process.wait(30) == 0
    text = shown.decode()
    for words in ("inputs", "frames", "fps", "faces", "/12", "second [1].mp4", "12 frames written", "\x1b["):
        assert words in text
