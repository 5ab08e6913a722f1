"""Whole runs and whole detectors on a device, from their settings to their outputs; only the device is none."""

import json
import threading

import numpy as np
import pytest
from gpu_on_host import MODEL, SAMPLE, assert_same, detector_on_host, small_picture
from host_device import HostDevice
from host_engine import HostEngine

from retinastream.engines.select import DeviceChoice
from retinastream.errors import SetupError, UsageError
from retinastream.pipeline import detector as detector_module
from retinastream.pipeline import gpu_backend
from retinastream.pipeline.detector import Detector
from retinastream.pipeline.run import run
from retinastream.settings import DetectSettings

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed, and it is the engine of these tests")


class Silent:
    """An observer that keeps what it is told of the inputs."""

    def __init__(self, at_progress=lambda: None):
        self.ended = []
        self.at_progress = at_progress

    def run_started(self, report):
        self.started = dict(report.detector)

    def input_started(self, report):
        pass

    def progressed(self, report):
        self.at_progress()

    def input_ended(self, report):
        self.ended.append(report)


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a GPU, so to say: what was built on it, and with which settings."""
    pytest.importorskip("retinastream.kernels.cupy_device")
    built = {"engines": [], "settings": [], "limit": 8 << 30}

    def choose(device, require=None, *, runtime="auto"):
        return DeviceChoice("cpu", 0, "asked for") if device == "cpu" else DeviceChoice("cuda", 0, "a GPU to test with")

    def create(model, device, **settings):
        built["settings"].append(settings)
        built["engines"].append(HostEngine(model, device))
        return built["engines"][-1]

    monkeypatch.setattr(detector_module, "choose_device", choose)
    monkeypatch.setattr(gpu_backend, "create_device_engine", create)
    monkeypatch.setattr(
        "retinastream.kernels.cupy_device.CuPyDevice",
        lambda index: HostDevice(index=index, shuffle=index, memory_limit=built["limit"]),
    )
    return built


def records(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return lines[0], lines[1:-1], lines[-1]


def settings_of(folder, **more):
    return DetectSettings(**({"model": str(MODEL), "output": folder, "size": "fit:320", "max_frames": 5} | more))


def test_a_run_on_a_device_writes_what_a_run_on_a_cpu_writes(gpu, tmp_path):
    found = {}
    for device in ("auto", "cpu"):
        observer = Silent()
        folder = tmp_path / device
        folder.mkdir()
        report = run(settings_of(folder, device=device, batch=2), [str(SAMPLE)], observer)
        assert report.exit_code == 0
        found[device] = (*records(folder / "sample_4k.faces.jsonl"), report, observer)
    header, frames, _, report, observer = found["auto"]
    assert (header["device"], header["runtime"]) == ("cuda:0", "host onnxruntime")
    assert observer.started["slots"] == 3
    assert report.detector["cuda_graph"] == "on"
    assert gpu["engines"][0].is_closed
    stages = [stage.name for stage in observer.ended[0].stats.stages]
    assert stages[:3] == ["decode", "submit", "collect"]
    assert len(frames) == len(found["cpu"][1]) == 5
    for one, other in zip(frames, found["cpu"][1], strict=True):
        assert one["index"] == other["index"]
        assert len(one["faces"]) == len(other["faces"]) > 0
        for face, wanted in zip(one["faces"], other["faces"], strict=True):
            np.testing.assert_allclose(face["box"], wanted["box"], atol=0.3)


@pytest.mark.slow
def test_annotated_video_gets_its_frames(gpu, tmp_path):
    report = run(settings_of(tmp_path, annotate=True, max_frames=3), [str(SAMPLE)], Silent())
    assert report.exit_code == 0
    assert sum(path.stat().st_size > 10_000 for path in tmp_path.glob("*.mp4")) == 1


def test_a_run_that_is_stopped_finishes_what_is_on_its_way(gpu, tmp_path):
    stop = threading.Event()
    report = run(settings_of(tmp_path, max_frames=None), [str(SAMPLE)], Silent(stop.set), stop)
    assert report.interrupted
    _, frames, _ = records(next(tmp_path.glob("*.jsonl*")))
    assert 1 <= len(frames) < 12
    assert [frame["index"] for frame in frames] == list(range(len(frames)))


def test_a_detector_takes_the_device_that_is_chosen_and_the_settings_of_its_engine(gpu, caplog):
    with (
        caplog.at_level("INFO"),
        Detector(MODEL, precision="fp16", torch_compile=True, runtime="torch", batch=2) as detector,
    ):
        assert str(detector.size) == "native"
        assert detector.info.device == "cuda:0"
        assert detector.execution["slots"] == 3
        with detector_on_host() as other:
            assert_same(detector(small_picture()), other(small_picture()).above(0.5))
    assert gpu["settings"] == [
        {"runtime": "torch", "precision": "fp16", "torch_compile": True, "batch": 2, "reason": "a GPU to test with"}
    ]
    assert "size auto on a GPU is native" in caplog.text


@pytest.mark.parametrize("values", [{"streams": 5}, {"max_faces": 5000}, {"streams": True}], ids=str)
def test_what_a_gpu_does_not_take_is_refused_before_an_engine_is_built(gpu, values):
    with pytest.raises(UsageError, match="is out of range"):
        Detector(MODEL, **values)
    assert gpu["engines"] == []


def test_too_little_memory_for_one_input_is_in_its_report_and_the_next_one_runs(gpu, tmp_path):
    import cv2

    gpu["limit"] = 24 << 20
    for name, picture in (("a", np.zeros((900, 1600, 3), np.uint8)), ("b", small_picture(320, 192))):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "picture.png"), picture)
    observer = Silent()
    report = run(settings_of(tmp_path, size="native"), [str(tmp_path / n) for n in "ab"], observer)
    assert report.exit_code != 0
    failed, done = observer.ended
    assert "--size" in str(failed.error)
    assert isinstance(failed.error, SetupError)
    assert (done.status, done.written) == ("done", 1)
