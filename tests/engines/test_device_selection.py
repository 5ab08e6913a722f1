"""Which device is taken: what is asked for, what this machine has, and what is said about every gap between them."""

import logging
import sys
import types

import pytest

from retinastream.engines import device_selection, gpu_readiness, select
from retinastream.engines.runtime_table import check_precision, check_runtime
from retinastream.engines.select import DeviceChoice, choose_device, create_device_engine, create_engine
from retinastream.errors import SetupError, UsageError
from retinastream.kernels.cuda_driver import DeviceFacts, DriverState
from retinastream.models.onnx_file import read_onnx

OLD = DeviceFacts(0, "Tesla V100", "GPU-0", (7, 0), 16 << 30, 80)
NEW = DeviceFacts(1, "NVIDIA H200", "GPU-1", (9, 0), 140 << 30, 132)
NO_DRIVER = DriverState(
    "the NVIDIA driver is not usable: libcuda.so.1 does not load; install the NVIDIA driver", None, (),
    "the NVIDIA driver is not usable", "install the NVIDIA driver", is_installed=False,
)  # fmt: skip
OUT_OF_STEP = DriverState(
    "cuInit failed with error 803; restart the machine", (13, 0), (), "cuInit failed with error 803",
    "restart the machine", 803,
)  # fmt: skip


class Machine:
    """A machine as the checks see it."""

    def __init__(self, monkeypatch):
        self._patch = monkeypatch
        monkeypatch.setattr(gpu_readiness, "_KERNEL_MODULE", types.SimpleNamespace(exists=lambda: False))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        self.driver(NEW)
        self.cupy(count=2)
        self.torch()
        self.tensorrt(None)

    def driver(self, *devices, state=None):
        state = state or DriverState(None, (13, 0), devices)
        self._patch.setattr(gpu_readiness.cuda_driver, "probe", lambda: state)

    def cupy(self, count=1, fails=None, nvrtc=None):
        def load(version):
            assert version == (13, 0)
            if fails is not None:
                raise fails
            runtime = types.SimpleNamespace(getDeviceCount=lambda: count)

            def version_of_nvrtc():
                if nvrtc is not None:
                    raise nvrtc
                return 13, 0

            cuda = types.SimpleNamespace(runtime=runtime, nvrtc=types.SimpleNamespace(getVersion=version_of_nvrtc))
            return types.SimpleNamespace(__version__="14.2.0", cuda=cuda)

        self._patch.setattr(gpu_readiness, "load_cupy", load)

    def torch(self, problem=""):
        self._patch.setitem(gpu_readiness._CHECKS, "torch", lambda: problem)

    def tensorrt(self, problem):
        """None: not installed; "": works."""
        text = "tensorrt is not installed: pip install it" if problem is None else problem
        self._patch.setitem(gpu_readiness._CHECKS, "tensorrt", lambda: text)
        self._patch.setattr(gpu_readiness, "_is_installed", lambda name: name != "tensorrt" or problem is not None)


@pytest.fixture
def machine(monkeypatch):
    return Machine(monkeypatch)


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.records]


def test_auto_takes_the_gpu_where_all_is_there_and_says_nothing_else(machine, warnings):
    assert choose_device("auto") == DeviceChoice("cuda", 1, "a GPU that can be used")
    assert choose_device("auto").label == "cuda:1"
    assert warnings() == []


def test_auto_passes_over_a_gpu_that_is_too_old(machine):
    machine.driver(OLD, NEW)
    assert choose_device("auto").index == 1


def test_a_machine_without_a_driver_gets_the_cpu_quietly(machine, warnings):
    machine.driver(state=NO_DRIVER)
    assert choose_device("auto") == DeviceChoice("cpu", 0, "no GPU can be used: there is no NVIDIA driver")
    assert warnings() == []


def test_a_kernel_module_without_the_library_is_worth_a_warning(machine, monkeypatch, warnings):
    """As in a container that was started without its GPUs."""
    machine.driver(state=NO_DRIVER)
    monkeypatch.setattr(gpu_readiness, "_KERNEL_MODULE", types.SimpleNamespace(exists=lambda: True))
    assert choose_device("auto").kind == "cpu"
    assert "install the NVIDIA driver" in warnings()[0]


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_gpus_that_were_hidden_on_purpose_are_not_missed(machine, monkeypatch, warnings, hidden):
    machine.driver(state=OUT_OF_STEP)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert choose_device("auto").kind == "cpu"
    assert warnings() == []


