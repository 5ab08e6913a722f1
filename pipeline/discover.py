"""From what a person typed (files, directories, globs, numbered sequences) to the inputs of a run."""

from __future__ import annotations

import difflib
import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from retinastream.errors import InputError, RetinastreamError, UsageError
from retinastream.pipeline.container import check_file, is_address
from retinastream.pipeline.images import PICTURE_EXTENSIONS, ImageSet
from retinastream.pipeline.listing import VIDEO_EXTENSIONS, expand_sequence, is_sequence, media_files, natural_key
from retinastream.pipeline.source import Source
from retinastream.pipeline.video import open_video


@dataclass(frozen=True, slots=True)
class Input:
    """One thing to read: a video file, or a set of pictures; ``name`` is for people and the base of output names."""

    kind: Literal["video", "images"]
    paths: tuple[Path, ...]
    name: str

    def open(
        self,
        *,
        start: float | None = None,
        end: float | None = None,
        stride: int = 1,
        max_frames: int | None = None,
        threads: int = 0,
    ) -> Source:
        """Open it with the settings of ``open_video``; pictures have no times, so ``start`` and ``end`` are refused.

        Raises UsageError and InputError as ``open_video`` and ``ImageSet`` do.
        """
        if self.kind == "video":
            return open_video(
                self.paths[0], start=start, end=end, stride=stride, max_frames=max_frames, threads=threads
            )
        if start is not None or end is not None:
            raise UsageError(
                f"{self.name}: start and end are times, which pictures do not have; use stride and max_frames"
            )
        return ImageSet(self.paths, name=self.name, stride=stride, max_frames=max_frames)


@dataclass(slots=True)
class Discovery:
    """What was found: inputs in the order of the arguments, what could not be found, and remarks for a person."""

    inputs: list[Input] = field(default_factory=list)
    failures: list[tuple[str, RetinastreamError]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Found:
    """A file and the sequence it belongs to; without one, pictures are grouped by their directory."""

    path: Path
    sequence: str | None = None


def discover(arguments: Sequence[str | os.PathLike[str]], *, recursive: bool = False) -> Discovery:
    """Resolve paths, directories, globs and ``%04d`` sequences into inputs; nothing raises, problems are ``failures``.

    A name that exists is taken literally, whatever characters it holds. Videos are inputs of their own; pictures of the
    same directory (and of the same sequence) are one. The same file given twice is read once, with a note.
    """
    result = Discovery()
    found: list[_Found] = []
    for argument in arguments:
        text = os.fspath(argument)
        try:
            found += _resolve(text, recursive=recursive)
        except RetinastreamError as error:
            result.failures.append((text, error))
    result.inputs = list(_group(_without_duplicates(found, result.notes)))
    return result


def _resolve(argument: str, *, recursive: bool) -> list[_Found]:
    """Return the files that one argument means. Raises InputError or UsageError where there are none."""
    path = Path(argument)
    if not argument:
        raise UsageError("an empty name was given; expected a file, a directory, a glob or a numbered sequence")
    if os.path.lexists(path):
        return _directory(path, recursive=recursive) if path.is_dir() else [_Found(check_file(path))]
    if is_address(argument):
        check_file(argument)
    if argument == "-":
        raise UsageError("standard input (-) is not supported; give the path of a file")
    if is_sequence(argument):
        return [_Found(file, argument) for file in expand_sequence(argument)]
    if glob.has_magic(argument):
        return _matches(argument, recursive=recursive)
    raise InputError(f"{argument}: no such file or directory{_hint(path)}")


def _directory(path: Path, *, recursive: bool) -> list[_Found]:
    files = media_files(path, recursive=recursive)
    if not files:
        where = "in it or below it" if recursive else "in it (its subdirectories are read with --recursive only)"
        raise InputError(
            f"{path}: no media {where}; looked for {' '.join(sorted(VIDEO_EXTENSIONS | PICTURE_EXTENSIONS))}"
        )
    return [_Found(file) for file in files]


def _matches(pattern: str, *, recursive: bool) -> list[_Found]:
    names = sorted(glob.glob(pattern, recursive=True), key=natural_key)  # noqa: PTH207 - Path.glob takes no absolute ones
    if not names:
        raise InputError(f"{pattern}: no file matches this pattern; quote it if the shell should not expand it")
    found: list[_Found] = []
    for name in names:
        path = Path(name)
        found += [_Found(file) for file in media_files(path, recursive=recursive)] if path.is_dir() else [_Found(path)]
    if not found:
        raise InputError(f"{pattern}: matches directories only, and there are no media in them")
    return found


def _hint(path: Path) -> str:
    try:
        siblings = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return f"; its directory {path.parent} does not exist either, check the path"
    near = difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.6)
    return f"; did you mean {path.parent / near[0]}?" if near else "; check the path"


