"""The header of a GGUF file, version 2 or 3: metadata and where the tensors lie. For the GGUF loader.

The file is hostile until shown otherwise: every count and length is compared with what is left of the file before
anything is allocated or read, so that memory stays within a small multiple of the file's size. Knows nothing of what
the keys mean, but for ``general.alignment``. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from attrs import frozen
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from forge.builtin.mapped import MappedFile, MappedWeight, can_dequantize, shown
from forge.errors import ModelFileError, UnsupportedModel

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4
MAX_ARRAY_DEPTH = 4
MAX_KEY_LENGTH = 65535

NUMBERS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
"""The type codes of metadata values that are plain numbers, as numpy's dtypes."""
BOOL, STRING, ARRAY = 7, 8, 9

SMALLEST_ENTRY = 8 + 4 + 1
"""Bytes: the length of an empty key, a type, a value of one byte."""
SMALLEST_TENSOR = 8 + 4 + 4 + 8
"""Bytes: the length of an empty name, the number of dimensions, a type, an offset."""

NO_WEIGHTS = frozenset({"I8", "I16", "I32", "I64", "F64"})
"""Formats that tables beside the weights may have; reading them as weights is what is refused."""

_U64 = struct.Struct("<Q")


@frozen(eq=False)
class GGUFHeader:
    """What one file says. Arrays of numbers are read-only numpy arrays, of anything else lists; strings are str."""

    file: MappedFile
    version: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, MappedWeight]


def read_header(file: MappedFile) -> GGUFHeader:
    """Parse and check a file's header.

    Errors: `ModelFileError` that names the file and the key, tensor or byte at fault; `UnsupportedModel` for versions,
    byte orders and number formats that aren't served.
    """
    cursor = _Cursor(file)
    version = _version(cursor)
    tensor_count, entry_count = cursor.u64(), cursor.u64()
    cursor.need(entry_count, SMALLEST_ENTRY, "metadata entries")
    metadata: dict[str, Any] = {}
    for index in range(entry_count):
        cursor.where = f"metadata entry {index + 1} of {entry_count}"
        key = cursor.text()
        if len(key) > MAX_KEY_LENGTH:
            raise cursor.damaged(f"has a key of {len(key)} characters")
        if key in metadata:
            raise cursor.damaged(f"repeats the key {shown(key)}")
        cursor.where = f"metadata key {shown(key)}"
        metadata[key] = cursor.value(cursor.u32())
    cursor.where = "tensor list"
    cursor.need(tensor_count, SMALLEST_TENSOR, "tensors")
    return GGUFHeader(file, version, metadata, _tensors(cursor, tensor_count, _alignment(file, metadata)))


def _version(cursor: _Cursor) -> int:
    file = cursor.file
    if file.map[:4] != MAGIC:
        raise file.damaged(f"not a GGUF file: it begins with {file.map[:8]!r}, not with {MAGIC!r}")
    cursor.offset = 4
    version = cursor.u32()
    if version in VERSIONS:
        return version
    if version and version & 0xFFFF == 0:  # the format's own sign: the magic is the same in both byte orders
        raise UnsupportedModel(f"{file.path}: a big-endian GGUF file; only little-endian ones are read")
    if version == 0:
        raise file.damaged("the GGUF version is 0")
    raise UnsupportedModel(f"{file.path}: GGUF version {version}; versions 2 and 3 are read")