def set_up(machine, gap):
    match gap:
        case "driver":
            machine.driver(state=OUT_OF_STEP)
        case "capability":
            machine.driver(OLD)
        case "cupy":
            machine.cupy(fails=SetupError("CuPy is not installed; pip install 'retinastream[gpu-cu13]'"))
        case "nvrtc":
            machine.cupy(nvrtc=RuntimeError("libnvrtc.so.13: cannot open"))
        case "count":
            machine.cupy(count=1)
        case "runtime":
            machine.torch("torch 2.13.0+cpu is a build for CPUs: install one with CUDA")


GAPS = [
    ("driver", ["error 803", "restart the machine"]),
    ("capability", ["Tesla V100", "7.5"]),
    ("cupy", ["CuPy is not installed", "gpu-cu13"]),
    ("nvrtc", ["libnvrtc.so.13", "gpu-cu13"]),
    ("count", ["CuPy sees 1 GPUs", "CUDA_VISIBLE_DEVICES"]),
    ("runtime", ["tensorrt is not installed", "torch 2.13.0+cpu is a build for CPUs"]),
]


@pytest.mark.parametrize(("gap", "words"), GAPS, ids=[gap for gap, _ in GAPS])
def test_what_a_machine_with_a_gpu_lacks_is_a_warning_for_auto_and_an_error_where_a_gpu_is_demanded(
    machine, warnings, gap, words
):
    set_up(machine, gap)
    choice = choose_device("auto")
    assert choice.kind == "cpu"
    (warning,) = warnings()
    assert warning.startswith("the network runs on the CPU although there seems to be a GPU: ")
    texts = [warning]
    for device, require in (("auto", "gpu"), ("cuda:0" if gap == "capability" else "cuda:1", None)):
        with pytest.raises(SetupError) as caught:
            choose_device(device, require)
        assert caught.value.exit_code == 3
        texts.append(str(caught.value))
    assert texts[1].startswith("--require gpu was given, and no GPU can be used: ")
    assert "cannot be used: " in texts[2]
    assert texts[2].endswith("or choose the CPU with --device cpu")
    for text in texts:
        for word in words:
            assert word in text


def test_a_number_that_does_not_exist_is_refused_and_the_others_are_named(machine):
    machine.driver(OLD, NEW)
    with pytest.raises(SetupError, match=r"no cuda:4 here; there are cuda:0 \(Tesla V100\), cuda:1 \(NVIDIA H200\)"):
        choose_device("cuda:4")


def test_a_gpu_asked_for_by_number_is_taken_and_not_replaced_by_another(machine):
    machine.driver(OLD, NEW)
    assert choose_device("cuda:1") == DeviceChoice("cuda", 1, "device cuda:1 was asked for")
    with pytest.raises(SetupError, match=r"cuda:0 \(Tesla V100\) has compute capability 7\.0; the kernels need 7\.5"):
        choose_device("cuda:0")


def test_cpu_looks_at_nothing(machine, monkeypatch):
    monkeypatch.setattr(gpu_readiness.cuda_driver, "probe", lambda: pytest.fail("the driver was asked"))
    assert choose_device("cpu") == DeviceChoice("cpu", 0, "device cpu was asked for")
    assert choose_device("auto", runtime="openvino") == DeviceChoice("cpu", 0, "runtime openvino runs on the CPU")


def test_without_a_driver_nothing_heavy_is_imported():
    """On a machine without GPU, choosing the device does not even import CuPy or torch."""
    import subprocess

    code = (
        "import sys; from retinastream.engines.select import choose_device; choose_device('auto');"
        "print([m for m in ('cupy', 'torch', 'tensorrt', 'onnxruntime', 'openvino') if m in sys.modules])"
    )
    environment = {"CUDA_VISIBLE_DEVICES": "-1", "PATH": "/usr/bin:/bin"}
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert answer.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        pytest.param(("tpu",), "auto, cpu, cuda, cuda:N", id="an unknown device"),
        pytest.param(("cuda:",), "auto, cpu, cuda, cuda:N", id="a number left out"),
        pytest.param(("cuda:-1",), "auto, cpu, cuda, cuda:N", id="a negative number"),
        pytest.param(("cuda:1\n",), "auto, cpu, cuda, cuda:N", id="a line break"),
        pytest.param(("CUDA",), "auto, cpu, cuda, cuda:N", id="capitals"),
        pytest.param((None,), "expected text", id="no device"),
        pytest.param((0,), "expected text", id="a number alone"),
        pytest.param(("auto", "cpu"), "allowed is gpu", id="requiring something else"),
        pytest.param(("cpu", "gpu"), "together with --require gpu", id="the CPU and a GPU"),
    ],
)
def test_what_makes_no_sense_is_refused(machine, values, says):
    with pytest.raises(UsageError) as caught:
        choose_device(*values)
    assert says in str(caught.value)
    assert not isinstance(caught.value, SetupError)


