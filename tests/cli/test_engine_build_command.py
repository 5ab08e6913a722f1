"""``engine build`` and ``engine inspect``, against the fake TensorRT on a HostDevice: no proof of TensorRT itself."""

import json
import os
import re
import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engines"))

from fake_tensorrt.fixtures import newest, random_image  # noqa: F401

from retinastream.cli import engine_gpu
from retinastream.engines.cache.store import EngineCache
from retinastream.errors import SetupError, UsageError

SMALL = ("--shape", "96x64", "--batch", "1,2,4")


@pytest.fixture
def gpu(newest, monkeypatch, tmp_path):  # noqa: F811
    """A GPU with the fake, and an empty cache."""
    pytest.importorskip("onnxruntime", reason="the fake runs networks by onnxruntime")
    monkeypatch.setenv("RETINASTREAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(engine_gpu, "open_gpu", lambda text: newest.device)
    return newest


@pytest.fixture
def model(tiny_model):
    return tiny_model["fused"]


def test_an_engine_is_built_once_and_found_then(gpu, model, retinastream):
    code, out, err = retinastream("engine", "build", "--model", model, *SMALL)
    assert (code, len(gpu.builds)) == (0, 1), err
    path = Path(out.strip())
    assert path.is_file()
    assert "building tiny-fused fp16, 1x3x64x96..4x3x64x96: this takes minutes" in err
    assert re.search(r"(starting|reading the model|building|checking the engine): .*\d+ s so far", err)
    assert "built in" in err
    code, out, err = retinastream("engine", "build", "--model", model, *SMALL)
    assert (code, Path(out.strip()), len(gpu.builds)) == (0, path, 1)
    assert "found; nothing to build" in err
    code, out, err = retinastream("engine", "build", "--model", model, *SMALL, "--rebuild", "--quiet")
    assert (code, Path(out.strip()), err, len(gpu.builds)) == (0, path, "", 2)


def test_sizes_are_padded_and_each_has_a_profile(gpu, model, retinastream):
    code, out, err = retinastream(
        "engine", "build", "--model", model, "--shape", "90x60", "--shape", "64X64", "--batch", "2", "--json",
        "--precision", "f32", "--builder-optimization-level", "1", "--max-aux-streams", "0", "--workspace", "512M",
        "--hardware-compatibility", "ampere+", "--version-compatible", "--tf32",
    )  # fmt: skip
    assert code == 0, err
    facts = json.loads(out)
    key = facts["sidecar"]["key"]
    shapes = [next(iter(profile.values())) for profile in key["profiles"]]
    assert [shape["minimum"] for shape in shapes] == [[2, 3, 64, 96], [2, 3, 64, 64]]
    assert key["hardware_compatibility"] == "ampere+"
    assert key["builder"] == {
        "workspace": 512 << 20,
        "optimization_level": 1,
        "version_compatible": True,
        "max_aux_streams": 0,
        "tf32": True,
    }
    assert facts["sidecar"]["build"]["notes"]["layers"]["reformats"] == 1


def test_shapes_can_be_given_as_trtexec_takes_them(gpu, model, retinastream):
    from retinastream.models.onnx_file import read_onnx

    name = read_onnx(model).input_name
    shapes = (f"--minShapes={name}:1x3x64x96", f"--optShapes={name}:2x3x64x96", "--maxShapes=8x3x64x96")
    code, out, err = retinastream("engine", "build", "--model", model, *shapes, "--json")
    assert code == 0, err
    shape = next(iter(json.loads(out)["sidecar"]["key"]["profiles"][0].values()))
    assert [shape[name][0] for name in ("minimum", "optimum", "maximum")] == [1, 2, 8]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param((), "takes pictures of any size, and none was given: use --shape 3840x2160", id="no shape"),
        pytest.param(("--shape", "96"), "expected WIDTHxHEIGHT", id="a shape that is none"),
        pytest.param((*SMALL[:2], "--batch", "8,1"), "out of order", id="batches out of order"),
        pytest.param((*SMALL[:2], "--batch", "a"), "expected numbers", id="a batch that is none"),
        pytest.param((*SMALL[:2], "--batch", "1,100"), "allowed are 1 to 64", id="a batch too large"),
        pytest.param((*SMALL, "--workspace", "lots"), "such as 4G", id="a workspace that is none"),
        pytest.param((*SMALL, "--precision", "fp8"), "allowed are f32, fp16, int8", id="an unknown precision"),
        pytest.param((*SMALL, "--precision", "int8"), "--calibration", id="int8 without pictures"),
        pytest.param(
            (*SMALL, "--precision", "fp16", "--calibration", "x.jpg"), "is for --precision int8", id="pictures for fp16"
        ),
        pytest.param((*SMALL, "--force"), "to build an engine anew use --rebuild", id="force without pictures"),
        pytest.param((*SMALL, "-m", "mnet025"), "the model was given twice", id="two models"),
        pytest.param((*SMALL, "--hardware-compatibility", "any"), "none, same-cc, ampere+", id="unknown compatibility"),
        pytest.param((*SMALL, "--builder-optimization-level", "6"), "allowed are 0 to 5", id="an unknown level"),
        pytest.param((*SMALL, "--accept-loss"), "go with --check", id="a loss that nobody looks at"),
        pytest.param((*SMALL, "--minShapes=1x3x64x96"), "use one of the ways", id="two ways to give shapes"),
        pytest.param(("--minShapes=1x3x64x96",), "as many of each", id="only the smallest shapes"),
    ],
)
def test_wrong_options_end_with_a_sentence_and_build_nothing(gpu, model, retinastream, options, says):
    code, out, err = retinastream("engine", "build", model, *options)
    assert (code, out) == (2, "")
    assert says in " ".join(err.split())
    assert gpu.builds == []


