"""The fake's builder, network, parser and configuration."""

import threading
from pathlib import Path

from fake_tensorrt.plan_format import write_plan

_NO_DRIVER = "CUDA initialization failure with error: 35. Please check your CUDA installation."
_NULL = "pybind11::init(): factory function returned nullptr"
_FOREIGN = (
    "TensorRT only supports symmetric quantization. The zero point for the QuantizeLinear operator must be all zeros"
)
_STEPS = 4


def build_classes(world, trt):
    class ILogger:
        class Severity(trt.DataType.__mro__[1]):
            INTERNAL_ERROR = 0
            ERROR = 1
            WARNING = 2
            INFO = 3
            VERBOSE = 4

        def __init__(self):
            self._is_made = True

        def log(self, severity, msg):
            raise NotImplementedError

    class IProgressMonitor:
        def __init__(self):
            self._is_made = True

        def phase_start(self, phase_name, parent_phase, num_steps):
            raise NotImplementedError

        def step_complete(self, phase_name, step):
            raise NotImplementedError

        def phase_finish(self, phase_name):
            raise NotImplementedError

    def say(logger, severity, text):
        logger.log(severity, text)

    class ITensor:
        __slots__ = ("_dtype", "_name", "_shape")

        def __init__(self, name, dtype, shape):
            self._name, self._dtype, self._shape = name, dtype, shape

        name = property(lambda self: self._name)
        dtype = property(lambda self: self._dtype)
        shape = property(lambda self: trt.Dims(self._shape))

    class INetworkDefinition:
        __slots__ = ("_flags", "_inputs", "_model", "_owner")

        def __init__(self, flags):
            self._flags, self._inputs, self._model, self._owner = flags, [], b"", None

        num_inputs = property(lambda self: len(self._inputs))

        def get_input(self, index):
            return self._inputs[index] if index < len(self._inputs) else None

    class ParserError:
        __slots__ = ("_code", "_desc", "_name", "_node", "_operator")

        def __init__(self, code, desc, node=-1, name="", operator=""):
            self._code, self._desc, self._node, self._name, self._operator = code, desc, node, name, operator

        def code(self):
            return self._code

        def desc(self):
            return self._desc

        def file(self):
            return "onnxOpImporters.cpp"

        def line(self):
            return 42

        def func(self):
            return "importNode"

        def node(self):
            return self._node

        def node_name(self):
            return self._name

        def node_operator(self):
            return self._operator

        def local_function_stack(self):
            return []

    class OnnxParser:
        __slots__ = ("__weakref__", "_errors", "_logger", "_network")

        def __init__(self, network, logger):
            self._network, self._logger, self._errors = network, logger, []

        num_errors = property(lambda self: len(self._errors))

        def get_error(self, index):
            return self._errors[index]

        def parse_from_file(self, model):
            if not isinstance(model, str):
                raise TypeError("parse_from_file(): incompatible function arguments")
            if not Path(model).is_file():
                say(self._logger, ILogger.Severity.ERROR, f"Failed to open file: {model}")
                return False
            import onnx

            try:
                read = onnx.load(model)
            except Exception as error:  # noqa: BLE001  (as the parser, which raises nothing)
                code = trt.ErrorCode.MODEL_DESERIALIZE_FAILED
                self._errors.append(ParserError(code, f"Failed to parse the ONNX model: {error}"))
                return False
            for number, node in enumerate(read.graph.node):
                self._look_at(read, number, node)
            self._network._inputs = [_tensor_of(trt, ITensor, value) for value in read.graph.input]
            self._network._model = read.SerializeToString()
            # the network points to weights that the parser owns
            import weakref

            self._network._owner = weakref.ref(self)
            return not self._errors

        def _look_at(self, model, number, node):
            if node.domain not in ("", "ai.onnx"):
                text = f"Cannot find plugin: {node.op_type}, version: 1, namespace:."
                say(self._logger, ILogger.Severity.ERROR, f"IPluginRegistry::getCreator: Error Code 4: ({text})")
                desc = 'Assertion failed: creator && "Plugin not found, are the plugin name and version correct?"'
                code = trt.ErrorCode.UNSUPPORTED_NODE
                self._errors.append(ParserError(code, desc, number, node.name, node.op_type))
            if node.op_type == "QuantizeLinear" and len(node.input) > 2:
                zero = next((i for i in model.graph.initializer if i.name == node.input[2]), None)
                if zero is not None and any(zero.int32_data or zero.raw_data):
                    code = trt.ErrorCode.INVALID_NODE
                    self._errors.append(ParserError(code, _FOREIGN, number, node.name, node.op_type))

    class IOptimizationProfile:
        __slots__ = ("_ranges",)

        def __init__(self):
            self._ranges = {}

        def set_shape(self, input, min, opt, max):
            if not all(isinstance(shape, trt.Dims) for shape in (min, opt, max)):
                raise TypeError("set_shape(): incompatible function arguments")
            self._ranges[input] = tuple(tuple(shape) for shape in (min, opt, max))

        def get_shape(self, input):
            return [trt.Dims(shape) for shape in self._ranges.get(input, ())]

        def __bool__(self):
            return not world.fails("profile") and all(
                a <= b <= c
                for low, best, high in self._ranges.values()
                for a, b, c in zip(low, best, high, strict=True)
            )

    class ITimingCache:
        __slots__ = ("_blob",)

        def __init__(self, blob):
            self._blob = blob

        def serialize(self):
            return trt.IHostMemory(self._blob)

    class IBuilderConfig:
        __slots__ = (
            "_cache",
            "_flags",
            "_pools",
            "_profiles",
            "builder_optimization_level",
            "hardware_compatibility_level",
            "max_aux_streams",
            "profiling_verbosity",
            "progress_monitor",
        )

        def __init__(self):
            self._flags, self._pools, self._profiles, self._cache = {trt.BuilderFlag.TF32}, {}, [], None
            self.progress_monitor = None
            self.builder_optimization_level = 3
            self.hardware_compatibility_level = trt.HardwareCompatibilityLevel.NONE
            self.profiling_verbosity = trt.ProfilingVerbosity.LAYER_NAMES_ONLY
            self.max_aux_streams = -1

        def set_memory_pool_limit(self, pool, pool_size):
            self._pools[pool] = pool_size

        def set_flag(self, flag):
            self._flags.add(flag)

        def clear_flag(self, flag):
            self._flags.discard(flag)

        def get_flag(self, flag):
            return flag in self._flags

        def add_optimization_profile(self, profile):
            if not profile:
                return -1
            self._profiles.append(profile)
            return len(self._profiles) - 1

        def create_timing_cache(self, serialized_timing_cache):
            return ITimingCache(bytes(serialized_timing_cache))

        def set_timing_cache(self, cache, ignore_mismatch):
            if cache._blob and not cache._blob.startswith(_stamp(world)) and not ignore_mismatch:
                return False
            self._cache = cache
            return True

        def get_timing_cache(self):
            return self._cache

    class Builder:
        __slots__ = ("_logger",)

        def __init__(self, logger):
            if not getattr(logger, "_is_made", False):
                raise TypeError("ILogger.__init__() must be called when overriding __init__")
            if not world.has_driver:
                say(logger, ILogger.Severity.INTERNAL_ERROR, _NO_DRIVER)
                raise TypeError(_NULL)
            self._logger = logger

        def create_network(self, flags=0):
            if world.fails("create_network"):
                return None
            if world.major == 10 and not flags & (1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)):
                world.faults.append("a network of TensorRT 10 was not made strongly typed")
            return INetworkDefinition(flags)

        def create_builder_config(self):
            return IBuilderConfig()

        def create_optimization_profile(self):
            return IOptimizationProfile()

        def build_serialized_network(self, network, config):
            if world.device is not None:
                world.device._expect_current()
            error = _refusal(world, network, config)
            if error:
                say(self._logger, ILogger.Severity.ERROR, error)
                return None
            say(self._logger, ILogger.Severity.WARNING, "Functionality provided through tactic sources is deprecated.")
            if not _report_progress(world, config.progress_monitor):
                say(self._logger, ILogger.Severity.ERROR, "Error Code 10: Internal Error (build was cancelled)")
                return None
            world.builds.append((network, config))
            config._cache = ITimingCache(_stamp(world) + b"measured")
            facts = {
                "version": world.version,
                "capability": world.compute_capability,
                "compatibility": config.hardware_compatibility_level.name,
                "version_compatible": config.get_flag(trt.BuilderFlag.VERSION_COMPATIBLE),
                "profiles": [profile._ranges for profile in config._profiles],
                "scratch": world.scratch_bytes,
                "detailed": config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED,
            }
            return trt.IHostMemory(write_plan(world.version, facts, network._model))

    made = (
        ILogger,
        IProgressMonitor,
        ITensor,
        INetworkDefinition,
        ParserError,
        OnnxParser,
        IOptimizationProfile,
        ITimingCache,
        IBuilderConfig,
        Builder,
    )
    return {each.__name__: each for each in made}


