"""torch's side of a GPU that is a HostDevice: the network runs when it is queued, after all that was queued before."""

from contextlib import contextmanager, nullcontext

import numpy as np
import torch


class TorchOnHost:
    """Takes the place of ``TorchCuda``. ``failures`` are raised, one by one, instead of memory errors of a run."""

    device = torch.device("cpu")
    has_bfloat16 = True

    def __init__(self, device=None):
        self.host = device
        self.failures = []
        self.queued = 0
        self.synchronised = 0
        self.released = 0

    def tensor(self, array):
        found = torch.from_numpy(np.asarray(array).view(np.ndarray))
        assert found.data_ptr() == array.ctypes.data
        return found

    @contextmanager
    def queueing(self, handle):
        self.queued += 1
        if self.host is not None:
            self.host.foreign_stream(handle).synchronize()
        with torch.inference_mode():
            yield

    def memory_errors(self):
        if self.failures:
            raise self.failures.pop(0)
        return nullcontext()

    def capture(self, handle, queue):
        self.queued, before = 0, self.queued
        queue()
        recorded, self.queued = self.queued, before
        return lambda: recorded

    def synchronize(self, handle):
        self.synchronised += 1

    def release_memory(self):
        self.released += 1
