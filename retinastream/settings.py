"""Every setting of a run, defined once: the same fields serve YAML, the environment and the command line.

Order of precedence, strongest first: flag, environment (RETINASTREAM_<NAME>), file (``--config``), default.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from retinastream.engines.runtime_table import Precision, Runtime
from retinastream.errors import InputError, UsageError

ENVIRONMENT_PREFIX = "RETINASTREAM_"
# Names with the same prefix that are no settings of a run.
_RESERVED = {"RETINASTREAM_CACHE", "RETINASTREAM_TEST_DATA"}

Format = Literal["jsonl", "csv", "wider", "coco"]


def device_field() -> Any:
    """Describe the setting ``device``, which the evaluation has, too."""
    return Field("auto", description="auto | cpu | cuda | cuda:N. auto: a GPU where one can be used.")


def require_field() -> Any:
    """Describe the setting ``require``."""
    return Field(None, description="gpu: fail rather than run on the CPU.")


def runtime_field() -> Any:
    """Describe the setting ``runtime``."""
    return Field("auto", description="CPU: auto | openvino | onnxruntime | torch. GPU: auto | tensorrt | torch.")


def precision_field() -> Any:
    """Describe the setting ``precision``."""
    text = "CPU: f32 | bf16 (with AVX512-BF16 or AMX), default f32. GPU: fp16 | f32 | bf16 | int8, default fp16."
    return Field(None, description=text)


class DetectSettings(BaseModel):
    """Settings of ``retinastream detect``."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str = Field("mnet025", description="Model: a zoo name, an .onnx file, or a .pth checkpoint.")
    spec: str | None = Field(None, description="Spec name or file for a checkpoint or ONNX that is not recognised.")
    size: str = Field("auto", description="native | fit:LONG | short:SHORT,max:LONG | pyramid | auto.")
    threshold: float = Field(0.5, ge=0, le=1, description="Lowest score that is reported.")
    iou: float = Field(0.4, ge=0, le=1, description="Overlap above which the weaker of two boxes is dropped.")
    max_faces: int = Field(750, ge=1, le=100_000, description="Most faces per picture.")
    clip: bool = Field(True, description="Cut boxes at the borders of the picture.")
    classic_nms: bool = Field(False, description="Count widths as x2 - x1 + 1 in NMS, as older code does.")

    device: str = device_field()
    require: Literal["gpu"] | None = require_field()
    runtime: Runtime = runtime_field()
    precision: Precision | None = precision_field()
    threads: int = Field(0, ge=0, le=1024, description="Processors for the network; 0: all that are usable.")
    streams: int = Field(
        0, ge=0, le=256, description="Networks that run side by side; 0: chosen for throughput. GPU: 0 is 3, at most 4."
    )
    cuda_graph: bool = Field(True, description="GPU: record the work of a batch once and replay it.")
    torch_compile: bool = Field(False, description="GPU, runtime torch: let torch write kernels first (minutes).")
    decode_threads: int = Field(0, ge=0, le=256, description="Threads of the video decoder; 0: chosen by the decoder.")
    batch: int = Field(1, ge=1, le=64, description="Frames that go through the network at once.")

    start: float | None = Field(None, ge=0, description="Seconds from the first picture at which to begin.")
    end: float | None = Field(None, gt=0, description="Seconds from the first picture at which to stop.")
    stride: int = Field(1, ge=1, description="Take every N-th frame.")
    max_frames: int | None = Field(None, ge=1, description="Stop after this many frames of each input.")
    recursive: bool = Field(False, description="Search directories below the given ones, too.")

    output: Path = Field(Path(), description="Directory for the results.")
    format: tuple[Format, ...] = Field(("jsonl",), description="jsonl | csv | wider | coco; may be repeated.")
    annotate: bool = Field(False, description="Write annotated video, or pictures for pictures.")
    overwrite: bool = Field(False, description="Replace results that exist.")

    def plain(self) -> dict[str, Any]:
        """Values as JSON and YAML can hold them."""
        return self.model_dump(mode="json")


def load_settings(
    flags: Mapping[str, Any], config: Path | None = None, environment: Mapping[str, str] | None = None
) -> DetectSettings:
    """Merge flags, environment and file into checked settings.

    ``flags`` holds only what was given. Raises UsageError naming the setting, where it came from and what is allowed,
    and for unknown names the nearest valid one.
    """
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for values, where in (
        (_from_file(config), str(config)),
        (_from_environment(os.environ if environment is None else environment), "the environment"),
        (flags, "the command line"),
    ):
        for name, value in values.items():
            merged[name] = value
            origin[name] = where
    try:
        return DetectSettings(**merged)
    except ValidationError as error:
        raise UsageError("; ".join(_explain(e, origin) for e in error.errors())) from None


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a clause that suggests the most similar known name, or lists them all."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(names)}"


def _from_file(config: Path | None) -> dict[str, Any]:
    if config is None:
        return {}
    import yaml

    try:
        values = yaml.safe_load(config.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{config}: no such configuration file") from None
    except OSError as error:
        raise InputError(f"{config}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{config}: is not YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"{config}: expected settings as 'name: value' lines, found a {type(values).__name__}")
    plain = {str(name).replace("-", "_"): value for name, value in values.items()}
    for name in plain:
        if name not in DetectSettings.model_fields:
            raise UsageError(f"{config}: unknown setting {name!r}; {nearest(name, DetectSettings.model_fields)}")
    return plain


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for variable, text in environment.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable in _RESERVED:
            continue
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        if name not in DetectSettings.model_fields:
            raise UsageError(
                f"environment variable {variable} is no setting; {nearest(name, DetectSettings.model_fields)}"
            )
        values[name] = text.split(",") if name == "format" else (text or None)
    return values


def _explain(error: Any, origin: Mapping[str, str]) -> str:
    name = str(error["loc"][0]) if error["loc"] else "settings"
    where = origin.get(name, "the settings")
    return f"{name.replace('_', '-')} {error['input']!r} (from {where}) is not allowed: {error['msg']}"
