"""Reading ONNX files without the onnx package: ours, a user's own, and everything that is something else."""

import json
import logging

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the export extra is not installed")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from retinastream.errors import ModelError  # noqa: E402
from retinastream.models.onnx_file import read_onnx  # noqa: E402
from retinastream.models.onnx_graph import read_graph  # noqa: E402
from retinastream.models.spec import DetectorSpec  # noqa: E402
from retinastream.models.spec_registry import SPECS  # noqa: E402

FREE_IMAGE = ("input", TensorProto.FLOAT, ["b", 3, "h", "w"])


def write(path, outputs, *, inputs=(FREE_IMAGE,), operators=("Softmax",), metadata=None, initialisers=()):
    """Write a file that declares these inputs and outputs; what its nodes compute does not matter here."""
    nodes = [helper.make_node(kind, ["input"], [f"value{i}"]) for i, kind in enumerate(operators)]
    infos = [
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in side] for side in (inputs, outputs)
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "graph", *infos, list(initialisers)),
        producer_name="someone",
        producer_version="2",
        opset_imports=[helper.make_opsetid("", 13)],
    )
    helper.set_model_props(model, metadata or {})
    path.write_bytes(model.SerializeToString())
    return path


def floats(*shapes):
    return [(name, TensorProto.FLOAT, shape) for name, shape in shapes]


def test_reader_agrees_with_the_onnx_package(tmp_path):
    weights = [numpy_helper.from_array(np.zeros((3, 3), np.float32), "weight")]
    image_and_weight = (FREE_IMAGE, ("weight", TensorProto.FLOAT, [3, 3]))
    path = write(
        tmp_path / "net.onnx",
        floats(("a", ["n", 4, -1, 0]), ("b", [])),
        inputs=image_and_weight,
        operators=("Conv", "Relu", "Conv"),
        metadata={"ключ": "значение"},
        initialisers=weights,
    )
    graph = read_graph(path)
    assert [(t.name, t.element_type, t.shape) for t in graph.inputs] == [("input", 1, (None, 3, None, None))]
    assert [(t.name, t.shape) for t in graph.outputs] == [("a", (None, 4, None, None)), ("b", ())]
    assert graph.operators == {"Conv": 2, "Relu": 1}
    assert graph.metadata == {"ключ": "значение"}
    assert (graph.opset, graph.producer) == (13, "someone 2")


@pytest.mark.parametrize(
    ("what", "outputs", "expected"),
    [
        (
            "classic in the usual order",
            floats(("loc", ["b", "n", 4]), ("conf", ["b", "n", 2]), ("landms", ["b", "n", 10])),
            ("loc", "conf", "landms"),
        ),
        (
            "shuffled and with names that say nothing",
            floats(("637", [1, "n", 10]), ("600", [1, "n", 2]), ("587", [1, "n", 4])),
            ("587", "600", "637"),
        ),
        (
            "sizes unknown, so the names decide",
            floats(("landmarks", [1, "n", "k"]), ("bbox", [1, "n", "l"]), ("cls", [1, "n", "m"])),
            ("bbox", "cls", "landmarks"),
        ),
        (
            "even the ranks unknown",
            floats(("pred_landm", None), ("pred_loc", None), ("pred_conf", None)),
            ("pred_loc", "pred_conf", "pred_landm"),
        ),
    ],
)
def test_classic_outputs_are_recognised(what, outputs, expected, tmp_path):
    model = read_onnx(write(tmp_path / "mine.onnx", outputs))
    assert model.output_names == expected
    assert model.spec == DetectorSpec(output_layout="classic")
    assert (model.input_name, model.input_shape, model.name) == ("input", (None, 3, None, None), "mine")


