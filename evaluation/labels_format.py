"""Which format a label file is of, told by its content, and where its pictures usually lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retinastream.errors import InputError
from retinastream.evaluation.labels_raw import LabelSource

FORMATS = ("boxes", "pack", "coco", "voc", "wider")
_KINDS = {"boxes": "json", "pack": "json", "coco": "json", "voc": "xml", "wider": "text"}
_KIND_NAMES = {"json": "a JSON file", "xml": "a folder of XML files", "text": "a text file"}


def detect_format(source: LabelSource) -> str:
    """Return the one of FORMATS that ``source`` is. Raises InputError where it could be none, or more than one."""
    if source.kind == "xml":
        return "voc"
    fits, found = _text(source.content) if source.kind == "text" else _json(source.content)
    if len(fits) == 1:
        return fits[0]
    problem = f"could be of the formats {' and '.join(fits)}" if fits else "is of no format that is known"
    raise InputError(
        f"{source.path} {problem}: it is {found}; expected labels of one of {', '.join(FORMATS)}: name it with format="
    )


def check_kind(source: LabelSource, chosen: str) -> None:
    """Raise InputError where labels of the format ``chosen`` do not come in what ``source`` is."""
    if source.kind != _KINDS[chosen]:
        raise InputError(
            f"{source.path} is {_KIND_NAMES[source.kind]}, labels of format {chosen!r} are "
            f"{_KIND_NAMES[_KINDS[chosen]]}; name the right format, or leave it out"
        )


def picture_folders(path: Path, chosen: str) -> tuple[Path, ...]:
    """Return where the pictures of the labels at ``path`` may lie by the format's convention, the likeliest first."""
    beside = path.parent
    if chosen == "voc":
        return (path.parent / "JPEGImages", path.parent / "images", path / "images", path)
    usual: tuple[Path, ...] = (beside / "images",)
    if chosen == "coco":
        split = path.stem.removeprefix("instances_")
        usual += (beside.parent / split, beside.parent / "images" / split, beside.parent / "images")
    if chosen == "wider":
        split = "val" if "val" in path.stem else "train"
        usual += (beside.parent / f"WIDER_{split}" / "images",)
    return (*usual, beside)


def _json(content: Any) -> tuple[list[str], str]:
    if not isinstance(content, dict):
        return [], f"JSON, but a {type(content).__name__} and no object"
    if isinstance(content.get("images"), list) and isinstance(content.get("annotations"), list):
        return ["coco"], "a COCO file"
    entries = list(content.values())
    keys = {"boxes": "boxes", "pack": "faces"}
    if not entries or not all(isinstance(entry, dict) for entry in entries):
        return [], f"a JSON object of {', '.join(sorted(content)[:5]) or 'nothing'}"
    fits = [name for name, key in keys.items() if all(key in entry for entry in entries)]
    counts = ", ".join(f'{sum(key in e for e in entries)} with "{key}"' for key in keys.values())
    return fits, f"a JSON object of {len(entries)} entries, {counts}"


def _text(lines: list[str]) -> tuple[list[str], str]:
    filled = [line.strip() for line in lines if line.strip()][:2]
    if not filled:
        return [], "an empty file"
    if filled[0].startswith("#"):
        return ["wider"], "text with # lines"
    if len(filled) > 1 and filled[1].isdigit() and not filled[0].replace(" ", "").isdigit():
        return ["wider"], "text with paths and counts"
    return [], f"text that begins with {filled[0][:60]!r}"
