"""What a lower precision loses: measured on labels, on unlabelled pictures, on WIDER FACE; and the limits."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="onnx is not installed, and models are converted with it")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed, and both models run on it")

from retinastream import open_video  # noqa: E402
from retinastream.engines.precision.half import to_fp16  # noqa: E402
from retinastream.errors import InputError, ModelError, UsageError  # noqa: E402
from retinastream.evaluation.check_sets import open_check_set  # noqa: E402
from retinastream.evaluation.precision_check import (  # noqa: E402
    LIMITS,
    Limits,
    Loss,
    PrecisionGate,
    PrecisionReport,
    WiderSet,
    check_precision,
)
from retinastream.evaluation.wider_truth import EventTruth, GroundTruth, PictureTruth  # noqa: E402
from retinastream.models.zoo import resolve_model  # noqa: E402

SAMPLE = Path(__file__).resolve().parent.parent / "media" / "sample_4k.mp4"
SMALLER = 4


@pytest.fixture(scope="module")
def model():
    return resolve_model("mnet025").path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three frames of the sample clip at a quarter of its size, with their labels: the folder."""
    folder = tmp_path_factory.mktemp("pictures")
    labels = {f["index"]: f for f in json.loads(SAMPLE.with_suffix(".json").read_text())["frames"]}
    listed = []
    with open_video(SAMPLE, stride=40, max_frames=3) as video:
        for frame in video:
            luma = frame.planes[0]
            small = cv2.resize(
                np.ascontiguousarray(luma), None, fx=1 / SMALLER, fy=1 / SMALLER, interpolation=cv2.INTER_AREA
            )
            name = f"frame_{frame.index}.png"
            cv2.imwrite(str(folder / name), cv2.cvtColor(small, cv2.COLOR_GRAY2BGR))
            boxes = np.array(labels[frame.index]["boxes"]).reshape(-1, 4) / SMALLER
            listed.append((name, small.shape, boxes))
    coco = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "face"}]}
    for number, (name, (height, width), boxes) in enumerate(listed):
        coco["images"].append({"id": number, "file_name": name, "width": width, "height": height})
        for x1, y1, x2, y2 in boxes.tolist():
            coco["annotations"].append(
                {
                    "id": len(coco["annotations"]) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                }
            )
    (folder / "coco.json").write_text(json.dumps(coco))
    return folder


@pytest.fixture(scope="module")
def half(model, tmp_path_factory):
    return to_fp16(model, tmp_path_factory.mktemp("half") / "half.onnx").path


@pytest.fixture(scope="module")
def broken(model, tmp_path_factory):
    """The same network with noise on its weights: it finds less."""
    proto = onnx.load(str(model))
    rng = np.random.default_rng(0)
    for tensor in proto.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.ndim == 4:
            noisy = values + rng.normal(0, 0.35 * values.std(), values.shape).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(noisy, tensor.name))
    path = tmp_path_factory.mktemp("broken") / "broken.onnx"
    onnx.save(proto, str(path))
    return to_fp16(path, path.with_name("half.onnx"), outside="round").path


def test_a_half_model_loses_next_to_nothing_on_labels(model, half, pictures):
    told = []
    on = open_check_set(pictures / "coco.json")
    report = check_precision(model, half, on, threads=1, progress=lambda *seen: told.append(seen))
    assert (report.kind, report.passed) == ("labelled", True)
    (loss,) = report.losses
    assert (loss.measure, loss.limit) == ("ap50", 0.1)
    assert 0.5 < loss.reference <= 1
    assert abs(loss.points) <= 0.1
    assert report.candidate["precision"] == "fp16"
    assert report.on["faces"] == sum(row["faces"] for row in report.recall_by_height)
    assert report.agreement["recall"] == 1.0
    # Not zero: then the candidate would not have been run in its own precision.
    assert 0 < report.agreement["landmarks_apart"] < 0.005
    assert told[0] == ("reference", 1, 3)
    assert told[-1] == ("candidate", 3, 3)
    json.dumps(report.to_dict(), allow_nan=False)


def test_a_model_that_finds_less_fails_with_and_without_labels(model, broken, pictures, tmp_path):
    for on in (pictures / "coco.json", pictures):
        with PrecisionGate(model, open_check_set(on), threads=1) as gate:
            report = gate.check(broken)
        assert not report.passed, on
        assert report.used > 1
        assert report.losses[0].points > 0.1


def test_without_labels_the_reference_is_the_truth(model, half, pictures):
    report = check_precision(model, half, open_check_set(pictures), threads=1)
    assert (report.kind, report.losses[0].reference) == ("self-labelled", 1.0)
    assert report.passed
    assert report.landmarks["reference"]["mean"] == 0.0
    itself = check_precision(model, model, open_check_set(pictures), threads=1)
    assert itself.losses[0].points == 0.0
    assert itself.agreement["landmarks_apart"] == 0.0


