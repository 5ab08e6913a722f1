"""Which files a run writes, under which names, and what must hold before the first is opened."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from retinastream.errors import RetinastreamError, UsageError
from retinastream.pipeline.sinks.coco import CocoSink
from retinastream.pipeline.sinks.csv import CsvSink
from retinastream.pipeline.sinks.jsonl import JsonlSink
from retinastream.pipeline.sinks.part_file import check_target, part_name
from retinastream.pipeline.sinks.sink import RunHeader, Sink
from retinastream.pipeline.sinks.wider import WiderSink
from retinastream.pipeline.source import Selection

FORMATS: dict[str, str] = {
    "jsonl": ".faces.jsonl",
    "csv": ".faces.csv",
    "wider": ".faces.wider.txt",
    "coco": ".faces.coco.json",
}
ANNOTATED = ".annotated"
_VIDEO = ".mp4"

_RECORD_SINKS: dict[str, Callable[..., Sink]] = {
    ".jsonl": JsonlSink,
    ".csv": CsvSink,
    ".txt": WiderSink,
    ".json": CocoSink,
}


def plan_outputs(
    stem: str, directory: Path, formats: Iterable[str], annotate: bool, kind: Literal["video", "images"]
) -> list[Path]:
    """Name the outputs of one input, in the order of ``formats``, the annotated video or folder last.

    ``<stem>.faces.jsonl``, ``.faces.csv``, ``.faces.wider.txt``, ``.faces.coco.json``, and ``<stem>.annotated.mp4`` for
    a video or the folder ``<stem>.annotated`` for pictures. Raises UsageError for an unknown format.
    """
    stem = stem.replace("/", "_") or "faces"
    names = []
    for name in dict.fromkeys(formats):
        if name not in FORMATS:
            near = get_close_matches(name, FORMATS, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UsageError(f"format {name!r} is unknown; {hint}Expected {', '.join(FORMATS)}")
        names.append(stem + FORMATS[name])
    if annotate:
        names.append(stem + ANNOTATED + (_VIDEO if kind == "video" else ""))
    return [directory / name for name in names]


def check_outputs(paths: Sequence[Path], inputs: Iterable[Path], *, overwrite: bool) -> None:
    """Refuse outputs that are an input, that occur twice, or that exist without ``overwrite``. Raises UsageError.

    Nothing is opened. ``inputs`` are all files that the run reads, also those of other outputs, and the model.
    """
    from retinastream.pipeline.sinks.images import check_folder

    read = {os.path.realpath(path): path for path in inputs}
    seen: set[str] = set()
    for path in paths:
        real = os.path.realpath(path)
        if real in seen:
            raise UsageError(f"the output {path} is named twice; give every output its own name")
        seen.add(real)
        for written in (path, part_name(path)):
            _refuse_input(written, path, read)
        if path.suffix == ANNOTATED:
            inside = next((p for r, p in read.items() if Path(r).is_relative_to(real)), None)
            if inside is not None:
                raise UsageError(f"the input {inside} lies in the output folder {path}; choose another folder")
            check_folder(path, overwrite=overwrite)
        else:
            check_target(path, overwrite=overwrite)


def open_sinks(
    paths: Sequence[Path],
    header: RunHeader,
    *,
    overwrite: bool = False,
    source_path: Path | None = None,
    inputs: Iterable[Path] = (),
    selection: Selection | None = None,
    **video: Any,
) -> list[Sink]:
    """Open an output for every path; its kind follows from the end of its name.

    ``.jsonl``, ``.csv``, ``.txt`` (WIDER FACE), ``.json`` (COCO), ``.mp4`` (annotated video) and ``.annotated`` (folder
    of annotated pictures). ``source_path`` is the video whose sound is copied, or the folder that picture names are
    relative to. ``inputs`` are further files that must not be written. ``selection`` says whether the whole source is
    read. ``video`` are settings of ``AnnotatedVideoSink``: encoder, crf, preset, threads.

    Raises UsageError for names that are not allowed and OutputError where one cannot be opened; none is then left.
    """
    read = [*inputs, *([] if source_path is None or source_path.is_dir() else [source_path])]
    for path in paths:
        _check_kind(path)
    check_outputs(paths, read, overwrite=overwrite)
    sinks: list[Sink] = []
    try:
        for path in paths:
            # One at a time: what is open when the next fails must be known.
            sink = _open(
                path,
                header,
                overwrite=overwrite,
                source_path=source_path,
                selection=selection or Selection(),
                video=video,
            )
            sinks.append(sink)
    except RetinastreamError:
        for sink in sinks:
            sink.abort()
            if sink.path.suffix != ANNOTATED:
                part_name(sink.path).unlink(missing_ok=True)
        raise
    return sinks


def _open(
    path: Path,
    header: RunHeader,
    *,
    overwrite: bool,
    source_path: Path | None,
    selection: Selection,
    video: dict[str, Any],
) -> Sink:
    # Imported here: OpenCV and PyAV are not needed for text.
    if path.suffix == ANNOTATED:
        from retinastream.pipeline.sinks.images import AnnotatedImagesSink

        return AnnotatedImagesSink(path, header, overwrite=overwrite, source_root=source_path)
    if path.suffix.lower() == _VIDEO:
        from retinastream.pipeline.sinks.video import AnnotatedVideoSink

        return AnnotatedVideoSink(
            path,
            header,
            overwrite=overwrite,
            source_path=source_path,
            from_start=not selection.start,
            to_end=selection.end is None and selection.max_frames is None,
            **video,
        )
    return _RECORD_SINKS[path.suffix.lower()](path, header, overwrite=overwrite)


def _check_kind(path: Path) -> None:
    if path.suffix == ANNOTATED or path.suffix.lower() in (*_RECORD_SINKS, _VIDEO):
        return
    raise UsageError(
        f"the output {path} has an ending that says no format; expected .jsonl, .csv, .txt (WIDER FACE), .json (COCO), "
        f".mp4 (annotated video) or {ANNOTATED} (folder of annotated pictures)"
    )


def _refuse_input(written: Path, path: Path, read: dict[str, Path]) -> None:
    """Raise UsageError when writing ``written`` would destroy an input, also through a link."""
    original = read.get(os.path.realpath(written))
    if original is None and written.exists():
        original = next((p for p in read.values() if p.exists() and p.samefile(written)), None)
    if original is not None:
        raise UsageError(f"the output {path} is the input {original}; choose another name for the output")
