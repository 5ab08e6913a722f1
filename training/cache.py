"""Pictures decoded once: every size a training step may ask for lies in one flat buffer."""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from retinastream.errors import InputError, OutputError, RetinastreamError, SetupError, UsageError
from retinastream.pipeline.images import read_picture
from retinastream.training.picture_levels import SMALLEST_LEVEL, Int64, Layout, UInt8, fill_levels, lay_out, level_view

if TYPE_CHECKING:
    import torch

    from retinastream.evaluation.labelled_set import LabelledPicture

logger = logging.getLogger(__name__)

_MAGIC = b"retinastream pictures 1\n"
_PAGE = 4096
# Batches, gradients and the network need room beside the pictures.
_DEVICE_SHARE = 0.6
# Seconds after which a half-written file belongs to nobody.
_ABANDONED = 86400


class PictureCache:
    """Pictures as BGR uint8, with levels of half the size each, in memory or in a file that later runs reuse.

    ``pictures`` are decoded once and upright (EXIF orientation applied, as labels and detectors count). Level 0 is the
    picture with its long side limited to ``long_side``; every further level is the exact mean of 2x2 pixels of the one
    before (the last row or column counts twice where a side is odd), down to 16 px. A picture of w x h takes about
    3 * w * h * 4/3 = 4 * w * h bytes: 4,000 pictures of 576x400 take 3.7 GB, and 12,880 of 1024x768 40 GB, which with
    ``file`` need not be memory: the file is mapped.

    ``file`` is written beside its name and renamed when complete, and holds a digest of the pictures' bytes and of
    ``long_side``; a file made from something else, or an interrupted one, is made again. Raises InputError naming the
    picture that cannot be read or has another size than its labels say, OutputError where the file cannot be written,
    SetupError where memory does not suffice.
    """

    def __init__(
        self,
        pictures: Sequence[LabelledPicture],
        *,
        long_side: int = 1024,
        file: str | Path | None = None,
        threads: int = 2,
    ) -> None:
        if not pictures:
            raise UsageError("no pictures for the cache; give a labelled set with at least one")
        if long_side < SMALLEST_LEVEL:
            raise UsageError(f"long_side {long_side} of the cache is too small; allowed are {SMALLEST_LEVEL} and more")
        if threads < 1:
            raise UsageError(f"threads {threads} of the cache must be 1 or more")
        self.long_side = long_side
        self.file = None if file is None else Path(file)
        self._pictures = tuple(pictures)
        with ThreadPoolExecutor(threads, thread_name_prefix="picture-cache") as pool:
            self.sizes, self._layout, self._flat = self._open(pool)

    def _open(self, pool: ThreadPoolExecutor) -> tuple[Int64, Layout, UInt8]:
        file = self.file
        if file is None:
            sizes = self._sizes(pool)
            layout = lay_out(sizes, self.long_side)
            flat = _reserve(layout.total)
            self._fill(pool, sizes, layout, flat)
            return sizes, layout, flat
        key = self._key(pool)
        known = _read_sizes(file, key, len(self._pictures))
        sizes = self._sizes(pool) if known is None else known
        layout = lay_out(sizes, self.long_side)
        if known is not None and file.stat().st_size == _header_bytes(len(sizes)) + layout.total:
            logger.info("reusing %d decoded pictures of %s", len(sizes), file)
        else:
            self._write(pool, file, key, sizes, layout)
        # Copy on write: torch takes no read-only arrays, and nobody writes.
        return sizes, layout, np.memmap(file, np.uint8, "c", _header_bytes(len(sizes)), (layout.total,))

    def _sizes(self, pool: ThreadPoolExecutor) -> Int64:
        return np.array(list(pool.map(_size, self._pictures)), np.int64)

    def _key(self, pool: ThreadPoolExecutor) -> str:
        digest = hashlib.sha256(f"{self.long_side} {SMALLEST_LEVEL}".encode())
        for one in pool.map(_digest, self._pictures):
            digest.update(one)
        return digest.hexdigest()

    def _write(self, pool: ThreadPoolExecutor, file: Path, key: str, sizes: Int64, layout: Layout) -> None:
        # One name per process: those of a distributed run may all find the file missing.
        partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
        start = _header_bytes(len(sizes))
        header = _MAGIC + json.dumps({"key": key, "sizes": sizes.tolist()}).encode()
        try:
            _make_room(file, start + layout.total)
            with partial.open("wb") as out:
                out.write(header.ljust(start))
                out.truncate(start + layout.total)
            flat = np.memmap(partial, np.uint8, "r+", start, (layout.total,))
            self._fill(pool, sizes, layout, flat)
            flat.flush()
            del flat
            partial.replace(file)
        except RetinastreamError:
            raise
        except OSError as error:
            raise OutputError(
                f"cannot write the picture cache {file} ({error.strerror or error}); choose another place for it"
            ) from error
        finally:
            # Its folder may be what is missing; the error above says so.
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    def _fill(self, pool: ThreadPoolExecutor, sizes: Int64, layout: Layout, flat: UInt8) -> None:
        def fill_one(i: int) -> None:
            picture = read_picture(self._pictures[i].path)
            _check_size(self._pictures[i], picture, (int(sizes[i, 0]), int(sizes[i, 1])))
            fill_levels(picture, [level_view(flat, layout, i, level) for level in range(layout.counts[i])])

        list(pool.map(fill_one, range(len(self._pictures))))
        logger.info("decoded %d pictures into %.2f GB", len(sizes), layout.total / 1e9)

    def __len__(self) -> int:
        return len(self._pictures)

    @property
    def nbytes(self) -> int:
        """Bytes of all levels."""
        return self._layout.total

    @property
    def flat(self) -> UInt8:
        """All levels of all pictures, row by row, BGR."""
        return self._flat

    def size(self, i: int) -> tuple[int, int]:
        """(width, height) of a picture of the upright picture in pixels, before any limit."""
        return int(self.sizes[i, 0]), int(self.sizes[i, 1])

    def level_count(self, i: int) -> int:
        """How many levels a picture has."""
        return int(self._layout.counts[i])

    def level(self, i: int, level: int) -> UInt8:
        """One level of a picture: (height, width, 3) uint8 in BGR order, a view."""
        return level_view(self._flat, self._layout, i, level)

    def offset(self, i: int, level: int) -> int:
        """Where a level begins in ``flat``, in bytes."""
        return int(self._layout.offsets[i, level])

    def scale(self, i: int, level: int) -> tuple[float, float]:
        """How many pixels of a level lie along one pixel of the picture: (horizontally, vertically), exactly."""
        width, height = self._layout.widths[i, 0], self._layout.heights[i, 0]
        return float(width / self.sizes[i, 0]) / 2**level, float(height / self.sizes[i, 1]) / 2**level

    def fits(self, device: torch.device | str) -> bool:
        """Whether the pictures take no more than 60 % of the memory that is free on a CUDA device; True on the CPU."""
        import torch

        device = torch.device(device)
        if device.type != "cuda":
            return True
        free, _ = torch.cuda.mem_get_info(device)
        return self.nbytes <= _DEVICE_SHARE * free

    def to(self, device: torch.device | str) -> torch.Tensor:
        """Return ``flat`` as a uint8 tensor (nbytes,) on a device; on the CPU it shares the memory."""
        import torch

        return torch.from_numpy(self._flat).to(device)


