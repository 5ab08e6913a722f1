"""From a float32 detector to one with int8 convolutions and half precision in between, as TensorRT takes it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retinastream.engines.precision.calibration import (
    DEFAULT_PERCENTILE,
    Calibration,
    calibrate,
    check_enough,
    check_method,
)
from retinastream.engines.precision.equalise import equalise
from retinastream.engines.precision.graph_run import Picture
from retinastream.engines.precision.half import Outside, delicate_nodes, halve
from retinastream.engines.precision.model_files import (
    CALIBRATION_KEY,
    check_out,
    load_float_model,
    raise_opset,
    write_model,
)
from retinastream.engines.precision.node_patterns import matching_nodes
from retinastream.engines.precision.placement import Placement, place
from retinastream.engines.precision.qdq import insert_pairs
from retinastream.errors import ModelError
from retinastream.models.onnx_file import OnnxModel
from retinastream.models.spec import DetectorSpec


@dataclass(frozen=True, slots=True)
class QuantisedModel:
    """What was written: which layers are int8, which stayed in half precision, and what it was calibrated with."""

    path: Path
    method: str
    int8_layers: tuple[str, ...]
    fp16_layers: tuple[str, ...]
    fp32_nodes: tuple[str, ...]
    pictures: int
    pictures_with_faces: int
    calibration_sha256: str


class Quantiser:
    """A float32 detector that was calibrated once, and of which int8 files are made with any choice of layers.

    ``layers`` are those that can be int8 in this file, ``placement`` where they are quantised. See ``quantise`` for the
    settings and errors.
    """

    def __init__(
        self,
        path: str | Path,
        pictures: Iterable[Picture],
        *,
        leave: Sequence[str] = (),
        leave_parts: Sequence[str] = (),
        keep: Sequence[str] = (),
        outside: Outside = "refuse",
        equalised: bool = True,
        force: bool = False,
        threads: int = 0,
        spec: DetectorSpec | None = None,
    ) -> None:
        self.found, model = load_float_model(path, spec=spec)
        self.model: Any = raise_opset(model)
        self._kept = matching_nodes(self.model, keep) | delicate_nodes(self.model)
        # What was refused or allowed is decided on the file's own weights; equalising may make some of them tiny.
        self._outside: Outside = "round" if outside == "refuse" else outside
        whole = place(self.model)
        chosen = place(self.model, leave=leave, leave_parts=leave_parts)
        self.placement = chosen.without(self.model, sorted(self._kept))
        if not self.placement.layers:
            raise ModelError("all layers of the model are to be left out; there is nothing to quantise")
        self._all_layers = whole.layers
        # Fail before the calibration, which may take long, where the conversion to half precision would after it.
        halve(_copy(self.model), set(self._kept), outside=outside, name=str(path))
        # Looked at twice, which an iterator cannot be.
        pictures = pictures if iter(pictures) is not pictures else list(pictures)
        self.equalised = len(equalise(self.model, pictures, threads=threads)) if equalised else 0
        self.calibration: Calibration = calibrate(
            self.model, self.found, self.placement.tensors(self.model), pictures, threads=threads
        )
        check_enough(self.calibration, force=force)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that can be int8."""
        return self.placement.layers

    def simulated(self, method: str, left: Sequence[str] = (), *, percentile: float = DEFAULT_PERCENTILE) -> Any:
        """Return a float32 graph that is quantised but for the layers ``left``: what int8 costs, and fast to run."""
        placement = self.placement.without(self.model, left)
        return insert_pairs(self.model, placement, self.calibration.limits(method, percentile))

    def write(
        self,
        out: str | Path,
        method: str,
        left: Sequence[str] = (),
        *,
        percentile: float = DEFAULT_PERCENTILE,
        overwrite: bool = False,
    ) -> QuantisedModel:
        """Write the int8 file without the layers ``left``, whole or not at all. Raises UsageError and OutputError."""
        target = check_out(self.found.path, out, overwrite=overwrite)
        placement: Placement = self.placement.without(self.model, left)
        model = self.simulated(method, left, percentile=percentile)
        kept = set(self._kept)
        halve(model, kept, outside=self._outside, name=str(self.found.path))
        facts: dict[str, Any] = {
            "method": method,
            **({"percentile": percentile} if method == "percentile" else {}),
            "pictures": self.calibration.pictures,
            "pictures_with_faces": self.calibration.with_faces,
            "sha256": self.calibration.sha256,
            "equalised_pairs": self.equalised,
            "fp16_layers": [name for name in self._all_layers if name not in kept.union(placement.layers)],
        }
        metadata = {CALIBRATION_KEY: json.dumps(facts, sort_keys=True)}
        write_model(model, self.found, target, "int8", metadata)
        return QuantisedModel(
            target,
            method,
            placement.layers,
            tuple(facts["fp16_layers"]),
            tuple(sorted(kept)),
            self.calibration.pictures,
            self.calibration.with_faces,
            self.calibration.sha256,
        )


def quantise(
    path: str | Path,
    out: str | Path,
    pictures: Iterable[Picture],
    *,
    method: str = "entropy",
    percentile: float = DEFAULT_PERCENTILE,
    leave: Sequence[str] = (),
    leave_parts: Sequence[str] = (),
    keep: Sequence[str] = (),
    outside: Outside = "refuse",
    equalised: bool = True,
    force: bool = False,
    threads: int = 0,
    overwrite: bool = False,
    spec: DetectorSpec | None = None,
) -> QuantisedModel:
    """Write the float32 detector at ``path`` with int8 convolutions to ``out``, calibrated with ``pictures``.

    ``pictures`` are what the network is to be given: (batch, 3, height, width) float32, normalised. ``method`` is one
    of METHODS. Layers named in ``leave``, and kinds of them in ``leave_parts`` ("first", "last", "depthwise"), stay in
    half precision; nodes named in ``keep`` in float32; both take ``*``. ``outside`` is as in ``to_fp16``. Channels are
    ``equalised`` first, see there. ``force`` allows pictures that are too few or show no face. The same pictures and
    settings give the same file.

    Raises ModelError for models that cannot be converted, InputError for pictures that will not do, UsageError for
    values that are not allowed, OutputError where ``out`` cannot be written.
    """
    check_method(method, percentile)
    check_out(path, out, overwrite=overwrite)
    quantiser = Quantiser(
        path,
        pictures,
        leave=leave,
        leave_parts=leave_parts,
        keep=keep,
        outside=outside,
        equalised=equalised,
        force=force,
        threads=threads,
        spec=spec,
    )
    return quantiser.write(out, method, percentile=percentile, overwrite=overwrite)


def choose_method(
    quantiser: Quantiser, cost: Callable[[Any], float], methods: Sequence[str] = ("entropy", "mse", "percentile", "max")
) -> tuple[str, dict[str, float]]:
    """Return the calibration method whose graph costs least, and what each costs."""
    costs = {method: cost(quantiser.simulated(method)) for method in methods}
    return min(costs, key=lambda method: costs[method]), costs


def _copy(model: Any) -> Any:
    copy = type(model)()
    copy.CopyFrom(model)
    return copy


__all__ = ["OnnxModel", "QuantisedModel", "Quantiser", "choose_method", "quantise"]
