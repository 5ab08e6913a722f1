"""A whole ONNX file without the onnx package: every way in which weights and attributes are written."""

import numpy as np
import pytest

from retinastream.errors import ModelError

onnx = pytest.importorskip("onnx", reason="the export extra is not installed")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from retinastream.models.onnx_program import read_program  # noqa: E402


def saved(path, constants=(), nodes=None, **options):
    nodes = nodes or [helper.make_node("Relu", ["x"], ["y"])]
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    model = helper.make_model(helper.make_graph(nodes, "g", [info[0]], [info[1]], list(constants)))
    onnx.save_model(model, str(path), **options)
    return path


def test_operators_attributes_and_weights_of_a_network_are_those_that_onnx_reads(tiny_model):
    for path in tiny_model.values():
        ours, theirs = read_program(path), onnx.load(str(path))
        assert ours.opset == 17
        assert (ours.inputs, len(ours.outputs)) == (("images",), 3)
        assert [n.kind for n in ours.nodes] == [n.op_type for n in theirs.graph.node]
        for one, other in zip(ours.nodes, theirs.graph.node, strict=True):
            assert (one.inputs, one.outputs, one.name) == (tuple(other.input), tuple(other.output), other.name)
            for attribute in other.attribute:
                value = helper.get_attribute_value(attribute)
                assert one.attributes[attribute.name] == (value.decode() if isinstance(value, bytes) else value)
        for tensor in theirs.graph.initializer:
            np.testing.assert_array_equal(ours.constants[tensor.name], numpy_helper.to_array(tensor))


@pytest.mark.parametrize("raw", [True, False], ids=["raw bytes", "typed fields"])
@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (TensorProto.FLOAT, [1.5, -2.0, 3.25]),
        (TensorProto.DOUBLE, [1.5, -2.0, 1e300]),
        (TensorProto.FLOAT16, [1.5, -2.0, 0.25]),
        (TensorProto.INT64, [5, -1, 1 << 40]),
        (TensorProto.INT32, [5, -1, 7]),
        (TensorProto.INT8, [5, -128, 7]),
        (TensorProto.UINT8, [5, 255, 7]),
        (TensorProto.BOOL, [True, False, True]),
    ],
)
def test_weights_of_every_type_are_read(tmp_path, kind, values, raw):
    array = np.array(values, helper.tensor_dtype_to_np_dtype(kind))
    data = array.tobytes() if raw else values
    path = saved(tmp_path / "m.onnx", [helper.make_tensor("w", kind, [3, 1], data, raw=raw)])
    found = read_program(path).constants["w"]
    assert (found.dtype, found.shape) == (array.dtype, (3, 1))
    np.testing.assert_array_equal(found.ravel(), array)


def test_attributes_of_every_kind_are_read(tmp_path):
    node = helper.make_node(
        "Made", ["x", "", "z"], ["y"], name="n", domain="org.example",
        f=0.5, zero=0, i=-3, s="text", many=[1, -2, 3], floats=[0.5, 1.5], t=numpy_helper.from_array(np.arange(3)),
    )  # fmt: skip
    (found,) = read_program(saved(tmp_path / "m.onnx", nodes=[node])).nodes
    assert (found.kind, found.name, found.inputs) == ("org.example.Made", "n", ("x", "", "z"))
    assert found.attributes.pop("t").tolist() == [0, 1, 2]
    expected = {"f": 0.5, "zero": 0, "i": -3, "s": "text", "many": [1, -2, 3], "floats": [0.5, 1.5]}
    assert found.attributes == expected


def test_weights_beside_the_file_are_read(tmp_path):
    values = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    other = np.arange(2000, dtype=np.int64)
    path = saved(
        tmp_path / "m.onnx",
        [numpy_helper.from_array(values, "w"), numpy_helper.from_array(other, "v")],
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    program = read_program(path)
    np.testing.assert_array_equal(program.constants["w"], values)
    np.testing.assert_array_equal(program.constants["v"], other)
    (tmp_path / "weights.bin").write_bytes(b"short")
    with pytest.raises(ModelError, match=r"weights\.bin ends before byte"):
        read_program(path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"weights\.bin, which cannot be read"):
        read_program(path)


def test_weights_outside_the_folder_of_the_file_are_refused(tmp_path):
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret.bin")
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    folder = tmp_path / "inner"
    folder.mkdir()
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [info[0]], [info[1]], [tensor])
    (folder / "m.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(ModelError, match="not in its own folder"):
        read_program(folder / "m.onnx")


def test_a_weight_of_fewer_values_than_its_shape_is_refused(tmp_path):
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [4], [1, 2, 3, 4])
    del tensor.dims[:]
    tensor.dims.append(5)
    with pytest.raises(ModelError, match=r"m\.onnx is not a complete ONNX file: the tensor 'w' of shape \[5\]"):
        read_program(saved(tmp_path / "m.onnx", [tensor]))


def test_a_type_that_numpy_does_not_have_is_named(tmp_path):
    tensor = helper.make_tensor("w", TensorProto.BFLOAT16, [1], [1.0])
    with pytest.raises(ModelError, match="'w' is of bfloat16"):
        read_program(saved(tmp_path / "m.onnx", [tensor]))


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_file_that_was_cut_short_is_refused_by_name(tiny_model, tmp_path, share):
    whole = tiny_model["fused"].read_bytes()
    path = tmp_path / "cut.onnx"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ModelError, match=r"cut\.onnx"):
        read_program(path)
