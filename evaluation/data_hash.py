"""One hash for a labelled set: it changes with any label, any picture file, their names or their order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np

from retinastream.errors import InputError
from retinastream.evaluation.labelled_set import LabelledPicture, LabelledSet

_CHUNK = 1 << 20


def data_hash(found: LabelledSet, *, progress: Callable[[int, int], None] | None = None) -> str:
    """Return the sha256 (hexadecimal) over the labels of ``found``, as read, and the bytes of its picture files.

    It does not depend on the format of the labels, their path or the machine. Files are read in pieces; ``progress``
    gets (done, all) pictures. Raises InputError for a picture that cannot be read: run ``check_pictures`` before.
    """
    digest = hashlib.sha256()
    for done, picture in enumerate(found.pictures, start=1):
        digest.update(_labels(picture))
        digest.update(_file(picture))
        if progress is not None:
            progress(done, len(found))
    return digest.hexdigest()


def _labels(picture: LabelledPicture) -> bytes:
    digest = hashlib.sha256()
    digest.update(f"{picture.name}\0{picture.width}\0{picture.height}\0{len(picture)}\0".encode())
    # One NaN of the many that there are, so that equal labels have equal bytes; -0.0 likewise.
    for array in (picture.boxes, np.where(np.isnan(picture.landmarks), np.nan, picture.landmarks), picture.scores):
        digest.update(np.ascontiguousarray(array + np.float32(0), "<f4").tobytes())
    digest.update(np.ascontiguousarray(picture.ignore, np.uint8).tobytes())
    return digest.digest()


def _file(picture: LabelledPicture) -> bytes:
    digest = hashlib.sha256()
    try:
        with picture.path.open("rb") as file:
            while piece := file.read(_CHUNK):
                digest.update(piece)
    except OSError as error:
        raise InputError(
            f"{picture.path} cannot be read ({error.strerror or error}); check the set with check_pictures first"
        ) from error
    return digest.digest()
