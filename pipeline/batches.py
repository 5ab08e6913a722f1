"""Grouping frames into batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from retinastream.types import Frame


def in_batches(frames: Iterable[Frame], size: int) -> Iterator[list[Frame]]:
    """Yield lists of up to ``size`` consecutive frames of one upright size, in order; none is kept back at the end."""
    group: list[Frame] = []
    items = iter(frames)
    try:
        for frame in items:
            if group and group[0].upright_size != frame.upright_size:
                yield group
                group = []
            group.append(frame)
            del frame
            if len(group) == size:
                full, group = group, []
                yield full
                del full
        if group:
            yield group
    finally:
        close = getattr(items, "close", None)
        if close is not None:
            close()
