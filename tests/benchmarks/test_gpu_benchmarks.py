"""The GPU benchmarks run from end to end on a device of the host: what they measure is right, how fast is not asked."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import gpu_all
import gpu_classic
import gpu_detector
import gpu_kernels
import gpu_predictions
import gpu_report
import gpu_upload
import numpy as np
import pytest
from gpu_cases import Case, Sizes, describe_row, measure_case
from gpu_face_cases import FaceBatch, face_cases
from gpu_inputs import classic_tensors, fused_maps
from gpu_picture_cases import picture_cases
from gpu_timing import HostTimer, Times, copy_bandwidth, measure_work, turns_beyond_cache
from gpu_waits import counted_waits, profiled_waits
from host_device import HostDevice
from host_engine import HostEngine

from retinastream.errors import SetupError
from retinastream.kernels import colour
from retinastream.kernels.decode import decode_classic, decode_fused
from retinastream.kernels.device import CaptureError
from retinastream.kernels.nms import nms
from retinastream.models.spec import DetectorSpec
from retinastream.models.zoo import resolve_model
from retinastream.pipeline.detector import Detector

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SPEC = DetectorSpec()
TINY = Sizes(
    width=500, height=370, batch=2, faces=5, runs=2, copy_bytes=1 << 16, reduced_side=160, most_faces=20, cache_bytes=0,
    face_side=30,
)  # fmt: skip
MACHINE = {"label", "name"}


class Seconds(HostTimer):
    """A timer for which everything takes the same time."""

    def __init__(self, seconds):
        self._seconds = seconds

    def seconds(self, stream, launch):
        super().seconds(stream, launch)
        return self._seconds


@pytest.fixture
def device():
    device = HostDevice()
    with device.current():
        yield device
        device.check()


def check_report(result, name):
    """What every benchmark's JSON has, and that it is JSON."""
    assert json.loads(json.dumps(result)) == result
    assert result["benchmark"] == name
    assert result["clock"] == "host clock"
    assert result["device"] == {"label": "cuda:0", "name": "NumPy"}
    assert result["versions"]["numpy"] == np.__version__
    assert result["settings"]["width"] == TINY.width
    assert result["rows"]


# -- what they work on


@pytest.mark.parametrize(("faces", "per_face"), [(5, 9), (4, 40), (1, 1), (7, 57)])
def test_made_up_head_maps_hold_the_faces_that_were_asked_for(faces, per_face):
    maps = fused_maps(SPEC, 512, 640, faces=faces, per_face=per_face)
    found = decode_fused(maps, SPEC, 512, 640, 0.5, 5000)
    assert len(found) == faces * per_face
    assert found.scores.min() > 0.59
    kept = nms(found.boxes, 0.4)
    assert len(kept) == faces
    inside = (found.landmarks >= found.boxes[:, None, :2]) & (found.landmarks <= found.boxes[:, None, 2:])
    assert inside.all()
    with pytest.raises(ValueError, match="900 faces were asked for"):
        fused_maps(SPEC, 512, 640, faces=900, per_face=9)


def test_the_classic_form_of_head_maps_holds_the_same_candidates():
    maps = fused_maps(SPEC, 256, 320, faces=3, per_face=9)
    fused = decode_fused(maps, SPEC, 256, 320, 0.5, 5000)
    classic = decode_classic(*classic_tensors(SPEC, maps), SPEC, 256, 320, 0.5, 5000)
    order, other = (np.lexsort(v.boxes.T) for v in (fused, classic))
    np.testing.assert_allclose(fused.boxes[order], classic.boxes[other], atol=1e-4)
    np.testing.assert_allclose(np.sort(fused.scores), np.sort(classic.scores), atol=1e-6)


# -- how they measure


def test_a_time_is_that_of_one_turn_and_every_turn_is_taken(device):
    stream, order = device.stream(), []
    target = device.empty((4,), np.int32)
    turns = [lambda k=k: device.call(stream, lambda: order.append(k), target) for k in range(3)]
    times = measure_work(device, Seconds(6.0), stream, turns, runs=4, repeats=2)
    assert times == Times((1.0,) * 4, graph=True)
    assert order == [0, 1, 2] * 2 * (1 + 1 + 4)  # once before the capture, once before the clock


def test_work_that_cannot_be_captured_is_timed_without_a_graph(device):
    stream = device.stream()

    def queue():
        device.empty((1,), np.int8)  # no capture allows that

    times = measure_work(device, HostTimer(), stream, [queue], runs=2)
    assert not times.graph
    with pytest.raises(CaptureError):
        device.capture(stream, queue)
    row = measure_case(Case("x", 8, [queue]), device, HostTimer(), stream, TINY, 1e9)
    assert "not in a graph" in describe_row(row)


