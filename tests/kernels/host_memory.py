"""Memory of a device that is none: NumPy arrays that know whose they are, poisoned when fresh and when freed.

A freed block is overwritten, and kept as long as work is queued that could still reach it: what is read from it then is
wrong in the same way every time, and nothing crashes.
"""

import numpy as np

FRESH, FREED, CANARY = 0xA5, 0xDE, 0xC3
ALIGNMENT, GUARD = 256, 64


class HostDeviceArray(np.ndarray):
    """Memory of a HostDevice. Only queued work may touch it; tests look into it after they have synchronised."""


class PinnedArray(np.ndarray):
    """Page-locked host memory of a HostDevice."""


class Memory:
    """One block with guards on both sides; the arrays over it keep it alive through their ``base``."""

    def __init__(self, owner, nbytes, *, pinned=False):
        self.owner = owner
        self.nbytes = nbytes
        self.pinned = pinned
        self._raw = np.full(nbytes + 2 * GUARD + ALIGNMENT, CANARY, np.uint8)
        self._start = -(self._raw.ctypes.data + GUARD) % ALIGNMENT + GUARD
        self.address = self._raw.ctypes.data + self._start
        self._payload[...] = FRESH
        self.__array_interface__ = {
            "data": (self.address, False),
            "shape": (nbytes,),
            "typestr": "|u1",
            "version": 3,
        }

    @property
    def _payload(self):
        return self._raw[self._start : self._start + self.nbytes]

    def array(self, shape, dtype):
        """The array over it."""
        kind = PinnedArray if self.pinned else HostDeviceArray
        whole = np.asarray(self)[: int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize]
        return whole.view(dtype).reshape(shape).view(kind)

    def damage(self):
        """What was written beside it, as a sentence, or None."""
        before, after = self._raw[: self._start], self._raw[self._start + self.nbytes :]
        if (before == CANARY).all() and (after == CANARY).all():
            return None
        return f"bytes beside a block of {self.nbytes} bytes of {self.owner.label} were overwritten"

    def __del__(self):
        if (damage := self.damage()) is not None:
            self.owner.faults.append(damage)
        self._payload[...] = FREED
        self.owner.bury(self.address, self.nbytes, self._raw, self.pinned)


def memory_of(array):
    """The block that an array lies in; None for memory of nobody's device, such as the result of a calculation."""
    while array is not None and not isinstance(array, Memory):
        array = getattr(array, "base", None)
    return array


def pointed_to(structure, blocks):
    """Those of the blocks that a structure has addresses of, at any multiple of 8 bytes."""
    content = structure.tobytes()
    words = np.unique(np.frombuffer(content[: len(content) // 8 * 8], np.uint64))
    blocks = sorted(blocks, key=lambda block: block.address)
    starts = np.array([block.address for block in blocks], np.uint64)
    for word, place in zip(words, np.searchsorted(starts, words, side="right") - 1, strict=True):
        if place >= 0 and int(word) < blocks[place].address + max(1, blocks[place].nbytes):
            yield blocks[place]


class Place:
    """Where an array lies, without keeping it alive: as a queued copy knows it."""

    def __init__(self, array):
        self._address, self._nbytes = array.ctypes.data, array.nbytes

    def bytes(self):
        interface = {"data": (self._address, False), "shape": (self._nbytes,), "typestr": "|u1", "version": 3}
        return np.asarray(type("Bytes", (), {"__array_interface__": interface})())
