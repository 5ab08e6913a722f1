"""Frames whose planes end where their memory ends, at a chosen pitch: reading a byte too much is a fault."""

import numpy as np
from random_frames import random_plane

from retinastream.types import PIXEL_FORMATS, Frame


def tight_plane(values, pitch):
    """The same samples with ``pitch`` bytes from row to row, and nothing behind the last sample."""
    row_bytes = values[0].nbytes
    memory = np.zeros(pitch * (len(values) - 1) + row_bytes, np.uint8)
    plane = np.lib.stride_tricks.as_strided(
        memory.view(values.dtype) if len(memory) % values.itemsize == 0 else memory,
        values.shape,
        (pitch, *np.ascontiguousarray(values).strides[1:]),
    )
    plane[...] = values
    return plane


def tight_frame(name, width, height, *, pitch_of=lambda row_bytes: row_bytes, seed=0, content="noise", **settings):
    """``pitch_of`` gets the bytes of a row and returns the pitch, a multiple of the sample's bytes."""
    rng = np.random.default_rng(seed)
    fmt = PIXEL_FORMATS[name]
    planes = []
    for shape in fmt.plane_shapes(width, height):
        values = np.ascontiguousarray(random_plane(rng, shape, fmt, content, 0))
        planes.append(tight_plane(values, pitch_of(values[0].nbytes)))
    return Frame(tuple(planes), fmt, width, height, **settings)
