"""Index arithmetic of the face kernels where 32 bits would not do: head maps of more than 2^31 values."""

import mmap
import sys

import numpy as np
import pytest
from cuda_host import load
from numpy.testing import assert_allclose

from retinastream.kernels.cuda_faces import FACES, FOUND, FaceLimits, pass_structure, placed_structures, queue_faces
from retinastream.kernels.cuda_launch import KERNELS
from retinastream.kernels.sizing import Placement
from retinastream.models.spec import DetectorSpec

SPEC, SIDE, ITEMS = DetectorSpec(), 16384, 40
_MAP_NORESERVE = 0x4000  # of x86 and ARM; not every Python has a name for it
_SOURCE_OF = {kernel: source for source, kernels in KERNELS.items() for kernel in kernels}


def zeros(shape, dtype):
    """Zeros that take no memory until they are written to."""
    nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if sys.platform != "linux":
        pytest.skip("memory is promised without being there in Linux's way")
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    return np.frombuffer(mmap.mmap(-1, nbytes, flags=flags), dtype).reshape(shape)


def launch(name, grid, block, arguments):
    load(_SOURCE_OF[name]).launch(name, grid, block, arguments)


def maps_with_a_face(layout, offsets):
    """Outputs of a network for ITEMS inputs; some have a face near the corner, moved by an offset."""
    (rows, columns), sizes = SPEC.feature_sizes(SIDE, SIDE)[0], len(SPEC.anchor_sizes[0])
    which, row, column = sizes - 1, rows - 2, columns - 2
    if layout == "fused":
        shapes = [
            (ITEMS, 16 * len(s), *f) for f, s in zip(SPEC.feature_sizes(SIDE, SIDE), SPEC.anchor_sizes, strict=True)
        ]
    else:
        shapes = [(ITEMS, SPEC.anchor_count(SIDE, SIDE), values) for values in (4, 2, 10)]
    maps = [zeros(shape, np.float16) for shape in shapes]
    for item, offset in offsets.items():
        if layout == "fused":
            at = maps[0][item, :, row, column]
            at[2 * which + 1] = 6
            at[2 * sizes + 4 * which] = at[6 * sizes + 10 * which] = offset
        else:
            anchor = (row * columns + column) * sizes + which
            maps[1][item, anchor, 1] = 0.75
            maps[0][item, anchor, 0] = maps[2][item, anchor, 0] = offset
    stride, size = SPEC.strides[0], SPEC.anchor_sizes[0][which]
    return maps, ((column + 0.5) * stride, (row + 0.5) * stride), size


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["fused", "classic"])
def test_a_face_of_the_last_of_many_large_inputs_is_found_where_it_is(layout):
    offsets = {0: -0.5, ITEMS - 1: 0.5}
    maps, (x, y), size = maps_with_a_face(layout, offsets)
    assert max(m.size for m in maps) > 1 << 31
    whole = Placement(SIDE, SIDE, SIDE, SIDE, SIDE, SIDE)
    placed = placed_structures([[(item, whole)] for item in offsets])
    structure = pass_structure(SPEC, SIDE, SIDE, 0.6, [m.ctypes.data for m in maps], half=True, layout=layout)
    limits = FaceLimits(SPEC.anchor_count(SIDE, SIDE), clip=False)
    buffers = {name: zeros(*declared) for name, declared in limits.buffers(len(offsets)).items()}
    queue_faces(launch, [structure], placed, buffers, limits)
    assert buffers["counts"][:, [FOUND, FACES]].tolist() == [[1, 1], [1, 1]]
    for face, offset in zip(buffers["rows"][:, 0], offsets.values(), strict=True):
        moved = x + offset * SPEC.variances[0] * size
        assert_allclose(face[:4], [moved - size / 2, y - size / 2, moved + size / 2, y + size / 2], atol=0.01)
        assert_allclose(face[5:7], [moved, y], atol=0.01)
