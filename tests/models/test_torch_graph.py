"""An ONNX file as a torch module: equal to ONNX Runtime on every layout, backbone and operator that it takes."""

import numpy as np
import pytest

from retinastream.errors import ModelError
from retinastream.models.onnx_file import read_onnx
from retinastream.models.spec import DetectorSpec
from retinastream.models.spec_registry import SPECS

torch = pytest.importorskip("torch", reason="torch is not installed")
onnx = pytest.importorskip("onnx", reason="the export extra is not installed")
ort = pytest.importorskip("onnxruntime", reason="the extra onnxruntime is not installed")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from retinastream.models.onnx_program import read_program  # noqa: E402
from retinastream.models.torch_graph import TorchGraph, load_torch_graph  # noqa: E402

SIZES = [(1, 64, 96), (2, 128, 64)]


def images_of(batch, height, width, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (batch, 3, height, width))
    return (values - 117).astype(np.float32)


def by_onnxruntime(path, feeds, names=None):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(names, feeds)


def assert_agrees(model, network, sizes=SIZES, tolerance=1e-4):
    for size in sizes:
        images = images_of(*size)
        expected = by_onnxruntime(model.path, {model.input_name: images}, list(model.output_names))
        with torch.inference_mode():
            given = network(torch.from_numpy(images))
        assert len(given) == len(expected)
        for one, other in zip(given, expected, strict=True):
            assert tuple(one.shape) == other.shape
            np.testing.assert_allclose(one.numpy(), other, atol=tolerance * max(1.0, np.abs(other).max()))


@pytest.mark.parametrize("layout", ["fused", "classic"])
@pytest.mark.parametrize("memory", ["contiguous_format", "channels_last"])
def test_the_light_network_computes_what_onnxruntime_does(tiny_model, layout, memory):
    model = read_onnx(tiny_model[layout])
    assert_agrees(model, load_torch_graph(model).to(memory_format=getattr(torch, memory)))


def test_the_shipped_model_computes_what_onnxruntime_does():
    from retinastream.models.zoo import resolve_model

    model = resolve_model("mnet025")
    assert_agrees(model, load_torch_graph(model))


@pytest.mark.parametrize("layout", ["fused", "classic"])
@pytest.mark.parametrize(
    ("architecture", "spec", "options"),
    [
        pytest.param("resnet50", DetectorSpec(), {}, id="ResNet-50", marks=pytest.mark.slow),
        pytest.param("paper-mobilenetv1-x0.25", SPECS["retinaface-paper"], {}, id="paper"),
        pytest.param("paper-mobilenetv1-x0.25", SPECS["retinaface-paper"], {"deformable": True}, id="deformable"),
    ],
)
def test_every_architecture_computes_what_onnxruntime_does(tmp_path, architecture, spec, options, layout):
    from retinastream.models.architectures import create_network
    from retinastream.models.export import export_network

    network = create_network(architecture, seed=3, **options)
    model = read_onnx(export_network(network, spec, tmp_path / "model.onnx", layout))
    assert_agrees(model, load_torch_graph(model))