@pytest.mark.parametrize(
    ("faces", "limits", "said"),
    [
        pytest.param(147, (0.1,), "of 147 faces one is 0.68 points, more than the 0.1 that may be lost", id="few"),
        pytest.param(147, (1.0, 0.5), "a set of 200 faces or more", id="the narrowest limit counts"),
        pytest.param(1000, (0.1,), None, id="enough"),
        pytest.param(3, (0.0,), None, id="nothing may be lost"),
        pytest.param(None, (0.1,), None, id="not known"),
    ],
)
def test_a_set_too_small_for_its_limit_is_remarked(faces, limits, said):
    losses = tuple(Loss("ap50", 1.0, 1.0, 0.0, limit) for limit in limits)
    report = PrecisionReport({}, {}, "labelled", {} if faces is None else {"faces": faces}, losses)
    assert report.to_dict()["remarks"] == list(report.remarks)
    assert len(report.remarks) == (said is not None)
    assert all(said in remark for remark in report.remarks)


def test_the_reference_runs_once_for_any_number_of_candidates(model, half, broken, pictures):
    told = []
    on = open_check_set(pictures / "coco.json")
    gate = PrecisionGate(model, on, threads=1, progress=lambda role, done, total: told.append(role))
    gate.check(half)
    gate.check(broken)
    assert told == ["reference"] * 3 + ["candidate"] * 6


def test_wider_face_is_held_to_its_three_settings(model, half, pictures):
    names = sorted(p.stem for p in pictures.glob("*.png"))
    found = open_check_set(pictures / "coco.json")
    parts = []
    for name, picture in zip(names, sorted(found.pictures, key=lambda p: p.name), strict=True):
        xywh = picture.boxes.astype(np.float64).copy()
        xywh[:, 2:] -= xywh[:, :2]
        parts.append(PictureTruth(name, xywh, dict.fromkeys(("easy", "medium", "hard"), np.arange(len(xywh)))))
    truth = GroundTruth((EventTruth("0--Event", tuple(parts)),))
    on = WiderSet(truth, {("0--Event", name): pictures / f"{name}.png" for name in names})
    report = check_precision(model, half, on, limits=Limits(1.0, 1.5), threads=1)
    assert [(loss.measure, loss.limit) for loss in report.losses] == [("easy", 1.0), ("medium", 1.0), ("hard", 1.5)]
    assert all(loss.reference > 0.3 for loss in report.losses)
    assert report.kind == "wider"
    assert report.passed


@pytest.mark.parametrize(
    ("points", "limit", "passed", "used"),
    [
        (0.0, 0.1, True, 0.0),
        (-2.0, 0.1, True, 0.0),
        (0.1, 0.1, True, 1.0),
        (0.11, 0.1, False, 1.1),
        (0.1, 0.0, False, float("inf")),
    ],
)
def test_losses_are_held_to_their_limits(points, limit, passed, used):
    loss = Loss("ap50", 0.9, 0.9 - points / 100, points, limit)
    assert (loss.passed, loss.used) == (passed, pytest.approx(used))
    assert PrecisionReport({}, {}, "labelled", {}, (Loss("a", 1, 1, 0, 1), loss)).passed is passed


def test_the_limits_of_a_precision_are_those_of_the_documentation():
    assert (LIMITS["fp16"].ap, LIMITS["int8"].ap, LIMITS["int8"].hard) == (0.1, 1.0, 1.5)
    with pytest.raises(UsageError, match="limit ap is -1"):
        Limits(-1, 0)


def test_a_reference_of_lower_precision_is_refused(half, pictures):
    with pytest.raises(ModelError, match="is fp16; expected the float32 model"):
        PrecisionGate(half, open_check_set(pictures))


def test_a_candidate_with_other_anchors_is_refused(model, half, pictures, tmp_path):
    proto = onnx.load(str(half))
    for entry in proto.metadata_props:
        if entry.key == "retinastream.spec":
            entry.value = entry.value.replace("16.0", "20.0", 1)
    onnx.save(proto, str(tmp_path / "other.onnx"))
    with pytest.raises(ModelError, match="carries its own spec"):
        check_precision(model, tmp_path / "other.onnx", open_check_set(pictures))


def test_pictures_without_faces_say_nothing(model, half, tmp_path):
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((64, 64, 3), 128, np.uint8))
    with pytest.raises(InputError, match="there is no face in the 1 pictures"):
        check_precision(model, half, open_check_set(tmp_path), threads=1)


def test_sets_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(InputError):
        open_check_set(tmp_path / "nothing.mp4")
    (tmp_path / "wider_face_val.mat").write_bytes(b"")
    with pytest.raises(UsageError, match="give the folder of its pictures"):
        open_check_set(tmp_path)
