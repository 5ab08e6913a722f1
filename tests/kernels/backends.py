"""Where the tests of the kernels run them: on the host, on a GPU through CuPy, or on bare arrays under a sanitizer.

The fixture ``backend`` is each in turn. A test uploads its inputs, queues, and downloads:

rows = backend.upload(array)
out = backend.empty(shape, dtype)
queue_something(backend.device, backend.stream, rows, out)
backend.download(out)
"""

import ctypes
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
from cuda_host import POISON, load
from host_device import HostDevice

from retinastream.kernels.cuda_launch import KERNELS
from retinastream.types import Frame

_SOURCE_OF = {kernel: source for source, kernels in KERNELS.items() for kernel in kernels}


@pytest.fixture(scope="module", params=["host", pytest.param("cupy", marks=pytest.mark.gpu)])
def backend(request):
    """The kernels as host C++, and on the first GPU."""
    with open_backend(request.param) as opened:
        yield opened


@contextmanager
def open_backend(name):
    """Open "host" or "cupy"; on the host, memory is checked at the end."""
    if name == "cupy":
        from retinastream.kernels.cupy_device import CuPyDevice

        with (device := CuPyDevice(0)).current():
            yield Backend(device)
    else:
        with (device := HostDevice("eager")).current():
            yield Backend(device)
            device.check()


class Backend:
    """A Device and a stream of it, with copies that wait."""

    def __init__(self, device):
        self.device = device
        self.stream = device.stream()

    def empty(self, shape, dtype):
        return self.device.empty(shape, dtype)

    def upload(self, array):
        array = np.asarray(array)
        made = self.device.empty(array.shape, array.dtype)
        self.write(made, array)
        return made

    def download(self, array):
        pinned = self.device.empty_pinned(array.shape, array.dtype)
        self.device.copy_out(pinned, array, self.stream)
        self.stream.synchronize()
        return np.array(pinned, subok=False)

    def write(self, array, values):
        pinned = self.device.empty_pinned(array.shape, array.dtype)
        pinned[...] = values
        self.device.copy_in(array, pinned, self.stream)
        self.stream.synchronize()

    def fill(self, array, byte):
        """Overwrite every byte of an array."""
        self.write(array.reshape(-1).view(np.uint8), byte)

    def launcher(self):
        """A ``Launch`` of cuda_faces."""
        return partial(self.device.launch, self.stream)

    def frame(self, frame):
        """The frame with its planes on the device: the same pitches, positions and gaps between the rows."""
        planes = tuple(_DevicePlane(self, plane) for plane in frame.planes)
        return Frame(planes, **{k: getattr(frame, k) for k in _DESCRIBED})

    def fetch(self, there, frame):
        """Write the planes of a frame on the device back into those of the frame that it was made from."""
        for plane, target in zip(there.planes, frame.planes, strict=True):
            plane.fetch(target)

    def shuffled(self, seed):
        """The same backend, its blocks and threads starting in another order where that can be chosen."""
        if isinstance(self.device, HostDevice):
            self.device.kernel_seed = seed
        return self


class _Plane:
    """What describe_frames needs to know of an array."""

    def __init__(self, address, shape, strides, dtype):
        interface = {"data": (address, False), "shape": shape, "strides": strides, "typestr": dtype.str, "version": 3}
        self.__array_interface__ = interface


class _DevicePlane(_Plane):
    def __init__(self, backend, plane):
        start, content = _extent(plane)
        offset = start % 16  # as aligned as the original
        memory = np.zeros(offset + len(content), np.uint8)
        memory[offset:] = content
        self._backend, self._memory, self._offset = backend, backend.upload(memory), offset
        address = address_on_device(self._memory) + offset + plane.ctypes.data - start
        super().__init__(address, plane.shape, plane.strides, plane.dtype)

    def fetch(self, plane):
        _, content = _extent(plane)
        content[...] = self._backend.download(self._memory)[self._offset :]


def _extent(plane):
    """The first address of a plane's memory, and all its bytes with the gaps between its rows."""
    ends = [(n - 1) * stride for n, stride in zip(plane.shape, plane.strides, strict=True)]
    start = plane.ctypes.data + sum(min(v, 0) for v in ends)
    size = sum(abs(v) for v in ends) + plane.itemsize
    return start, np.frombuffer((ctypes.c_uint8 * size).from_address(start), np.uint8)


def address_on_device(array):
    """The address of a device array's first byte."""
    interface = getattr(array, "__cuda_array_interface__", None) or array.__array_interface__
    return interface["data"][0]


_DESCRIBED = ("format", "width", "height", "matrix", "full_range", "rotation")


class BareBackend:
    """Kernels on plain arrays, at once: for sanitizers, which then see where each array ends.

    ``kernels`` are libraries; what they lack is compiled plainly. ``threads`` bounds those of a block of the kernels
    of decode.cu and nms.cu.
    """

    stream = None

    def __init__(self, *kernels, seed=0, threads=1024):
        self.device = self
        self.kernels = kernels
        self.seed = seed
        self.threads = threads

    def launch(self, stream, name, grid, block, arguments, *, shared=0):
        library = next((k for k in self.kernels if k.has(name)), None) or load(_SOURCE_OF[name])
        if _SOURCE_OF[name] in ("decode.cu", "nms.cu"):
            if block > self.threads and name.startswith("find_"):
                grid = (grid[0] * (block // self.threads), grid[1])  # each block reads as much less
            block = min(block, self.threads)
        library.launch(name, grid, block, arguments, shared=shared, seed=self.seed)

    def launcher(self):
        return partial(self.launch, None)

    def empty(self, shape, dtype):
        return np.empty(shape, dtype)

    def upload(self, array):
        return np.array(array)

    def download(self, array):
        return array

    def write(self, array, values):
        array[...] = values

    def fill(self, array, byte):
        array.view(np.uint8)[...] = byte

    def frame(self, frame):
        return frame

    def fetch(self, there, frame):
        pass

    def shuffled(self, seed):
        self.seed = seed
        return self


def check_all_written(backend, queue, *outputs):
    """Call ``queue()`` twice over two patterns; returns the results: a byte that differs was not always written."""
    results = []
    for pattern in POISON:
        for output in outputs:
            backend.fill(output, pattern)
        queue()
        results.append([np.ascontiguousarray(backend.download(output)).copy() for output in outputs])
    for position, (first, second) in enumerate(zip(*results, strict=True)):
        missed = np.flatnonzero(first.reshape(-1).view(np.uint8) != second.reshape(-1).view(np.uint8))
        assert len(missed) == 0, f"output {position}: {len(missed)} bytes were not written, the first at {missed[0]}"
    return results[-1]