def test_times_are_medians_and_a_copy_counts_read_and_written_bytes(device):
    assert Times((3.0, 1.0, 2.0), graph=True).median == 2.0
    assert Times((3.0, 1.0, 2.0), graph=True).as_row()["most_us"] == 3e6
    stream = device.stream()
    assert copy_bandwidth(device, Seconds(0.5), stream, 1000, 3) == 4000


@pytest.mark.parametrize(("size", "cache", "turns"), [(60, 100, 2), (100, 100, 1), (1, 1000, 16), (500, 0, 1)])
def test_buffers_taken_in_turn_do_not_fit_into_the_cache(size, cache, turns):
    assert turns_beyond_cache(size, cache) == turns


# -- each of them


def test_every_face_case_finds_its_faces_also_by_the_way_of_many(device):
    many = Sizes(768, 640, 1, 26, runs=1, copy_bytes=1 << 16, most_faces=40, cache_bytes=0)
    stream = device.stream()
    rows = [measure_case(c, device, HostTimer(), stream, many, 1e9) for c in face_cases(device, stream, many)]
    assert {(row.get("faces"), row.get("candidates")) for row in rows} >= {(26, 234), (7, 399), (26, 1040)}
    assert device.executed["overlap_candidates"] > 0
    assert [row["name"] for row in rows if row["bytes"] == 0] == [
        "faces_of_few, 26 faces of 9 candidates",
        "faces_of_few, 7 faces of 57 candidates",
        "order_candidates, 1,040",
        "decode_candidates, 1,040",
        "overlap_candidates, 1,040",
        "faces_of_many, 26 faces of 40 candidates",
    ]


def test_a_case_that_finds_other_faces_than_it_put_in_fails(device):
    stream = device.stream()
    batch = FaceBatch(device, stream, TINY, dtype=np.float16, faces=3, per_face=9)
    batch.queue()
    assert batch.check() == {"faces": 3, "candidates": 27}
    batch.faces = 4
    with pytest.raises(AssertionError):
        batch.check()


