"""Which pictures are compared with which, and whether they show the same person.

Read from a list of pairs (text of one's own, or the ``pairs.txt`` of Labeled Faces in the Wild), or made of a folder
that holds one folder of pictures per person.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from retinastream.errors import InputError, UsageError
from retinastream.pipeline.images import PICTURE_EXTENSIONS
from retinastream.pipeline.listing import media_files, natural_key

logger = logging.getLogger(__name__)

PairFormat = Literal["auto", "text", "lfw"]
Int32 = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]

PAIR_FORMATS: tuple[str, ...] = get_args(PairFormat)
# All pairs of 6,325 pictures: 180 MB of indices, and similarities of as much again.
MOST_PAIRS = 20_000_000
_SHOWN = 5
_TITLES = {"same", "issame", "is_same", "label", "match"}


@dataclass(frozen=True, slots=True, eq=False)
class FacePairs:
    """Pairs of pictures: pair k compares ``pictures[first[k]]`` with ``pictures[second[k]]``.

    ``names`` (one per picture) are how the list calls them; ``same`` (P,) says whether both show one person.
    ``duplicates`` counts pairs that were listed more than once and are kept once. ``path`` is where it came from.
    """

    path: Path
    names: tuple[str, ...]
    pictures: tuple[Path, ...]
    first: Int32
    second: Int32
    same: Flags
    duplicates: int = 0

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.same)


class _Pair(NamedTuple):
    line: int
    first: str
    second: str
    same: bool


def read_pairs(path: str | Path, *, images: str | Path | None = None, format: str = "auto") -> FacePairs:
    """Read the list of pairs at ``path``, or make all pairs of the folder at ``path``.

    A list of the format "text" has a line ``file1 file2 same`` per pair, with commas (CSV, quotes allowed), tabs or
    spaces between, and 1 or 0 for the same person or not; empty lines, lines that start with # and a line of titles are
    passed over. "lfw" is ``name n1 n2`` or ``name1 n1 name2 n2``, which means ``name/name_0001.jpg`` and so on. "auto"
    tells them apart. Files are relative to ``images``, by default the folder of the list.

    Raises UsageError for a format that is not known and for a folder with ``images``; InputError for a list that cannot
    be read (it names the line), pictures that do not exist, a pair of a picture with itself, a pair that is both the
    same and not, and a list without pairs of both kinds.
    """
    if format not in PAIR_FORMATS:
        raise UsageError(f"format {format!r} is not known; allowed are {', '.join(PAIR_FORMATS)}")
    path = Path(path).expanduser()
    if path.is_dir():
        if images is not None:
            raise UsageError(f"{path} is a folder of people and {images} was given for its pictures; leave that out")
        return pairs_of_people(path)
    lines = _lines(path)
    lfw = format == "lfw" or (format == "auto" and _looks_like_lfw(lines))
    base = path.parent if images is None else Path(images).expanduser()
    if not base.is_dir():
        raise InputError(f"{base}: no such folder; give the folder that the pictures of {path} lie in")
    pairs = list(_lfw_pairs(path, lines) if lfw else _text_pairs(path, lines))
    names = list(dict.fromkeys(name for pair in pairs for name in pair[1:3]))
    pictures = [_lfw_file(base, name) if lfw else base / name for name in names]
    _check_exist(path, pictures)
    return _assemble(path, pairs, names, pictures)


def pairs_of_people(folder: str | Path) -> FacePairs:
    """Pair every picture with every other of a folder that holds one folder of pictures per person.

    A person's pictures are those in the folder itself and below it. Raises InputError where there are not two people,
    or none with two pictures, and UsageError for more than 20 million pairs.
    """
    folder = Path(folder).expanduser()
    owners: list[int] = []
    pictures: list[Path] = []
    for person, entry in enumerate(_people(folder)):
        found = [p for p in media_files(entry, recursive=True) if p.suffix.lower() in PICTURE_EXTENSIONS]
        pictures += found
        owners += [person] * len(found)
    count = len(pictures)
    total = count * (count - 1) // 2
    if total > MOST_PAIRS:
        raise UsageError(
            f"{folder} has {count:,} pictures, which are {total:,} pairs, and at most {MOST_PAIRS:,} are compared; "
            "give a list of pairs, or fewer pictures"
        )
    first = np.repeat(np.arange(count, dtype=np.int32), np.arange(count - 1, -1, -1) if count else 0)
    second = np.concatenate([np.arange(i + 1, count, dtype=np.int32) for i in range(count)] or [np.zeros(0, np.int32)])
    person_of = np.asarray(owners, np.int32)
    same = person_of[first] == person_of[second]
    names = tuple(p.relative_to(folder).as_posix() for p in pictures)
    pairs = FacePairs(folder, names, tuple(pictures), first, second, same)
    if not (same.any() and not same.all()):
        raise InputError(
            f"{folder}: {count} pictures of {len(set(owners))} people were found in its folders; expected a folder per "
            "person, at least two people, and at least one of them with two pictures"
        )
    return pairs


def _people(folder: Path) -> list[Path]:
    loose = media_files(folder, recursive=False)
    if loose:
        logger.warning(
            "%s: %d files lie beside the folders of people (%s, ...) and are left out",
            folder,
            len(loose),
            loose[0].name,
        )
    people = [entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    return sorted(people, key=natural_key)


def _lines(path: Path) -> list[tuple[int, str]]:
    """Lines that say something, with their numbers."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such list of pairs, and no such folder of people") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not text in UTF-8 ({error.reason}); expected a list of pairs") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    numbered = [(n, line.strip()) for n, line in enumerate(text.splitlines(), 1)]
    return [(n, line) for n, line in numbered if line and not line.startswith("#")]