@pytest.mark.parametrize(
    ("device", "runtime"),
    [("cuda", "openvino"), ("cuda:1", "onnxruntime"), ("cpu", "tensorrt")],
)
def test_a_runtime_on_the_wrong_device_is_refused_with_what_runs_where(machine, device, runtime):
    with pytest.raises(UsageError) as caught:
        choose_device(device, runtime=runtime)
    assert repr(runtime) in str(caught.value)
    assert "openvino, onnxruntime, torch run on the CPU (--device cpu)" in str(caught.value)
    assert "tensorrt and torch on a GPU (--device cuda)" in str(caught.value)


def test_a_runtime_of_the_cpu_contradicts_a_required_gpu(machine):
    with pytest.raises(UsageError, match="runtime 'openvino' runs on the CPU only, and --require gpu"):
        choose_device("auto", "gpu", runtime="openvino")


def test_a_runtime_of_gpus_alone_makes_a_gpu_a_demand(machine):
    machine.driver(state=NO_DRIVER)
    with pytest.raises(SetupError, match=r"runtime 'tensorrt' was given, and no GPU can be used: .*libcuda"):
        choose_device("auto", runtime="tensorrt")
    machine.driver(NEW)
    with pytest.raises(SetupError, match="tensorrt is not installed"):
        choose_device("auto", runtime="tensorrt")
    machine.tensorrt("")
    assert choose_device("auto", runtime="tensorrt").kind == "cuda"


def test_torch_runs_where_there_is_no_gpu_too(machine):
    machine.driver(state=NO_DRIVER)
    assert choose_device("auto", runtime="torch").kind == "cpu"
    assert choose_device("cpu", runtime="torch").kind == "cpu"
    machine.driver(NEW)
    assert choose_device("auto", runtime="torch").kind == "cuda"


def test_tensorrt_comes_before_torch_and_the_reason_is_given(machine, warnings):
    machine.tensorrt("")
    assert gpu_readiness.usable_runtime("auto") == ("tensorrt", "the fastest runtime for GPUs that is installed")
    machine.tensorrt(None)
    assert gpu_readiness.usable_runtime("auto") == ("torch", "tensorrt is not installed: pip install it")
    assert warnings() == []
    machine.tensorrt("tensorrt is installed and does not load")
    assert gpu_readiness.usable_runtime("auto") == ("torch", "tensorrt is installed and does not load")
    assert warnings() == ["torch is used on the GPU instead of tensorrt: tensorrt is installed and does not load"]


@pytest.mark.parametrize(
    ("installed", "cuda", "available", "says"),
    [
        (False, None, False, "torch is not installed: pip install torch"),
        (True, None, False, "torch 2.13.0 is a build for CPUs"),
        (True, "13.0", False, "torch 2.13.0 (CUDA 13.0) sees no GPU"),
        (True, "13.0", True, ""),
    ],
)
def test_the_torch_that_is_installed_is_judged(monkeypatch, installed, cuda, available, says):
    torch = types.ModuleType("torch")
    torch.__version__, torch.version = "2.13.0", types.SimpleNamespace(cuda=cuda)
    torch.cuda = types.SimpleNamespace(is_available=lambda: available)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(gpu_readiness, "_is_installed", lambda _: installed)
    problem = gpu_readiness._CHECKS["torch"]()
    assert problem.startswith(says) if says else problem == ""


def test_the_packages_of_this_machine_are_judged_without_an_exception():
    for name in ("torch", "tensorrt"):
        assert isinstance(gpu_readiness._CHECKS[name](), str)


class Engines:
    """Stands for the classes of the runtimes: keeps what each was made with."""

    def __init__(self, monkeypatch):
        self.made = {}
        for module, name in (("torch_runtime", "TorchEngine"), ("tensorrt_runtime", "TensorRtEngine")):
            stand_in = types.ModuleType(module)
            setattr(stand_in, name, lambda model, device, name=name, **values: self.made.update({name: values}))
            monkeypatch.setitem(sys.modules, f"retinastream.engines.{module}", stand_in)