def test_the_kernels_benchmark_measures_every_kernel(device):
    result = gpu_kernels.measure(device, HostTimer(), TINY)
    check_report(result, "gpu_kernels")
    kernels = {name for name in device.executed if not name.startswith(("find_classic", "describe", "align_f"))}
    assert kernels == {
        *("preprocess_f32", "preprocess_f16", "preprocess_i8", "find_fused_float", "find_fused_half"),
        *("faces_of_few", "order_candidates", "decode_candidates", "overlap_candidates", "faces_of_many"),
        *("align_u8", "find_regions", "cell_means", "redact", "find_marks", "draw"),
    }
    for row in result["rows"]:
        assert row["median_us"] >= row["least_us"] > 0
        assert row["graph"] and row["predicted_us"] is None
        assert row["gb_per_s"] == pytest.approx(row["bytes"] / row["median_us"] / 1e3)
    assert [row["bytes"] for row in result["rows"] if row["name"].startswith("preprocess NV12 -> fp32")] == [
        2 * (500 * 370 * 3 // 2 + 3 * 512 * 384 * 4)
    ]
    assert [a["aim"] for a in result["aims"]] == ["60% of a copy's bandwidth", *["1000 us a batch"] * 4]
    text = gpu_kernels.describe(result)
    assert len(text) == 1 + len(result["rows"]) + len(result["aims"])


def test_the_usual_way_finds_the_same_faces_in_every_version(device):
    pytest.importorskip("torch", reason="torch is not installed, and the usual way is torch's")
    result = gpu_classic.measure(device, HostTimer(), TINY, "cpu")
    check_report(result, "gpu_classic")
    assert len(result["rows"]) == 2 * 3 + 2
    for row in result["rows"]:
        assert row["times"] == pytest.approx(row["usual_ms"] / row["ours_ms"])
    assert "times as fast, aim 10" in gpu_classic.describe(result)[1]


def test_the_usual_network_input_is_ours():
    torch = pytest.importorskip("torch", reason="torch is not installed, and the usual way is torch's")
    from gpu_inputs import host_frame
    from gpu_usual import list_anchors, loop_nms, usual_input

    from retinastream.kernels.preprocess import preprocess
    from retinastream.kernels.sizing import Placement

    frame = host_frame("nv12", 64, 40)
    frame.matrix = "bt601"  # OpenCV's
    expected = np.zeros((1, 3, 64, 64), np.float32)
    preprocess([frame], [Placement(64, 40, 64, 40, 64, 64)], SPEC, expected)
    given = usual_input([gpu_classic._one_array(frame.planes)], SPEC, 64, 64, "cpu").numpy()
    assert np.abs(given - expected).max() <= 2.0
    anchors = list_anchors(SPEC, 40, 64, "cpu")
    assert len(anchors) == SPEC.anchor_count(40, 64)
    assert anchors[-1].tolist() == [48.0, 48.0, 512.0]
    boxes, scores = torch.tensor([[0, 0, 9, 9], [30, 0, 39, 9], [0, 1, 9, 9.0]]), torch.tensor([0.7, 0.6, 0.9])
    assert loop_nms(boxes, scores, 0.4).tolist() == [2, 1]
    assert loop_nms(boxes[:0], scores[:0], 0.4).tolist() == []


def test_the_upload_benchmark_measures_every_step_and_delivers_the_pixels(device):
    result = gpu_upload.measure(device, HostTimer(), TINY)
    check_report(result, "gpu_upload")
    assert len(result["rows"]) == 3 * 4
    assert {row["format"] for row in result["rows"]} == {"yuv420p", "yuv420p10", "bgr24"}
    for row in result["rows"]:
        assert row["fps"] == pytest.approx(TINY.batch / row["median_us"] * 1e6)
    frames = [gpu_upload.host_frame("yuv420p10", 34, 18, seed=3)]
    upload = gpu_upload.Upload(device, device.stream(), frames)
    upload.fill()
    upload.queue()
    upload.stream.synchronize()
    for source, target in zip(frames[0].planes, upload.frames[0].planes, strict=True):
        np.testing.assert_array_equal(source, np.asarray(target))


def test_the_detector_benchmark_runs_every_batch_from_both_places(device):
    model, pictures = resolve_model("mnet025"), [gpu_upload.host_frame("nv12", 160, 96, seed=k) for k in range(4)]
    asked = []

    def make(batch):
        asked.append(batch)
        return Detector.from_engine(HostEngine(model, device), size="native", batch=batch, threshold=0.2)

    load = gpu_detector.Load(batches=(1, 4), frames=8, rounds=2, single=2)
    result = gpu_detector.measure(device, HostTimer(), make, pictures, load, {"width": 160})
    assert json.loads(json.dumps(result)) == result
    assert asked == [1, 4]
    assert [(row["batch"], row["pictures_on"]) for row in result["rows"]] == [
        (1, "device"), (1, "host"), (4, "device"), (4, "host"),
    ]  # fmt: skip
    for row in result["rows"]:
        assert row["waits_per_batch"] == 1
        assert row["cuda_graph"] == "on"
        assert row["fps"] == pytest.approx(row["batch"] / row["batch_ms"] * 1e3)
        assert 0 < row["submit_ms"] < row["alone_ms"]
        assert row["memory_mb"] > 3 * 1e-6 * row["batch"] * 3 * 160 * 96 * 4
    assert result["settings"]["format"] == "nv12"
    lines = gpu_detector.describe(result)
    assert len(lines) == 5
    assert "1 waits a batch" in lines[1]


def test_every_wait_is_counted_once(device):
    stream, event = device.stream(), device.event()
    with counted_waits(device) as waits:
        stream.record(event)
        event.synchronize()
        stream.synchronize()
        stream.synchronize()
    stream.synchronize()
    assert sorted(waits.values()) == [1, 2]
    assert profiled_waits(lambda: None) is None or isinstance(profiled_waits(lambda: None), dict)


def test_a_frame_becomes_the_surface_that_a_hardware_decoder_leaves():
    frame = gpu_upload.host_frame("yuv420p", 22, 10, seed=1)
    nv12 = gpu_detector.as_nv12(frame)
    assert [p.shape for p in nv12.planes] == list(nv12.format.plane_shapes(22, 10))
    np.testing.assert_array_equal(colour.to_bgr(nv12), colour.to_bgr(frame))


# -- around the measuring


def test_predictions_are_those_of_the_page():
    page = (BENCHMARKS.parent / "docs" / "kernels.md").read_text()
    rows = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("|")]
    stated = {}
    for row in rows:
        if found := re.search(r"([\d.]+)-([\d.]+) us", row[-1]):
            stated[row[0].strip()] = (float(found[1]), float(found[2]))
    assert {k: tuple(map(float, v)) for k, v in gpu_predictions.PREDICTED_US.items()} == stated


def test_a_prediction_is_only_held_against_the_gpu_and_size_that_it_is_for():
    name = "find, fused fp16 maps"
    assert gpu_predictions.compare(name, 16.0, "NVIDIA H200", full_size=True) == {
        "predicted_us": [6, 10],
        "of_prediction": 2.0,
    }
    for device, full_size, other in (
        ("NVIDIA T4", True, name),
        ("NVIDIA H200", False, name),
        ("NVIDIA H200", True, "x"),
    ):
        assert gpu_predictions.compare(other, 16.0, device, full_size=full_size)["predicted_us"] is None
    assert Sizes().is_full and not TINY.is_full


