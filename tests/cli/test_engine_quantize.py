"""``retinastream engine quantize``, ``check`` and ``lint``, called as a person calls them."""

import json
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="onnx is not installed, and models are converted with it")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed, and models are calibrated on it")

from retinastream.models.onnx_file import read_onnx  # noqa: E402

SAMPLE = Path(__file__).resolve().parent.parent / "media" / "sample_4k.mp4"


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """Small pictures with faces: cut out of two frames of the sample clip, each a few times."""
    import cv2

    from retinastream import open_video

    folder = tmp_path_factory.mktemp("faces")
    labels = {f["index"]: f["boxes"] for f in json.loads(SAMPLE.with_suffix(".json").read_text())["frames"]}
    with open_video(SAMPLE, stride=45, max_frames=2) as video:
        for frame in video:
            small = cv2.resize(
                np.ascontiguousarray(frame.planes[0]), None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA
            )
            for number, (x1, y1, x2, y2) in enumerate(labels[frame.index]):
                for part in range(8):
                    centre = int((x1 + x2) / 8) + 6 * part, int((y1 + y2) / 8)
                    left, top = (max(0, c - 80) for c in centre)
                    cut = small[top : top + 160, left : left + 160]
                    cv2.imwrite(
                        str(folder / f"{frame.index}_{number}_{part}.png"), cv2.cvtColor(cut, cv2.COLOR_GRAY2BGR)
                    )
    assert len(list(folder.iterdir())) >= 32
    return folder


def test_fp16_is_written_beside_its_name(retinastream):
    code, out, err = retinastream("engine", "quantize", "mnet025", "--precision", "fp16")
    assert (code, out.splitlines()[-1]) == (0, "mnet025.fp16.onnx")
    assert read_onnx("mnet025.fp16.onnx").precision == "fp16"
    code, _, err = retinastream("engine", "quantize", "mnet025", "--precision", "fp16")
    assert (code, "exists; choose another name, or pass --overwrite" in err) == (2, True)
    code, out, _ = retinastream("engine", "quantize", "mnet025", "--precision", "fp16", "--overwrite", "--json")
    assert (code, json.loads(out)["path"]) == (0, "mnet025.fp16.onnx")


def test_int8_is_calibrated_checked_and_linted(retinastream, faces):
    common = ("--calibration", faces, "--threads", "1", "--report", "report.json", "-o", "q.onnx")
    worst = ("--method", "percentile", "--percentile", "70", "--no-equalise")
    code, out, _ = retinastream("engine", "quantize", "mnet025", *common, *worst, "--leave", "body.stage1.1*")
    assert code == 0
    assert "2 in fp16; calibrated by percentile on" in out
    report = json.loads(Path("report.json").read_text())
    assert report["fp16_layers"] == ["body.stage1.1.0", "body.stage1.1.3"]
    assert report["pictures"] >= 32
    assert report["pictures_with_faces"] > report["pictures"] / 2
    assert retinastream("engine", "lint", "q.onnx")[0] == 0
    code, out, _ = retinastream(
        "engine", "check", "mnet025", "q.onnx", "--on", faces, "--threads", "1", "--limit", "100"
    )
    assert (code, "passed" in out) == (0, True)
    code, out, _ = retinastream(
        "engine", "check", "mnet025", "q.onnx", "--on", faces, "--threads", "1", "--limit", "0", "--json"
    )
    values = json.loads(out)
    assert (code, values["passed"], values["losses"][0]["limit"]) == (1, False, 0)
    assert values["losses"][0]["points"] > 0


def test_auto_leaves_layers_out_until_the_limit_holds(retinastream, faces):
    code, out, err = retinastream(
        "engine", "quantize", "mnet025", "--calibration", faces, "--auto", "--on", faces, "--max-frames", "8",
        "--method", "max", "--no-equalise", "--limit", "2", "--threads", "1", "-o", "auto.onnx",
        "--report", "auto.json",
    )  # fmt: skip
    assert code == 0, err
    report = json.loads(Path("auto.json").read_text())
    trials = report["search"]["trials"]
    assert trials[-1]["passed"] or any(t["passed"] and t["left"] == len(report["search"]["left"]) for t in trials)
    assert report["check"]["losses"][0]["points"] <= 0.8 * 2.0
    assert len(report["ranking"]) == 50
    assert "signal / noise" in out
    assert "was calibrated on, too" in err
    assert read_onnx("auto.onnx").precision == "int8"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "int8 needs pictures: give --calibration"),
        (("--precision", "fp16", "--method", "max"), "--method cannot be used here: fp16 needs no calibration"),
        (("--precision", "fp16", "--calibration", "x"), "--calibration cannot be used here"),
        (("--precision", "fp8", "--calibration", "x"), "fp8 is made by modelopt only, and is experimental"),
        (("--precision", "int4"), "--precision 'int4' is not allowed"),
        (("--calibration", "x", "--on", "y"), "--on cannot be used here: they go with --auto"),
        (("--calibration", "x", "--auto"), "--auto needs --on"),
        (("--calibration", "x", "--keep-input"), "--keep-input cannot be used here: it is for --precision fp16"),
        (("--calibration", "x", "--quantizer", "modelopt", "--auto", "--on", "y"), "they are for --quantizer own"),
        (("--calibration", "x", "--percentile", "3"), "--percentile 3.0 is not allowed"),
        (("--calibration", "x", "--percentile", "99"), "--percentile cannot be used here: it goes with --method"),
    ],
)
def test_options_that_do_not_go_together_are_refused(retinastream, arguments, words):
    code, _, err = retinastream("engine", "quantize", "mnet025", *arguments)
    assert (code, words in err) == (2, True), err
    assert list(Path().iterdir()) == []


def test_pictures_that_will_not_do_are_refused_unless_forced(retinastream, tmp_path):
    import cv2

    (tmp_path / "few").mkdir()
    cv2.imwrite(str(tmp_path / "few" / "grey.png"), np.full((64, 64, 3), 90, np.uint8))
    (tmp_path / "few" / "bad.jpg").write_bytes(b"no picture")
    common = ("engine", "quantize", "mnet025", "--calibration", tmp_path / "few", "--threads", "1")
    code, _, err = retinastream(*common)
    assert (code, "too few pictures to calibrate with: 1;" in err) == (1, True)
    code, _, err = retinastream(*common, "--force")
    assert (code, "1 calibration pictures could not be read and were left out" in err) == (0, True)


def test_lint_names_what_is_wrong_and_fails(retinastream, tmp_path):
    code, _, _ = retinastream("engine", "quantize", "mnet025", "--precision", "fp16", "-o", "half.onnx")
    assert retinastream("engine", "lint", "half.onnx")[0] == 0
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], name="dq"),
    ]
    weights = [numpy_helper.from_array(np.float32(0.1), "s"), numpy_helper.from_array(np.int8(4), "z")]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in "xy"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), "bad.onnx")
    code, out, err = retinastream("engine", "lint", "bad.onnx")
    assert code == 1
    assert "error: q: its zero point is 4; only symmetric quantisation is taken" in out
    assert "bad.onnx: 2 errors, 0 warnings" in err
    code, out, _ = retinastream("engine", "lint", "bad.onnx", "--json")
    assert (code, json.loads(out)["errors"]) == (1, 2)


def test_a_checked_model_must_be_there(retinastream, faces):
    code, _, err = retinastream("engine", "check", "mnet025", "nothing.onnx", "--on", faces)
    assert (code, "nothing.onnx does not exist" in err) == (2, True)