def _without_duplicates(found: Iterable[_Found], notes: list[str]) -> Iterator[_Found]:
    seen: dict[str, Path] = {}
    for item in found:
        real = os.path.realpath(item.path)
        if real not in seen:
            seen[real] = item.path
            yield item
            continue
        same = f" (the same file as {seen[real]})" if seen[real] != item.path else ""
        line = f"{item.path} was given more than once{same}; it is read once"
        if line not in notes:
            notes.append(line)


def _group(found: Iterable[_Found]) -> Iterator[Input]:
    """Make each video an input and each directory's (or sequence's) pictures one, in order of first appearance."""
    groups: dict[tuple[str, str], list[Path]] = {}
    for item in found:
        if item.path.suffix.lower() not in PICTURE_EXTENSIONS:
            key = ("video", str(item.path))
        elif item.sequence is not None:
            key = ("sequence", item.sequence)
        else:
            key = ("directory", os.path.realpath(item.path.parent))
        groups.setdefault(key, []).append(item.path)
    for (kind, _), paths in groups.items():
        if kind == "video":
            yield Input("video", tuple(paths), paths[0].stem)
        else:
            yield Input("images", tuple(paths), _set_name(paths))


def _set_name(paths: Sequence[Path]) -> str:
    if len(paths) == 1:
        return paths[0].stem
    # resolve() because the directory may have been given as "." or ".."
    return paths[0].parent.resolve().name or "images"


def output_stems(inputs: Sequence[Input]) -> list[str]:
    """Return a different base name for each input, in their order: its own name wherever no other has the same.

    Equal names (also when they differ in case only) take their extension (``x_mp4``), else their directory (``a_x``),
    else both, and at last a number.
    """
    stems = [item.name for item in inputs]
    for way in (_name_and_extension, _directory_and_name, _directory_name_and_extension):
        clashing = _clashing(stems)
        proposed = [way(item) if i in clashing else stems[i] for i, item in enumerate(inputs)]
        still = _clashing(proposed)
        stems = [proposed[i] if i in clashing and i not in still else stem for i, stem in enumerate(stems)]
    return _numbered(stems)


def _name_and_extension(item: Input) -> str:
    return f"{item.name}_{item.paths[0].suffix.lstrip('.').lower()}"


def _directory_and_name(item: Input) -> str:
    return f"{item.paths[0].parent.resolve().name}_{item.name}"


def _directory_name_and_extension(item: Input) -> str:
    return f"{_directory_and_name(item)}_{item.paths[0].suffix.lstrip('.').lower()}"


def _clashing(stems: Sequence[str]) -> set[int]:
    places: dict[str, list[int]] = {}
    for i, stem in enumerate(stems):
        places.setdefault(stem.casefold(), []).append(i)
    return {i for same in places.values() if len(same) > 1 for i in same}


def _numbered(stems: Sequence[str]) -> list[str]:
    taken: set[str] = set()
    unique: list[str] = []
    for stem in stems:
        name, number = stem, 1
        while name.casefold() in taken:
            number += 1
            name = f"{stem}_{number}"
        taken.add(name.casefold())
        unique.append(name)
    return unique
