"""Embedding of crops: with tiny networks whose answer is known, and with a real one on real faces."""

import numpy as np
import pytest

from retinastream.errors import MissingPackageError, ModelError, UsageError
from retinastream.evaluation.embedding import FaceEmbedder, find_embedder
from retinastream.kernels.align import align_faces

RUNTIMES = ("openvino", "onnxruntime")
AVERAGING = 5e-5  # of 3,136 values in float32; another mean or divisor would show as 4e-3


@pytest.fixture(params=RUNTIMES)
def runtime(request):
    pytest.importorskip(request.param, reason=f"the runtime {request.param} is not installed")
    return request.param


@pytest.fixture
def build(tmp_path):
    """Write an ONNX file that returns a linear function of the means of four quarters of every channel: 12 numbers."""
    onnx = pytest.importorskip("onnx", reason="the tiny networks are made with onnx")
    helper = onnx.helper

    def make(shape=("n", 3, 112, 112), *, output=("n", 12), kind=onnx.TensorProto.FLOAT, fault=None, name="net.onnx"):
        nodes, source = [], "image"
        if shape[-1] == 3:
            nodes.append(helper.make_node("Transpose", [source], ["nchw"], perm=[0, 3, 1, 2]))
            source = "nchw"
        rows = {"one number": [-1, 1], "fixed inside": [1, -1]}.get(fault, [0, -1])
        nodes += [
            helper.make_node("AveragePool", [source], ["quarters"], kernel_shape=[56, 56], strides=[56, 56]),
            helper.make_node("Reshape", ["quarters", "rows"], ["flat"]),
            helper.make_node("Mul", ["flat", "factor"], ["embedding"]),
        ]
        factor = {"zero": 0.0, "nan": np.nan}.get(fault, 1.0)
        outputs = [helper.make_tensor_value_info("embedding", onnx.TensorProto.FLOAT, output)]
        if fault == "two outputs":
            outputs.append(helper.make_tensor_value_info("flat", onnx.TensorProto.FLOAT, None))
        graph = helper.make_graph(
            nodes,
            "net",
            [helper.make_tensor_value_info("image", kind, shape)],
            outputs,
            [
                helper.make_tensor("rows", onnx.TensorProto.INT64, [2], rows),
                helper.make_tensor("factor", onnx.TensorProto.FLOAT, [1], [factor]),
            ],
        )
        path = tmp_path / name
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
        return path

    return make


def crops(count, seed=0):
    """Crops whose quarters differ in every channel, so that a mistaken order of anything shows."""
    levels = np.random.default_rng(seed).integers(0, 256, (count, 2, 2, 3), dtype=np.uint8)
    return levels.repeat(56, 1).repeat(56, 2)


def expected(pictures, normalise="none", flip=False):
    """What ``build``'s network makes of BGR crops, by definition."""
    mean, deviation = {
        "none": (0, 1),
        "arcface": (127.5, 127.5),
        "imagenet": (255 * np.array([0.485, 0.456, 0.406]), 255 * np.array([0.229, 0.224, 0.225])),
    }[normalise]
    total = np.zeros((len(pictures), 12))
    for way in (pictures, pictures[:, :, ::-1])[: 1 + flip]:
        rgb = (way[:, ::56, ::56, ::-1].astype(float) - mean) / deviation
        total += rgb.transpose(0, 3, 1, 2).reshape(len(pictures), 12)
    return total / np.linalg.norm(total, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("shape", "output"),
    [
        (("n", 3, 112, 112), ("n", 12)),
        (("n", 3, "h", "w"), ("n", None)),
        ((1, 3, 112, 112), (1, 12)),
        ((4, 3, 112, 112), (4, 12)),
        (("n", 112, 112, 3), ("n", 12)),
        ((1, 112, 112, 3), (1, 12)),
    ],
)
def test_batches_fixed_and_free_and_both_layouts_give_the_same_rows(build, runtime, shape, output):
    pictures = crops(37)
    embed = FaceEmbedder(build(shape, output=output), normalise="none", runtime=runtime, threads=1)
    assert embed.dimension == 12
    found = embed(pictures)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected(pictures), atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("normalise", ["none", "arcface", "imagenet"])
