"""Engines for inputs as they come: kept ones where they fit, built ones where there are none."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace

from retinastream.engines.cache.entry import Entry
from retinastream.engines.cache.key import EngineKey, ShapeRange
from retinastream.engines.cache.store import EngineCache
from retinastream.engines.engine_store import engine_key, obtain_engine
from retinastream.engines.precision_graph import precision_graph
from retinastream.engines.tensorrt.build import OnProgress
from retinastream.engines.tensorrt.loaded_plan import LoadedPlan
from retinastream.engines.tensorrt.machine import machine_of
from retinastream.engines.tensorrt.options import BuildOptions, ShapeProfile, check_fits, profile_for
from retinastream.engines.tensorrt.plan_source import NetworkIo, tensor_of
from retinastream.engines.tensorrt.progress import BuildProgress, describe_progress
from retinastream.kernels.device import Device
from retinastream.models.onnx_file import OnnxModel

logger = logging.getLogger(__name__)

# With two looks a second a line comes before five seconds are over.
_LOG_SECONDS = 4.5
# An engine per size suits videos. A folder of pictures may have hundreds of sizes, and a build takes minutes: after so
# many the next engine takes them all, somewhat slower.
_MOST_SIZES = 4
# Where such an engine is kept already, this many are built for one size before it is used: a video gets its own, and
# the next folder of pictures does not begin with four builds again.
_MOST_BUILT_BESIDE = 1
_LARGE_SIDE = 3840
ANY_SIZE_NOTE = "for_any_size"


class StoredPlans:
    """A ``PlanSource`` over the cache of engines: any engine there that takes an input will do, else one is built.

    ``batch`` is the largest that is expected: an engine that is built takes 1 to that many. Each is for one size, until
    there are several; then one is built for all sizes. Loaded plans are kept.
    """

    def __init__(
        self,
        model: OnnxModel,
        device: Device,
        precision: str,
        *,
        batch: int = 1,
        options: BuildOptions | None = None,
        cache: EngineCache | None = None,
        may_build: bool = True,
        on_progress: OnProgress | None = None,
    ) -> None:
        self._graph = precision_graph(model, precision)
        self._device = device
        self._batch = batch
        self._options = options or BuildOptions()
        self._cache = cache or EngineCache()
        self._may_build = may_build
        self._on_progress = on_progress
        self._loaded: list[LoadedPlan] = []
        self._built = 0

    @property
    def io(self) -> NetworkIo:
        """Types of the network, from its graph."""
        return self._graph.io

    def plan_for(self, batch: int, height: int, width: int) -> LoadedPlan:
        """Return the plan for an input: a loaded one, a kept one, or one that is built now."""
        shape = (batch, 3, height, width)
        for plan in self._loaded:
            if tensor_of(plan, self._graph.model.input_name).profile_of(shape) is not None:
                return plan
        self._loaded.append(self._obtain(shape))
        return self._loaded[-1]

    def close(self) -> None:
        """Release all plans."""
        for plan in self._loaded:
            plan.close()
        self._loaded.clear()

    def _obtain(self, shape: tuple[int, int, int, int]) -> LoadedPlan:
        options = self._options_for(shape)
        is_wide = any(profile.minimum[2:] != profile.maximum[2:] for profile in options.profiles)
        report = self._on_progress or _LoggedProgress(f"{self._graph.model.name} {options.profiles[0]}")
        obtained = obtain_engine(
            self._graph,
            options,
            self._device,
            cache=self._cache,
            may_build=self._may_build,
            notes={ANY_SIZE_NOTE: True} if is_wide else {},
            on_progress=report,
            on_wait=logger.warning,
        )
        self._built += obtained.built
        for remark in obtained.remarks:
            logger.info("%s", remark)
        return obtained.engine

    def _options_for(self, shape: tuple[int, int, int, int]) -> BuildOptions:
        """Return the options of a kept engine that takes the shape, else those of one to be built."""
        batch, _, height, width = shape
        fixed = self._graph.model.input_shape[0]
        most = max(batch, fixed or self._batch)
        profile = profile_for(height, width, (fixed or 1, most))
        check_fits(self._graph.model, profile)
        wanted = replace(self._options, profiles=(profile,))
        key = engine_key(self._graph, wanted, machine_of(self._device)[0])
        name = self._graph.model.input_name
        has_many = len(self._loaded) >= _MOST_SIZES
        for entry in admitting_entries(self._cache, key, name, shape):
            is_wide = ANY_SIZE_NOTE in entry.sidecar.build.notes
            if not is_wide or has_many or self._built >= _MOST_BUILT_BESIDE:
                return _options_of(entry, name)
        if has_many and self._graph.model.input_shape[2:] == (None, None):
            return replace(wanted, profiles=(self._wide_profile(profile),))
        return wanted

    def _wide_profile(self, profile: ShapeProfile) -> ShapeProfile:
        """Widen a profile to all sizes up to a large one."""
        step = self._graph.model.spec.max_stride
        side = -(-_LARGE_SIDE // step) * step
        low, best, high = profile.minimum, profile.optimum, profile.maximum
        logger.warning("pictures of more than %d sizes: the next engine is for all sizes", _MOST_SIZES)
        return ShapeProfile((low[0], 3, step, step), best, (high[0], 3, max(high[2], side), max(high[3], side)))


def admitting_entries(cache: EngineCache, key: EngineKey, input_name: str, shape: Sequence[int]) -> list[Entry]:
    """Return kept engines of the same graph and machine that take an input of this shape, the best first.

    They may have been built with other settings and for more shapes. The best is one for this size alone, then the one
    that is tuned for the batch nearest to the one asked for, then the one whose build searched longest.
    """
    found: list[tuple[bool, int, int, int, Entry]] = []
    for entry in cache.entries():
        other = entry.sidecar.key
        loosened = {name: getattr(other, name) for name in ("profiles", "builder", "hardware_compatibility")}
        if key.model_copy(update=loosened).identity() != other.identity():
            continue
        ranges = [profile[input_name] for profile in other.profiles if input_name in profile]
        fitting = [r for r in ranges if _is_within(shape, r)]
        if fitting:
            distance = min(abs(r.optimum[0] - shape[0]) for r in fitting)
            level = other.builder.get("optimization_level")
            is_wide = all(r.minimum[2:] != r.maximum[2:] for r in fitting)
            found.append((is_wide, distance, -level if isinstance(level, int) else 0, len(found), entry))
    return [entry for *_, entry in sorted(found, key=lambda item: item[:4])]


def _options_of(entry: Entry, input_name: str) -> BuildOptions:
    """Return the options that a kept engine was built with, so that its key is asked for."""
    key = entry.sidecar.key
    ranges = [profile[input_name] for profile in key.profiles]
    profiles = tuple(ShapeProfile(_shape(r.minimum), _shape(r.optimum), _shape(r.maximum)) for r in ranges)
    return BuildOptions.from_values(key.builder, profiles, key.hardware_compatibility)


def _shape(values: Sequence[int]) -> tuple[int, int, int, int]:
    batch, channels, height, width = values
    return batch, channels, height, width


def _is_within(shape: Sequence[int], limits: ShapeRange) -> bool:
    return all(a <= v <= b for a, v, b in zip(limits.minimum, shape, limits.maximum, strict=True))


class _LoggedProgress:
    """Says in the log that an engine is being built, and every few seconds how far it is."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._last: float | None = None

    def __call__(self, progress: BuildProgress) -> None:
        now = time.monotonic()
        if self._last is None:
            logger.warning("building a TensorRT engine for %s: minutes, once per machine", self._what)
        elif now - self._last < _LOG_SECONDS:
            return
        else:
            logger.warning("%s", describe_progress(progress))
        self._last = now
