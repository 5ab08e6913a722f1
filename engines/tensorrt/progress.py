"""How far a build is: TensorRT's nested phases, and the time that is left."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, SupportsInt

if TYPE_CHECKING:
    import tensorrt as trt

# Below this share a guess of the time left is worth nothing.
_FIRST_GUESS = 0.03


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """A moment of a build: the innermost phase, its step, the share of the whole, seconds so far and left.

    ``fraction`` is 0 to 1 and never falls; ``steps`` is 0 and ``left`` None where they are not known.
    """

    stage: str
    phase: str = ""
    step: int = 0
    steps: int = 0
    fraction: float = 0.0
    seconds: float = 0.0
    left: float | None = None


@dataclass(slots=True)
class _Phase:
    name: str
    parent: str | None
    steps: int
    done: int = 0


class BuildClock:
    """Follows the phases of a build; TensorRT reports from threads of its own, and anyone may look at any time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._stage = "starting"
        self._phases: dict[str, _Phase] = {}
        self._finished = self._roots = 0
        self._highest = 0.0
        self._lock = threading.Lock()

    def enter(self, stage: str) -> None:
        """Begin a stage of our own around TensorRT's phases: parsing, building, checking."""
        with self._lock:
            self._stage = stage

    def phase_start(self, name: str, parent: str | None, steps: int) -> None:
        """Note a phase, or a part of the phase ``parent``."""
        with self._lock:
            self._phases.pop(name, None)
            self._phases[name] = _Phase(name, parent or None, max(0, steps))
            self._roots += not parent

    def step_complete(self, name: str, step: int) -> None:
        """Note that step ``step``, counted from 0, is done."""
        with self._lock:
            if name in self._phases:
                self._phases[name].done = step + 1

    def phase_finish(self, name: str) -> None:
        """Note the end of a phase, which may come before its last step."""
        with self._lock:
            phase = self._phases.pop(name, None)
            if phase is not None and phase.parent is None:
                self._finished += 1

    def now(self) -> BuildProgress:
        """Describe this moment."""
        with self._lock:
            seconds = self._clock() - self._began
            inner = next(reversed(self._phases.values()), None)
            roots = [phase for phase in self._phases.values() if phase.parent is None]
            # How many top phases will come is not known; those so far are taken for all of them.
            total = self._finished + sum(self._share(phase) for phase in roots)
            fraction = min(total / self._roots, 1.0) if self._roots else 0.0
            self._highest = fraction = max(fraction, self._highest)
            left = seconds * (1 / fraction - 1) if fraction >= _FIRST_GUESS else None
            if inner is None:
                return BuildProgress(self._stage, fraction=fraction, seconds=seconds, left=left)
            return BuildProgress(self._stage, inner.name, inner.done, inner.steps, fraction, seconds, left)

    def _share(self, phase: _Phase) -> float:
        """Share of a phase that is done, with the part of its present step that its own parts have done."""
        if not phase.steps:
            return 0.0
        parts = [part for part in self._phases.values() if part.parent == phase.name]
        within = max((self._share(part) for part in parts), default=0.0)
        return min(1.0, (phase.done + within) / phase.steps)


def make_monitor(clock: BuildClock, stop: threading.Event) -> trt.IProgressMonitor:
    """Create what TensorRT reports to; once ``stop`` is set, the build ends at its next step."""
    import tensorrt as trt

    class ClockMonitor(trt.IProgressMonitor):  # type: ignore[misc]  # the bindings have no types of their own
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: SupportsInt) -> None:
            clock.phase_start(phase_name, parent_phase, int(num_steps))

        def step_complete(self, phase_name: str, step: SupportsInt) -> bool:
            clock.step_complete(phase_name, int(step))
            return not stop.is_set()

        def phase_finish(self, phase_name: str) -> None:
            clock.phase_finish(phase_name)

    return ClockMonitor()


def describe_progress(progress: BuildProgress) -> str:
    """Write a moment of a build on one line: ``building: Timing 3 of 40, 12 %, 30 s so far, about 220 s left``."""
    parts = [f"{progress.phase} {progress.step} of {progress.steps}" if progress.steps else progress.phase]
    parts += [f"{progress.fraction:.0%}"] if progress.fraction else []
    parts.append(f"{progress.seconds:.0f} s so far")
    parts += [f"about {progress.left:.0f} s left"] if progress.left is not None and progress.fraction < 1 else []
    return f"{progress.stage}: {', '.join(part for part in parts if part)}"
