"""The header of a SafeTensors file: where which tensor lies. For the SafeTensors loader.

Parsed here rather than by the `safetensors` package, because the package copies every tensor that it hands to numpy,
knows no bfloat16 there, and gives no view of the mapped file. The checks are the reference implementation's
(https://github.com/huggingface/safetensors#format): the tensors fill the data section without holes or overlaps.
"""

from __future__ import annotations

import math
from typing import Any

from forge.builtin.json_file import MAX_JSON_BYTES, decode, parse_object
from forge.builtin.mapped import MappedFile, MappedWeight, shown
from forge.errors import UnsupportedModel

ITEM_BYTES = {
    "F32": 4, "F16": 2, "BF16": 2,
    "BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""Bytes an element. The first three are weights, by the same names as in GGUF. The others may stand beside them
(position tables, counters); reading those as weights is what is refused."""

PACKED = frozenset({"F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2"})
"""Number formats that need scales from elsewhere to mean anything; none of them is served."""

MAX_DIMS = 16
MAX_ELEMENTS = 1 << 59
"""Beyond it sizes in bytes leave 64 bits; a shape can be large and empty at once."""


def read_header(file: MappedFile) -> dict[str, MappedWeight]:
    """The tensors of a file, by name.

    Errors: `ModelFileError` that names the file and the tensor at fault; `UnsupportedModel` for number formats that
    aren't served.
    """
    length = int.from_bytes(file.map[:8], "little")
    if file.size < 8 or length > file.size - 8:
        raise file.damaged(
            f"a header of {length} bytes is announced, and the file has {file.size}: truncated or damaged"
        )
    if length > MAX_JSON_BYTES:
        raise file.damaged(f"a header of {length} bytes is announced; {MAX_JSON_BYTES} are allowed")
    if file.map[8:9] != b"{":
        raise file.damaged(f"the header begins with {file.map[8:9]!r}, not with an opening brace")
    where = f"{file.path}: header"
    entries = parse_object(decode(file.map[8 : 8 + length], where), where)
    _check_metadata(file, entries.pop("__metadata__", {}))
    tensors = {name: _tensor(file, 8 + length, name, entry) for name, entry in entries.items()}
    end = 8 + length
    for weight in sorted(tensors.values(), key=lambda weight: (weight.offset, weight.nbytes)):
        if weight.offset != end:
            problem = "overlaps another one" if weight.offset < end else "leaves a hole before it"
            raise file.damaged(f"tensor {shown(weight.name)} {problem}: it begins at {weight.offset}, not at {end}")
        end += weight.nbytes
    if end != file.size:
        raise file.damaged(f"the tensors end at byte {end}, and the file at {file.size}: truncated or damaged")
    return tensors


def _check_metadata(file: MappedFile, metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise file.damaged("__metadata__ isn't an object of strings")


def _tensor(file: MappedFile, data_start: int, name: str, entry: Any) -> MappedWeight:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise file.damaged(f"tensor {shown(name)} isn't described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise file.damaged(f"tensor {shown(name)} has a shape or data_offsets that aren't lists of counts")
    if not isinstance(dtype, str):
        raise file.damaged(f"tensor {shown(name)} has a dtype that isn't a name")
    if dtype in PACKED:
        raise UnsupportedModel(f"{file.path}: tensor {shown(name)} is {dtype}, which isn't supported")
    if dtype not in ITEM_BYTES:
        raise file.damaged(f"tensor {shown(name)} has the dtype {shown(dtype)}, which isn't known")
    if len(shape) > MAX_DIMS or math.prod(n or 1 for n in shape) >= MAX_ELEMENTS:
        raise file.damaged(f"tensor {shown(name)} has a shape of {len(shape)} dimensions that no memory could hold")
    weight = MappedWeight(name, tuple(shape), dtype, file, data_start + offsets[0], 1, ITEM_BYTES[dtype])
    if offsets[1] - offsets[0] != weight.nbytes:
        raise file.damaged(
            f"tensor {shown(name)} is {dtype} {shown(str(shape))}, {weight.nbytes} bytes, and takes {offsets}"
        )
    return weight


def _counts(value: Any) -> bool:
    """Whether this is a list of non-negative integers that fit 64 bits."""
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in value)
