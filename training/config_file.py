"""Training configurations from YAML, with ``key=value`` changes on top, and what differs between two of them."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel, ValidationError

from retinastream.errors import InputError, UsageError
from retinastream.settings import nearest
from retinastream.training.config import TrainConfig


def load_config(path: str | Path, changes: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML file and apply ``changes`` such as ``run.batch=16`` (values are YAML; ``data.0.weight=2`` works).

    Paths in the file are relative to the working directory. Raises UsageError naming the key, its file and what is
    allowed, for unknown keys with the nearest known one; InputError where the file cannot be read.
    """
    values = _read_yaml(Path(path))
    for change in changes:
        _apply(values, change)
    return parse_config(values, str(path))


def change_config(config: TrainConfig, changes: Sequence[str]) -> TrainConfig:
    """Apply ``changes`` as ``load_config`` does to a configuration that was read already."""
    values = config.plain()
    for change in changes:
        _apply(values, change)
    return parse_config(values, "the changed configuration")


def parse_config(values: Mapping[str, Any], origin: str) -> TrainConfig:
    """Check plain values; ``origin`` names where they came from in messages. Raises UsageError."""
    try:
        config = TrainConfig.model_validate(dict(values))
    except ValidationError as error:
        raise UsageError(f"{origin}: " + "; ".join(_explanations(error.errors()))) from None
    try:
        for recipe in (config.match_recipe, config.loss_recipe, config.schedule_recipe):
            recipe()
    except UsageError as error:
        raise UsageError(f"{origin}: {error}") from None
    return config


def changes_since(before: Mapping[str, Any], after: TrainConfig) -> list[str]:
    """List what differs from a configuration that was saved as plain values, maybe by an older version.

    Keys that it did not have yet count with their defaults.
    """
    try:
        known = parse_config(before, "the saved configuration").plain()
    except UsageError:
        known = dict(before)
    return differences(known, after.plain())


def differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    """List as ``key: old -> new`` what differs between two configurations as plain values."""
    lines = []
    for key in [*before, *(k for k in after if k not in before)]:
        old, new = before.get(key, "(not there)"), after.get(key, "(not there)")
        if _sections(old) and _sections(new) and len(old) == len(new):
            old, new = (dict(enumerate(sections)) for sections in (old, new))
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {json.dumps(old)} -> {json.dumps(new)}")
    return lines


def _sections(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, Mapping) for entry in value)


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such training configuration; expected a YAML file") from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder; expected a YAML file with a training configuration") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path}: expected sections such as 'data:' and 'run:', found {type(values).__name__}")
    return values


def _apply(values: dict[str, Any], change: str) -> None:
    import yaml

    key, equals, text = change.partition("=")
    if not equals or not key:
        raise UsageError(f"{change!r} is no change of the configuration; expected key=value, such as run.batch=16")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UsageError(f"{change!r}: the value is not YAML") from None
    if isinstance(value, str):
        value = _number(value)
    *parents, last = key.split(".")
    place: Any = values
    for name in parents:
        place = _descend(place, name, change)
    if isinstance(place, list):
        place[_index(place, last, change)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise UsageError(f"{change!r}: there is nothing below {'.'.join(parents)!r}")


def _number(text: str) -> str | float:
    """Read 1e-3, which YAML 1.1 takes for a word because it has no point."""
    return float(text) if re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", text) else text


def _descend(place: Any, name: str, change: str) -> Any:
    if isinstance(place, list):
        return place[_index(place, name, change)]
    if not isinstance(place, dict):
        raise UsageError(f"{change!r}: there is nothing below {name!r}")
    if place.get(name) is None:
        place[name] = {}
    return place[name]


def _index(place: list[Any], name: str, change: str) -> int:
    if not name.isdigit() or int(name) >= len(place):
        raise UsageError(f"{change!r}: {name!r} is no entry of a list of {len(place)}; expected 0 to {len(place) - 1}")
    return int(name)


def _explanations(errors: Sequence[Any]) -> list[str]:
    """Say each mistake once: pydantic repeats some for the list around them, and for every type a value may have."""
    places = [error["loc"] for error in errors]
    followed = {place[:i] for place in places for i in range(len(place))}
    return list(dict.fromkeys(_explain(error) for error in errors if error["loc"] not in followed))


def _explain(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"]) or "the configuration"
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _fields_at(error["loc"][:-1])
        return f"unknown key {where!r}; {nearest(str(error['loc'][-1]), known)}"
    if error["type"] == "missing":
        return f"{where} is missing"
    if error["type"] in ("model_type", "dataclass_type"):
        return f"{where} is {error['input']!r}; expected keys: {', '.join(_fields_at(error['loc']))}"
    if error["type"] == "too_short":
        return f"{where}: {error['input']!r} is not allowed: expected at least 1 entry"
    return f"{where}: {error['input']!r} is not allowed: {error['msg'].removeprefix('Value error, ')}"


def _fields_at(location: Iterable[Any]) -> list[str]:
    """Names of the fields of the section at this place of the tree."""
    section: type = TrainConfig
    for part in location:
        annotation = get_type_hints(section).get(part) if isinstance(part, str) else None
        section = _section_in(annotation) or section
    if dataclasses.is_dataclass(section):
        return [field.name for field in dataclasses.fields(section)]
    return list(section.model_fields) if issubclass(section, BaseModel) else []


def _section_in(annotation: Any) -> type | None:
    if isinstance(annotation, type) and (issubclass(annotation, BaseModel) or dataclasses.is_dataclass(annotation)):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_in(part)) is not None), None)