def _reserve(total: int) -> UInt8:
    try:
        return np.empty(total, np.uint8)
    except MemoryError as error:
        raise SetupError(
            f"{total / 1e9:.1f} GB of decoded pictures do not fit in memory; keep them in a file, "
            "or at a smaller long side"
        ) from error


def _digest(picture: LabelledPicture) -> bytes:
    name = picture.name.encode()
    try:
        content = picture.path.read_bytes()
    except OSError as error:
        raise InputError(
            f"picture {picture.path} cannot be read ({error.strerror or error}); "
            "restore it or take it out of the labels"
        ) from error
    return hashlib.sha256(len(name).to_bytes(8, "little") + name + content).digest()


def _size(picture: LabelledPicture) -> list[int]:
    if picture.width is not None and picture.height is not None:
        return [picture.width, picture.height]
    height, width = read_picture(picture.path).shape[:2]
    return [width, height]


def _check_size(picture: LabelledPicture, image: UInt8, expected: tuple[int, int]) -> None:
    height, width = image.shape[:2]
    if (width, height) != expected:
        raise InputError(
            f"picture {picture.path} is {width}x{height}, but its labels are for {expected[0]}x{expected[1]}; "
            "correct the labels or restore the picture they were made for"
        )


def _header_bytes(count: int) -> int:
    """Room for the header of so many pictures, whole pages: a key and two sides of up to 10 digits each."""
    return -(-(len(_MAGIC) + 256 + 32 * count) // _PAGE) * _PAGE


def _read_sizes(file: Path, key: str, count: int) -> Int64 | None:
    """Read the sizes from a cache file, or None if it was not made of the pictures that ``key`` stands for."""
    try:
        with file.open("rb") as stream:
            start = stream.read(_header_bytes(count))
        header = json.loads(start.removeprefix(_MAGIC)) if start.startswith(_MAGIC) else None
    except (OSError, ValueError):
        return None
    if not isinstance(header, dict) or header.get("key") != key:
        return None
    return np.array(header["sizes"], np.int64)


def _make_room(file: Path, needed: int) -> None:
    """Make the folder, clear what interrupted runs left, and refuse a full disk: a mapped file would end in SIGBUS."""
    file.parent.mkdir(parents=True, exist_ok=True)
    for old in file.parent.glob(f"{glob.escape(file.name)}.*.partial"):
        if time.time() - old.stat().st_mtime > _ABANDONED:
            old.unlink(missing_ok=True)
    free = shutil.disk_usage(file.parent).free
    if free < needed:
        raise OutputError(
            f"the picture cache {file} needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; "
            "choose another place or a smaller long side"
        )
