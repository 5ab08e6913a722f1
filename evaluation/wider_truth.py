"""The ground truth of WIDER FACE val: the .mat files that come with the official evaluation tools."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from retinastream.errors import InputError, MissingPackageError

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

SETTINGS = ("easy", "medium", "hard")


@dataclass(frozen=True, slots=True, eq=False)
class PictureTruth:
    """The faces of one picture: ``boxes`` (M, 4) of x, y, width, height in pixels of the picture.

    ``counted`` holds per setting the indices of the faces to be found; the other faces are ignored in that setting.
    """

    name: str
    boxes: Float64
    counted: Mapping[str, Int64]


@dataclass(frozen=True, slots=True, eq=False)
class EventTruth:
    """One of the 61 events of WIDER FACE (a folder such as ``0--Parade``) with its pictures, in official order."""

    name: str
    pictures: tuple[PictureTruth, ...]


@dataclass(frozen=True, slots=True, eq=False)
class GroundTruth:
    """What there is to be found, event by event."""

    events: tuple[EventTruth, ...]

    @property
    def pictures(self) -> int:
        """How many pictures all events have."""
        return sum(len(event.pictures) for event in self.events)

    @property
    def names(self) -> list[tuple[str, str]]:
        """Event and picture of every picture, in official order."""
        return [(event.name, picture.name) for event in self.events for picture in event.pictures]

    def faces(self, setting: str) -> int:
        """How many faces count in ``setting``, one of SETTINGS."""
        return sum(len(picture.counted[setting]) for event in self.events for picture in event.pictures)

    def only(self, names: Collection[tuple[str, str]]) -> GroundTruth:
        """Keep the pictures (event, picture) of ``names``; figures on a part cannot be compared with published ones."""
        kept = (replace(e, pictures=tuple(p for p in e.pictures if (e.name, p.name) in names)) for e in self.events)
        return GroundTruth(tuple(event for event in kept if event.pictures))


def read_ground_truth(folder: str | Path) -> GroundTruth:
    """Read the official ``wider_face_val.mat`` and ``wider_{easy,medium,hard}_val.mat`` of ``folder``.

    Needs the extra ``eval``. Raises MissingPackageError without it, InputError for a file that is missing, unreadable,
    of another kind, or that does not belong to the others.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(
            f"{folder} is not a folder; expected the one with wider_face_val.mat and the three lists of the settings"
        )
    path = folder / "wider_face_val.mat"
    names, pictures, boxes = _mat_lists(path, "event_list", "file_list", "face_bbx_list")
    kept: dict[str, list[Any]] = {}
    for setting in SETTINGS:
        setting_path = folder / f"wider_{setting}_val.mat"
        setting_pictures, kept[setting] = _mat_lists(setting_path, "file_list", "gt_list")
        if not _same_names(pictures, setting_pictures):
            raise InputError(f"{setting_path} lists other pictures than {path}; take the four files of one release")
    try:
        events = tuple(
            EventTruth(
                str(name[0]),
                tuple(
                    _picture_truth(str(picture[0]), truth, {s: kept[s][e][p] for s in SETTINGS})
                    for p, (picture, truth) in enumerate(zip(pictures[e], boxes[e], strict=True))
                ),
            )
            for e, name in enumerate(names)
        )
    except (IndexError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} and the lists of the settings in {folder} do not fit together ({error}); "
            "take the four ground-truth files of the official evaluation tools"
        ) from error
    return GroundTruth(events)


def _mat_lists(path: Path, *keys: str) -> list[list[Any]]:
    """The lists ``keys`` of a .mat file; those but ``event_list`` are nested, events of pictures."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise MissingPackageError(
            f"{path} is a MATLAB file; to read it scipy is needed: pip install 'retinastream[eval]'"
        ) from error
    try:
        # Opened here, as scipy tries other names for a path that does not exist.
        with path.open("rb") as file:
            content = loadmat(file, variable_names=keys)
        cells = [[entry[0] for entry in content[key]] for key in keys]
        # Events hold a column of cells, one per picture; the cell of an event's name holds the text itself.
        return [c if k == "event_list" else [[p[0] for p in e] for e in c] for k, c in zip(keys, cells, strict=True)]
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; it comes with the official WIDER FACE evaluation tools") from error
    except OSError as error:
        raise InputError(f"{path} could not be read: {error}") from error
    # scipy reports a damaged file by whatever its parser stumbles over, and v7.3 by NotImplementedError.
    except Exception as error:
        raise InputError(
            f"{path} is not a WIDER FACE ground truth with {', '.join(keys)} ({type(error).__name__}: {error}); "
            "take the file of the official evaluation tools"
        ) from error


def _same_names(first: list[Any], second: list[Any]) -> bool:
    return [[str(p[0]) for p in event] for event in first] == [[str(p[0]) for p in event] for event in second]


def _picture_truth(name: str, boxes: Any, kept: Mapping[str, Any]) -> PictureTruth:
    faces = np.asarray(boxes, np.float64).reshape(-1, 4)
    counted: dict[str, Int64] = {}
    for setting, indices in kept.items():
        # Widened before the 1 is taken off: the files keep them in the smallest unsigned type.
        counted[setting] = np.asarray(indices).reshape(-1).astype(np.int64) - 1
        if len(counted[setting]) and not 0 <= counted[setting].min() <= counted[setting].max() < len(faces):
            raise ValueError(f"{name}: {setting} names a face beyond the {len(faces)} of the picture")
    return PictureTruth(name, faces, counted)
