"""A Device on the host: the kernels of kernels/cuda as host C++ on NumPy memory, queued and run as late as they may.

device = HostDevice()                        # nothing runs before something is waited for
device = HostDevice("eager")                 # everything runs when it is queued
device = HostDevice(shuffle=1)               # streams get ahead of each other at random

with device.current():
    array, stream, event = device.empty((2, 3), np.float32), device.stream(), device.event()
    ...
device.check()                               # runs what is left; nothing was freed early or written out of bounds

It is stricter than a GPU: a host array is refused where a device's belongs, a method refused on a thread where the
device is not current, and work whose memory was freed before it ran raises UseAfterFree where it is waited for.
"""

import random
import threading
import weakref
from collections import Counter, deque
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import numpy as np
from cuda_host import load
from host_memory import HostDeviceArray, Memory, PinnedArray, Place, memory_of, pointed_to
from host_streams import LOCK, HostEvent, HostStream, UseAfterFree, Work

from retinastream.errors import DeviceMemoryError, SetupError, UsageError
from retinastream.kernels.cuda_launch import KERNELS
from retinastream.kernels.device import CaptureError

__all__ = ["HostDevice", "HostDeviceArray", "PinnedArray", "UseAfterFree"]

_SOURCE_OF = {kernel: source for source, kernels in KERNELS.items() for kernel in kernels}
_LARGEST_GRID = (2**31 - 1, 65535, 65535)
_thread = threading.local()


@dataclass
class _Recording:
    stream: HostStream
    works: list = field(default_factory=list)


