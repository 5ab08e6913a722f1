"""Which device the network runs on, chosen once and said aloud; never a GPU given up silently."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass

from retinastream.engines.runtime_table import DeviceKind, check_runtime, runs_on
from retinastream.errors import SetupError, UsageError

logger = logging.getLogger(__name__)

DEVICES = ("auto", "cpu", "cuda", "cuda:N")


@dataclass(frozen=True, slots=True)
class DeviceChoice:
    """A device and why it was chosen; ``index`` counts GPUs and is 0 for the CPU."""

    kind: DeviceKind
    index: int
    reason: str

    @property
    def label(self) -> str:
        """The device as it is named everywhere: "cpu" or "cuda:0"."""
        return "cpu" if self.kind == "cpu" else f"cuda:{self.index}"


def choose_device(device: str, require: str | None = None, *, runtime: str = "auto") -> DeviceChoice:
    """Choose the device for ``device``: "auto", "cpu", "cuda" (the first GPU) or "cuda:N".

    "auto" takes a GPU where driver, CuPy and a runtime for it work, else the CPU: the reason says what was missing, and
    is logged as a warning where there seems to be a GPU. A ``runtime`` for one kind of device only decides "auto".
    ``require`` "gpu" makes a CPU an error. "cpu" looks at nothing.

    Raises UsageError for values that are not allowed or contradict each other, SetupError where a GPU is demanded and
    cannot be used.
    """
    kind, index = parse_device(device)
    if require not in (None, "gpu"):
        raise UsageError(f"require {require!r} is not known; allowed is gpu")
    check_runtime(runtime, kind)
    kinds = runs_on(runtime)
    if require == "gpu":
        if kind == "cpu":
            raise UsageError("device 'cpu' was given together with --require gpu; leave one of them")
        if "cuda" not in kinds:
            raise UsageError(
                f"runtime {runtime!r} runs on the CPU only, and --require gpu was given; leave one of them"
            )
    if kind == "cpu":
        return DeviceChoice("cpu", 0, "device cpu was asked for")
    if kind is None and kinds == ("cpu",):
        return DeviceChoice("cpu", 0, f"runtime {runtime} runs on the CPU")
    return _choose_gpu(device, index, runtime, is_demanded=kind == "cuda" or require == "gpu" or kinds == ("cuda",))


def parse_device(device: str) -> tuple[DeviceKind | None, int | None]:
    """Return the kind of device and its number that a text asks for, None for what it leaves open."""
    if not isinstance(device, str):
        raise UsageError(f"device was given as {device!r}; expected text: {', '.join(DEVICES)}")
    if device == "auto":
        return None, None
    if device == "cpu":
        return "cpu", None
    if device == "cuda":
        return "cuda", None
    numbered = re.fullmatch(r"cuda:([0-9]{1,3})", device)
    if numbered is None:
        raise UsageError(f"device {device!r} is not known; allowed are {', '.join(DEVICES)} (such as cuda:1)")
    return "cuda", int(numbered[1])


def _choose_gpu(device: str, index: int | None, runtime: str, *, is_demanded: bool) -> DeviceChoice:
    # Imported here, so that the CPU never depends on anything about GPUs.
    from retinastream.engines.gpu_readiness import Obstacle, examine_gpu

    found = examine_gpu(index, runtime)
    if not isinstance(found, Obstacle):
        asked = "a GPU that can be used" if device == "auto" else f"device {device} was asked for"
        return DeviceChoice("cuda", found.index, asked)
    if is_demanded:
        if device == "auto":
            demand = "--require gpu" if runtime == "auto" else f"runtime {runtime!r}"
            raise SetupError(f"{demand} was given, and no GPU can be used: {found.problem}")
        other_way = "; or choose the CPU with --device cpu" if "cpu" in runs_on(runtime) else ""
        raise SetupError(f"device {device!r} cannot be used: {found.problem}{other_way}")
    if found.is_surprise:
        logger.warning("the network runs on the CPU although there seems to be a GPU: %s", found.problem)
    return DeviceChoice("cpu", 0, f"no GPU can be used: {found.brief or found.problem}")
