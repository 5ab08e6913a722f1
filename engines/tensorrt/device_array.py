"""What TensorRT needs to know of an array on a device: its shape, and where it begins."""

from __future__ import annotations

from typing import Any, Protocol


class DeviceArray(Protocol):
    """An array of a ``Device``, C-contiguous."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions."""
        ...


def address_of(array: DeviceArray) -> int:
    """Return the address of an array's first value."""
    owner: Any = array
    interface = getattr(owner, "__cuda_array_interface__", None) or owner.__array_interface__
    return int(interface["data"][0])
