"""What is asked of NVIDIA's tool, with a stand-in for it: the tool itself is not installed with the tests."""

import inspect
import json
import sys
import types

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="onnx is not installed, and models are converted with it")

from precision_graphs import detector, pictures  # noqa: E402

from retinastream.engines.precision.model_files import CALIBRATION_KEY, raise_opset  # noqa: E402
from retinastream.engines.precision.modelopt_quantizer import quantise_with_modelopt, together  # noqa: E402
from retinastream.engines.precision.placement import place  # noqa: E402
from retinastream.engines.precision.qdq import insert_pairs  # noqa: E402
from retinastream.errors import InputError, MissingPackageError, ModelError, UsageError  # noqa: E402
from retinastream.models.onnx_file import read_onnx  # noqa: E402


def quantize(  # the parameters of the tool's own function that are used here, with its defaults
    onnx_path: str,
    quantize_mode: str = "int8",
    calibration_data=None,
    calibration_method: str | None = None,
    calibration_shapes: str | None = None,
    calibration_eps: list[str] = ["cpu", "cuda:0", "trt"],  # noqa: B006
    nodes_to_exclude: list[str] | None = None,
    output_path: str | None = None,
    high_precision_dtype: str = "fp16",
    direct_io_types: bool = False,
) -> None: ...


class StandIn:
    """Checks the arguments as the tool's function would, and writes a graph of ours; ``spoil`` makes it a bad one."""

    def __init__(self):
        self.calls, self.spoil, self.fails = [], False, False

    def __call__(self, *args, **kwargs):
        bound = inspect.signature(quantize).bind(*args, **kwargs)
        bound.apply_defaults()
        self.calls.append(bound.arguments)
        if self.fails:
            raise RuntimeError("no kernel for this")
        model = raise_opset(onnx.load(bound.arguments["onnx_path"]))
        placement = place(model)
        made = insert_pairs(model, placement, dict.fromkeys(placement.tensors(model), 4.0))
        if self.spoil:
            zero = next(t for t in made.graph.initializer if t.name == "images_zero_point")
            zero.CopyFrom(onnx.numpy_helper.from_array(np.int8(5), zero.name))
        onnx.save(made, bound.arguments["output_path"])


@pytest.fixture
def tool(monkeypatch):
    stand_in = StandIn()
    package, part, quantization = (
        types.ModuleType(n) for n in ("modelopt", "modelopt.onnx", "modelopt.onnx.quantization")
    )
    package.__version__ = "0.47.0"
    quantization.quantize = stand_in
    for module in (package, part, quantization):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return stand_in


@pytest.fixture
def source(tmp_path):
    onnx.save(detector(), str(tmp_path / "d.onnx"))
    return tmp_path / "d.onnx"


@pytest.mark.parametrize("mode", ["int8", "fp8"])
def test_the_tool_is_called_for_a_cpu_with_all_pictures(tool, source, tmp_path, mode):
    given = [*pictures(20, 64, 96), *pictures(20, 96, 64, seed=1)]
    made = quantise_with_modelopt(source, tmp_path / "q.onnx", given, mode=mode, method="max", leave=["head_*"])
    (call,) = tool.calls
    assert (call["quantize_mode"], call["calibration_method"], call["calibration_eps"]) == (mode, "max", ["cpu"])
    assert (call["high_precision_dtype"], call["calibration_shapes"]) == ("fp16", "images:1x3x96x96")
    assert call["calibration_data"]["images"].shape == (40, 3, 96, 96)
    assert call["nodes_to_exclude"] == ["^head_16$", "^head_32$", "^head_8$"]
    found = read_onnx(made)
    assert found.precision == mode
    facts = json.loads({e.key: e.value for e in onnx.load(str(made)).metadata_props}[CALIBRATION_KEY])
    assert (facts["quantizer"], facts["pictures"]) == ("modelopt 0.47.0", 40)


def test_pictures_are_padded_with_the_mean_to_one_size():
    batch = together([np.full((2, 3, 4, 2), 5, np.float32), np.full((1, 3, 2, 6), 7, np.float32)])
    assert batch.shape == (3, 3, 4, 6)
    assert (batch[:2, :, :, :2] == 5).all()
    assert not batch[:2, :, :, 2:].any()
    assert (batch[2, :, :2] == 7).all()
    assert not batch[2, :, 2:].any()


def test_what_tensorrt_would_refuse_is_not_kept(tool, source, tmp_path):
    tool.spoil = True
    with pytest.raises(ModelError, match=r"modelopt 0\.47\.0 wrote what TensorRT would refuse: .*zero point is 5"):
        quantise_with_modelopt(source, tmp_path / "q.onnx", pictures(32))
    assert not (tmp_path / "q.onnx").exists()


def test_its_failures_are_ours(tool, source, tmp_path):
    tool.fails = True
    with pytest.raises(ModelError, match=r"could not quantise .*: no kernel for this"):
        quantise_with_modelopt(source, tmp_path / "q.onnx", pictures(32))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"mode": "int4"}, UsageError, "mode is 'int4'; allowed are int8, fp8"),
        ({"method": "mse"}, UsageError, "'mse' is not known to modelopt; allowed are entropy, max"),
        ({}, InputError, "too few pictures to calibrate with: 3"),
    ],
)
def test_values_that_are_not_allowed_are_refused(tool, source, tmp_path, options, error, words):
    with pytest.raises(error, match=words):
        quantise_with_modelopt(source, tmp_path / "q.onnx", pictures(3), **options)
    assert tool.calls == []


def test_without_the_tool_the_message_says_how_to_get_it(source, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "modelopt", None)
    with pytest.raises(MissingPackageError, match=r"nvidia-modelopt\[onnx\].*--quantizer own"):
        quantise_with_modelopt(source, tmp_path / "q.onnx", pictures(32))
