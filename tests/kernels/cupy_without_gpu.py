"""Checks of our use of CuPy against the real one where there is no GPU; run by test_cupy_contract.py in a process.

Without a driver, CuPy refuses a call that it does not know with TypeError or AttributeError, and one that is right with
the error of CUDA that there is no device: that is how far a call can be followed here.

python cupy_without_gpu.py NAMES prints a JSON object, check -> "" or what is wrong; NAMES is a list of dotted names.
"""

import gc
import json
import sys
import threading
import traceback
import warnings

import cupy
import numpy as np

from retinastream.errors import SetupError, UsageError
from retinastream.kernels import cuda_launch
from retinastream.kernels.cuda_faces import FaceLimits
from retinastream.kernels.cuda_launch import CudaKernels
from retinastream.kernels.cupy_device import CuPyDevice
from retinastream.kernels.cupy_package import load_cupy
from retinastream.kernels.cupy_streams import CuPyEvent
from retinastream.kernels.device import CaptureError

runtime = cupy.cuda.runtime
NO_GPU = (35, 100)  # cudaErrorInsufficientDriver, cudaErrorNoDevice
ADDRESS = 0x10000000


def accepted(call, *arguments, **named):
    """Call what some versions do without the driver; returns its result, None where the GPU is missing."""
    try:
        return call(*arguments, **named)
    except runtime.CUDARuntimeError as error:
        assert error.status in NO_GPU, error
        return None


def reaches_the_driver(call, *arguments, **named):
    """Call, and expect that CuPy accepts everything and only the GPU is missing."""
    assert accepted(lambda: (call(*arguments, **named),)) is None, "the call went through; is there a GPU after all?"


def refused(kind, call, *arguments, **named):
    """Call, and expect this error of ours; returns it."""
    try:
        call(*arguments, **named)
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__} was raised")


def device():
    """A device whose constructor, which needs a GPU, did not run."""
    made = CuPyDevice.__new__(CuPyDevice)
    made._cupy, made._runtime, made.index, made.label, made.name = cupy, runtime, 0, "cuda:0", "none"
    made.kernels = CudaKernels.__new__(CudaKernels)
    made.kernels._cupy = cupy
    return made


def array(shape=(4, 4), dtype=np.float32):
    memory = cupy.cuda.UnownedMemory(ADDRESS, 4096, None, 0)
    return cupy.ndarray(shape, dtype, memptr=cupy.cuda.MemoryPointer(memory, 0))


def check_that_the_instrument_sees_a_wrong_argument():
    refused(TypeError, cupy.cuda.Stream, nonblocking=True)
    refused(TypeError, cupy.cuda.Event, blocking=True)
    refused(TypeError, cupy.cuda.Stream.ptds.begin_capture, how=1)
    refused(TypeError, runtime.memsetAsync, ADDRESS, 0)
    refused(TypeError, cupy.RawModule, code="", options=["a list"], backend="nvrtc")


def check_streams_and_events():
    reaches_the_driver(device().stream)
    reaches_the_driver(device().event)
    per_thread = device().foreign_stream(2)
    reaches_the_driver(per_thread.synchronize)
    event = CuPyEvent.__new__(CuPyEvent)
    event._cupy, event.cupy = cupy, type("Made", (), {"ptr": 0, "synchronize": cupy.cuda.Event.synchronize})()
    reaches_the_driver(per_thread.record, event)
    reaches_the_driver(per_thread.wait, event)
    reaches_the_driver(event.synchronize)
    reaches_the_driver(lambda: event.done)
    refused(UsageError, per_thread.record, event.cupy)


