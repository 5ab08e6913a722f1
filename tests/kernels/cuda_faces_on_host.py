"""Random head maps, and the faces that the CUDA kernels, executed on the host, find in them."""

import numpy as np
from cuda_host import address_of, check_all_written, load

from retinastream.kernels import cuda_faces
from retinastream.kernels.cuda_faces import FaceLimits, pass_structure, placed_structures, queue_faces
from retinastream.kernels.sizing import Placement


class HostKernels:
    """The kernels of decode.cu and nms.cu as a ``Launch``; ``threads`` bounds the threads of their blocks."""

    def __init__(self, libraries=None, *, seed=0, threads=1024):
        self.libraries = libraries or [load("decode.cu"), load("nms.cu")]
        self.seed = seed
        self.threads = threads

    def __call__(self, name, grid, block, arguments):
        library = next(v for v in self.libraries if v.has(name))
        if block > self.threads and name.startswith("find_"):
            grid = (grid[0] * (block // self.threads), grid[1])  # each block reads as much less
        library.launch(name, grid, min(block, self.threads), arguments, seed=self.seed)


def placement_of(width, height, spec, scale=1.0):
    """A frame of this size at a scale, padded to the largest stride."""
    w, h = max(1, round(width * scale)), max(1, round(height * scale))
    padded = [-(-v // spec.max_stride) * spec.max_stride for v in (w, h)]
    return Placement(width, height, w, h, *padded)


def limits_for(spec, placements, **changes):
    """Limits that lose no key."""
    capacity = sum(spec.anchor_count(p.padded_height, p.padded_width) for p in placements)
    return FaceLimits(**({"capacity": capacity} | changes))


def faces_on_host(spec, passes, *, threshold, limits, launch=None, layout=None):
    """Run all kernels over ``passes``, each (outputs, placement) with all frames in its batch.

    Returns rows (frames, max_faces, 16), counts (frames, 4) and all buffers. Every result is checked to be written.
    """
    launch = launch or HostKernels()
    frames = len(passes[0][0][0])
    structures = [
        pass_structure(
            spec,
            placement.padded_height,
            placement.padded_width,
            threshold,
            [address_of(v) for v in outputs],
            half=outputs[0].dtype == np.float16,
            number=number,
            layout=layout,
        )
        for number, (outputs, placement) in enumerate(passes)
    ]
    placed = placed_structures([[(item, placement) for _, placement in passes] for item in range(frames)])
    buffers = {name: np.empty(shape, dtype) for name, (shape, dtype) in limits.buffers(frames).items()}

    def run():
        for name in ("lists", "ordered", "boxes", "alive", "overlap_bits"):
            buffers[name].view(np.uint8)[...] = 0xA5
        buffers["counts"][:, :2] = 0
        queue_faces(launch, structures, placed, buffers, limits)

    check_all_written(run, buffers["rows"], buffers["counts"])
    return buffers["rows"], buffers["counts"], buffers


def keys_of(buffers, frame=0):
    """Scores, passes and anchors of a frame's list of keys, from the best."""
    found = min(int(buffers["counts"][frame, cuda_faces.FOUND]), buffers["lists"].shape[1])
    keys = np.sort(buffers["lists"][frame, :found])
    ascending = ~(keys >> np.uint64(32)).astype(np.uint32)
    bits = np.where(ascending >> 31, ascending & np.uint32(0x7FFFFFFF), ~ascending)
    low = keys.astype(np.uint32)
    return bits.astype(np.uint32).view(np.float32), low >> 28, (low & np.uint32(0x0FFFFFFF)).astype(np.int64)