class DryDevice:
    """Takes all memory that it is asked for, and does nothing with it."""

    def empty(self, shape, dtype):
        return np.empty(shape, dtype)

    empty_pinned = empty

    def copy_in(self, target, source, stream):
        pass

    def stream(self):
        return self

    def synchronize(self):
        pass


@pytest.mark.slow
def test_every_case_of_the_full_size_has_a_prediction():
    device, sizes = DryDevice(), Sizes()
    named = {case.name for cases in (picture_cases, face_cases) for case in cases(device, device, sizes)}
    assert named == set(gpu_predictions.PREDICTED_US)


@pytest.mark.parametrize("script", ["gpu_all", "gpu_kernels", "gpu_classic", "gpu_upload", "gpu_detector"])
@pytest.mark.slow
def test_without_a_gpu_a_script_says_so_and_exits_with_code_3(script, tmp_path):
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{script}.py"), "--output", str(tmp_path / "out")],
        env=hidden, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith(f"{script} needs a CUDA GPU, and")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_all_of_them_run_in_turn_and_a_failure_is_told(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(gpu_all, "HERE", tmp_path)
    (tmp_path / "good.py").write_text("import sys; print('measured', sys.argv[1:])")
    (tmp_path / "bad.py").write_text("raise SystemExit(7)")
    (tmp_path / "slow.py").write_text("import threading; threading.Event().wait(60)")
    result = gpu_all.run_all(["good", "bad", "slow"], tmp_path / "out", seconds=3)
    assert [end["exit_code"] for end in result["runs"]] == [0, 7, None]
    assert f"measured ['--output', '{tmp_path / 'out'}']" in capfd.readouterr().out
    assert {path.stem for path in BENCHMARKS.glob("gpu_*.py")} >= set(gpu_all.SCRIPTS)


def test_the_part_of_decode_and_nms_in_a_batch_takes_both_results(tmp_path):
    assert gpu_all.conclude(tmp_path) == {}
    rows = [{"name": "decode + NMS, x", "median_us": 50.0}, {"name": "draw", "median_us": 1.0}]
    (tmp_path / "gpu_kernels.json").write_text(json.dumps({"rows": rows}))
    rows = [{"batch": 8, "pictures_on": place, "batch_ms": ms} for place, ms in (("host", 1.0), ("device", 5.0))]
    (tmp_path / "gpu_detector.json").write_text(json.dumps({"rows": rows}))
    assert gpu_all.conclude(tmp_path) == {"decode + NMS, x": pytest.approx(0.01)}


def test_a_script_writes_its_report(tmp_path, monkeypatch, capsys):
    device = HostDevice()
    monkeypatch.setattr(gpu_report, "open_gpu", lambda: (device, HostTimer()))
    monkeypatch.setattr(sys, "argv", ["x", "--output", str(tmp_path / "a" / "b")])

    def measure(device, timer, options):
        return gpu_report.report("trial", device, timer, {}, {"rows": [1]})

    assert gpu_report.run_script("trial", "", measure, lambda result: [f"rows {result['rows']}"]) == 0
    written = json.loads((tmp_path / "a" / "b" / "trial.json").read_text())
    assert written["rows"] == [1] and written["wall_s"] >= 0 and "gpus_before" in written
    assert "rows [1]" in capsys.readouterr().out

    def refuse(*_):
        raise SetupError("no such thing")

    assert gpu_report.run_script("trial", "", refuse, str) == 3
    assert capsys.readouterr().err == "trial needs a CUDA GPU, and cannot run here: no such thing\n"


def test_what_nvidia_smi_says_is_read(tmp_path, monkeypatch):
    """Also where it does not know one of the fields, and refuses the whole question for that."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        "names = sys.argv[1].removeprefix('--query-gpu=').split(',')\n"
        "unknown = open(__file__ + '.unknown').read()\n"
        "for gpu in '01':\n"
        "    print(', '.join(f'{gpu} {name}' for name in names))\n"
        "sys.exit(unknown in names)\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    whole = [{name: f"{gpu} {name}" for name in gpu_report.QUERY} for gpu in "01"]
    Path(f"{tool}.unknown").write_text("no field")
    assert gpu_report.describe_gpus() == whole
    Path(f"{tool}.unknown").write_text("pstate")
    for row in whole:
        del row["pstate"]
    assert gpu_report.describe_gpus() == whole
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert gpu_report.describe_gpus() == []
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert gpu_report.describe_gpus() == []
