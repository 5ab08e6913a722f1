"""Passive values of the fake: shapes and memory."""


class Dims:
    """Has a length and items, and is no tuple; as the real one, it is made from a list."""

    __slots__ = ("_sizes",)

    def __init__(self, shape=()):
        self._sizes = tuple(int(size) for size in shape)

    def __len__(self):
        return len(self._sizes)

    def __getitem__(self, index):
        return self._sizes[index]

    def __eq__(self, other):
        return self._sizes == tuple(other)

    def __hash__(self):
        return hash(self._sizes)

    def __repr__(self):
        return str(self._sizes)


class IHostMemory(bytes):
    """A buffer."""

    __slots__ = ()

    @property
    def nbytes(self):
        return len(self)


def value_classes():
    return {"Dims": Dims, "IHostMemory": IHostMemory}
