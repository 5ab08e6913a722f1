"""How often the host waits for the device while something runs."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from retinastream.kernels.device import Device

WAITS = (
    *("cudaDeviceSynchronize", "cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy", "cudaMemcpy2D"),
    *("cuCtxSynchronize", "cuStreamSynchronize", "cuEventSynchronize"),
)


@contextmanager
def counted_waits(device: Device) -> Iterator[Counter[str]]:
    """Count the waits for events and streams of this kind of device, of all threads: {"Event": 3}."""
    counts: Counter[str] = Counter()
    inside = threading.local()

    def counting(kind: str, wait: Callable[[Any], None]) -> Callable[[Any], None]:
        def counted(self: Any) -> None:
            # A stream may wait by an event of its own: that is one wait.
            if getattr(inside, "waits", False):
                wait(self)
                return
            inside.waits = True
            counts[kind] += 1
            try:
                wait(self)
            finally:
                inside.waits = False

        return counted

    with ExitStack() as patches:
        for one, kind in ((device.event(), "Event"), (device.stream(), "Stream")):
            owner = type(one)
            patches.enter_context(mock.patch.object(owner, "synchronize", counting(kind, owner.synchronize)))
        yield counts


def profiled_waits(work: Callable[[], Any]) -> dict[str, int] | None:
    """Count the calls of CUDA that wait while ``work`` runs, by torch's profiler; None where it sees no CUDA.

    What the profiler itself adds is taken off by profiling nothing first.
    """
    try:
        import torch
        from torch.profiler import ProfilerActivity, profile
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None

    def calls(of: Callable[[], Any]) -> Counter[str]:
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            of()
        return Counter({event.key: event.count for event in profiler.key_averages() if event.key in WAITS})

    calls(lambda: None)  # the first profile sets CUPTI up
    idle = calls(lambda: None)
    found = calls(work)
    found.subtract(idle)
    return {name: count for name, count in found.items() if count > 0}