@pytest.mark.parametrize("flip", [False, True])
def test_channels_are_rgb_and_normalised_as_asked_and_flips_are_added_before_the_length(
    build, runtime, normalise, flip
):
    pictures = crops(5, seed=1)
    embed = FaceEmbedder(build(), normalise=normalise, flip=flip, runtime=runtime, threads=1)
    np.testing.assert_allclose(embed(pictures), expected(pictures, normalise, flip), atol=AVERAGING)


def test_a_flipped_crop_has_the_same_embedding_only_with_flip(build):
    path = build()
    picture = crops(1)
    mirrored = np.ascontiguousarray(picture[:, :, ::-1])
    plain, both = FaceEmbedder(path, threads=1), FaceEmbedder(path, flip=True, threads=1)
    np.testing.assert_allclose(both(picture), both(mirrored), atol=1e-6)
    assert np.abs(plain(picture) - plain(mirrored)).max() > 0.01


def test_no_crops_give_no_rows(build):
    assert FaceEmbedder(build(), threads=1)(crops(0)).shape == (0, 12)


def test_a_result_is_not_overwritten_by_the_next_one(build, runtime):
    embed = FaceEmbedder(build(), normalise="none", runtime=runtime, threads=1)
    first = embed(crops(2, seed=2))
    kept = first.copy()
    embed(crops(2, seed=3))
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(
    ("shape", "options", "words"),
    [
        (
            ("n", 3, 128, 128),
            {},
            r"image float32 \[\?, 3, 128, 128\]; expected one float32 input \(batch, 3, 112, 112\)",
        ),
        (("n", 1, 112, 112), {}, "expected one float32 input"),
        (("n", None, 112, None), {}, "expected one float32 input"),
        (("n", 3, 112), {}, "expected one float32 input"),
        (("n", 3, 112, 112), {"kind": 10}, "float16.*keep the input float32"),
        (("n", 3, 112, 112), {"fault": "two outputs"}, "2 outputs .*not a detector"),
        (("n", 3, 112, 112), {"output": ("n", 12, 7)}, "a row of numbers per face"),
        (("n", 3, 112, 112), {"output": ("n", 1), "fault": "one number"}, "a row of numbers per face"),
    ],
)
def test_files_of_another_shape_are_refused_with_what_they_have(build, shape, options, words):
    with pytest.raises(ModelError, match=words) as caught:
        FaceEmbedder(build(shape, **options), threads=1)
    assert "net.onnx" in str(caught.value)


def test_a_file_that_declares_a_free_batch_and_holds_a_fixed_one_is_refused(build, runtime):
    with pytest.raises(ModelError, match=r"returns the shape \(1, 24\) for 2 faces|cannot"):
        FaceEmbedder(build(output=None, fault="fixed inside"), runtime=runtime, threads=1)


@pytest.mark.parametrize("fault", ["zero", "nan"])
def test_embeddings_without_a_direction_are_refused(build, fault):
    embed = FaceEmbedder(build(fault=fault), threads=1)
    with pytest.raises(ModelError, match=r"3 of 3 embeddings are not finite or all zero; .*normalise='arcface'"):
        embed(crops(3))