def _alignment(file: MappedFile, metadata: Mapping[str, Any]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise file.damaged(f"general.alignment is {shown(str(alignment))}, not a power of two")
    return alignment


def _tensors(cursor: _Cursor, count: int, alignment: int) -> dict[str, MappedWeight]:
    """Read the tensor list, then place its tensors: their offsets count from the end of the header."""
    listed: dict[str, tuple[tuple[int, ...], GGMLQuantizationType, int]] = {}
    for index in range(count):
        cursor.where = f"tensor {index + 1} of {count}"
        name = cursor.text()
        if name in listed:
            raise cursor.damaged(f"repeats the name {shown(name)}")
        cursor.where = f"tensor {shown(name)}"
        listed[name] = cursor.shape(), cursor.number_format(), cursor.u64()
    data_start = -(-cursor.offset // alignment) * alignment
    file, tensors = cursor.file, {}
    for name, (shape, number_format, offset) in listed.items():
        block_size, block_bytes = GGML_QUANT_SIZES[number_format]
        last = shape[-1] if shape else 1
        if last % block_size:
            raise file.damaged(
                f"tensor {shown(name)} has rows of {last}, not a multiple of {number_format.name}'s {block_size}"
            )
        if offset % alignment:
            raise file.damaged(f"tensor {shown(name)} begins at {offset}, not a multiple of {alignment}")
        weight = MappedWeight(name, shape, number_format.name, file, data_start + offset, block_size, block_bytes)
        if weight.offset + weight.nbytes > file.size:
            raise file.damaged(
                f"tensor {shown(name)} takes bytes {weight.offset} to {weight.offset + weight.nbytes}, "
                f"and the file ends at {file.size}: truncated or damaged"
            )
        tensors[name] = weight
    for before, after in pairwise(sorted(tensors.values(), key=lambda weight: weight.offset)):
        if before.offset + before.nbytes > after.offset:
            raise file.damaged(f"tensors {shown(before.name)} and {shown(after.name)} overlap")
    return tensors


class _Cursor:
    """Reads a file from front to back, and knows what it's reading for the sake of error messages."""

    def __init__(self, file: MappedFile) -> None:
        self.file = file
        self.offset = 0
        self.where = "header"

    def damaged(self, problem: str) -> ModelFileError:
        return self.file.damaged(f"{self.where} {problem}")

    def need(self, count: int, size: int, what: str) -> None:
        """Refuse a count of things of at least so many bytes each that can't be in the rest of the file."""
        if count * size > self.file.size - self.offset:
            raise self.damaged(
                f"wants {count} {what} at byte {self.offset}, and the file ends at {self.file.size}: "
                "truncated or damaged"
            )

    def numbers(self, dtype: str, count: int) -> npt.NDArray[Any]:
        self.need(count, np.dtype(dtype).itemsize, "numbers")
        array = np.frombuffer(self.file.map, dtype, count, self.offset) if count else np.empty(0, dtype)
        self.offset += array.nbytes
        return array

    def u32(self) -> int:
        return int(self.numbers("<u4", 1)[0])

    def u64(self) -> int:
        return int(self.numbers("<u8", 1)[0])

    def text(self) -> str:
        return self.texts(1)[0]

    def texts(self, count: int) -> list[str]:
        """Strings: each a length in bytes, 64 bits, and UTF-8. Vocabularies have 100,000 of them, so this loop is
        kept tight.

        Other bytes than UTF-8 are refused: the format forbids them, converters write none (byte tokens are spelled
        ``<0x0A>`` or in byte-level BPE's letters), and nothing that takes these strings could deal with them.
        """
        self.need(count, _U64.size, "strings")
        buffer, end, offset, unpack = self.file.map, self.file.size, self.offset, _U64.unpack_from
        texts = []
        for index in range(count):
            begin = offset + 8
            after = begin + unpack(buffer, offset)[0] if begin <= end else end + 1
            if after > end:
                raise self.damaged(
                    f"has a string (number {index + 1} of {count}) at byte {offset} that ends beyond the file's "
                    f"{end} bytes: truncated or damaged"
                )
            try:
                texts.append(str(buffer[begin:after], "utf-8"))
            except UnicodeDecodeError as error:
                raise self.damaged(
                    f"has a string (number {index + 1} of {count}) at byte {begin} that isn't UTF-8: {error.reason}"
                ) from error
            offset = after
        self.offset = offset
        return texts

    def value(self, code: int) -> Any:
        """A metadata value of the type with this code."""
        if code == ARRAY:
            return self.array(depth=1)
        values = self.values(code, 1)
        return values[0] if code == STRING else values[0].item()

    def values(self, code: int, count: int) -> Any:
        """So many values of a type that isn't an array."""
        if code == STRING:
            return self.texts(count)
        if code == BOOL:
            flags = self.numbers("<u1", count)
            if flags.size and flags.max() > 1:
                raise self.damaged(f"has a boolean of {flags.max()}, which is neither 0 nor 1")
            return flags.astype(np.bool_)
        if code in NUMBERS:
            return self.numbers(NUMBERS[code], count)
        raise self.damaged(f"has the value type {code}, which isn't known")

    def array(self, depth: int) -> Any:
        if depth > MAX_ARRAY_DEPTH:
            raise self.damaged(f"has arrays nested deeper than {MAX_ARRAY_DEPTH}")
        code, count = self.u32(), self.u64()
        if code == ARRAY:
            self.need(count, 12, "arrays")
            return [self.array(depth + 1) for _ in range(count)]
        values = self.values(code, count)
        if code == STRING:
            return values
        values = values.copy()  # aligned, and independent of the mapping
        values.setflags(write=False)
        return values

    def shape(self) -> tuple[int, ...]:
        """A tensor's dimensions; GGUF has the innermost one first."""
        dims = self.u32()
        if dims > MAX_DIMS:
            raise self.damaged(f"has {dims} dimensions, more than {MAX_DIMS}")
        shape = tuple(self.numbers("<u8", dims)[::-1].tolist())
        if 0 in shape:
            raise self.damaged(f"has no elements: its shape is {shape}")
        if math.prod(shape) >= 1 << 63:
            raise self.damaged(f"has more elements than can be counted: its shape is {shape}")
        return shape

    def number_format(self) -> GGMLQuantizationType:
        code = self.u32()
        try:
            number_format = GGMLQuantizationType(code)
        except ValueError as error:
            raise self.damaged(f"has the number format {code}, which isn't known") from error
        if number_format.name not in NO_WEIGHTS and not can_dequantize(number_format.name):
            raise UnsupportedModel(f"{self.file.path}: {self.where} is {number_format.name}, which can't be read")
        return number_format
