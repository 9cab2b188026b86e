"""Tensors in a read-only memory map, for the loaders: views, dequantised pieces, giving pages back to the system.

Knows number formats by GGUF's names for them, and nothing of any file's header.
"""

from __future__ import annotations

import functools
import io
import math
import mmap
import os
import stat
from pathlib import Path

import numpy as np
import numpy.typing as npt
from attrs import frozen
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from forge.errors import ModelFileError, UnsupportedModel
from forge.interfaces.loader import Weight

CHUNK_ELEMENTS = 1 << 16
"""Quantised blocks are turned into floats so many elements at a time: the intermediate arrays then stay in the cache,
and are small however large the tensor is."""


def open_regular(path: Path) -> io.BufferedReader:
    """Open a file for reading. Errors: `ModelFileError` for what is missing, unreadable or not a regular file (a
    named pipe would wait for ever).
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ModelFileError(f"{path}: a directory or special file, where a model file is wanted")
        return path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise _unreadable(path, error) from error


def is_there(path: Path) -> bool:
    """Whether something has this name. Errors: `ModelFileError` if that can't be found out."""
    try:
        return path.exists()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ModelFileError:
    return ModelFileError(f"{path}: can't be read: {getattr(error, 'strerror', None) or error}")


def shown(name: str) -> str:
    """A name from a file, quoted, escaped and shortened, fit for an error message."""
    return ascii(name if len(name) <= 100 else f"{name[:80]}…{name[-19:]}")


@frozen(eq=False)
class MappedFile:
    """A whole file as read-only bytes that the system reads when they're touched.

    The mapping lives as long as anything that was cut from `data`. It's shared with the page cache: several processes
    that open one file have it in memory once.
    """

    path: Path
    size: int
    map: mmap.mmap
    data: npt.NDArray[np.uint8]

    @classmethod
    def open(cls, path: Path) -> MappedFile:
        """Map a file. Errors: `ModelFileError` for what can't be read or is empty."""
        with open_regular(path) as file:
            try:
                size = os.fstat(file.fileno()).st_size
                if size == 0:
                    raise ModelFileError(f"{path}: the file is empty")
                mapping = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise ModelFileError(f"{path}: can't be mapped: {error}") from error
        return cls(path, size, mapping, np.frombuffer(mapping, dtype=np.uint8))

    def damaged(self, problem: str) -> ModelFileError:
        """The error for something wrong in this file."""
        return ModelFileError(f"{self.path}: {problem}")

    def forget(self, start: int, stop: int) -> None:
        """Drop the pages that lie wholly within bytes ``start:stop`` from this process's memory, where systems can."""
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        last = stop // mmap.PAGESIZE * mmap.PAGESIZE
        if first < last and hasattr(mmap, "MADV_DONTNEED"):
            self.map.madvise(mmap.MADV_DONTNEED, first, last - first)


@frozen(eq=False)
class MappedWeight(Weight):
    """A tensor at byte `offset` of a mapped file, row-major, in blocks of `block_size` elements that take
    `block_bytes` each. The maker has checked that it lies inside the file and that a row is a whole number of blocks.
    """

    name: str
    shape: tuple[int, ...]
    encoding: str
    file: MappedFile
    offset: int
    block_size: int
    block_bytes: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) // self.block_size * self.block_bytes

    @property
    def data(self) -> npt.NDArray[np.uint8]:
        row_bytes = (self.shape[-1] if self.shape else 1) // self.block_size * self.block_bytes
        return self._bytes().reshape(math.prod(self.shape[:-1]), row_bytes)

    def dequantize(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.float32]:
        """See `Weight.dequantize`; a scalar counts as one entry. A vector may be cut within a block.

        Errors: `IndexError` for entries that aren't there; `UnsupportedModel` for numbers that aren't weights
        (integers, booleans, …).
        """
        entries = self.shape[0] if self.shape else 1
        stop = entries if stop is None else stop
        if not 0 <= start <= stop <= entries:
            raise IndexError(f"{self.name}: entries {start}:{stop} of {entries}")
        if not can_dequantize(self.encoding):
            raise UnsupportedModel(
                f"{self.file.path}: tensor {shown(self.name)} is {self.encoding}, which can't serve as a weight"
            )
        first, last = (n * math.prod(self.shape[1:]) for n in (start, stop))  # in elements
        block = first // self.block_size
        blocks = self._bytes().reshape(-1, self.block_bytes)[block : -(-last // self.block_size)]
        skipped = block * self.block_size
        values = dequantize(blocks, self.encoding).reshape(-1)[first - skipped : last - skipped]
        return values.reshape(stop - start, *self.shape[1:])

    def release(self) -> None:
        self.file.forget(self.offset, self.offset + self.nbytes)

    def _bytes(self) -> npt.NDArray[np.uint8]:
        return self.file.data[self.offset : self.offset + self.nbytes]


def dequantize(blocks: npt.NDArray[np.uint8], encoding: str) -> npt.NDArray[np.float32]:
    """Blocks ``[n, bytes a block]`` as float32 ``[n, elements a block]``; a new array, whatever the encoding."""
    # A file may hold scales that overflow or aren't numbers. That shows in the results; a warning would add nothing.
    with np.errstate(all="ignore"):
        match encoding:
            case "F32":
                return blocks.view("<f4").astype(np.float32)
            case "F16":
                return blocks.view("<f2").astype(np.float32)
            case "BF16":  # the upper half of a float32
                wide = blocks.view("<u2").astype(np.uint32)
                wide <<= 16
                return wide.view(np.float32)
        number_format = GGMLQuantizationType[encoding]
        block_size, _ = GGML_QUANT_SIZES[number_format]
        out = np.empty((len(blocks), block_size), np.float32)
        step = CHUNK_ELEMENTS // block_size
        for row in range(0, len(blocks), step):
            # `gguf` works on 16 of the given rows at a time: one long row is one vectorised call
            chunk = blocks[row : row + step].reshape(1, -1)
            out[row : row + step] = quants.dequantize(chunk, number_format).reshape(-1, block_size)
        return out


@functools.cache
def can_dequantize(encoding: str) -> bool:
    """Whether numbers in this encoding can become floats; for quantised ones that's what the `gguf` package can."""
    number_format = GGMLQuantizationType.__members__.get(encoding)
    if number_format is None:
        return False
    try:
        quants.dequantize(np.zeros((1, GGML_QUANT_SIZES[number_format][1]), np.uint8), number_format)
    except NotImplementedError:
        return False
    return True
