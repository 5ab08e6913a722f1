"""Exported files: they agree with torch in two runtimes, at any size and batch, and say what they are."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the export extra is not installed")
onnx = pytest.importorskip("onnx", reason="the export extra is not installed")
ort = pytest.importorskip("onnxruntime", reason="the export extra is not installed")
import openvino  # noqa: E402

from retinastream.engines.openvino_core import openvino_core  # noqa: E402
from retinastream.errors import ModelError, OutputError  # noqa: E402
from retinastream.models.checkpoints import load_checkpoint  # noqa: E402
from retinastream.models.export import export_network, export_onnx  # noqa: E402
from retinastream.models.network import ARCHITECTURES, RetinaFace  # noqa: E402
from retinastream.models.onnx_file import read_onnx  # noqa: E402
from retinastream.models.onnx_graph import read_graph  # noqa: E402
from retinastream.models.spec import DetectorSpec  # noqa: E402

DATA = Path(os.environ.get("RETINASTREAM_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
CHECKPOINT = DATA / "weights" / "mobilenet0.25_Final.pth"
PICTURE = DATA / "stills" / "biubug6_curve_test.jpg"
needs_data = pytest.mark.skipif(
    not (CHECKPOINT.is_file() and PICTURE.is_file()), reason="checkpoint and picture are not in the test data"
)
LAYOUTS = ("fused", "classic")
TOLERANCE = 1e-4


def in_torch(network, layout, images):
    network.layout = layout
    with torch.no_grad():
        return [output.numpy() for output in network(torch.from_numpy(images))]


class Runtimes:
    """ONNX Runtime and OpenVINO on one file, each compiled once, as the sizes of the input change."""

    def __init__(self, path):
        self.model = read_onnx(path)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 2
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 2}
        self.compiled = openvino_core(openvino).compile_model(path, "CPU", settings)

    def outputs(self, images):
        names = list(self.model.output_names)
        by_openvino = self.compiled({self.model.input_name: images})
        yield "ONNX Runtime", self.session.run(names, {self.model.input_name: images})
        yield "OpenVINO", [by_openvino[name] for name in names]


def assert_agree(network, layout, runtimes, images):
    expected = in_torch(network, layout, images)
    for runtime, outputs in runtimes.outputs(images):
        for name, ours, theirs in zip(runtimes.model.output_names, expected, outputs, strict=True):
            assert theirs.shape == ours.shape, (runtime, name)
            assert float(np.abs(theirs - ours).max()) <= TOLERANCE, (runtime, name)


def random_images(batch, height, width):
    return np.random.default_rng(7).normal(0, 60, (batch, 3, height, width)).astype(np.float32)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_dynamic_file_agrees_with_torch_at_two_sizes_and_batches(layout, tmp_path):
    network = RetinaFace(seed=1).eval()
    runtimes = Runtimes(export_network(network, DetectorSpec(), tmp_path / "net.onnx", layout))
    for batch, height, width in ((1, 96, 160), (2, 256, 224), (2, 96, 160)):
        assert_agree(network, layout, runtimes, random_images(batch, height, width))


@pytest.mark.data
@needs_data
@pytest.mark.parametrize("layout", LAYOUTS)
def test_real_checkpoint_agrees_with_torch_on_random_and_real_input(layout, tmp_path):
    network = load_checkpoint(CHECKPOINT).network
    runtimes = Runtimes(export_onnx(CHECKPOINT, tmp_path / "net.onnx", layout))
    assert_agree(network, layout, runtimes, random_images(1, 224, 320))
    picture = real_picture()
    assert_agree(network, layout, runtimes, picture)
    assert_agree(network, layout, runtimes, np.concatenate([picture, picture[..., ::-1]])[..., :320, :512].copy())


@pytest.mark.data
@needs_data
def test_real_checkpoint_finds_its_known_best_face(tmp_path):
    runtimes = Runtimes(export_onnx(CHECKPOINT, tmp_path / "net.onnx", "classic"))
    for runtime, (_, conf, _) in runtimes.outputs(real_picture()):
        assert conf[0, :, 1].max() == pytest.approx(0.9996, abs=1e-4), runtime


def real_picture():
    """Return the test picture as network input, padded at the bottom and right to a multiple of 32."""
    import cv2

    image = cv2.imread(str(PICTURE)).astype(np.float32) - np.float32([104, 117, 123])
    height, width = (-(-n // 32) * 32 for n in image.shape[:2])
    padded = np.zeros((height, width, 3), np.float32)
    padded[: image.shape[0], : image.shape[1]] = image
    return np.ascontiguousarray(padded.transpose(2, 0, 1)[None])


def test_scores_of_the_two_layouts_are_the_same(tmp_path):
    network = RetinaFace(seed=2).eval()
    images = random_images(1, 96, 128)
    files = [export_network(network, DetectorSpec(), tmp_path / f"{layout}.onnx", layout) for layout in LAYOUTS]
    (_, maps), (_, classic) = (next(iter(Runtimes(path).outputs(images))) for path in files)
    scores = []
    for level in maps:
        logits = level[0, :4].reshape(2, 2, *level.shape[2:])
        scores.append((1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))).transpose(1, 2, 0).ravel())
    np.testing.assert_allclose(np.concatenate(scores), classic[1][0, :, 1], atol=1e-6)


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_every_backbone_exports_reads_back_and_agrees(architecture, tmp_path):
    network = RetinaFace(architecture, seed=4).eval()
    runtimes = Runtimes(export_network(network, DetectorSpec(), tmp_path / "net.onnx"))
    images = random_images(1, 64, 96) / 60
    expected = in_torch(network, "fused", images)
    largest = max(float(np.abs(output).max()) for output in expected)
    for runtime, outputs in runtimes.outputs(images):
        for ours, theirs in zip(expected, outputs, strict=True):
            # Random weights let values grow with depth, so the tolerance is relative to them.
            assert float(np.abs(theirs - ours).max()) <= TOLERANCE * max(1.0, largest), runtime


def test_fused_graph_holds_convolutions_and_nothing_that_moves_data(tmp_path):
    path = export_network(RetinaFace(), DetectorSpec(), tmp_path / "net.onnx")
    operators = read_graph(path).operators
    assert set(operators) == {"Conv", "LeakyRelu", "Relu", "Concat", "Add", "Resize"}
    # Three heads of three levels became three convolutions: 27 of the backbone, 5 of the pyramid, 15 of the context.
    assert operators["Conv"] == 27 + 5 + 15 + 3
    onnx.checker.check_model(str(path), full_check=True)


def test_declared_sizes_are_symbolic(tmp_path):
    for layout, shapes in (("fused", [(None, 32, None, None)] * 3), ("classic", [(None, None, n) for n in (4, 2, 10)])):
        graph = read_graph(export_network(RetinaFace(), DetectorSpec(), tmp_path / "net.onnx", layout))
        assert [tensor.shape for tensor in graph.inputs] == [(None, 3, None, None)]
        assert [tensor.shape for tensor in graph.outputs] == shapes


def test_file_says_its_spec_and_origin(tmp_path):
    spec = DetectorSpec(anchor_sizes=((10.0, 20.0), (32.0, 64.0), (128.0, 256.0)))
    path = export_network(RetinaFace(), spec, tmp_path / "net.onnx", "classic", {"retinastream.licence": "mine"})
    metadata = read_graph(path).metadata
    assert json.loads(metadata["retinastream.spec"])["anchor_sizes"] == [[10, 20], [32, 64], [128, 256]]
    assert metadata["retinastream.architecture"] == "mobilenetv1-x0.25"
    assert metadata["retinastream.licence"] == "mine"
    model = read_onnx(path)
    assert model.spec.anchor_sizes == spec.anchor_sizes
    assert (model.spec.output_layout, model.output_names) == ("classic", ("loc", "conf", "landms"))


def test_same_network_gives_the_same_bytes_and_keeps_its_mode(tmp_path):
    network = RetinaFace().train()
    first = export_network(network, DetectorSpec(), tmp_path / "first.onnx").read_bytes()
    assert network.training
    assert export_network(network, DetectorSpec(), tmp_path / "second.onnx").read_bytes() == first


def test_three_anchor_sizes_per_cell_export_as_well(tmp_path):
    sizes = ((16.0, 20.0, 25.0), (64.0, 80.0, 101.0), (256.0, 322.0, 406.0))
    network = RetinaFace(anchors_per_cell=3).eval()
    model = read_onnx(export_network(network, DetectorSpec(anchor_sizes=sizes), tmp_path / "net.onnx"))
    assert model.spec.anchor_sizes == sizes
    assert read_graph(model.path).outputs[0].shape == (None, 48, None, None)


@pytest.mark.parametrize(
    ("what", "arguments", "message"),
    [
        ("a layout that does not exist", {"layout": "nhwc"}, "'nhwc'; allowed are fused, classic"),
        ("an opset that is too old", {"opset": 11}, "opset 11 is not possible; allowed are 17"),
        ("a spec with other strides", {"spec": DetectorSpec(strides=(4, 8, 16))}, r"strides \(4, 8, 16\)"),
        (
            "a spec with another number of anchors",
            {"spec": DetectorSpec(anchor_sizes=((8,), (16,), (32,)))},
            "2 anchor",
        ),
    ],
)
def test_impossible_exports_are_refused(what, arguments, message, tmp_path):
    arguments = {"spec": DetectorSpec(), **arguments}
    with pytest.raises(ModelError, match=message):
        export_network(RetinaFace(), out=tmp_path / "net.onnx", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_output_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OutputError, match=r"could not be written to .*net\.onnx"):
        export_network(RetinaFace(), DetectorSpec(), tmp_path / "file" / "net.onnx")
    (tmp_path / "net.onnx").mkdir()
    with pytest.raises(OutputError):
        export_network(RetinaFace(), DetectorSpec(), tmp_path / "net.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "net.onnx"]