def test_a_failed_build_ends_with_what_tensorrt_said(gpu, model, retinastream):
    gpu.failures.add("build")
    code, out, err = retinastream("engine", "build", "--model", model, *SMALL)
    assert (code, out) == (3, "")
    assert "error: TensorRT could not build the engine: there is no way to compute" in err
    assert EngineCache().entries() == []


def test_ctrl_c_during_a_build_leaves_nothing(gpu, model, retinastream):
    import signal

    reached, resumed = threading.Event(), threading.Event()

    def on_step(phase, step):
        if (phase, step) == (0, 1):
            reached.set()
            resumed.wait(20)

    def interrupt():
        reached.wait(20)
        signal.raise_signal(signal.SIGINT)  # Python runs its handler in the main thread
        threading.Timer(1.0, resumed.set).start()

    gpu.on_step = on_step
    threading.Thread(target=interrupt).start()
    code, out, err = retinastream("engine", "build", "--model", model, *SMALL)
    assert (code, out) == (130, "")
    assert "interrupted" in err
    assert gpu.reports == [(0, 0), (0, 1)]
    cache = EngineCache()
    assert cache.entries() == []
    assert [path.name for path in cache.folder.iterdir() if path.suffix in (".plan", ".json", ".part")] == []


def test_a_timing_cache_file_is_read_and_written(gpu, model, retinastream, tmp_path, caplog):
    file = tmp_path / "times.bin"
    assert retinastream("engine", "build", "--model", model, *SMALL, "--timing-cache", file)[0] == 0
    assert file.read_bytes().endswith(b"measured")
    file.write_bytes(b"of another GPU")
    code, _, _ = retinastream("engine", "build", "--model", model, *SMALL, "--timing-cache", file, "--rebuild")
    assert code == 0
    assert "timing cache is of another GPU" in caplog.text
    assert file.read_bytes().endswith(b"measured")


