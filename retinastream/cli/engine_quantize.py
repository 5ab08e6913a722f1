"""``retinastream engine quantize``: a model of lower precision out of a float32 one."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import typer
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from retinastream.cli.options import parameters
from retinastream.errors import UsageError


class QuantizeSettings(BaseModel):
    """What can be chosen; every field is an option."""

    model_config = ConfigDict(extra="forbid")

    precision: Literal["fp16", "int8", "fp8"] = Field("int8", description="fp16 | int8 | fp8 (modelopt, experimental).")
    output: str | None = Field(None, description="File to write; by default MODEL.PRECISION.onnx, here.")
    spec: str | None = Field(None, description="Spec name or file for an ONNX that does not say its own.")

    calibration: tuple[str, ...] = Field((), description="Pictures, a folder, or a video; repeatable.")
    count: int = Field(256, ge=1, description="Calibration pictures to take, evenly out of all.")
    size: str = Field("fit:1280", description="Size policy that calibration pictures are shown at.")
    method: Literal["max", "percentile", "mse", "entropy"] | None = Field(
        None, description="max | percentile | mse | entropy; default entropy, with --auto the best of them."
    )
    percentile: float = Field(99.99, ge=50, le=100, description="Part of the values within the range, in percent.")
    force: bool = Field(False, description="Take calibration pictures that are too few or show no face.")

    equalise: bool = Field(True, description="Make channels equally large first, which costs nothing.")
    leave: tuple[str, ...] = Field((), description="Layer to leave in fp16; * allowed, repeatable.")
    leave_part: tuple[str, ...] = Field((), description="The same by kind: first | last | depthwise; repeatable.")
    keep: tuple[str, ...] = Field((), description="Node to keep in float32; * allowed, repeatable.")
    outside: Literal["refuse", "fp32", "round"] = Field(
        "refuse",
        description="Weights that fp16 cannot hold: refuse | fp32 (keep their nodes) | round (small ones only).",
    )
    keep_input: bool = Field(False, description="fp16: let the picture come in as float32.")

    auto: bool = Field(False, description="Leave layers in fp16 until the loss on --on is within the limits.")
    on: str | None = Field(None, description="Labels; or pictures or a video, where MODEL's own faces are the truth.")
    images: str | None = Field(None, description="Folder of the pictures that --on labels.")
    limit: float | None = Field(None, ge=0, le=100, description="Points of AP that --auto may lose; default 1.0.")
    limit_hard: float | None = Field(None, ge=0, le=100, description="The same of WIDER FACE hard; default 1.5.")
    aim: float = Field(0.8, gt=0, le=1, description="Part of the limits to use, as other pictures may lose more.")
    check_size: str = Field("native", description="Size policy that detections are judged at.")
    max_frames: int | None = Field(None, ge=1, description="Judge on so many frames of a video.")

    quantizer: Literal["own", "modelopt"] = Field("own", description="own | modelopt (NVIDIA's, installed apart).")
    threads: int = Field(0, ge=0, le=1024, description="Processors to use; 0: all.")
    report: str | None = Field(None, description="File to write all figures to, as JSON.")
    overwrite: bool = Field(False, description="Replace files that exist.")


_CALIBRATING = ("calibration", "count", "size", "method", "percentile", "force")
_JUDGING = ("on", "images", "limit", "limit_hard", "aim", "check_size", "max_frames")


def quantize(**values: Any) -> None:
    """Write a model in fp16 or int8 for TensorRT: strongly typed, with explicit quantisation.

    int8 needs --calibration. With --auto the calibration method and the layers that stay in fp16 are chosen such that
    the loss of accuracy on --on is within the limits.
    """
    from retinastream.cli.engine_quantize_run import run

    model, as_json, quiet = (values.pop(name) for name in ("model", "as_json", "quiet"))
    given = {name: value for name, value in values.items() if value not in (None, [])}
    try:
        settings = QuantizeSettings(**given)
    except ValidationError as error:
        raise UsageError("; ".join(_explain(entry) for entry in error.errors())) from None
    check_together(settings, given)
    run(model, settings, as_json=as_json, quiet=quiet)


def check_together(settings: QuantizeSettings, given: Iterable[str]) -> None:
    """Refuse options of one way to a model that were given with another. Raises UsageError."""
    named = set(given)
    if settings.precision == "fp16":
        _refuse(
            named, (*_CALIBRATING, *_JUDGING, "leave", "leave_part", "equalise", "auto"), "fp16 needs no calibration"
        )
        _refuse(named - {"quantizer"} if settings.quantizer == "own" else named, ("quantizer",), "modelopt is for int8")
        return
    _refuse(named, ("keep_input",), "it is for --precision fp16")
    if settings.precision == "fp8" and settings.quantizer != "modelopt":
        raise UsageError("fp8 is made by modelopt only, and is experimental: add --quantizer modelopt")
    if settings.quantizer == "modelopt":
        own = ("auto", "keep", "leave_part", "outside", "percentile", "equalise")
        _refuse(named, own, "they are for --quantizer own; name layers with --leave")
    if not settings.calibration:
        raise UsageError(
            f"{settings.precision} needs pictures: give --calibration with pictures, a folder of them, or a video"
        )
    if settings.method != "percentile" or settings.auto:
        _refuse(named, ("percentile",), "it goes with --method percentile, and not with --auto")
    if not settings.auto:
        _refuse(named, _JUDGING, "they go with --auto; to measure a file use `retinastream engine check`")
    elif settings.on is None:
        raise UsageError("--auto needs --on: labels, or pictures or a video, other than those for calibration")


def _refuse(named: set[str], options: Iterable[str], why: str) -> None:
    wrong = [f"--{name.replace('_', '-')}" for name in options if name in named]
    if wrong:
        raise UsageError(f"{', '.join(wrong)} cannot be used here: {why}")


def _explain(error: Any) -> str:
    name = str(error["loc"][0]).replace("_", "-")
    return f"--{name} {error['input']!r} is not allowed: {error['msg']}"


def _signature() -> inspect.Signature:
    def keyword(name: str, default: Any, annotation: Any) -> inspect.Parameter:
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)

    model = Annotated[str, typer.Argument(metavar="MODEL", help="A float32 model: zoo name, .onnx, or .pth.")]
    as_json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
    quiet = Annotated[bool, typer.Option("--quiet", help="Print the name of the file and errors only.")]
    last = [keyword("as_json", False, as_json), keyword("quiet", False, quiet)]
    first = keyword("model", inspect.Parameter.empty, model)
    return inspect.Signature([first, *parameters(QuantizeSettings), *last])


quantize.__signature__ = _signature()  # type: ignore[attr-defined]
quantize.__annotations__ = {p.name: p.annotation for p in _signature().parameters.values()}