def _stamp(world):
    return f"{world.version} {world.compute_capability} ".encode()


def _refusal(world, network, config):
    """What the real builder would log before it returns None."""
    if network._owner is None or network._owner() is None:
        world.faults.append("the parser was gone before its network was built")
    if config._cache is None:
        world.faults.append("a build without a timing cache")
    dynamic = [tensor for tensor in network._inputs if -1 in tuple(tensor.shape)]
    if dynamic and not config._profiles:
        return (
            "IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (Network has dynamic or shape inputs, but "
            "no optimization profile has been defined.)"
        )
    if world.fails("build"):
        return "Error Code 10: Internal Error (Could not find any implementation for node /conv1/Conv + /relu1/Relu.)"
    if world.fails("build_memory"):
        return "Error Code 2: OutOfMemory (Requested size was 9000000000 bytes.)"
    return None


def _report_progress(world, monitor):
    """Phases on a thread of TensorRT's own; False when the build is to end."""
    if monitor is None:
        return True
    if not getattr(monitor, "_is_made", False):
        raise TypeError("IProgressMonitor.__init__() must be called when overriding __init__")
    answers = []

    def work():
        monitor.phase_start("Building Engine", None, 2)
        for phase in range(2):
            monitor.phase_start("Timing", "Building Engine", _STEPS)
            for step in range(_STEPS):
                if world.on_step is not None:
                    world.on_step(phase, step)
                world.reports.append((phase, step))
                answers.append(monitor.step_complete("Timing", step))
                if not answers[-1]:
                    break
            monitor.phase_finish("Timing")
            if not all(answers):
                break
            answers.append(monitor.step_complete("Building Engine", phase))
        monitor.phase_finish("Building Engine")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    return all(answers)


_TYPES = {1: "FLOAT", 10: "HALF", 3: "INT8", 6: "INT32", 7: "INT64", 9: "BOOL", 2: "UINT8", 16: "BF16"}


def _tensor_of(trt, kind, value):
    described = value.type.tensor_type
    shape = [d.dim_value if d.HasField("dim_value") else -1 for d in described.shape.dim]
    return kind(value.name, trt.DataType[_TYPES[described.elem_type]], shape)
