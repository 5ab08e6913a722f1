"""The one OpenVINO core of a process, which stays until the process ends.

The CPU plugin of a core gives the thread that creates it another signal stack, and frees that memory with the core. It
puts back what it found: where two cores do not end in the reverse order of their beginning, or one ends on another
thread, the thread is left with a stack that is no memory any more, and the next Ctrl-C ends in a segmentation fault
(seen with 2026.4, two detectors closed in the order in which they were created). A core that never ends frees nothing.
"""

from __future__ import annotations

import threading
from typing import Any

_lock = threading.Lock()
_cores: list[Any] = []


def openvino_core(ov: Any) -> Any:
    """Return the core of this process, created by the first caller; ``ov`` is the module openvino."""
    with _lock:
        if not _cores:
            _cores.append(ov.Core())
        return _cores[0]