@pytest.fixture
def engines(monkeypatch):
    return Engines(monkeypatch)


@pytest.fixture
def model(tiny_model):
    return read_onnx(tiny_model["fused"])


DEVICE = types.SimpleNamespace(index=1, label="cuda:1", name="NVIDIA H200")


@pytest.mark.parametrize(
    ("values", "chosen", "precision", "reason"),
    [
        ({}, "TensorRtEngine", "fp16", "the fastest runtime for GPUs that is installed"),
        ({"precision": "int8"}, "TensorRtEngine", "int8", "the runtime with precision int8"),
        ({"precision": "bf16"}, "TorchEngine", "bf16", "the runtime with precision bf16"),
        ({"torch_compile": True}, "TorchEngine", "fp16", "the runtime with torch_compile"),
        ({"runtime": "torch", "precision": "f32"}, "TorchEngine", "f32", "runtime torch was asked for"),
        ({"reason": "device cuda was asked for"}, "TensorRtEngine", "fp16", "device cuda was asked for; the fastest"),
    ],
)
def test_the_engine_of_a_gpu_is_chosen_by_what_is_asked_of_it(
    machine, engines, model, values, chosen, precision, reason
):
    machine.tensorrt("")
    create_device_engine(model, DEVICE, **values)
    assert list(engines.made) == [chosen]
    assert engines.made[chosen]["precision"] == precision
    assert engines.made[chosen]["reason"].startswith(reason)
    if chosen == "TorchEngine":
        assert engines.made[chosen]["compiled"] is values.get("torch_compile", False)


def test_a_quantised_file_goes_to_the_runtime_that_can_run_it(machine, engines, model):
    from dataclasses import replace

    machine.tensorrt("")
    create_device_engine(replace(model, precision="int8"), DEVICE)
    assert engines.made["TensorRtEngine"]["precision"] == "int8"
    machine.tensorrt(None)
    with pytest.raises(SetupError, match=r"'tensorrt' \(the runtime with precision int8\) cannot be used on cuda:1"):
        create_device_engine(replace(model, precision="int8"), DEVICE)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"runtime": "openvino"}, "'openvino' does not run on a GPU"),
        ({"runtime": "nonsense"}, "allowed are auto, openvino, onnxruntime, torch, tensorrt"),
        ({"runtime": "tensorrt", "torch_compile": True}, "it is for runtime 'torch'"),
        ({"runtime": "torch", "precision": "int8"}, "allowed are f32 and bf16 and fp16 (int8 is what tensorrt"),
        ({"runtime": "tensorrt", "precision": "bf16"}, "allowed are f32 and fp16 and int8 (bf16 is what"),
        ({"precision": "fp4"}, "precision 'fp4' is not available"),
    ],
)  # fmt: skip
def test_engines_of_a_gpu_that_cannot_be_are_refused(machine, engines, model, values, says):
    machine.tensorrt("")
    with pytest.raises(UsageError) as caught:
        create_device_engine(model, DEVICE, **values)
    assert says in str(caught.value)
    assert engines.made == {}


def test_the_reason_of_the_device_comes_before_that_of_the_runtime(model):
    pytest.importorskip("onnxruntime", reason="the extra onnxruntime is not installed")
    info = create_engine(model, runtime="onnxruntime", threads=1, reason="no GPU can be used: none is there").info
    assert info.reason == "no GPU can be used: none is there; runtime onnxruntime was asked for"


def test_the_table_of_runtimes_and_precisions_has_a_default_for_every_pair():
    for runtime in ("openvino", "onnxruntime", "torch"):
        check_runtime(runtime, "cpu")
        assert check_precision(None, runtime, "cpu") == "f32"
    for runtime in ("tensorrt", "torch"):
        check_runtime(runtime, "cuda")
        assert check_precision(None, runtime, "cuda") == "fp16"
    assert select.RUNTIMES == ("auto", "openvino", "onnxruntime", "torch", "tensorrt")
    assert device_selection.parse_device("cuda:12") == ("cuda", 12)


@pytest.mark.gpu
def test_this_machines_gpu_is_chosen():
    pytest.importorskip("cupy", reason="CuPy is not installed")
    choice = choose_device("auto", "gpu")
    assert (choice.kind, choose_device("cuda").kind) == ("cuda", "cuda")