def _looks_like_lfw(lines: Sequence[tuple[int, str]]) -> bool:
    """LFW begins with one or two counts and then numbers pictures; in a list of files these would be names."""
    if not lines:
        return False
    head, *rest = (line.split() for _, line in lines[:2])
    return len(head) <= 2 and all(map(str.isdecimal, head)) and bool(rest) and _is_lfw_pair(rest[0])


def _is_lfw_pair(fields: Sequence[str]) -> bool:
    numbers = {3: (1, 2), 4: (1, 3)}.get(len(fields), ())
    return bool(numbers) and all(fields[i].isdecimal() for i in numbers)


def _lfw_pairs(path: Path, lines: Sequence[tuple[int, str]]) -> Iterator[_Pair]:
    counts = lines and all(map(str.isdecimal, lines[0][1].split()))
    for number, line in lines[1 if counts else 0 :]:
        fields = line.split()
        if not _is_lfw_pair(fields):
            raise InputError(
                f"{path}, line {number}: {line!r} is no pair of the LFW format; expected 'name n1 n2' or "
                "'name1 n1 name2 n2'"
            )
        other = fields[0] if len(fields) == 3 else fields[2]
        names = [f"{name}/{name}_{int(n):04d}" for name, n in ((fields[0], fields[1]), (other, fields[-1]))]
        yield _Pair(number, names[0], names[1], fields[0] == other)


def _lfw_file(base: Path, name: str) -> Path:
    """LFW is published as JPEG; aligned copies of it are often PNG."""
    wanted = base / f"{name}.jpg"
    others = (base / f"{name}{extension}" for extension in sorted(PICTURE_EXTENSIONS))
    return wanted if wanted.is_file() else next((p for p in others if p.is_file()), wanted)


def _text_pairs(path: Path, lines: Sequence[tuple[int, str]]) -> Iterator[_Pair]:
    for position, (number, line) in enumerate(lines):
        fields = _fields(line)
        if position == 0 and len(fields) == 3 and fields[2].lower() in _TITLES:
            continue
        if len(fields) != 3 or fields[2] not in ("0", "1") or not all(fields):
            raise InputError(
                f"{path}, line {number}: {line!r} is no pair; expected 'file1,file2,same' (or with tabs or spaces), "
                "where same is 1 for one person and 0 for two; names with spaces need commas or tabs"
            )
        yield _Pair(number, fields[0], fields[1], fields[2] == "1")


def _fields(line: str) -> list[str]:
    if "," in line:
        return [field.strip() for field in next(csv.reader([line], skipinitialspace=True))]
    return [field.strip() for field in line.split("\t")] if "\t" in line else line.split()


def _check_exist(path: Path, pictures: Sequence[Path]) -> None:
    missing = [picture for picture in pictures if not picture.is_file()]
    if missing:
        shown = ", ".join(map(str, missing[:_SHOWN])) + (", ..." if len(missing) > _SHOWN else "")
        raise InputError(
            f"{path}: {len(missing)} of its {len(pictures)} pictures do not exist: {shown}; give the folder that the "
            "list's names are relative to (--images)"
        )


def _assemble(path: Path, pairs: Sequence[_Pair], names: Sequence[str], pictures: Sequence[Path]) -> FacePairs:
    position = {name: i for i, name in enumerate(names)}
    seen: dict[tuple[int, int], _Pair] = {}
    for pair in pairs:
        a, b = position[pair.first], position[pair.second]
        if a == b:
            raise InputError(f"{path}, line {pair.line}: {pair.first} is compared with itself; expected two pictures")
        earlier = seen.setdefault((min(a, b), max(a, b)), pair)
        if earlier.same != pair.same:
            raise InputError(
                f"{path}, lines {earlier.line} and {pair.line} contradict each other on whether {pair.first} and "
                f"{pair.second} show one person; correct one of them"
            )
    kept = list(seen.values())
    same = np.array([pair.same for pair in kept], np.bool_)
    if not (same.any() and not same.all()):
        raise InputError(
            f"{path}: {int(same.sum())} pairs are of one person and {int((~same).sum())} of two; a verification needs "
            "at least one of each"
        )
    duplicates = len(pairs) - len(kept)
    if duplicates:
        logger.warning("%s: %d pairs are listed more than once; each is counted once", path, duplicates)
    first, second = (
        np.array([position[name] for name in side], np.int32) for side in zip(*[p[1:3] for p in kept], strict=True)
    )
    return FacePairs(path, tuple(names), tuple(pictures), first, second, same, duplicates)