@pytest.mark.parametrize(
    ("what", "outputs", "expected"),
    [
        (
            "names end in the strides",
            floats(("s32", [1, 32, "c", "d"]), ("s8", [1, 32, "a", "b"]), ("s16", [1, 32, "e", "f"])),
            ("s8", "s16", "s32"),
        ),
        (
            "heights are declared",
            floats(("x", [1, 32, 4, 4]), ("y", [1, 32, 16, 16]), ("z", [1, 32, 8, 8])),
            ("y", "z", "x"),
        ),
        (
            "nothing says the order, so that of the file counts",
            floats(("x", [1, 32, "a", "b"]), ("y", [1, 32, "c", "d"]), ("z", [1, 32, "e", "f"])),
            ("x", "y", "z"),
        ),
    ],
)
def test_fused_outputs_come_in_stride_order(what, outputs, expected, tmp_path):
    model = read_onnx(write(tmp_path / "net.onnx", outputs, operators=("Conv",)), name="given")
    assert (model.output_names, model.spec.output_layout, model.name) == (expected, "fused", "given")


CLASSIC = floats(("loc", ["b", "n", 4]), ("conf", ["b", "n", 2]), ("landms", ["b", "n", 10]))


def test_given_spec_is_used_where_the_file_has_none(tmp_path, caplog):
    path = write(tmp_path / "net.onnx", CLASSIC)
    other = SPECS["retinaface-light-10-20"]
    assert read_onnx(path, spec=other).spec.anchor_sizes == other.anchor_sizes
    with caplog.at_level(logging.WARNING, "retinastream.models.onnx_file"):
        read_onnx(path)
    assert "does not say which anchors" in caplog.text


def test_fixed_size_must_have_the_anchors_of_the_spec(tmp_path):
    image = ("input", TensorProto.FLOAT, [1, 3, 640, 640])
    right = floats(("loc", [1, 16800, 4]), ("conf", [1, 16800, 2]), ("landms", [1, 16800, 10]))
    assert read_onnx(write(tmp_path / "right.onnx", right, inputs=(image,))).input_shape == (1, 3, 640, 640)
    wrong = floats(("loc", [1, 102300, 4]), ("conf", [1, 102300, 2]), ("landms", [1, 102300, 10]))
    with pytest.raises(ModelError, match=r"102300 anchors for its input of 640x640.*has 16800"):
        read_onnx(write(tmp_path / "wrong.onnx", wrong, inputs=(image,)))


@pytest.mark.parametrize(
    ("what", "changes", "message"),
    [
        (
            "one output",
            {"outputs": floats(("logits", [1, 1000]))},
            r"its outputs are logits float32 \[1, 1000\]. Expected",
        ),
        ("nine outputs", {"outputs": floats(*((f"o{i}", [1, 100, 1]) for i in range(9)))}, "not a RetinaFace"),
        ("68 landmarks", {"outputs": [*CLASSIC[:2], *floats(("landms", ["b", "n", 136]))]}, "not a RetinaFace"),
        ("raw logits", {"operators": ("Conv",)}, "raw class logits in 'conf'"),
        ("channels last", {"inputs": [("input", TensorProto.FLOAT, [1, 640, 640, 3])]}, "NHWC"),
        ("channels last, sizes free", {"inputs": [("input", TensorProto.FLOAT, ["b", "h", "w", 3])]}, "NHWC"),
        ("one channel", {"inputs": [("input", TensorProto.FLOAT, [1, 1, 64, 64])]}, "takes 1 channels"),
        ("bfloat16 input", {"inputs": [("input", TensorProto.BFLOAT16, [1, 3, 64, 64])]}, "other floats"),
        ("bytes as input", {"inputs": [("input", TensorProto.UINT8, [1, 3, 64, 64])]}, "integers are not supported"),
        ("a vector as input", {"inputs": [("input", TensorProto.FLOAT, [1, 512])]}, r"expected one float32 input"),
        ("two inputs", {"inputs": [FREE_IMAGE, ("im_info", TensorProto.FLOAT, [1, 3])]}, "has 2 inputs"),
        ("no input", {"inputs": []}, r"has 0 inputs \(none\)"),
        ("a damaged spec", {"metadata": {"retinastream.spec": '{"strides": [8]}'}}, "export it again"),
        ("a spec that is no JSON", {"metadata": {"retinastream.spec": "oops"}}, "export it again"),
    ],
)
def test_other_networks_are_refused_by_name(what, changes, message, tmp_path):
    path = write(tmp_path / "given.onnx", changes.pop("outputs", CLASSIC), **changes)
    with pytest.raises(ModelError, match=message) as raised:
        read_onnx(path)
    assert "given.onnx" in str(raised.value)


