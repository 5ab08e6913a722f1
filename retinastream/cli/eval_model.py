"""The detector that an evaluation runs: its options, defined once for all evaluation commands."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from retinastream.cli.options import parameters
from retinastream.engines.runtime_table import Precision, Runtime
from retinastream.errors import UsageError
from retinastream.settings import device_field, precision_field, require_field, runtime_field

if TYPE_CHECKING:
    from retinastream.engines.engine import EngineInfo
    from retinastream.evaluation.predict import FindFaces
    from retinastream.models.onnx_file import OnnxModel


class EvalModel(BaseModel):
    """A detector with the settings that measuring asks for: every pixel, low scores, nothing cut."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str | None = Field(None, description="Model: a zoo name, an .onnx file, or a .pth checkpoint.")
    spec: str | None = Field(None, description="Spec name or file for a checkpoint or ONNX that is not recognised.")
    size: str = Field("native", description="native | fit:LONG | short:SHORT,max:LONG | pyramid.")
    threshold: float = Field(0.02, ge=0, le=1, description="Lowest score that is kept.")
    iou: float = Field(0.4, ge=0, le=1, description="Overlap above which the weaker of two boxes is dropped.")
    max_faces: int = Field(750, ge=1, le=100_000, description="Most faces per picture.")
    clip: bool = Field(False, description="Cut boxes at the borders of the picture; by default they are left whole.")
    tta: bool = Field(False, description="Look at five sizes and their mirror images, with box voting. Slow.")

    device: str = device_field()
    require: Literal["gpu"] | None = require_field()
    runtime: Runtime = runtime_field()
    precision: Precision | None = precision_field()
    threads: int = Field(0, ge=0, le=1024, description="Processors for the network; 0: all that are usable.")
    batch: int = Field(1, ge=1, le=64, description="Pictures of one size that go through the network at once.")


def takes_model(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of ``EvalModel`` in the place of its parameter ``flags``.

    ``flags`` then holds what was given, by name; the rest has the defaults of ``EvalModel``.
    """
    own = list(inspect.signature(command, eval_str=True).parameters.values())
    kept = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own if p.name != "flags"]
    signature = inspect.Signature([kept[0], *parameters(EvalModel), *kept[1:]])

    def call(**values: Any) -> None:
        flags = {name: value for name in EvalModel.model_fields if (value := values.pop(name)) is not None}
        command(**values, flags=flags)

    call.__signature__ = signature  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    call.__name__, call.__doc__ = command.__name__, command.__doc__
    return call


def choose(flags: Mapping[str, Any], *, predictions: bool) -> EvalModel | None:
    """Read the options of a detector, or None where ``predictions`` are measured instead.

    Raises UsageError where both or neither are given, and for values that are not allowed.
    """
    if predictions:
        if flags:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in flags)
            raise UsageError(f"--predictions was given with {names}; predictions are measured as they are, leave these")
        return None
    if "model" not in flags:
        raise UsageError("nothing to measure was given; expected --model, or --predictions of an earlier run")
    try:
        chosen = EvalModel(**flags)
    except ValidationError as error:
        raise UsageError("; ".join(_explain(entry) for entry in error.errors())) from None
    if chosen.tta and "size" in flags:
        raise UsageError(
            f"--size {chosen.size} was given with --tta, which looks at sizes of its own; leave one of them"
        )
    return chosen


@contextmanager
def opened(chosen: EvalModel) -> Iterator[tuple[FindFaces, dict[str, Any]]]:
    """Load the detector; gives it, and what it is as plain values. Raises as ``Detector`` does."""
    from retinastream.models.spec_registry import read_spec

    settings = chosen.model_dump(exclude={"model", "spec", "size", "tta"})
    settings["spec"] = read_spec(chosen.spec) if chosen.spec else None
    if chosen.tta:
        from retinastream.evaluation.test_time import AugmentedDetector
        from retinastream.models.zoo import resolve_model

        found = resolve_model(str(chosen.model), spec=settings["spec"])
        with AugmentedDetector(str(chosen.model), **settings) as augmented:
            looks = f"short sides {', '.join(map(str, augmented.scales))} and their mirror images"
            yield augmented, {**_facts(chosen, found, augmented.info), "size": looks}
        return
    from retinastream.pipeline.detector import Detector

    with Detector(str(chosen.model), size=chosen.size, **settings) as detector:
        yield detector, _facts(chosen, detector.model, detector.info)


def _facts(chosen: EvalModel, found: OnnxModel, info: EngineInfo) -> dict[str, Any]:
    import retinastream

    return {
        "tool_version": retinastream.__version__,
        "model": found.name,
        "model_path": str(found.path),
        "model_sha256": found.sha256,
        "runtime": info.runtime,
        "runtime_version": info.runtime_version,
        "device": info.device,
        "device_name": info.device_name,
        "precision": info.precision,
        "threads": info.threads,
        **chosen.model_dump(include={"size", "threshold", "iou", "max_faces", "clip", "tta"}),
    }


def describe(facts: Mapping[str, Any]) -> str:
    """One sentence: model, size, runtime, precision and what is kept."""
    return (
        f"{facts['model']} (sha256 {facts['model_sha256'][:12]}), size {facts['size']}; {facts['runtime']} "
        f"{facts['runtime_version']} {facts['precision']} on {facts['device']}; scores from {facts['threshold']:g}, "
        f"NMS {facts['iou']:g}, up to {facts['max_faces']} faces, boxes {'clipped' if facts['clip'] else 'not clipped'}"
    )


def _explain(error: Any) -> str:
    name = str(error["loc"][0]).replace("_", "-")
    return f"--{name} {error['input']!r} is not allowed: {error['msg']}"
