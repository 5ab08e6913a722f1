"""The faces that the CUDA kernels of a backend find in outputs of a network."""

import numpy as np
from backends import address_on_device, check_all_written

from retinastream.kernels import cuda_faces
from retinastream.kernels.cuda_faces import FaceLimits, pass_structure, placed_structures, queue_faces
from retinastream.kernels.sizing import Placement


def placement_of(width, height, spec, scale=1.0):
    """A frame of this size at a scale, padded to the largest stride."""
    w, h = max(1, round(width * scale)), max(1, round(height * scale))
    padded = [-(-v // spec.max_stride) * spec.max_stride for v in (w, h)]
    return Placement(width, height, w, h, *padded)


def limits_for(spec, placements, **changes):
    """Limits that lose no key."""
    capacity = sum(spec.anchor_count(p.padded_height, p.padded_width) for p in placements)
    return FaceLimits(**({"capacity": capacity} | changes))


def faces_by_kernels(backend, spec, passes, *, threshold, limits, layout=None, frames=None):
    """Run all kernels over ``passes``, each (outputs, placement).

    ``frames`` say which item of every pass a frame is (see ``placed_structures``), by default the same of each.
    Returns rows (frames, max_faces, 16), counts (frames, 4) and all buffers. Every result is checked to be written.
    """
    there = [[backend.upload(v) for v in outputs] for outputs, _ in passes]
    structures = [
        pass_structure(
            spec,
            placement.padded_height,
            placement.padded_width,
            threshold,
            [address_on_device(v) for v in outputs],
            half=outputs[0].dtype == np.float16,
            number=number,
            layout=layout,
        )
        for number, (outputs, (_, placement)) in enumerate(zip(there, passes, strict=True))
    ]
    if frames is None:
        frames = [[(item, placement) for _, placement in passes] for item in range(len(passes[0][0][0]))]
    placed = backend.upload(placed_structures(frames).view(np.int32).reshape(len(frames), -1))
    buffers = {name: backend.empty(*declared) for name, declared in limits.buffers(len(frames)).items()}

    def queue():
        for name in ("lists", "ordered", "boxes", "alive", "overlap_bits"):
            backend.fill(buffers[name], 0xA5)
        counts = backend.download(buffers["counts"]).copy()
        counts[:, :2] = 0  # the others are written without having been read
        backend.write(buffers["counts"], counts)
        queue_faces(backend.launcher(), structures, placed, buffers, limits)

    rows, counts = check_all_written(backend, queue, buffers["rows"], buffers["counts"])
    return rows, counts, {name: backend.download(array) for name, array in buffers.items()}


def keys_of(buffers, frame=0):
    """Scores, passes and anchors of a frame's list of keys, from the best."""
    found = min(int(buffers["counts"][frame, cuda_faces.FOUND]), buffers["lists"].shape[1])
    keys = np.sort(buffers["lists"][frame, :found])
    ascending = ~(keys >> np.uint64(32)).astype(np.uint32)
    bits = np.where(ascending >> 31, ascending & np.uint32(0x7FFFFFFF), ~ascending)
    low = keys.astype(np.uint32)
    return bits.astype(np.uint32).view(np.float32), low >> 28, (low & np.uint32(0x0FFFFFFF)).astype(np.int64)
