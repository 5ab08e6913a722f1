"""Why an engine that is kept is not the one that is needed, in a sentence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from retinastream.engines.cache.entry import Entry
from retinastream.engines.cache.key import EngineKey

_NAMES = {
    "onnx_sha256": "the ONNX graph",
    "precision": "the precision",
    "recipe": "the recipe of the precision",
    "calibration_sha256": "the calibration",
    "profiles": "the shapes of the profiles",
    "builder": "the builder's settings",
    "hardware_compatibility": "the hardware compatibility",
    "plugins": "the plugins",
    "builder_schema": "the way this package builds",
    "machine.tensorrt": "TensorRT",
    "machine.gpu": "the GPU",
    "machine.compute_capability": "the compute capability",
    "machine.multiprocessors": "the number of multiprocessors",
    "machine.memory_gib": "the GPU's memory in GiB",
    "machine.driver_cuda": "the CUDA version of the driver",
    "machine.cuda_major": "the major version of CUDA",
    "machine.system": "the operating system and architecture",
}
_DIGITS = 12


@dataclass(frozen=True, slots=True)
class Difference:
    """One field in which two keys differ: what it was when the engine was built, and what it is now."""

    field: str
    was: Any
    now: Any

    def __str__(self) -> str:
        """Return it as a clause."""
        name = _NAMES.get(self.field, self.field)
        if isinstance(self.was, dict) and isinstance(self.now, dict):
            return "; ".join(
                f"{name} differ in {part}: {_text(self.was.get(part))} then, {_text(self.now.get(part))} now"
                for part in sorted(self.was.keys() | self.now.keys())
                if self.was.get(part) != self.now.get(part)
            )
        return f"{name} was {_text(self.was)} and is {_text(self.now)}"


@dataclass(frozen=True, slots=True)
class Found:
    """An engine that fits; ``warnings`` are sentences on what differs without keeping it from being used."""

    entry: Entry
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Miss:
    """No engine fits; ``reason`` says in a sentence why, and ``nearest`` is the one that came closest."""

    reason: str
    nearest: Entry | None = None


def differences(was: EngineKey, now: EngineKey) -> list[Difference]:
    """Return the fields that differ, in the order of the key's fields."""
    old, new = _flat(was), _flat(now)
    return [Difference(name, old[name], new[name]) for name in old if old[name] != new[name]]


def warnings(entry: Entry, now: EngineKey) -> tuple[str, ...]:
    """Return what to say about an engine that fits although its machine was not quite this one."""
    found = []
    for difference in differences(entry.sidecar.key, now):
        if difference.field == "machine.driver_cuda":
            advice = "it is used; build it again if it misbehaves"
        else:
            advice = f"it was built for that (hardware compatibility {now.hardware_compatibility}), and may be slower"
        found.append(f"engine {entry}: {difference}; {advice}")
    return tuple(found)


def explain_miss(key: EngineKey, kept: Iterable[Entry]) -> Miss:
    """Say why none of the engines that are kept fits: the nearest one of this model, and how it differs."""
    ranked = sorted(
        ((_distance(entry.sidecar.key, key), entry) for entry in kept if _is_related(entry.sidecar.key, key)),
        key=lambda pair: (pair[0], pair[1].digest),
    )
    if not ranked:
        return Miss("no engine of this model is kept for this machine")
    nearest = ranked[0][1]
    found = [d for d in differences(nearest.sidecar.key, key) if d.field != "machine.driver_cuda"]
    return Miss(f"the nearest engine that is kept, {nearest}, does not fit: {'; '.join(map(str, found))}", nearest)


def _is_related(was: EngineKey, now: EngineKey) -> bool:
    """Whether a comparison says anything: the same graph, or the same everything else."""
    return was.onnx_sha256 == now.onnx_sha256 or [d.field for d in differences(was, now)] == ["onnx_sha256"]


def _distance(was: EngineKey, now: EngineKey) -> int:
    return sum(difference.field != "machine.driver_cuda" for difference in differences(was, now))


def _flat(key: EngineKey) -> dict[str, Any]:
    values: dict[str, Any] = key.model_dump(mode="json")
    machine = values.pop("machine")
    machine["compute_capability"] = ".".join(map(str, machine["compute_capability"]))
    values["profiles"] = "; ".join(
        f"{name} {shape} tuned for {'x'.join(map(str, shape.optimum))}"
        for profile in key.profiles
        for name, shape in sorted(profile.items())
    )
    return {**values, **{f"machine.{name}": value for name, value in machine.items()}}


def _text(value: Any) -> str:
    if value is None or value == "":
        return "none"
    text = str(value)
    is_hash = len(text) == 64 and not set(text) - set("0123456789abcdef")
    return f"{text[:_DIGITS]}..." if is_hash else text
