"""A fake of the module ``tensorrt``, for tests without a GPU. It is no proof of TensorRT itself.

It has the shapes, the return values and the failure modes of the real bindings, as far as this package uses them: None
for builds that fail, False for what is refused, TypeError without a driver, text in the log and nowhere else. A plan is
the ONNX file with a header, and running it is ONNX Runtime on the memory of a HostDevice, queued on its streams.
test_tensorrt_contract.py holds every member of it against the real bindings.

world = FakeWorld("11.4.0.106", device)      # or a 10.x version: members that came or went are absent
monkeypatch.setitem(sys.modules, "tensorrt", world.module)
"""

import threading
import types

from fake_tensorrt.build_side import build_classes
from fake_tensorrt.enums import enums_of
from fake_tensorrt.run_side import run_classes
from fake_tensorrt.values import value_classes

__all__ = ["FakeWorld"]


class FakeWorld:
    """The machine that the fake pretends to run on, and what it was asked to do wrong.

    ``failures`` holds names of calls that shall fail the way the real one does; ``faults`` collects what the code under
    test did that the real TensorRT leaves undefined. ``on_step`` is called at every step of a build, on the thread that
    reports progress.
    """

    def __init__(self, version="11.4.0.106", device=None, *, compute_capability=(9, 0), has_driver=True):
        self.version = version
        self.major = int(version.split(".")[0])
        self.device = device
        self.compute_capability = compute_capability
        self.has_driver = has_driver
        self.failures = set()
        self.faults = []
        self.builds = []
        self.reports = []
        self.on_step = None
        self.scratch_bytes = 4096
        self.aux_streams = 0
        self.lock = threading.RLock()
        self.module = types.ModuleType("tensorrt")
        self.module.__version__ = version
        for name, value in {**enums_of(self.major), **value_classes()}.items():
            setattr(self.module, name, value)
        for make in (build_classes, run_classes):
            for name, value in make(self, self.module).items():
                setattr(self.module, name, value)

    def fails(self, name):
        return name in self.failures
