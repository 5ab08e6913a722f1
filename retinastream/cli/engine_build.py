"""``retinastream engine build``: an engine for this GPU, into the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def build(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="A zoo name, an .onnx file, or a checkpoint. \\[default: mnet025]"),
    ] = None,
    model_option: Annotated[str | None, typer.Option("--model", "-m", help="The same as an option.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="f32 | fp16 | int8; by default the file's own, and fp16 of a float32 file.")
    ] = None,
    shape: Annotated[
        list[str] | None, typer.Option(metavar="WxH", help="Size of the pictures in pixels; repeatable.")
    ] = None,
    batch: Annotated[
        str, typer.Option(metavar="N[,N[,N]]", help="Pictures at once: one number, or smallest,best,largest.")
    ] = "1,8,16",
    min_shapes: Annotated[
        list[str] | None,
        typer.Option(
            "--minShapes",
            metavar="SHAPES",
            help="Smallest shapes as trtexec writes them: images:1x3x736x1280; all three instead of --shape.",
        ),
    ] = None,
    opt_shapes: Annotated[list[str] | None, typer.Option("--optShapes", metavar="SHAPES", help="Best shapes.")] = None,
    max_shapes: Annotated[
        list[str] | None, typer.Option("--maxShapes", metavar="SHAPES", help="Largest shapes.")
    ] = None,
    device: Annotated[str, typer.Option(help="cuda | cuda:N.")] = "cuda",
    workspace: Annotated[str, typer.Option(metavar="SIZE", help="Most scratch memory of a layer: 512M, 4G.")] = "4G",
    builder_optimization_level: Annotated[
        int, typer.Option("--builder-optimization-level", "--builderOptimizationLevel", help="0 (fast) to 5 (slow).")
    ] = 3,
    timing_cache: Annotated[
        Path | None,
        typer.Option("--timing-cache", "--timingCacheFile", help="File with measurements of earlier builds; updated."),
    ] = None,
    hardware_compatibility: Annotated[
        str,
        typer.Option(
            "--hardware-compatibility",
            "--hardwareCompatibilityLevel",
            help="none | same-cc | ampere+: other GPUs, too.",
        ),
    ] = "none",
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", "--versionCompatible", help="For newer TensorRT, too.")
    ] = False,
    max_aux_streams: Annotated[
        int | None, typer.Option("--max-aux-streams", "--maxAuxStreams", help="0: one stream only.")
    ] = None,
    tf32: Annotated[bool, typer.Option("--tf32/--no-tf32", help="Let float32 layers round to TF32.")] = False,
    calibration: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="int8: pictures, a folder, or a video; repeatable."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Take calibration pictures that are too few or show no face.")
    ] = False,
    check: Annotated[
        str | None, typer.Option("--check", metavar="SET", help="Labels, pictures or a video to judge the loss on.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the pictures that --check labels.")] = None,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Build although the check failed; the engine remembers it.")
    ] = False,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build again although there is an engine.")] = False,
    spec: Annotated[str | None, typer.Option(help="A spec name or file, for files that do not say theirs.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the engine's path and errors only.")] = False,
) -> None:
    """Build a TensorRT engine for the GPU of this machine and keep it; prints its path.

    The engine takes pictures of the sizes given, padded to the model's largest stride, in any batch of the range.
    `retinastream detect --runtime tensorrt` uses it, and builds one by itself where there is none. With --check the
    model of lower precision is first compared with the float32 one on the CPU, and not built where it loses too much.
    """
    from retinastream.cli.engine_build_run import Request, run
    from retinastream.engines.tensorrt.options import BuildOptions, parse_batches, parse_bytes, parse_size
    from retinastream.errors import UsageError

    if model is not None and model_option is not None:
        raise UsageError(f"the model was given twice, as {model} and as --model {model_option}; leave one of them")
    options = BuildOptions.checked(
        workspace=parse_bytes(workspace),
        optimization_level=builder_optimization_level,
        hardware_compatibility=hardware_compatibility,
        version_compatible=version_compatible,
        max_aux_streams=max_aux_streams,
        tf32=tf32,
    )
    request = Request(
        model=model or model_option or "mnet025",
        spec=spec,
        precision=precision,
        sizes=tuple(map(parse_size, shape or ())),
        batches=parse_batches(batch),
        shapes=(tuple(min_shapes or ()), tuple(opt_shapes or ()), tuple(max_shapes or ())),
        options=options,
        device=device,
        timing_cache=timing_cache,
        calibration=tuple(calibration or ()),
        force=force,
        check=check,
        images=images,
        accept_loss=accept_loss,
        rebuild=rebuild,
    )
    run(request, as_json=as_json, quiet=quiet)