class Usual(torch.nn.Module):
    """The layers of a usual RetinaFace, in the ways that exporters write them: sizes read off, normalisation apart."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(7)
        self.stem = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, 2, 1, bias=False), torch.nn.BatchNorm2d(8), torch.nn.LeakyReLU(0.1)
        )
        self.down = torch.nn.Sequential(
            torch.nn.Conv2d(8, 8, 3, 2, 1, groups=8), torch.nn.PReLU(8), torch.nn.MaxPool2d(2)
        )
        self.head = torch.nn.Conv2d(8, 4, 1)
        self.stem[1].running_mean.normal_()
        self.stem[1].running_var.uniform_(0.5, 2)

    def forward(self, images):
        fine = self.stem(images)
        coarse = torch.nn.functional.interpolate(self.down(fine), size=[fine.size(2), fine.size(3)], mode="nearest")
        maps = self.head(fine + coarse).permute(0, 2, 3, 1).contiguous()
        return torch.softmax(maps.view(maps.shape[0], -1, 2), -1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("opset", [11, 17])
def test_a_file_of_another_exporter_with_free_sizes_computes_what_onnxruntime_does(tmp_path, opset):
    path = tmp_path / "usual.onnx"
    axes = {"images": {0: "batch", 2: "height", 3: "width"}, "scores": {0: "batch", 1: "anchors"}}
    torch.onnx.export(
        Usual().train(False),
        (torch.zeros(1, 3, 64, 64),),
        str(path),
        input_names=["images"],
        output_names=["scores"],
        dynamic_axes=axes,
        opset_version=opset,
        dynamo=False,
        do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE,
    )
    program = read_program(path)
    assert {"Shape", "Resize", "BatchNormalization"} <= {node.kind for node in program.nodes}
    network = TorchGraph(program, ("scores",))
    for size in SIZES:
        images = images_of(*size)
        (expected,) = by_onnxruntime(path, {"images": images})
        (given,) = network(torch.from_numpy(images))
        np.testing.assert_allclose(given.numpy(), expected, atol=1e-4)


def write(path, nodes, constants=(), opset=17, inputs=(("x", [None] * 4),), outputs=("y",)):
    graph = helper.make_graph(
        nodes,
        "made",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in constants],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def make(kind, inputs=("x",), outputs=("y",), **attributes):
    name = f"the_{kind}" if tuple(outputs) == ("y",) else f"{kind}_{outputs[0]}"
    return helper.make_node(kind, list(inputs), list(outputs), name=name, **attributes)


def ints(*values):
    return np.array(values, np.int64)


WEIGHT = np.random.default_rng(3).normal(size=(6, 3, 3, 3)).astype(np.float32)
TURNED = np.random.default_rng(4).normal(size=(3, 6, 3, 3)).astype(np.float32)
FOUR = [np.random.default_rng(5).uniform(0.5, 2, 3).astype(np.float32) for _ in range(4)]
LEFT_OUT = np.zeros(0, np.float32)
FACTORS = [("r", LEFT_OUT)]


def scaled_by(rows, columns):
    return ("f", np.array([1, 1, rows, columns], np.float32))


def sized(rows, columns):
    return [("r", LEFT_OUT), ("f", LEFT_OUT), ("z", ints(2, 3, rows, columns))]


OPERATORS = [
    ("Conv", {"pads": [1, 1, 1, 1], "strides": [2, 2]}, [("w", WEIGHT)]),
    ("Conv", {"pads": [0, 1, 2, 1]}, [("w", WEIGHT), ("b", WEIGHT[:, 0, 0, 0])]),
    ("Conv", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, [("w", WEIGHT)]),
    ("Conv", {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, [("w", WEIGHT)]),
    ("Conv", {"auto_pad": "VALID", "dilations": [2, 2]}, [("w", WEIGHT)]),
    ("ConvTranspose", {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}, [("w", TURNED)]),
    ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, []),
    ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, 1, 1]}, []),
    ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, []),
    ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, []),
    ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}, []),
    ("GlobalAveragePool", {}, []),
    ("BatchNormalization", {"epsilon": 1e-3}, [(f"p{i}", p) for i, p in enumerate(FOUR)]),
    ("Relu", {}, []),
    ("LeakyRelu", {"alpha": 0.25}, []),
    ("PRelu", {}, [("s", np.array([0.1, 0.2, 0.3], np.float32).reshape(3, 1, 1))]),
    ("Sigmoid", {}, []),
    ("Tanh", {}, []),
    ("Exp", {}, []),
    ("Clip", {}, [("low", np.float32(-0.5)), ("high", np.float32(0.7))]),
    ("Softmax", {"axis": 1}, []),
    ("Add", {}, [("c", np.float32(3))]),
    ("Sub", {}, [("c", np.ones((3, 1, 1), np.float32))]),
    ("Mul", {}, [("c", np.float32(3))]),
    ("Div", {}, [("c", np.float32(3))]),
    ("Pow", {}, [("c", np.float32(2))]),
    ("Concat", {"axis": 2}, [("c", np.ones((2, 3, 1, 9), np.float32))]),
    ("Reshape", {}, [("c", ints(0, -1, 9))]),
    ("Flatten", {"axis": 2}, []),
    ("Transpose", {"perm": [0, 2, 3, 1]}, []),
    ("Transpose", {}, []),
    ("Unsqueeze", {}, [("c", ints(0, -1))]),
    ("Slice", {}, [("a", ints(1, -5)), ("b", ints(3, 99)), ("c", ints(1, 3)), ("d", ints(1, 2))]),
    ("Gather", {"axis": 3}, [("c", ints(4, -1, 0))]),
    ("Gather", {"axis": -1}, [("c", np.int64(-2))]),
    ("Pad", {}, [("c", ints(0, 0, 1, 2, 0, 0, 3, 4)), ("v", np.float32(2.5))]),
    ("Expand", {}, [("c", ints(2, 1, 3, 1, 1))]),
    ("ReduceMean", {"axes": [2, 3], "keepdims": 0}, []),
    ("Cast", {"to": 1}, []),
    ("Identity", {}, []),
    ("Resize", {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}, [*FACTORS, scaled_by(2, 3)]),
    ("Resize", {"coordinate_transformation_mode": "asymmetric"}, [*FACTORS, scaled_by(2, 2)]),
    ("Resize", {}, [*FACTORS, scaled_by(3, 2)]),
    ("Resize", {"mode": "linear"}, [*FACTORS, scaled_by(2, 2)]),
    ("Resize", {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}, [*sized(11, 20)]),
    ("Resize", {"mode": "linear", "coordinate_transformation_mode": "align_corners"}, [*sized(11, 20)]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "attributes", "constants"), [pytest.param(*o, id=f"{n}-{o[0]}") for n, o in enumerate(OPERATORS)]
)
def test_every_operator_computes_what_onnxruntime_does(tmp_path, kind, attributes, constants):
    node = make(kind, ["x", *(name if np.size(values) else "" for name, values in constants)], **attributes)
    path = write(tmp_path / "one.onnx", [node], [c for c in constants if np.size(c[1])])
    x = np.random.default_rng(1).normal(size=(2, 3, 7, 9)).astype(np.float32)
    (expected,) = by_onnxruntime(path, {"x": x})
    (given,) = TorchGraph(read_program(path), ("y",))(torch.from_numpy(x.copy()))
    assert tuple(given.shape) == expected.shape
    np.testing.assert_allclose(given.numpy(), expected, atol=1e-5)


def test_an_operator_with_several_results_and_the_arithmetic_of_sizes(tmp_path):
    """x is cut into two along an axis whose middle is computed from its shape, by every step that shapes go through."""
    nodes = [
        make("Shape", outputs=["shape"]),
        make("Constant", [], ["two"], value=numpy_helper.from_array(ints(2))),
        make("Slice", ["shape", "two", "three"], ["height"]),
        make("Squeeze", ["height", "zero"], ["number"]),
        make("Mod", ["number", "four"], ["rest"]),
        make("Div", ["number", "four"], ["quarter"]),
        make("Mul", ["quarter", "four"], ["whole"]),
        make("Add", ["whole", "rest"], ["again"]),
        make("Range", ["none", "again", "one"], ["numbers"]),
        make("Cast", ["numbers"], ["heights"], to=1),
        make("Unsqueeze", ["heights", "one_axis"], ["column"]),
        make("Add", ["x", "column"], ["raised"]),
        make("Equal", ["shape", "shape"], ["same"]),
        make("ConstantOfShape", ["four_list"], ["ones"], value=numpy_helper.from_array(np.array([1], np.int64))),
        make("Where", ["same", "shape", "ones"], ["wanted"]),
        make("Expand", ["raised", "wanted"], ["broad"]),
        make("ReduceProd", ["height"], ["product"], keepdims=0),
        make("Cast", ["product"], ["factor"], to=1),
        make("Floor", ["factor"], ["floored"]),
        make("Mul", ["broad", "floored"], ["scaled"]),
        make("Split", ["scaled"], ["y", "z"], axis=3),
    ]
    constants = [
        ("three", ints(3)), ("zero", ints(0)), ("four", np.int64(4)), ("none", np.int64(0)), ("one", np.int64(1)),
        ("one_axis", ints(1)), ("four_list", ints(4)),
    ]  # fmt: skip
    path = write(tmp_path / "sizes.onnx", nodes, constants, outputs=("y", "z"))
    network = TorchGraph(read_program(path), ("z", "y"))
    for height in (7, 12):
        x = np.random.default_rng(2).normal(size=(1, 3, height, 8)).astype(np.float32)
        y, z = by_onnxruntime(path, {"x": x})
        given = network(torch.from_numpy(x))
        np.testing.assert_allclose(given[0].numpy(), z, rtol=1e-6)
        np.testing.assert_allclose(given[1].numpy(), y, rtol=1e-6)
    kinds = {node.op for node in network.for_shape((1, 3, 7, 8)).graph.nodes}
    assert kinds <= {"placeholder", "call_function", "get_attr", "output"}
    names = {getattr(node.target, "__name__", "") for node in network.for_shape((1, 3, 7, 8)).graph.nodes}
    assert not {"arange", "tensor", "full"} & names, "what depends on the shape alone is computed beforehand"


def test_an_activation_writes_over_its_input_only_where_nobody_else_reads_it(tmp_path):
    nodes = [
        make("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        make("Relu", ["c"], ["r"]),
        make("Add", ["c", "r"], ["s"]),
        make("LeakyRelu", ["s"], ["y"], alpha=0.1),
        make("Relu", ["x"], ["z"]),
    ]
    path = write(tmp_path / "shared.onnx", nodes, [("w", WEIGHT)], outputs=("y", "z"))
    x = np.random.default_rng(6).normal(size=(1, 3, 8, 8)).astype(np.float32)
    expected = by_onnxruntime(path, {"x": x})
    images = torch.from_numpy(x.copy())
    for one, other in zip(TorchGraph(read_program(path), ("y", "z"))(images), expected, strict=True):
        np.testing.assert_allclose(one.numpy(), other, atol=1e-5)
    np.testing.assert_array_equal(images.numpy(), x)
    network = TorchGraph(read_program(path), ("y", "z")).for_shape((1, 3, 8, 8))
    assert [n.kwargs["inplace"] for n in network.graph.nodes if "inplace" in n.kwargs] == [False, True, False]


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        pytest.param([make("NonMaxSuppression")], ["the_NonMaxSuppression", "not known", "onnxruntime"], id="unknown"),
        pytest.param([make("QuantizeLinear", ["x", "f"])], ["the_QuantizeLinear", "tensorrt"], id="quantised"),
        pytest.param([make("Reshape", ["x", "x"])], ["the_Reshape", "depends on the picture"], id="a shape of pixels"),
        pytest.param([make("Resize", ["x", "", "f"], mode="cubic")], ["the_Resize", "cubic"], id="cubic"),
        pytest.param([make("Gather", ["x", "x"])], ["the_Gather", "depends on the picture"], id="places of pixels"),
        pytest.param([make("Conv", ["x", "w"], group=5)], ["the_Conv", "cannot take its inputs"], id="wrong groups"),
        pytest.param([make("Relu", ["nothing"])], ["the_Relu", "nothing", "nobody makes"], id="a loose end"),
    ],
)
def test_what_cannot_run_is_named_with_what_to_do(tmp_path, nodes, words):
    path = write(tmp_path / "no.onnx", nodes, [("f", np.array([1, 1, 2, 2], np.float32)), ("w", WEIGHT)])
    network = TorchGraph(read_program(path), ("y",))
    with pytest.raises(ModelError) as caught:
        network(torch.zeros(1, 3, 8, 8))
    for word in words:
        assert word in str(caught.value)


def test_an_output_that_the_file_does_not_have_is_refused(tiny_model):
    with pytest.raises(ModelError, match=r"no output 'head_4'; it has head_8, head_16, head_32"):
        TorchGraph(read_program(tiny_model["fused"]), ("head_4",))


def test_shapes_share_their_weights_and_follow_the_precision(tiny_model):
    network = load_torch_graph(read_onnx(tiny_model["fused"]))
    one, other = network.for_shape((1, 3, 32, 32)), network.for_shape((2, 3, 64, 32))
    assert network.for_shape((1, 3, 32, 32)) is one
    addresses = [{p.data_ptr() for p in module.parameters()} for module in (one, other, network)]
    assert len(addresses[0]) == 100  # a weight and a bias for each of 50 convolutions
    assert addresses[0] == addresses[1]
    assert addresses[0] < addresses[2], "the factors of the upsampling are not needed once the shape is known"
    network.half()
    assert network.dtype == torch.float16
    assert {p.dtype for p in network.for_shape((1, 3, 32, 32)).parameters()} == {torch.float16}


@pytest.mark.parametrize(("dtype", "worst"), [("float16", 0.01), ("bfloat16", 0.08)])
def test_lower_precision_is_near_single_precision(dtype, worst):
    """The shipped model on noise: its scores differ by less than a hundredth in half precision."""
    from retinastream.models.zoo import resolve_model

    model, kind = resolve_model("mnet025"), getattr(torch, dtype)
    images = torch.from_numpy(images_of(1, 64, 96))
    with torch.inference_mode():
        exact = load_torch_graph(model)(images)
        rough = load_torch_graph(model).to(kind)(images.to(kind))
    for one, other in zip(rough, exact, strict=True):
        assert one.dtype == kind
        scores = [torch.sigmoid(m[:, 1:4:2].double() - m[:, 0:4:2].double()) for m in (one, other)]
        assert 0 < (scores[0] - scores[1]).abs().max() < worst


def test_places_of_a_deformable_convolution_are_not_rounded_to_half(tmp_path):
    """A half has 11 bits, which cannot tell neighbouring columns of a wide map apart: they stay in single precision."""
    from retinastream.models.architectures import create_network
    from retinastream.models.export import export_network

    spec = SPECS["retinaface-paper"]
    network = create_network("paper-mobilenetv1-x0.25", seed=3, deformable=True)
    model = read_onnx(export_network(network, spec, tmp_path / "model.onnx", "fused"))
    module = load_torch_graph(model).half().for_shape((1, 3, 64, 64))
    kinds = {buffer.dtype for name, buffer in module.named_buffers() if buffer.is_floating_point() and buffer.ndim}
    assert kinds == {torch.float32}
    images = torch.from_numpy(images_of(1, 64, 64))
    with torch.inference_mode():
        outputs = module(images.half())
        exact = load_torch_graph(model)(images)
    for one, other in zip(outputs, exact, strict=True):
        assert one.dtype == torch.float16
        assert (one.float() - other).abs().max() < 0.02 * max(1.0, float(other.abs().max()))


@pytest.mark.parametrize("layout", ["fused", pytest.param("classic", marks=pytest.mark.slow)])
def test_the_whole_graph_can_be_compiled(tiny_model, layout):
    """torch's compiler sees one graph without a break: what is behind it (here nothing) is free to fuse all of it."""
    network = load_torch_graph(read_onnx(tiny_model[layout])).for_shape((1, 3, 64, 64))
    images = torch.from_numpy(images_of(1, 64, 64))
    compiled = torch.compile(network, dynamic=False, fullgraph=True, backend="aot_eager")
    with torch.inference_mode():
        for one, other in zip(compiled(images), network(images), strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
