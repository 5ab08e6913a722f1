"""Specs by name or out of a file, for models that do not say which anchors they were trained with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retinastream.errors import UsageError
from retinastream.models.spec import DetectorSpec

# arXiv 1905.00641, table 1: three anchors per cell a third of an octave apart, 16 at stride 4 to 406.37 at stride 64.
_PAPER_SIZES = tuple(tuple(16.0 * 2.0 ** (level + third / 3) for third in range(3)) for level in range(5))

SPECS: dict[str, DetectorSpec] = {
    "retinaface-light": DetectorSpec(),
    "retinaface-light-10-20": DetectorSpec(anchor_sizes=((10.0, 20.0), (32.0, 64.0), (128.0, 256.0))),
    "retinaface-paper": DetectorSpec(strides=(4, 8, 16, 32, 64), anchor_sizes=_PAPER_SIZES),
}
DEFAULT_SPEC = "retinaface-light"


def read_spec(text: str | Path) -> DetectorSpec:
    """Return the spec called ``text``, or the one in the YAML or JSON file of that path.

    A file may leave fields out; they then have the value of ``retinaface-light``. Raises UsageError when there is
    neither such a name nor such a file, and when the file holds unknown or wrong fields.
    """
    if str(text) in SPECS:
        return SPECS[str(text)]
    path = Path(text)
    if not path.is_file():
        raise UsageError(
            f"{str(text)!r} is neither a spec nor a file; specs are {', '.join(SPECS)}, or give a YAML or JSON file"
        )
    values = _load(path)
    if not isinstance(values, dict):
        raise UsageError(f"the spec file {path} holds {type(values).__name__}; expected fields such as anchor_sizes")
    try:
        return DetectorSpec.from_dict(values)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the spec file {path} cannot be used: {error}") from error


def _load(path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"the spec file {path} cannot be read as YAML or JSON: {error}") from error
