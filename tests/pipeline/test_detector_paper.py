"""The five-level detector from picture to faces: equal to torch, a loop over anchors and a plain suppression."""

import json
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from retinastream.errors import UsageError
from retinastream.models.spec_registry import SPECS
from retinastream.pipeline.detector import Detector

torch = pytest.importorskip("torch", reason="the export extra is not installed")
pytest.importorskip("onnx", reason="the export extra is not installed")

ARCHITECTURE = "paper-mobilenetv1-x0.25"
SPEC = SPECS["retinaface-paper"]
RUNTIMES = ["openvino", "onnxruntime"]
THRESHOLD = 0.6


@pytest.fixture(scope="module")
def network():
    """A network whose heads are scaled so that every level finds something, and boxes stay near their anchors."""
    from retinastream.models.architectures import create_network

    network = create_network(ARCHITECTURE, seed=5).eval()
    with torch.no_grad():
        for level, factor in enumerate((0.4, 2.0, 10.0, 12.0, 10.0)):
            network.ClassHead[level].conv1x1.weight *= factor
            network.BboxHead[level].conv1x1.weight *= factor / 3
            network.LandmarkHead[level].conv1x1.weight *= factor / 3
    return network


@pytest.fixture(scope="module")
def models(network, tmp_path_factory):
    from retinastream.models.export import export_network

    folder = tmp_path_factory.mktemp("paper")
    return {
        layout: export_network(network, SPEC, folder / f"paper-{layout}.onnx", layout)
        for layout in ("fused", "classic")
    }


def picture_of(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def plainly(network):
    """The faces of ``picture_of(width, height, seed)`` by plain loops, computed once for each."""
    return cache(lambda *size_and_seed: detect_plainly(network, picture_of(*size_and_seed)))


def detect_plainly(network, picture):
    """(score, box, landmarks) best first, in float64 from the maps on."""
    height, width = picture.shape[:2]
    image = np.zeros((3, math.ceil(height / 64) * 64, math.ceil(width / 64) * 64), np.float32)
    image[:, :height, :width] = (picture.astype(np.float32) - (104, 117, 123)).transpose(2, 0, 1)
    with torch.no_grad():
        maps = [m[0].numpy().astype(np.float64) for m in network(torch.from_numpy(image)[None])]
    faces = []
    for level, (tensor, stride) in enumerate(zip(maps, (4, 8, 16, 32, 64), strict=True)):
        for row, column in np.ndindex(tensor.shape[1:]):
            for third in range(3):
                cell, size = tensor[:, row, column], 16 * 2 ** (level + third / 3)
                score = 1 / (1 + math.exp(cell[2 * third] - cell[2 * third + 1]))
                if score < THRESHOLD:
                    continue
                centre = (np.array([column, row]) + 0.5) * stride
                box = cell[6 + 4 * third : 10 + 4 * third]
                middle, extent = centre + box[:2] * 0.1 * size, size * np.exp(box[2:] * 0.2)
                points = centre + cell[18 + 10 * third : 28 + 10 * third].reshape(5, 2) * 0.1 * size
                faces.append((score, np.concatenate([middle - extent / 2, middle + extent / 2]), points))
    faces.sort(key=lambda f: -f[0])
    return suppress([f for f in faces if (f[1][:2] < (width, height)).all() and (f[1][2:] > 0).all()])


def suppress(faces):
    """Greedy: a face stays unless a better one that stayed overlaps it by more than 0.4."""
    kept = []
    for face in faces:
        if not kept or overlaps(face[1], np.array([other[1] for other in kept])).max() <= 0.4:
            kept.append(face)
    return kept


def overlaps(box, others):
    common = np.clip(np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2]), 0, None).prod(1)
    return common / (np.prod(box[2:] - box[:2]) + (others[:, 2:] - others[:, :2]).prod(1) - common)


def assert_found(faces, expected, picture):
    height, width = picture.shape[:2]
    assert len(faces) == len(expected)
    np.testing.assert_allclose(faces.scores, [f[0] for f in expected], atol=1e-4)
    np.testing.assert_allclose(faces.boxes, [np.clip(f[1], 0, [width, height] * 2) for f in expected], atol=0.02)
    np.testing.assert_allclose(faces.landmarks, [f[2] for f in expected], atol=0.02)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("layout", ["fused", "classic"])