def test_detectors_and_files_that_are_none_are_refused(tiny_model, tmp_path):
    with pytest.raises(ModelError, match=r"expected one float32 input|3 outputs"):
        FaceEmbedder(tiny_model["classic"])
    with pytest.raises(ModelError, match=r"nothing\.onnx does not exist"):
        FaceEmbedder(tmp_path / "nothing.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ModelError, match="not a complete ONNX file"):
        FaceEmbedder(tmp_path / "text.onnx")


def test_names_of_the_zoo_are_found_where_they_were_pulled_to(monkeypatch, tmp_path):
    monkeypatch.setenv("RETINASTREAM_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="run `retinastream model pull arcface-mbf`"):
        find_embedder("arcface-mbf")
    with pytest.raises(ModelError, match="finds faces and does not tell them apart; embedders are arcface-mbf"):
        find_embedder("mnet025")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "arcface-mbf.onnx").write_bytes(b"something else")
    with pytest.raises(ModelError, match="sha256 differs"):
        find_embedder("arcface-mbf")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"normalise": "bgr"}, "normalise 'bgr' is not known; allowed are arcface, imagenet, none"),
        ({"runtime": "tensorrt"}, "runtime 'tensorrt' is not known; allowed are auto, openvino, onnxruntime"),
        ({"threads": -1}, "threads was given as -1"),
    ],
)
def test_options_that_are_not_allowed_are_refused(build, options, words):
    with pytest.raises(UsageError, match=words):
        FaceEmbedder(build(), **options)


@pytest.mark.parametrize("wrong", [np.zeros((1, 112, 112, 3)), np.zeros((112, 112, 3), np.uint8), [1]])
def test_crops_of_another_shape_are_refused(build, wrong):
    with pytest.raises(UsageError, match=r"expected uint8 \(N, 112, 112, 3\), BGR"):
        FaceEmbedder(build(), threads=1)(wrong)


def test_a_runtime_that_is_not_installed_names_what_brings_it(build, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MissingPackageError, match=r"retinastream\[onnxruntime\]"):
        FaceEmbedder(build(), runtime="onnxruntime")


# ------------------------------------------------------------------ a real network


# Who is seen in the stills, as (picture, person, part of the width).
SEEN = (
    ("fr_obama2", "obama", (0.0, 1.0)),
    ("fr_obama_and_biden", "obama", (0.55, 0.7)),
    ("fr_two_people", "obama", (0.0, 0.5)),
    ("fr_biden", "biden", (0.0, 1.0)),
    ("fr_biden2", "biden", (0.34, 1.0)),
    ("fr_obama_and_biden", "biden", (0.35, 0.5)),
    ("fr_two_people", "biden", (0.6, 1.0)),
)


@pytest.fixture(scope="module")
def seen_faces(data, real_model):
    """The aligned crops of SEEN, and who is on each."""
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed, and pictures are read with it")
    from retinastream.pipeline.detector import Detector

    aligned, people = [], []
    with Detector(real_model, size="native", threads=1) as detector:
        for name, person, (left, right) in SEEN:
            picture = cv2.imread(str(data / "stills" / f"{name}.jpg"))
            faces = detector(picture)
            middles = (faces.boxes[:, 0] + faces.boxes[:, 2]) / 2 / picture.shape[1]
            (found,) = np.flatnonzero((middles >= left) & (middles < right) & (faces.scores > 0.9))
            aligned.append(align_faces(picture, faces.landmarks[[found]]))
            people.append(person)
    return aligned, people


@pytest.mark.data
@pytest.mark.parametrize(("normalise", "flip"), [("imagenet", False), ("imagenet", True), ("arcface", False)])
def test_the_same_person_is_far_more_alike_than_different_people(data, seen_faces, runtime, normalise, flip):
    file = data / "weights" / "MobileFaceNet.onnx"
    if not file.is_file():
        pytest.skip(f"{file} is absent")
    embed = FaceEmbedder(file, normalise=normalise, flip=flip, runtime=runtime, threads=1)
    assert embed.dimension == 128
    aligned, people = seen_faces
    rows = [embed(face)[0] for face in aligned]
    alike = np.array(rows) @ np.array(rows).T
    first, second = np.triu_indices(len(rows), 1)
    same = np.array(people)[first] == np.array(people)[second]
    assert alike[first, second][same].min() > 0.5
    assert alike[first, second][~same].max() < 0.25
