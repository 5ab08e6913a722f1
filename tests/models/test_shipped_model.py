"""The detector that ships: what its model card says, on pictures that everybody has and on those of the card."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from retinastream import Detector, open_video
from retinastream.evaluation.average_precision import box_iou
from retinastream.evaluation.labelled_set import read_labelled_set
from retinastream.evaluation.measures import measure
from retinastream.evaluation.predict import predict
from retinastream.models.onnx_graph import read_graph
from retinastream.models.zoo import resolve_model

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "tests" / "media" / "sample_4k.mp4"
CARD = ROOT / "docs" / "models" / "mnet025.md"


def in_card(row, column):
    """A figure of the model card: the cell of a row in a column of its table."""
    text = CARD.read_text(encoding="utf-8")
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith(f"| {row} |"))
    head = next(line for line in reversed(lines[:at]) if column in line)
    return float(lines[at].split("|")[head.split("|").index(f" {column} ")])


def test_every_face_of_the_sample_clip_is_found_in_place_and_nothing_besides():
    frames = {frame["index"]: frame for frame in json.loads(SAMPLE.with_suffix(".json").read_text())["frames"]}
    # What `auto` chooses on a CPU; at native size one face is larger than the largest anchor.
    with Detector(size="fit:1280", threads=2) as detector, open_video(SAMPLE, stride=11) as source:
        found = list(detector.stream(source))
    assert [faces.index for faces in found] == list(range(0, 100, 11))
    for faces in found:
        truth = np.array(frames[faces.index]["boxes"], np.float64).reshape(-1, 4)
        landmarks = np.array(frames[faces.index]["landmarks"], np.float64).reshape(-1, 5, 2)
        assert len(faces) == len(truth)
        if not len(truth):
            continue
        overlap = box_iou(truth, faces.boxes)
        assert overlap.max(axis=1).min() > 0.6
        distance = np.linalg.norm(faces.landmarks[overlap.argmax(axis=1)] - landmarks, axis=2).mean(axis=1)
        assert (distance / np.sqrt(np.prod(truth[:, 2:] - truth[:, :2], axis=1))).max() < 0.1


def test_the_file_says_what_it_was_made_from_and_names_no_place_of_its_maker():
    model = resolve_model("mnet025")
    graph = read_graph(model.path)
    assert graph.metadata["retinastream.teacher_sha256"].startswith("2979b33f")
    assert graph.metadata["retinastream.training_config_sha256"][:12] in CARD.read_text(encoding="utf-8")
    assert not re.search(rb"/(home|root|work|tmp|Users)/", model.path.read_bytes())


@pytest.mark.data
@pytest.mark.slow
def test_it_reaches_the_precision_of_its_card_on_facemask(data):
    truths = read_labelled_set(data / "facemask" / "boxes.json")
    with Detector(size="native", threshold=0.02, precision="f32", clip=False, threads=2) as detector:
        found = measure(predict(detector, [picture.path for picture in truths.pictures]), truths)
    assert found.ap50 == pytest.approx(in_card("facemask, AP at IoU 0.5", "ours f32"), abs=0.003)
    assert found.ap50 > 0.652, "what the checkpoint it was distilled from reaches there"