@pytest.mark.parametrize("limit", [100.0, 0.0], ids=["within the limits", "beyond the limits"])
def test_a_check_decides_whether_an_engine_is_built(gpu, retinastream, tmp_path, monkeypatch, limit):
    from retinastream.evaluation import precision_check
    from retinastream.evaluation.precision_check import Loss, PrecisionReport

    points = 0.05 if limit else 2.0
    loss = Loss("AP", 0.9, 0.9 - points / 100, points, limit)
    report = PrecisionReport({}, {}, "self-labelled", {"pictures": 1}, (loss,))
    calls = []

    def check(reference, candidate, on, **options):
        calls.append((Path(reference).name, Path(candidate).name))
        return report

    monkeypatch.setattr(precision_check, "check_precision", check)
    monkeypatch.setattr("retinastream.cli.engine_tables.print_check", lambda report: None)
    picture = Path(__file__).resolve().parents[1] / "media" / "sample_4k.mp4"
    command = ("engine", "build", "--model", "mnet025", *SMALL, "--check", picture)
    code, out, err = retinastream(*command)
    assert len(calls) == 1
    assert calls[0][1].endswith("-fp16-1.onnx")
    if limit:
        assert code == 0, err
        assert EngineCache().entries()[0].sidecar.build.accuracy["passed"] is True
        assert retinastream(*command)[0] == 0
        assert (len(calls), len(gpu.builds)) == (1, 1)
        return
    assert (code, out, gpu.builds) == (1, "", [])
    assert "loses too much" in err
    assert "AP 2.00 of 0 points" in err
    code, out, err = retinastream(*command, "--accept-loss", "--json")
    assert code == 0, err
    build = json.loads(out)["sidecar"]["build"]
    assert build["accuracy"]["passed"] is False
    assert "accepted with --accept-loss" in build["accepted_loss"]


def test_an_engine_that_was_not_checked_is_built_again_for_a_check(gpu, retinastream, monkeypatch):
    from retinastream.evaluation import precision_check
    from retinastream.evaluation.precision_check import Loss, PrecisionReport

    report = PrecisionReport({}, {}, "self-labelled", {}, (Loss("AP", 0.9, 0.9, 0.0, 0.1),))
    monkeypatch.setattr(precision_check, "check_precision", lambda *a, **k: report)
    sample = Path(__file__).resolve().parents[1] / "media" / "sample_4k.mp4"
    assert retinastream("engine", "build", *SMALL)[0] == 0
    assert retinastream("engine", "build", *SMALL, "--check", sample)[0] == 0
    assert len(gpu.builds) == 2


