"""Command-line options made from a pydantic model, so that a setting is defined once."""

from __future__ import annotations

import inspect
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

_SHORT = {"model": "-m", "output": "-o", "size": "-s"}
_PANELS = {
    "Model": ("model", "spec", "size", "threshold", "iou", "max_faces", "clip", "classic_nms", "tta"),
    "Machine": (
        "device",
        "require",
        "runtime",
        "precision",
        "threads",
        "streams",
        "decode_threads",
        "batch",
        "cuda_graph",
        "torch_compile",
    ),
    "Selection": ("start", "end", "stride", "max_frames", "recursive"),
    "Output": ("output", "format", "annotate", "overwrite"),
}


def parameters(model: type[BaseModel]) -> list[inspect.Parameter]:
    """One keyword parameter per field; not given means None, so that defaults stay with the model."""
    return [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(name, field))
        for name, field in model.model_fields.items()
    ]


def _annotation(name: str, field: FieldInfo) -> Any:
    flag = f"--{name.replace('_', '-')}"
    kind = _plain_type(field.annotation)
    names = [f"{flag}/--no-{name.replace('_', '-')}"] if kind is bool else [flag]
    names += [_SHORT[name]] if name in _SHORT else []
    panel = next((title for title, fields in _PANELS.items() if name in fields), None)
    default = field.default
    if isinstance(default, tuple):
        default = ",".join(default)
    # Escaped, because the help is read as markup, where a word in brackets is a style.
    shown = f" \\[default: {default}]" if default not in (None, "") and kind is not bool else ""
    option = typer.Option(
        *names,
        help=f"{field.description or ''}{shown}",
        rich_help_panel=panel,
        show_default=False,
        metavar=None if kind is bool else _metavar(kind),
    )
    return Annotated[kind | None, option]


def _plain_type(annotation: Any) -> Any:
    """Reduce a field's type to what a flag can take; the model checks the value itself."""
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(a for a in get_args(annotation) if a is not type(None))
    if get_origin(annotation) is Literal:
        return str
    if get_origin(annotation) is tuple:
        return list[str]
    return annotation if annotation in (int, float, bool, str, Path) else str


def _metavar(kind: Any) -> str:
    return {int: "N", float: "X", Path: "DIR"}.get(kind, "TEXT")