def check_foreign_streams():
    assert [device().foreign_stream(handle).handle for handle in (0, 1, 2)] == [0, 0, 2]
    assert (runtime.streamLegacy, runtime.streamPerThread) == (1, 2)
    wrapped = accepted(device().foreign_stream, 0x1234)
    assert wrapped is None or wrapped.handle == 0x1234
    refused(UsageError, device().foreign_stream, -1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert device().foreign_stream(2).cupy is cupy.cuda.Stream.ptds


def check_that_a_foreign_stream_is_not_destroyed():
    complaints = []
    sys.unraisablehook = complaints.append
    try:
        for is_foreign in (True, False):
            stream = cupy.cuda.Stream.__new__(cupy.cuda.Stream)
            stream.ptr, stream.device_id, stream._foreign_stream_ref = 0x1234, 0, object() if is_foreign else None
            del stream
            gc.collect()
            # the driver is called, and complained of, for a stream of CuPy's own alone
            assert len(complaints) == (0 if is_foreign else 1), complaints
    finally:
        sys.unraisablehook = sys.__unraisablehook__


def check_memory():
    reaches_the_driver(device().empty, (2, 3), np.float16)
    reaches_the_driver(device().empty, (2, 3), np.float16, device().foreign_stream(2))
    reaches_the_driver(device().empty_pinned, (2, 3), np.float16)
    reaches_the_driver(device().memory)
    accepted(cupy.get_default_memory_pool().free_bytes)
    assert issubclass(cupy.cuda.memory.OutOfMemoryError, MemoryError)
    accepted(cupy.get_default_memory_pool().free_all_blocks)
    accepted(device().release_unused)


def check_copies():
    stream, host = device().foreign_stream(2), np.zeros((4, 4), np.float32)
    reaches_the_driver(device().copy_in, array(), host, stream)
    reaches_the_driver(device().copy_out, host, array(), stream)
    reaches_the_driver(device().clear, array(), stream)
    for wrong in (host[:2], host.astype(np.float64), host.T[::2], array()):
        refused(UsageError, device().copy_in, array(), wrong, stream)
        refused(UsageError, device().copy_out, wrong, array(), stream)
    refused(UsageError, device().copy_in, array().T[:, :2], np.zeros((4, 2), np.float32), stream)
    refused(UsageError, device().clear, array()[:, :2], stream)


def check_whose_memory_it_is():
    assert device().device_of(array()) == 0
    assert device().device_of(np.zeros(3)) == -1
    foreign = type("Tensor", (), {"__cuda_array_interface__": {"data": (ADDRESS, False)}})()
    reaches_the_driver(device().device_of, foreign)
    assert {"device", "type"} <= set(dir(runtime.PointerAttributes))


def check_captures():
    error = refused(CaptureError, device().foreign_stream(0).capture, list)
    assert "default (legacy) stream" in str(error)
    error = refused(CaptureError, device().foreign_stream(2).capture, list)
    assert error.__cause__.status in NO_GPU
    assert cupy.cuda.Stream.end_capture.__doc__.startswith("_BaseStream.end_capture(self)")
    for method in (cupy.cuda.Graph.launch, cupy.cuda.Graph.upload):
        assert "(self, stream=None)" in method.__doc__.splitlines()[0]
    assert isinstance(runtime.CUDARuntimeError(901), RuntimeError)
    assert issubclass(cupy.cuda.driver.CUDADriverError, RuntimeError)


def check_kernel_arguments():
    function = cupy.cuda.function.Function.__new__(cupy.cuda.function.Function)
    stream, convert = cupy.cuda.Stream.ptds, device().kernels._argument
    refused(TypeError, function, (1,), (1,), (np.zeros(2, "i4"),), shared_mem=0, stream=stream)
    refused(TypeError, function, (1,), (1,), ([1],), shared_mem=0, stream=stream)
    structure = FaceLimits(capacity=10).structure()
    foreign = type("Tensor", (), {"__cuda_array_interface__": {"data": (ADDRESS, False)}})()
    assert convert(foreign) == np.uint64(ADDRESS)
    assert isinstance(structure[()], np.void)
    assert isinstance(convert(structure[()]), np.ndarray)
    for good in (structure, structure[()], np.int32(1), np.float32(1), np.uint64(1), np.bool_(1), array(), foreign):
        reaches_the_driver(function, (1, 2), (32, 4), (convert(good),), shared_mem=16, stream=stream)
    kernels = kernels_of("sm_90")
    kernels._functions["draw"] = function  # as it is called, with one that needs no compiling
    reaches_the_driver(kernels, "draw", (1, 2), (32, 4), [structure, np.int32(1), array()], shared=16)
    for bad in (3, 3.0, None, [1], np.zeros(1, "i4"), np.zeros((1,), structure.dtype), array()[:, :2]):
        refused(TypeError, convert, bad)


def check_compiling():
    error = refused(SetupError, kernels_of("sm_90"), "draw", (1,), 32, [])
    assert error.__cause__.status in NO_GPU
    refused(UsageError, kernels_of("sm_90"), "drew", (1,), 32, [])
    refused(runtime.CUDARuntimeError, CudaKernels, cupy)


def kernels_of(architecture):
    made = CudaKernels.__new__(CudaKernels)
    made._cupy, made.options, made.architecture = cupy, cuda_launch.OPTIONS, architecture
    made._modules, made._functions, made._compiling = {}, {}, threading.Lock()
    return made


def check_that_all_sources_compile_with_the_options_of_cupy():
    from cupy._core import core
    from cupy.cuda import compiler

    # what asks for the device's architecture needs a device; all other options are CuPy's own
    compiler._get_arch_for_options_for_nvrtc = lambda arch: (f"-arch=sm_{arch}", "cubin")
    options = (*core.assemble_cupy_compiler_options(cuda_launch.OPTIONS), "-ftz=true")
    for source, kernels in cuda_launch.KERNELS.items():
        for architecture in ("75", "90"):
            text = cuda_launch.source_text(source)
            binary, _ = compiler.compile_using_nvrtc(text, options, architecture, source)
            assert all(name.encode() in binary for name in kernels), source
    refused(compiler.CompileException, compiler.compile_using_nvrtc, "nonsense", options, "90", "x.cu")


def check_the_package():
    assert load_cupy((13, 0)) is cupy
    made_for = runtime.runtimeGetVersion() // 1000
    error = refused(SetupError, load_cupy, (made_for - 1, 4)) if made_for > 12 else None
    assert error is None or f"is made for CUDA {made_for}." in str(error), error


def names_that_are_missing(names):
    """Of dotted names within cupy, those that the real one does not have."""
    missing = []
    for name in names:
        found = cupy
        for part in name.split("."):
            found = getattr(found, part, missing)
        if found is missing:
            missing.append(name)
    return missing


def main():
    checks = {name: value for name, value in globals().items() if name.startswith("check_")}
    results = {"version": cupy.__version__, "missing": names_that_are_missing(json.loads(sys.argv[1]))}
    for name, check in checks.items():
        try:
            check()
            results[name] = ""
        except Exception:  # noqa: BLE001 - whatever is wrong with one check, the others are made
            results[name] = traceback.format_exc()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
