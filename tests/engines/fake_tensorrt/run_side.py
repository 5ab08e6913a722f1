"""The fake's runtime, engine, inspector and execution context."""

import json

import numpy as np
from host_memory import HostDeviceArray

from fake_tensorrt.plan_format import read_plan

_NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT8": np.int8}
_ORT = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(int8)": "INT8"}
_NULL = "pybind11::init(): factory function returned nullptr"


def run_classes(world, trt):
    severity = trt.ILogger.Severity

    class Runtime:
        __slots__ = ("_logger", "engine_host_code_allowed")

        def __init__(self, logger):
            if not world.has_driver:
                logger.log(severity.INTERNAL_ERROR, "CUDA initialization failure with error: 100.")
                raise TypeError(_NULL)
            self._logger, self.engine_host_code_allowed = logger, False

        def deserialize_cuda_engine(self, serialized_engine):
            problem = self._problem(bytes(serialized_engine))
            if problem:
                self._logger.log(severity.ERROR, problem)
                return None
            facts, model = read_plan(bytes(serialized_engine))
            return ICudaEngine(facts, model, self._logger)

        def _problem(self, plan):
            if world.fails("deserialize_memory"):
                return "IRuntime::deserializeCudaEngine: Error Code 2: OutOfMemory (no further information)"
            read = read_plan(plan)
            if isinstance(read, str):
                return read
            facts = read[0]
            if facts["version"] != world.version and not facts["version_compatible"]:
                return (
                    "The engine plan file is not compatible with this version of TensorRT, expecting library version "
                    f"{world.version} got {facts['version']}, please rebuild."
                )
            if facts["version_compatible"] and not self.engine_host_code_allowed:
                return "Cannot deserialize engine with lean runtime: host code is not allowed."
            return self._device_problem(facts["compatibility"], tuple(facts["capability"]), world.compute_capability)

        @staticmethod
        def _device_problem(level, built, here):
            if level == "AMPERE_PLUS":
                return (
                    None
                    if here >= (8, 0)
                    else (
                        "The current device is not compatible with this hardware-compatible engine. Expected compute "
                        "capability >= 8.0"
                    )
                )
            if built == here:
                return None
            (a, b), (c, d) = here, built
            return (
                f"The engine plan file is generated on an incompatible device, expecting compute {a}.{b} got compute "
                f"{c}.{d}, please rebuild."
            )

    class ICudaEngine:
        __slots__ = ("_facts", "_logger", "_model", "_session", "_tensors")

        def __init__(self, facts, model, logger):
            import onnxruntime as ort

            options = ort.SessionOptions()
            options.log_severity_level = 4
            options.intra_op_num_threads = 1
            self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            self._facts, self._model, self._logger = facts, model, logger
            self._tensors = {
                value.name: (mode, _ORT[value.type], [d if isinstance(d, int) else -1 for d in value.shape])
                for mode, values in (("INPUT", self._session.get_inputs()), ("OUTPUT", self._session.get_outputs()))
                for value in values
            }

        num_io_tensors = property(lambda self: len(self._tensors))
        num_optimization_profiles = property(lambda self: max(1, len(self._facts["profiles"])))
        num_aux_streams = property(lambda self: world.aux_streams)
        num_layers = property(lambda self: len(self._nodes()))

        def get_tensor_name(self, index):
            return list(self._tensors)[index]

        def get_tensor_mode(self, name):
            return trt.TensorIOMode[self._tensors[name][0]]

        def get_tensor_dtype(self, name):
            return trt.DataType[self._tensors[name][1]]

        def get_tensor_shape(self, name):
            return trt.Dims(self._tensors[name][2])

        def get_tensor_location(self, name):
            return trt.TensorLocation.HOST if world.fails("location") else trt.TensorLocation.DEVICE

        def get_tensor_profile_shape(self, name, profile_index):
            if not self._facts["profiles"]:
                return [trt.Dims(self._tensors[name][2])] * 3
            return [trt.Dims(shape) for shape in self._facts["profiles"][profile_index][name]]

        def get_device_memory_size_for_profile_v2(self, profile_index):
            return self._facts["scratch"] * (1 + profile_index)

        def create_engine_inspector(self):
            return EngineInspector(self)

        def create_execution_context(self, strategy=trt.ExecutionContextAllocationStrategy.STATIC):
            if world.fails("create_context"):
                self._logger.log(
                    severity.ERROR, "IExecutionContext: Error Code 2: OutOfMemory (no further information)"
                )
                return None
            return IExecutionContext(self, strategy)

        def _nodes(self):
            import onnx

            return onnx.load_model_from_string(self._model).graph.node

    class EngineInspector:
        __slots__ = ("_engine",)

        def __init__(self, engine):
            self._engine = engine

        def get_engine_information(self, format):
            if format != trt.LayerInformationFormat.JSON:
                return "one line per layer"
            tensors = "I/O Tensors" if world.major >= 11 else "Bindings"
            layers = [self._describe(node) for node in self._engine._nodes()]
            if self._engine._facts["detailed"]:
                first = {"Name": "Reformatting CopyNode for Input Tensor 0", "LayerType": "Reformat", "Outputs": []}
                layers.insert(0, first)
            return json.dumps({"Layers": layers, tensors: list(self._engine._tensors)})

        def _describe(self, node):
            if not self._engine._facts["detailed"]:
                return node.name
            kind = "CaskConvolution" if node.op_type == "Conv" else node.op_type
            half = any(kind == "HALF" for _, kind, _ in self._engine._tensors.values())
            stored = "Channel major FP16 format where channel % 8 == 0" if half else "Row major linear FP32"
            return {"Name": node.name, "LayerType": kind, "Outputs": [{"Name": "out", "Format/Datatype": stored}]}

    class IExecutionContext:
        __slots__ = ("_addresses", "_engine", "_has_run", "_is_switched", "_profile", "_scratch", "_shape", "_strategy")

        def __init__(self, engine, strategy):
            self._engine, self._strategy = engine, strategy
            self._addresses, self._scratch, self._shape, self._profile = {}, None, None, 0
            self._has_run, self._is_switched = False, True

        def set_optimization_profile_async(self, profile_index, stream_handle):
            if not 0 <= profile_index < self._engine.num_optimization_profiles or world.fails("set_profile"):
                self._complain(f"Profile index {profile_index} is not valid.")
                return False
            self._profile, self._is_switched, self._has_run = profile_index, False, False

            def arrive():
                self._is_switched = True

            world.device.call(_stream(world, stream_handle), arrive, name="profile switch")
            return True

        def set_input_shape(self, name, shape):
            shape = tuple(shape)
            low, _, high = map(tuple, self._engine.get_tensor_profile_shape(name, self._profile))
            if world.fails("set_shape") or not all(a <= v <= b for a, v, b in zip(low, shape, high, strict=True)):
                self._complain(
                    f"IExecutionContext::setInputShape: Error Code 3: API Usage Error (Set dimension {list(shape)} for "
                    f"tensor {name} does not satisfy any optimization profiles.)"
                )
                return False
            self._shape, self._has_run = shape, False
            return True

        def infer_shapes(self):
            if world.fails("infer_shapes"):
                raise RuntimeError("shape inference failed")
            return [] if self._shape is not None and not world.fails("missing_shapes") else [self._input()]

        def get_tensor_shape(self, name):
            if name == self._input():
                return trt.Dims(self._shape)
            return trt.Dims(self._run_on(np.zeros(self._shape, self._dtype(self._input())))[name].shape)

        def set_tensor_address(self, name, memory):
            if name not in self._engine._tensors or not memory or world.fails("set_address"):
                self._complain(f"Given invalid tensor name: {name}")
                return False
            self._addresses[name] = memory
            return True

        def set_device_memory(self, memory, size):
            if memory % 256 or size < self._engine.get_device_memory_size_for_profile_v2(self._profile):
                world.faults.append(f"scratch memory at {memory:#x} of {size} bytes is too small or not aligned")
            self._scratch = (memory, size)

        def execute_async_v3(self, stream_handle):
            if set(self._addresses) != set(self._engine._tensors) or self._shape is None or world.fails("execute"):
                self._complain("IExecutionContext::enqueueV3: Error Code 3: API Usage Error (Parameter check failed)")
                return False
            if self._strategy == trt.ExecutionContextAllocationStrategy.USER_MANAGED and self._scratch is None:
                world.faults.append("a context without memory of its own was run without scratch memory")
            if not self._is_switched:
                world.faults.append("a context was run before its change of profile had finished")
            if world.device.recording is not None and not self._has_run:
                self._complain("Error Code 1: Cuda Runtime (operation would make the legacy stream depend on capture)")
                return False
            self._has_run = True
            self._queue(_stream(world, stream_handle))
            return True

        def _queue(self, stream):
            """Put the network on the stream; its memory must live until it has run, and nobody here keeps it alive."""
            image = self._input()
            shapes = {name: tuple(self.get_tensor_shape(name)) for name in self._engine._tensors}
            arrays = {name: _array_at(world, self._addresses[name], shapes[name], self._dtype(name)) for name in shapes}
            scratch = _array_at(world, self._scratch[0], (self._scratch[1],), np.uint8)
            views = {name: _bare(array) for name, array in arrays.items()}
            bare_scratch = _bare(scratch)

            def run():
                bare_scratch[...] = 0x5C
                for name, value in self._run_on(np.array(views[image])).items():
                    views[name][...] = value

            world.device.call(stream, run, *arrays.values(), scratch, name="network")

        def _input(self):
            return next(name for name, (mode, _, _) in self._engine._tensors.items() if mode == "INPUT")

        def _dtype(self, name):
            return _NUMPY[self._engine._tensors[name][1]]

        def _run_on(self, image):
            names = [name for name, (mode, _, _) in self._engine._tensors.items() if mode == "OUTPUT"]
            return dict(zip(names, self._engine._session.run(names, {self._input(): image}), strict=True))

        def _complain(self, text):
            self._engine._logger.log(severity.ERROR, text)

    made = (Runtime, ICudaEngine, EngineInspector, IExecutionContext)
    return {each.__name__: each for each in made}


def _stream(world, handle):
    return world.device._streams[handle]


def _array_at(world, address, shape, dtype):
    """The device array that lies at an address; a fault where there is no memory of the device."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    for start, memory in list(world.device._blocks.items()):
        if start <= address and address + size <= start + memory.nbytes:
            part = np.asarray(memory)[address - start : address - start + size]
            return part.view(dtype).reshape(shape).view(HostDeviceArray)
    raise AssertionError(f"TensorRT was given the address {address:#x}, where {size} bytes of the device are not")


def _bare(array):
    """The same memory without keeping it alive."""
    interface = {
        "data": (array.ctypes.data, False),
        "shape": array.shape,
        "typestr": array.dtype.str,
        "version": 3,
    }
    return np.asarray(type("Bare", (), {"__array_interface__": interface})())
