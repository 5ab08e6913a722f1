"""From an ONNX graph to a plan for the current GPU.

The build runs in a thread of its own, so that Ctrl-C reaches this one and progress is reported while TensorRT says
nothing for a minute. Nothing is written anywhere.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from retinastream.engines.tensorrt.builder_config import configure
from retinastream.engines.tensorrt.inspect_plan import summarise_layers
from retinastream.engines.tensorrt.load import create_builder, require_tensorrt
from retinastream.engines.tensorrt.loaded_plan import EngineTensor, load_plan
from retinastream.engines.tensorrt.log import RING
from retinastream.engines.tensorrt.messages import failure_text
from retinastream.engines.tensorrt.network import check_external_data, parse_network
from retinastream.engines.tensorrt.options import BuildOptions
from retinastream.engines.tensorrt.progress import BuildClock, BuildProgress, make_monitor
from retinastream.errors import EngineBuildStoppedError, EngineError
from retinastream.kernels.device import Device

if TYPE_CHECKING:
    import tensorrt as trt

logger = logging.getLogger(__name__)

_TICK_SECONDS = 0.5

OnProgress = Callable[[BuildProgress], None]


@dataclass(frozen=True)
class BuiltPlan:
    """A plan and what is known about it.

    ``layers`` says what the engine consists of, see ``summarise_layers``. ``log`` holds warnings and errors of the
    build, ``timing_cache`` what makes the next build faster on this GPU.
    """

    plan: bytes
    version: str
    seconds: float
    tensors: tuple[EngineTensor, ...]
    scratch_bytes: int
    layers: dict[str, object] = field(default_factory=dict)
    log: tuple[str, ...] = ()
    timing_cache: bytes = b""


def build_plan(
    onnx_path: Path,
    options: BuildOptions,
    device: Device,
    on_progress: OnProgress | None = None,
    *,
    timing_cache: bytes = b"",
    stop: threading.Event | None = None,
) -> BuiltPlan:
    """Build a plan for ``device`` and load it once, to see that it can be.

    ``on_progress`` is called on this thread, twice a second and once at the end. Setting ``stop`` ends the build
    with EngineBuildStoppedError; Ctrl-C ends it with KeyboardInterrupt, the second one without waiting for TensorRT.
    No two builds should run on one GPU at a time, nor a build beside other work: what is measured would be wrong.

    Raises UsageError for shapes that do not fit the model, ModelError for a model that TensorRT does not take,
    SetupError for what this machine lacks, EngineError for what goes wrong within TensorRT.
    """
    version = require_tensorrt()
    check_external_data(onnx_path)
    stop = stop or threading.Event()
    clock = BuildClock()
    work = _Work(lambda: _build(onnx_path, options, device, clock, stop, timing_cache, version))
    thread = threading.Thread(target=work, name="tensorrt-build", daemon=True)
    thread.start()
    _wait(work.finished, clock, stop, on_progress or (lambda _: None))
    return work.result()


class _Work:
    """Runs a function in another thread and keeps what came of it."""

    def __init__(self, function: Callable[[], BuiltPlan]) -> None:
        self._function = function
        self.finished = threading.Event()
        self._result: BuiltPlan | None = None
        self._error: BaseException | None = None

    def __call__(self) -> None:
        try:
            self._result = self._function()
        except BaseException as error:  # noqa: BLE001 - raised again by result()
            self._error = error
        finally:
            self.finished.set()

    def result(self) -> BuiltPlan:
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result


def _wait(finished: threading.Event, clock: BuildClock, stop: threading.Event, on_progress: OnProgress) -> None:
    """Report until the work ends; ask TensorRT to stop when interrupted, or when reporting fails.

    Not by joining the thread: Python 3.11 takes a thread for ended when Ctrl-C comes while it is joined.
    """
    try:
        while not finished.is_set():
            on_progress(clock.now())
            finished.wait(_TICK_SECONDS)
        on_progress(clock.now())
    except BaseException:
        stop.set()
        logger.info("waiting for TensorRT to stop")
        finished.wait()
        raise


def _build(
    onnx_path: Path,
    options: BuildOptions,
    device: Device,
    clock: BuildClock,
    stop: threading.Event,
    timing_cache: bytes,
    version: str,
) -> BuiltPlan:
    mark, began = RING.mark(), time.monotonic()
    with device.current():
        builder = create_builder()
        clock.enter("reading the model")
        network, parser = parse_network(builder, onnx_path)
        clock.enter("building")
        config = configure(builder, network, options, timing_cache, device.memory()[1])
        monitor = make_monitor(clock, stop)
        config.progress_monitor = monitor
        plan = _serialise(builder, network, config, stop)
        clock.enter("checking the engine")
        seconds = time.monotonic() - began
        times = _timing_cache_of(config)
        # The parser owns the weights that the network points to, so it must live until here.
        del parser
        loaded = load_plan(plan, version_compatible=options.version_compatible)
        try:
            return BuiltPlan(
                plan=plan,
                version=version,
                seconds=seconds,
                tensors=loaded.tensors,
                scratch_bytes=max(loaded.scratch_sizes, default=0),
                layers=summarise_layers(loaded),
                log=RING.complaints(mark),
                timing_cache=times,
            )
        finally:
            loaded.close()


def _timing_cache_of(config: trt.IBuilderConfig) -> bytes:
    cache: trt.ITimingCache | None = config.get_timing_cache()
    if cache is None:
        return b""
    memory: trt.IHostMemory | None = cache.serialize()
    return b"" if memory is None else _bytes_of(memory)


def _serialise(
    builder: trt.Builder, network: trt.INetworkDefinition, config: trt.IBuilderConfig, stop: threading.Event
) -> bytes:
    mark = RING.mark()
    memory: trt.IHostMemory | None = builder.build_serialized_network(network, config)
    # A build that was told to stop may still come to its end.
    if stop.is_set():
        raise EngineBuildStoppedError("the build was stopped; nothing was written")
    if memory is None:
        raise EngineError(failure_text("TensorRT could not build the engine", RING.complaints(mark)))
    return _bytes_of(memory)


def _bytes_of(memory: trt.IHostMemory) -> bytes:
    # It is a buffer, which the bindings' signatures do not say.
    return bytes(cast("bytes", memory))