def test_an_engine_itself_is_checked_on_its_gpu(gpu, retinastream, monkeypatch, tmp_path):
    """The reference runs on the CPU, and the candidate as an engine that is built for it."""
    import cv2
    import numpy as np

    from retinastream import open_video
    from retinastream.engines.tensorrt_runtime import TensorRtEngine
    from retinastream.evaluation import precision_check
    from retinastream.models.zoo import resolve_model
    from retinastream.pipeline.detector import Detector

    asked = []

    def detector(path, *, device, runtime, precision=None, **settings):
        asked.append((device, runtime, precision))
        if device == "cpu":
            return Detector(path, device=device, runtime=runtime, **settings)
        engine = TensorRtEngine(resolve_model(path), gpu.device, precision=precision)
        named = {name: settings[name] for name in ("size", "threshold", "clip")}
        return Detector.from_engine(engine, **named)

    monkeypatch.setattr(precision_check, "Detector", detector)
    monkeypatch.setattr(precision_check, "choose_device", lambda *a, **k: None)
    sample = Path(__file__).resolve().parents[1] / "media" / "sample_4k.mp4"
    with open_video(sample, max_frames=1) as video:
        luma = np.ascontiguousarray(next(iter(video)).planes[0])
    small = cv2.resize(luma, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(tmp_path / "small.png"), cv2.cvtColor(small, cv2.COLOR_GRAY2BGR))
    assert retinastream("engine", "quantize", "mnet025", "--precision", "fp16", "-o", "half.onnx")[0] == 0
    common = ("engine", "check", "mnet025", "half.onnx", "--on", tmp_path / "small.png", "--limit", "100")
    code, out, err = retinastream(*common, "--device", "cuda", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert (report["candidate"]["runtime"], report["reference"]["runtime"]) == ("tensorrt", "onnxruntime")
    assert report["agreement"]["recall"] == 1.0
    assert asked == [("cpu", "onnxruntime", None), ("cuda", "tensorrt", "fp16")]
    assert len(gpu.builds) == 1
    assert "fp16 on tensorrt, cuda:0, against f32, self-labelled: 1 picture, " in " ".join(
        retinastream(*common, "--device", "cuda")[1].split()
    )
    assert retinastream(*common, "--device", "auto")[0] == 2


def test_a_check_of_an_engine_without_a_gpu_fails_before_anything_runs(retinastream, monkeypatch, tmp_path):
    from retinastream.evaluation import precision_check

    monkeypatch.setattr(precision_check, "Detector", lambda *a, **k: pytest.fail("the reference was run for nothing"))
    monkeypatch.setattr("retinastream.kernels.cuda_driver.CUDA_LIBRARY", "libmissing.so")
    retinastream("engine", "quantize", "mnet025", "--precision", "fp16", "-o", "half.onnx")
    sample = Path(__file__).resolve().parents[1] / "media" / "sample_4k.mp4"
    code, _, err = retinastream("engine", "check", "mnet025", "half.onnx", "--on", sample, "--device", "cuda")
    assert (code, "device 'cuda' cannot be used" in err) == (3, True)
    assert "--device cpu" not in err


def test_inspect_shows_what_an_engine_is_with_and_without_a_gpu(gpu, model, retinastream, monkeypatch):
    _, out, _ = retinastream("engine", "build", "--model", model, *SMALL)
    path = Path(out.strip())
    code, out, err = retinastream("engine", "inspect", "tiny-fused")
    assert code == 0, err
    assert "was written by TensorRT 11.4.0.106" in out
    assert re.search(r"input +\w+ HALF \?x3x\?x\?", out)
    assert "1x3x64x96 .. 4x3x64x96, tuned for 2x3x64x96" in out
    assert "1 only reformat" in out
    assert "0.0 MiB per profile; 0 auxiliary streams" in out
    assert "accuracy     was not checked" in out
    code, out, _ = retinastream("engine", "inspect", path, "--json", "--layers")
    facts = json.loads(out)
    assert facts["engine"]["layer_descriptions"][0]["LayerType"] == "Reformat"
    assert facts["machine"]["gpu"] == "NVIDIA H200"

    def no_gpu(text):
        raise SetupError("there is no GPU; buy one")

    monkeypatch.setattr(engine_gpu, "open_gpu", no_gpu)
    code, out, _ = retinastream("engine", "inspect", path.stem[:8])
    assert code == 0
    assert "not loaded   there is no GPU; buy one" in out
    assert "1x3x64x96 .. 4x3x64x96" in out


def test_a_file_from_elsewhere_is_loaded_only_when_it_is_trusted(gpu, model, retinastream, tmp_path):
    _, out, _ = retinastream("engine", "build", "--model", model, *SMALL)
    copy = tmp_path / "elsewhere.plan"
    copy.write_bytes(Path(out.strip()).read_bytes())
    code, out, _ = retinastream("engine", "inspect", copy)
    assert code == 0
    assert "give --trust" in out
    code, out, _ = retinastream("engine", "inspect", copy, "--trust")
    assert "tuned for 2x3x64x96" in out
    copy.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    code, out, _ = retinastream("engine", "inspect", copy, "--trust")
    assert "pointer of Git LFS" in out


def test_without_a_gpu_building_says_what_is_missing(model, retinastream, monkeypatch):
    def no_gpu(text):
        raise SetupError("there is no GPU; buy one")

    monkeypatch.setattr(engine_gpu, "open_gpu", no_gpu)
    code, out, err = retinastream("engine", "build", "--model", model, *SMALL)
    assert (code, out) == (3, "")
    assert "error: there is no GPU; buy one" in err


def test_a_cpu_is_refused(model, retinastream):
    code, _, err = retinastream("engine", "build", "--model", model, *SMALL, "--device", "cpu")
    assert code == 2
    assert "TensorRT runs on a GPU only" in err


@pytest.mark.slow
def test_an_int8_engine_is_calibrated_and_detect_finds_it(gpu, retinastream):
    """The graph is calibrated with the sample video; a detector of this precision needs no pictures afterwards."""
    from retinastream.engines.tensorrt_runtime import TensorRtEngine
    from retinastream.models.zoo import resolve_model

    sample = Path(__file__).resolve().parents[1] / "media" / "sample_4k.mp4"
    model = resolve_model("mnet025")
    with pytest.raises(UsageError, match="needs pictures to be calibrated"):
        TensorRtEngine(model, gpu.device, precision="int8")
    command = ("engine", "build", *SMALL, "--calibration", sample, "--json")
    code, out, err = retinastream(*command)
    assert code == 0, err
    key = json.loads(out)["sidecar"]["key"]
    assert (key["precision"], len(key["calibration_sha256"])) == ("int8", 64)
    assert "calibrating mnet025" in err
    again = retinastream("engine", "build", *SMALL, "--precision", "int8", "--json")
    assert json.loads(again[1])["built"] is False
    engine = TensorRtEngine(model, gpu.device, precision="int8")
    with gpu.device.current():
        stream = gpu.device.stream()
        image = gpu.device.upload(random_image((2, 3, 64, 96), engine.input_dtype))
        outputs = [gpu.device.empty(s, engine.output_dtype) for s in engine.output_shapes(2, 64, 96)]
        engine.bind(image, outputs, stream)
    assert len(gpu.builds) == 1


def test_a_file_that_has_a_precision_keeps_it(gpu, model, retinastream):
    quantize = ("engine", "quantize", model, "--precision", "fp16", "--outside", "round", "-o", "half.onnx")
    assert retinastream(*quantize)[0] == 0
    code, out, err = retinastream("engine", "build", "half.onnx", *SMALL, "--json")
    assert code == 0, err
    assert json.loads(out)["sidecar"]["build"]["model"] == "half"
    code, _, err = retinastream("engine", "build", "half.onnx", *SMALL, "--precision", "f32")
    assert (code, "is fp16 and f32 was asked for" in err) == (2, True)
    proto = onnx_of_precision(Path("half.onnx"), "int8")
    code, out, err = retinastream("engine", "build", proto, *SMALL, "--json")
    assert code == 0, err
    assert json.loads(out)["sidecar"]["key"]["precision"] == "int8"


def onnx_of_precision(path, precision):
    """A copy that says that it has another precision: what it computes in is not looked at here."""
    import onnx

    proto = onnx.load(str(path))
    for entry in proto.metadata_props:
        if entry.key == "retinastream.precision":
            entry.value = precision
    onnx.save(proto, f"{precision}.onnx")
    return f"{precision}.onnx"


def test_the_first_build_of_a_user_whose_group_may_write_is_found(gpu, model, retinastream):
    """With this umask, which some systems set, folders are writable by the group unless somebody sees to it."""
    before = os.umask(0o002)
    try:
        code, out, err = retinastream("engine", "build", model, *SMALL)
    finally:
        os.umask(before)
    assert code == 0, err
    folder = Path(out.strip()).parent
    assert {path.stat().st_mode & 0o777 for path in (folder, folder / "graphs")} == {0o700}
    assert "1 engine, " in retinastream("engine", "list")[1]
