"""What emulated threads read and write: global memory that is checked, shared memory in which races are found."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Vector = npt.NDArray[Any]


class RaceError(Exception):
    """Two warps used the same byte of shared memory, at least one of them writing, with no barrier between."""


class Global:
    """The bytes of some tensors at their addresses. An access of anything else is a `MemoryError`."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self.areas = [
            (x.data_ptr(), np.ctypeslib.as_array((ctypes.c_uint8 * _extent(x)).from_address(x.data_ptr())))
            for x in tensors
            if x.nbytes
        ]

    def load(self, addresses: Vector, count: int) -> Vector:
        """Bytes ``[lanes, count]``."""
        out = np.empty((len(addresses), count), np.uint8)
        for lanes, data, places in self._at(addresses, count):
            out[lanes] = data[places]
        return out

    def store(self, addresses: Vector, values: Vector) -> None:
        """Bytes ``[lanes, count]`` to where they belong."""
        for lanes, data, places in self._at(addresses, values.shape[1]):
            data[places] = values[lanes]

    def _at(self, addresses: Vector, count: int) -> Iterator[tuple[Vector, Vector, Vector]]:
        """(which lanes, bytes of their area, places in it ``[lanes, count]``) of an access."""
        if (addresses % count).any():
            raise MemoryError(f"an access of {count} bytes isn't aligned")
        left = np.ones(len(addresses), bool)
        for base, data in self.areas:
            lanes = left & (addresses >= base) & (addresses + count <= base + len(data))
            if lanes.any():
                yield lanes, data, (addresses[lanes] - base)[:, None] + np.arange(count)
                left &= ~lanes
        if left.any():
            raise MemoryError(f"{count} bytes at {int(addresses[left][0]):#x} are in none of the tensors")


def _extent(x: torch.Tensor) -> int:
    """Bytes from a tensor's first number to the end of its last."""
    return int((1 + sum((size - 1) * step for size, step in zip(x.shape, x.stride()))) * x.itemsize)


class Shared:
    """A block's shared memory: garbage at first. It knows which warps have used each byte since the last barrier, and
    to which bytes asynchronous copies are on their way.

    Warps may write the same value to one place: Triton lets replicas of a number do that.
    """

    def __init__(self, nbytes: int) -> None:
        self.data = np.full(nbytes, 0xFF, np.uint8)
        self._readers, self._writers = np.zeros(nbytes, np.uint32), np.zeros(nbytes, np.uint32)
        self._coming = np.zeros(nbytes, bool)

    def barrier(self) -> None:
        """All threads have arrived: what was used before may be used by others."""
        self._readers[:] = 0
        self._writers[:] = 0

    def places(self, addresses: Vector, count: int) -> Vector:
        """Of an access ``[lanes, count]``."""
        if (addresses < 0).any() or (addresses + count > len(self.data)).any():
            raise MemoryError("an access is outside of shared memory")
        if (addresses % count).any():
            raise MemoryError(f"an access of {count} bytes isn't aligned")
        return np.asarray(addresses[:, None] + np.arange(count))

    def load(self, addresses: Vector, count: int, warps: Vector) -> Vector:
        """Bytes ``[lanes, count]``."""
        places = self.places(addresses, count)
        if self._coming[places].any():
            raise RaceError("shared memory is read before the copy to it was waited for")
        others = ~(np.uint32(1) << warps.astype(np.uint32))[:, None]
        if (self._writers[places] & others).any():
            raise RaceError("shared memory is read that another warp wrote, without a barrier")
        for warp in np.unique(warps):
            self._readers[places[warps == warp]] |= np.uint32(1 << int(warp))
        return np.asarray(self.data[places])

    def store(self, addresses: Vector, values: Vector, warps: Vector) -> None:
        """Bytes ``[lanes, count]`` to where they belong."""
        places = self.places(addresses, values.shape[1])
        for warp in np.unique(warps):
            own = warps == warp
            self._write(places[own], values[own], int(warp))

    def announce(self, addresses: Vector, count: int, warps: Vector) -> Vector:
        """An asynchronous copy begins to write to these places, which are returned."""
        places = self.places(addresses, count)
        others = ~(np.uint32(1) << warps.astype(np.uint32))[:, None]
        if ((self._writers[places] | self._readers[places]) & others).any():
            raise RaceError("a copy begins to overwrite what another warp uses, without a barrier")
        if self._coming[places].any():
            raise RaceError("two copies to the same place are on their way")
        self._coming[places] = True
        return places

    def arrive(self, places: Vector, values: Vector, warps: Vector) -> None:
        """An announced copy was waited for."""
        self._coming[places] = False
        for warp in np.unique(warps):
            own = warps == warp
            self._write(places[own], values[own], int(warp))

    def _write(self, places: Vector, values: Vector, warp: int) -> None:
        if self._coming[places].any():
            raise RaceError("shared memory is written while a copy to it is on its way")
        bit = np.uint32(1 << warp)
        used = (self._writers[places] | self._readers[places]) & ~bit != 0
        if (used & (self.data[places] != values)).any():
            raise RaceError("shared memory is overwritten that another warp uses, without a barrier")
        self._writers[places] |= bit
        self.data[places] = values