class HostDevice:
    """See the module. ``memory_limit`` is in bytes; ``kernel_seed`` starts blocks and threads in a random order.

    Counted since the start or ``reset_counts()``: launches, copies_in, copies_out, bytes_in, bytes_out, clears, calls,
    graph_launches and synchronizations as they were asked for (not what a capture records), ``executed``, kernels by
    name as they ran, ``allocations``, bytes and the handle of the stream (None: not said) of all device memory, and
    ``used_when_released``, bytes that were in use whenever unused ones were to be released.
    """

    name = "NumPy"

    def __init__(
        self, mode="late", *, index=0, memory_limit=8 << 30, shuffle=None, kernel_seed=0, must_be_current=True
    ):
        if mode not in ("late", "eager"):
            raise ValueError(f"mode {mode!r} is not known; allowed are late and eager")
        self.index = index
        self.label = f"cuda:{index}"
        self.eager = mode == "eager"
        self.kernel_seed = kernel_seed
        self.memory_limit = memory_limit
        self.must_be_current = must_be_current
        self.faults = []
        self._random = None if shuffle is None else random.Random(shuffle)
        self._blocks = weakref.WeakValueDictionary()
        self._graves = deque()
        self._used = 0
        self._streams = {}
        self.reset_counts()

    def reset_counts(self):
        self.launches = self.copies_in = self.copies_out = self.bytes_in = self.bytes_out = 0
        self.clears = self.calls = self.graph_launches = self.synchronizations = 0
        self.executed = Counter()
        self.allocations = []
        self.used_when_released = []

    # -- the protocol

    @contextmanager
    def current(self):
        stack = _thread.__dict__.setdefault("current", [])
        stack.append(self)
        try:
            yield
        finally:
            stack.pop()

    def stream(self):
        self._expect_current()
        with LOCK:
            return self._stream_of(0x5000 + 0x10 * len(self._streams))

    def foreign_stream(self, handle):
        with LOCK:
            if handle == 2:
                handle = 0x100000000 + threading.get_ident()
            return self._stream_of(0 if handle == 1 else handle)

    def event(self):
        self._expect_current()
        return HostEvent(self)

    def empty(self, shape, dtype, stream=None):
        self._expect_current()
        if stream is not None and stream.device is not self:
            raise UsageError(f"memory for a stream of {stream.device.label} was asked of {self.label}")
        self.refuse_in_capture("allocating memory")
        if np.dtype(dtype).kind not in "biuf":
            raise TypeError(f"an array of {np.dtype(dtype)} was asked for; CuPy has numbers only: take its bytes")
        nbytes = _bytes_of(shape, dtype)
        free, total = self.memory()
        if nbytes > free:
            raise DeviceMemoryError(
                f"{nbytes / 1e6:,.1f} MB were asked for on {self.label} ({self.name}), and {free / 1e6:,.1f} MB of "
                f"{total / 1e6:,.1f} MB are free; take a smaller batch"
            )
        with LOCK:
            self._used += nbytes
            self.allocations.append((nbytes, None if stream is None else stream.handle))
            return self._block(shape, dtype, nbytes)

    def empty_pinned(self, shape, dtype):
        self._expect_current()
        self.refuse_in_capture("allocating memory")
        with LOCK:
            return self._block(shape, dtype, _bytes_of(shape, dtype), pinned=True)

    def copy_in(self, target, source, stream):
        self._expect_same(target, source)
        memory = self._device_memory(target)
        self._copy("copies_in", f"copy_in of {source.nbytes} bytes", target, memory, source, source, stream)

    def copy_out(self, target, source, stream):
        self._expect_same(target, source)
        memory = self._device_memory(source)
        self._copy("copies_out", f"copy_out of {source.nbytes} bytes", target, memory, source, target, stream)

    def clear(self, target, stream):
        memory = self._device_memory(target)
        into = Place(target)
        self._queue(stream, Work("clear", lambda: into.bytes().fill(0), [weakref.ref(memory)]), "clears")

    def launch(self, stream, name, grid, block, arguments, *, shared=0):
        library = self._library(name)
        grid, block = tuple(int(v) for v in grid), (block,) if isinstance(block, int) else tuple(block)
        if not all(1 <= v <= most for v, most in zip(grid, _LARGEST_GRID, strict=False)):
            raise UsageError(f"{name} has a grid of {grid}; a GPU takes from 1 to {_LARGEST_GRID}")
        if not 1 <= np.prod(block) <= 1024:
            raise UsageError(f"{name} has blocks of {block} threads; a GPU takes 1 to 1024")
        memory = {}
        values = [self._argument(name, argument, memory) for argument in arguments]
        library.check_arguments(name, values)

        def run():
            library.launch(name, grid, block, values, shared=shared, seed=self.kernel_seed)
            self.executed[name] += 1

        self._queue(stream, Work(name, run, [weakref.ref(v) for v in memory.values()]), "launches")

    def prepare_kernels(self):
        self._expect_current()
        for name in _SOURCE_OF:
            self._library(name)

    def capture(self, stream, queue):
        self._expect_current()
        if self.recording is not None:
            raise CaptureError("a capture within a capture was asked for")
        recording = _thread.recording = _Recording(stream)
        try:
            queue()
        finally:
            _thread.recording = None

        def replay():
            self._expect_current()
            with LOCK:
                for work in recording.works:
                    stream.put(work)
                self._count("graph_launches")

        return replay

    def memory(self):
        self._expect_current()
        with LOCK:
            self._bury_for_good()
            return self.memory_limit - self._used, self.memory_limit

    def release_unused(self):
        free, total = self.memory()
        self.used_when_released.append(total - free)

    def device_of(self, array):
        memory = memory_of(array)
        return -1 if memory is None or memory.pinned else memory.owner.index

    # -- for tests

    def call(self, stream, function, *arrays, name="call"):
        """Queue ``function()``, which may read and write these device arrays: a network of the tests, for example."""
        self._expect_current()
        self._queue(stream, Work(name, function, [weakref.ref(self._device_memory(v)) for v in arrays]), "calls")

    def upload(self, array):
        """A device array with this content, at once: no stream, no counting."""
        array = np.asarray(array)
        made = self.empty(array.shape, array.dtype)
        np.copyto(made.view(np.ndarray), array)
        return made

    def drain(self):
        """Run everything that is queued."""
        with LOCK:
            while busy := self._busy():
                (self._random.choice(busy) if self._random else busy[0]).step()
            self._bury_for_good()

    def check(self):
        """Run what is left, then raise AssertionError for what went wrong anywhere so far."""
        with LOCK:
            while self.pending:
                with suppress(Exception):  # it is in self.faults
                    self.drain()
            found = [damage for memory in list(self._blocks.values()) if (damage := memory.damage()) is not None]
            if self.faults or found:
                raise AssertionError("; ".join([*self.faults, *found]))

    @property
    def pending(self):
        """How many pieces of work, records and waits are queued."""
        with LOCK:
            return sum(len(stream.pending) for stream in self._streams.values())

    # -- for streams, events and memory

    @property
    def recording(self):
        found = getattr(_thread, "recording", None)
        return found if found is not None and found.stream.device is self else None

    def refuse_in_capture(self, what):
        if self.recording is not None:
            raise CaptureError(f"{what} cannot be captured")

    def run(self, work):
        try:
            work.run()
        except Exception as error:
            self.faults.append(f"{type(error).__name__}: {error}")
            raise

    def advance_randomly(self):
        """Let streams get ahead, each as far as it may without another one, where the device shuffles."""
        if self._random is None:
            return
        for _ in range(self._random.randrange(12)):
            ready = [stream for stream in self._busy() if not stream.is_blocked]
            if not ready:
                return
            self._random.choice(ready).step()

    def bury(self, address, nbytes, raw, pinned):
        """Take over a freed block (no lock here: this runs wherever Python collects garbage)."""
        self._graves.append((nbytes, raw, pinned))

    def _bury_for_good(self):
        kept = self.pending > 0
        for _ in range(len(self._graves)):
            nbytes, raw, pinned = self._graves.popleft()
            self._used -= 0 if pinned else nbytes
            if kept:
                self._graves.append((0, raw, True))

    def _busy(self):
        return [stream for stream in self._streams.values() if stream.pending]

    def _stream_of(self, handle):
        if handle not in self._streams:
            self._streams[handle] = HostStream(self, handle)
        return self._streams[handle]

    def _block(self, shape, dtype, nbytes, *, pinned=False):
        memory = Memory(self, nbytes, pinned=pinned)
        self._blocks[memory.address] = memory
        return memory.array(shape, dtype)

    def _queue(self, stream, work, counter):
        self._expect_current()
        if stream.device is not self:
            raise UsageError(f"{work.name} was queued on a stream of {stream.device.label}, not of {self.label}")
        with LOCK:
            stream.put(work)
            self._count(counter)

    def _count(self, counter, more=1):
        if self.recording is None:  # what a graph holds is counted by graph_launches
            with LOCK:
                setattr(self, counter, getattr(self, counter) + more)

    def _expect_current(self):
        stack = getattr(_thread, "current", None)
        if self.must_be_current and not (stack and stack[-1] is self):
            raise SetupError(f"{self.label} is not current on this thread; use it within 'with device.current():'")

    def _device_memory(self, array):
        memory = memory_of(array)
        if not isinstance(array, HostDeviceArray) or memory is None or memory.pinned:
            raise UsageError(f"a {type(array).__name__} was given where memory of {self.label} belongs")
        if memory.owner is not self:
            raise UsageError(f"an array of {memory.owner.label} was given to {self.label}")
        if not array.flags.c_contiguous:
            raise UsageError(f"an array {array.shape} of {self.label} is not C-contiguous")
        return memory

    def _expect_same(self, target, source):
        if target.shape != source.shape or target.dtype != source.dtype:
            raise UsageError(
                f"a copy from {source.dtype} {source.shape} to {target.dtype} {target.shape} was asked for; "
                "both must be the same"
            )

    def _copy(self, counter, name, target, on_device, source, on_host, stream):
        memory = memory_of(on_host)
        if not isinstance(on_host, PinnedArray) or memory is None or not memory.pinned:
            raise UsageError(
                f"{name}: a {type(on_host).__name__} was given where a pinned array belongs (empty_pinned)"
            )
        if not on_host.flags.c_contiguous:
            raise UsageError(f"{name}: the pinned array {on_host.shape} is not C-contiguous")
        into, out_of = Place(target), Place(source)
        references = [weakref.ref(on_device), weakref.ref(memory)]
        self._queue(stream, Work(name, lambda: np.copyto(into.bytes(), out_of.bytes()), references), counter)
        self._count(counter.replace("copies", "bytes"), target.nbytes)

    def _library(self, name):
        if name not in _SOURCE_OF:
            raise UsageError(f"there is no CUDA kernel {name!r}; known are {', '.join(sorted(_SOURCE_OF))}")
        return load(_SOURCE_OF[name])

    def _argument(self, name, argument, memory):
        """The bytes that a kernel gets; the blocks that they point to are added to ``memory``."""
        if isinstance(argument, HostDeviceArray):
            block = self._device_memory(argument)
            memory[block.address] = block
            return np.uint64(argument.ctypes.data)
        if isinstance(argument, np.generic):
            return argument
        if not isinstance(argument, np.ndarray) or argument.ndim != 0:
            given = f"array {argument.shape}" if isinstance(argument, np.ndarray) else repr(argument)
            raise UsageError(f"{name} was given the host's {given}; kernels take device arrays and NumPy values")
        value = np.array(argument, subok=False)
        if argument.nbytes >= 8:
            for block in pointed_to(value, list(self._blocks.values())):
                memory[block.address] = block
        return value


def _bytes_of(shape, dtype):
    return max(1, int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize)
