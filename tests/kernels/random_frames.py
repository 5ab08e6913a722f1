"""Frames of any format with any content, their planes lying in wider buffers as decoders leave them."""

import numpy as np
from hypothesis import strategies as st

from retinastream.types import PIXEL_FORMATS, Frame

SIDES = st.integers(1, 70)
CONTENTS = ("noise", "extremes", "slopes")


def random_plane(rng, shape, fmt, content, row_padding):
    """A plane of this shape as a view into a buffer with ``row_padding`` further columns of garbage."""
    top = (1 << fmt.bits) - 1
    wide = (shape[0] + 1, shape[1] + row_padding, *shape[2:])
    if content == "noise":
        values = rng.integers(0, top + 1, wide)
    elif content == "extremes":
        values = rng.choice([0, top], wide)
    else:
        rows, columns = (np.arange(n) for n in wide[:2])
        values = (rows[:, None] * rng.integers(1, 9) + columns * rng.integers(1, 9)) * top // 512 % (top + 1)
        values = np.stack([values] * shape[2], -1) if len(shape) == 3 else values
    return (values << fmt.shift).astype(fmt.dtype)[: shape[0], : shape[1]]


def make_frame(name, width, height, *, seed=0, content="noise", row_padding=0, **settings):
    rng = np.random.default_rng(seed)
    fmt = PIXEL_FORMATS[name]
    planes = tuple(random_plane(rng, s, fmt, content, row_padding) for s in fmt.plane_shapes(width, height))
    return Frame(planes, fmt, width, height, **settings)


@st.composite
def frames(draw, sides=SIDES):
    return make_frame(
        draw(st.sampled_from(sorted(PIXEL_FORMATS))),
        draw(sides),
        draw(sides),
        seed=draw(st.integers(0, 2**32 - 1)),
        content=draw(st.sampled_from(CONTENTS)),
        row_padding=draw(st.sampled_from([0, 1, 7, 64])),
        rotation=draw(st.sampled_from([0, 90, 180, 270])),
        matrix=draw(st.sampled_from(["bt601", "bt709", "bt2020"])),
        full_range=draw(st.booleans()),
    )
