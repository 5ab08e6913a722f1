"""What ``retinastream engine quantize`` does once its options are known to go together."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

from retinastream.cli.engine_tables import print_quantised
from retinastream.cli.picture_progress import PictureProgress
from retinastream.engines.precision.half import HalfModel, to_fp16
from retinastream.engines.precision.model_files import check_out
from retinastream.engines.precision.quantise import QuantisedModel, Quantiser
from retinastream.evaluation.auto_quantise import AutoQuantised, auto_quantise
from retinastream.evaluation.check_sets import open_check_set
from retinastream.evaluation.precision_check import LIMITS, Limits, PrecisionGate
from retinastream.models.spec_registry import read_spec
from retinastream.models.zoo import resolve_model
from retinastream.pipeline.calibration_frames import CalibrationFrames

if TYPE_CHECKING:
    from retinastream.cli.engine_quantize import QuantizeSettings
    from retinastream.models.onnx_file import OnnxModel
    from retinastream.models.spec import DetectorSpec

# Layers are ranked on this many pictures, taken evenly out of those for calibration.
PROBED = 8


def run(model: str, settings: QuantizeSettings, *, as_json: bool, quiet: bool) -> None:
    """Convert ``model`` and say what came of it. Raises what the conversion raises."""
    spec = read_spec(settings.spec) if settings.spec else None
    found = resolve_model(model, spec=spec)
    out = Path(settings.output or f"{found.name}.{settings.precision}.onnx")
    check_out(found.path, out, overwrite=settings.overwrite)
    if settings.report is not None:
        from retinastream.pipeline.sinks.part_file import check_target

        check_target(Path(settings.report), overwrite=settings.overwrite)
    if settings.precision == "fp16":
        _show(_half(found, out, settings, spec), None, settings, as_json=as_json, quiet=quiet)
        return
    with PictureProgress("calibrating", quiet=quiet) as shown:
        if settings.quantizer == "modelopt":
            path = _modelopt(found, out, settings, spec, shown)
            typer.echo(json.dumps({"path": str(path)}) if as_json else str(path))
            return
        quantiser = _calibrated(found, settings, spec, shown)
        chosen = _auto(quantiser, out, settings, spec, shown) if settings.auto else None
        written = chosen.model if chosen else _as_asked(quantiser, out, settings)
    _show(written, chosen, settings, as_json=as_json, quiet=quiet)


def _frames(found: OnnxModel, settings: QuantizeSettings, shown: PictureProgress) -> CalibrationFrames:
    return CalibrationFrames(settings.calibration, found, size=settings.size, count=settings.count, progress=shown)


def _calibrated(
    found: OnnxModel, settings: QuantizeSettings, spec: DetectorSpec | None, shown: PictureProgress
) -> Quantiser:
    frames = _frames(found, settings, shown)
    quantiser = Quantiser(
        found.path,
        frames,
        leave=settings.leave,
        leave_parts=settings.leave_part,
        keep=settings.keep,
        outside=settings.outside,
        equalised=settings.equalise,
        force=settings.force,
        threads=settings.threads,
        spec=spec,
    )
    if frames.unreadable:
        typer.echo(f"{len(frames.unreadable)} calibration pictures could not be read and were left out", err=True)
    return quantiser


def _as_asked(quantiser: Quantiser, out: Path, settings: QuantizeSettings) -> QuantisedModel:
    method = settings.method or "entropy"
    return quantiser.write(out, method, percentile=settings.percentile, overwrite=settings.overwrite)


def _half(found: OnnxModel, out: Path, settings: QuantizeSettings, spec: DetectorSpec | None) -> HalfModel:
    return to_fp16(
        found.path,
        out,
        keep=settings.keep,
        outside=settings.outside,
        keep_input=settings.keep_input,
        overwrite=settings.overwrite,
        spec=spec,
    )


def _modelopt(
    found: OnnxModel, out: Path, settings: QuantizeSettings, spec: DetectorSpec | None, shown: PictureProgress
) -> Path:
    from retinastream.engines.precision.modelopt_quantizer import Mode, quantise_with_modelopt

    return quantise_with_modelopt(
        found.path,
        out,
        _frames(found, settings, shown),
        mode=cast("Mode", settings.precision),
        method=settings.method or "entropy",
        leave=settings.leave,
        force=settings.force,
        overwrite=settings.overwrite,
        spec=spec,
    )


def _auto(
    quantiser: Quantiser, out: Path, settings: QuantizeSettings, spec: DetectorSpec | None, shown: PictureProgress
) -> AutoQuantised:
    if settings.on in settings.calibration:
        typer.echo(f"note: {settings.on} was calibrated on, too; other pictures may lose more than these", err=True)
    on = open_check_set(str(settings.on), images=settings.images)
    default = LIMITS["int8"]
    limits = Limits(
        default.ap if settings.limit is None else settings.limit,
        default.hard if settings.limit_hard is None else settings.limit_hard,
    )
    found = quantiser.found
    probe = CalibrationFrames(settings.calibration, found, size=settings.size, count=PROBED)

    def judging(_role: str, done: int, total: int) -> None:
        shown.begin("judging")
        shown(done, total)

    def ranking(what: str, done: int, total: int) -> None:
        shown.begin(what, unit="layers")
        shown(done, total)

    gate = PrecisionGate(
        found.path,
        on,
        size=settings.check_size,
        spec=spec,
        threads=settings.threads,
        max_frames=settings.max_frames,
        progress=judging,
    )
    return auto_quantise(
        quantiser,
        out,
        gate,
        probe,
        method=settings.method,
        limits=limits,
        aim=settings.aim,
        threads=settings.threads,
        overwrite=settings.overwrite,
        progress=ranking,
    )


def _show(
    result: HalfModel | QuantisedModel,
    chosen: AutoQuantised | None,
    settings: QuantizeSettings,
    *,
    as_json: bool,
    quiet: bool,
) -> None:
    values: dict[str, Any] = {**asdict(result), "path": str(result.path)} if chosen is None else chosen.to_dict()
    if settings.report is not None:
        from retinastream.cli.eval_output import write_json

        write_json(Path(settings.report), values, overwrite=settings.overwrite)
    if as_json:
        typer.echo(json.dumps(values))
        return
    if not quiet:
        print_quantised(result, chosen)
    typer.echo(str(result.path))
