"""Telling TensorRT's builder what to do: precision is not among it, that is the graph's."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from retinastream.engines.tensorrt.loaded_plan import shape_of
from retinastream.engines.tensorrt.log import RING
from retinastream.engines.tensorrt.messages import failure_text
from retinastream.engines.tensorrt.options import BuildOptions
from retinastream.errors import ModelError, UsageError

if TYPE_CHECKING:
    import tensorrt as trt

logger = logging.getLogger(__name__)

_COMPATIBILITY = {"none": "NONE", "same-cc": "SAME_COMPUTE_CAPABILITY", "ampere+": "AMPERE_PLUS"}


def configure(
    builder: trt.Builder,
    network: trt.INetworkDefinition,
    options: BuildOptions,
    timing_cache: bytes,
    memory: int,
) -> trt.IBuilderConfig:
    """Make the configuration for a network, on a GPU with ``memory`` bytes; UsageError for shapes that do not fit."""
    import tensorrt as trt

    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, min(options.workspace, memory))
    config.builder_optimization_level = options.optimization_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    level = _COMPATIBILITY[options.hardware_compatibility]
    config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.tf32:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.max_aux_streams is not None:
        config.max_aux_streams = options.max_aux_streams
    _add_profiles(builder, network, config, options)
    _use_timing_cache(config, timing_cache)
    return config


def _add_profiles(
    builder: trt.Builder, network: trt.INetworkDefinition, config: trt.IBuilderConfig, options: BuildOptions
) -> None:
    import tensorrt as trt

    inputs = [network.get_input(number) for number in range(network.num_inputs)]
    if len(inputs) != 1:
        raise ModelError(f"the model has {len(inputs)} inputs; expected one, (batch, 3, height, width)")
    image: trt.ITensor = inputs[0]
    declared = shape_of(image.shape)
    if -1 not in declared:
        for profile in options.profiles:
            if not profile.minimum == profile.maximum == declared:
                raise UsageError(f"the model takes {_text(declared)} only, and the shapes {profile} were asked for")
        return
    if not options.profiles:
        raise UsageError(
            f"the model takes inputs of several shapes, {_text(declared)} (-1 is free), and no shape was given: give "
            "--shape WIDTHxHEIGHT and --batch SMALLEST,BEST,LARGEST"
        )
    for wanted in options.profiles:
        _check_declared(declared, wanted.minimum, wanted.maximum)
        mark = RING.mark()
        made = builder.create_optimization_profile()
        low, best, high = (trt.Dims(list(shape)) for shape in (wanted.minimum, wanted.optimum, wanted.maximum))
        made.set_shape(image.name, low, best, high)
        if not made or config.add_optimization_profile(made) < 0:
            raise UsageError(failure_text(f"TensorRT does not take the shapes {wanted}", RING.since(mark)))


def _check_declared(declared: Sequence[int], low: Sequence[int], high: Sequence[int]) -> None:
    for size, first, last in zip(declared, low, high, strict=True):
        if size != -1 and not first == last == size:
            raise UsageError(
                f"the model takes {_text(declared)} (-1 is free), and shapes from {_text(low)} to {_text(high)} were "
                "asked for"
            )


def _use_timing_cache(config: trt.IBuilderConfig, blob: bytes) -> None:
    """Attach the measurements of earlier builds; those of another GPU or version are left out, never forced."""
    if blob and _attach(config, blob, "the timing cache is of another GPU or TensorRT and is not used"):
        return
    _attach(config, b"", "what this build measures cannot be kept for the next one")


def _attach(config: trt.IBuilderConfig, blob: bytes, complaint: str) -> bool:
    mark = RING.mark()
    cache: trt.ITimingCache | None = config.create_timing_cache(blob)
    if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
        return True
    logger.warning(failure_text(complaint, RING.since(mark)))
    return False


def _text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