def valid_bytes(tmp_path):
    return write(tmp_path / "valid.onnx", CLASSIC, metadata={"a": "b" * 300}).read_bytes()


@pytest.mark.parametrize(
    ("what", "content", "message"),
    [
        ("missing", None, "does not exist"),
        ("empty", b"", "is empty"),
        ("text", b"This is a text file, and not a model.\n" * 10, "is not a complete ONNX file"),
        ("HTML of a failed download", b"<!DOCTYPE html><html><body>404</body></html>", "fetch it again"),
        ("zip, as torch writes", b"PK\x03\x04" + bytes(100), "is a PyTorch file.*retinastream model export"),
        ("pickle, as torch wrote", b"\x80\x02\x8a\nl\xfc\x9c", "is a PyTorch file"),
        ("zeros", bytes(64), "not a complete ONNX file|declares no graph outputs"),
    ],
)
def test_files_that_are_not_onnx_are_refused_by_name(what, content, message, tmp_path):
    path = tmp_path / "given.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=message) as raised:
        read_onnx(path)
    assert "given.onnx" in str(raised.value)


def test_folder_is_refused(tmp_path):
    with pytest.raises(ModelError, match="is a directory"):
        read_onnx(tmp_path)


def test_file_cut_anywhere_but_between_two_fields_is_refused(tmp_path):
    content = valid_bytes(tmp_path)
    cut = tmp_path / "cut.onnx"
    complete = []
    for length in range(1, len(content)):
        cut.write_bytes(content[:length])
        try:
            read_onnx(cut)
        except ModelError:
            continue
        complete.append(length)
    # Fields come one after the other, so a cut exactly between two of them leaves a smaller but whole file.
    assert len(complete) <= 2


def test_changed_bytes_raise_nothing_but_model_errors(tmp_path):
    content = bytearray(valid_bytes(tmp_path))
    random = np.random.default_rng(0)
    path = tmp_path / "changed.onnx"
    read = refused = 0
    for _ in range(300):
        changed = content.copy()
        for position in random.integers(0, len(changed), 3):
            changed[position] = random.integers(0, 256)
        path.write_bytes(changed)
        try:
            model = read_onnx(path)
        except ModelError as error:
            assert "changed.onnx" in str(error)
            refused += 1
        else:
            assert len(model.output_names) == 3
            read += 1
    assert refused > 20
    assert read + refused == 300


def test_weights_beside_the_file_must_be_there_and_count_for_the_hash(tmp_path):
    weight = numpy_helper.from_array(np.ones(64, np.float32), "weight")
    path = write(tmp_path / "net.onnx", CLASSIC, initialisers=[weight])
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    before = read_onnx(path).sha256
    (tmp_path / "weights.bin").write_bytes(bytes(256))
    assert read_onnx(path).sha256 != before
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"'weights\.bin', which is not beside it"):
        read_onnx(path)


def test_spec_inside_the_file_wins_and_another_given_one_is_refused(tmp_path):
    inside = SPECS["retinaface-light-10-20"]
    path = write(tmp_path / "net.onnx", CLASSIC, metadata={"retinastream.spec": json.dumps(inside.to_dict())})
    assert read_onnx(path).spec.anchor_sizes == inside.anchor_sizes
    assert read_onnx(path, spec=inside).spec.output_layout == "classic"
    with pytest.raises(ModelError, match="carries its own spec"):
        read_onnx(path, spec=DetectorSpec())