def test_faces_are_those_of_torch_and_plain_loops(plainly, models, layout, runtime):
    pytest.importorskip(runtime, reason=f"{runtime} is not installed")
    with Detector(models[layout], size="native", runtime=runtime, threads=1, threshold=THRESHOLD) as detector:
        assert (detector.spec.max_stride, detector.spec.output_layout) == (64, layout)
        for width, height in ((150, 100), (64, 64), (60, 129)):
            picture = picture_of(width, height)
            expected = plainly(width, height, 0)
            sides = [math.sqrt(np.prod(f[1][2:] - f[1][:2])) for f in expected]
            assert (len(sides) > 10, min(sides) < 30, max(sides) > 100) == (True, True, True)
            assert_found(detector(picture), expected, picture)


def test_a_batch_and_a_reduced_size_work_as_with_the_light_model(plainly, models):
    pictures = [picture_of(100, 60, seed) for seed in range(3)]
    with Detector(models["fused"], size="native", threads=1, batch=2, threshold=THRESHOLD) as detector:
        for seed, faces in enumerate(detector(pictures)):
            assert_found(faces, plainly(100, 60, seed), pictures[seed])
    with Detector(models["fused"], size="fit:64", threads=1, threshold=THRESHOLD) as detector:
        faces = detector(pictures[0])
        assert (faces.width, faces.height) == (100, 60)
        assert len(faces) > 0
        assert (faces.boxes <= [100, 60, 100, 60]).all()


def test_a_training_checkpoint_is_detected_with_directly(network, plainly, tmp_path):
    content = {"format": 1, "spec": SPEC.to_dict(), "network": {}, "state_dict": network.state_dict()}
    torch.save(content, tmp_path / "best.pt")
    picture = picture_of(100, 60)
    with Detector(tmp_path / "best.pt", size="native", threads=1, threshold=THRESHOLD) as detector:
        assert detector.model.name == "best"
        assert_found(detector(picture), plainly(100, 60, 0), picture)
    with pytest.raises(UsageError, match="leave it out"):
        Detector(tmp_path / "best.pt", spec=SPECS["retinaface-light"])


def test_inspect_shows_five_levels_and_their_anchors(models):
    from typer.testing import CliRunner

    from retinastream.cli.model import app

    shown = CliRunner().invoke(app, ["inspect", str(models["fused"]), "--json"], catch_exceptions=False)
    found = json.loads(shown.stdout)
    assert [line.split()[0] for line in found["outputs"]] == [f"head_{s}" for s in (4, 8, 16, 32, 64)]
    assert all("[?, 48, ?, ?]" in line for line in found["outputs"])
    assert found["spec"]["strides"] == [4, 8, 16, 32, 64]
    assert found["spec"]["anchor_sizes"][4][2] == pytest.approx(406.37, abs=0.01)
    assert found["metadata"]["retinastream.architecture"] == ARCHITECTURE


def test_the_command_line_detects_with_a_training_checkpoint(network, plainly, tmp_path, monkeypatch):
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    from retinastream.cli import main

    cv2.imwrite(str(tmp_path / "picture.png"), picture_of(100, 60))
    torch.save({"spec": SPEC.to_dict(), "state_dict": network.state_dict()}, tmp_path / "best.pt")
    monkeypatch.chdir(tmp_path)
    arguments = ["detect", "picture.png", "--model", "best.pt", "--threshold", str(THRESHOLD), "--size", "native"]
    monkeypatch.setattr("sys.argv", ["retinastream", *arguments, "--quiet"])
    try:
        main()
    except SystemExit as end:
        assert not end.code
    written = next(Path().glob("*.jsonl")).read_text().splitlines()
    frames = [line for line in map(json.loads, written) if line["type"] == "frame"]
    assert len(frames) == 1
    assert len(frames[0]["faces"]) == len(plainly(100, 60, 0))
