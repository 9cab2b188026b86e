"""Damaged and hostile GGUF files: one clear error each, and memory in proportion to the file."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forge.builtin.gguf import GGUFLoader
from forge.errors import ForgeError, ModelFileError, UnsupportedModel

HUGE = 2**64 - 1


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def refused(path: Path, message: str, error: type[ForgeError] = ModelFileError) -> None:
    with pytest.raises(error, match=message) as caught:
        GGUFLoader().open(path)
    assert str(path) in caught.value.message


def test_a_file_of_another_kind_is_refused_by_its_first_bytes(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    refused(path, "not a GGUF file: it begins with b'version '")


@pytest.mark.parametrize(
    ("version", "message", "error"),
    [
        (1, "GGUF version 1; versions 2 and 3 are read", UnsupportedModel),
        (4, "GGUF version 4", UnsupportedModel),
        (3 << 24, "big-endian", UnsupportedModel),
        (0, "version is 0", ModelFileError),
    ],
)
def test_versions_and_byte_orders_that_are_not_read_are_named(
    version: int, message: str, error: type[ForgeError], raw_gguf: Any
) -> None:
    refused(raw_gguf.write(version=version), message, error)


def test_a_big_endian_file_of_the_reference_writer_is_named(write_gguf: Any) -> None:
    refused(write_gguf({}, endianess=gguf.GGUFEndian.BIG), "big-endian", UnsupportedModel)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([("a", 4, u32(1)), ("a", 4, u32(2))], "metadata entry 3 of 3 repeats the key 'a'"),
        ([("a", 13, b"")], "metadata key 'a' has the value type 13"),
        ([("a", 8, u64(HUGE))], "metadata key 'a' has a string .* ends beyond the file"),
        ([("a", 8, u64(2) + b"\xff\xfe")], "metadata key 'a' has a string .* isn't UTF-8"),
        ([(b"\xff", 4, u32(1))], "metadata entry 2 of 2 has a string .* isn't UTF-8"),
        ([("k" * 70000, 4, u32(1))], "has a key of 70000 characters"),
        ([("a", 9, u32(5) + u64(HUGE))], f"metadata key 'a' wants {HUGE} numbers"),
        ([("a", 9, u32(8) + u64(HUGE))], f"metadata key 'a' wants {HUGE} strings"),
        ([("a", 9, u32(9) + u64(HUGE))], f"metadata key 'a' wants {HUGE} arrays"),
        ([("a", 9, u32(8) + u64(2) + u64(1) + b"x" + u64(99))], r"'a' has a string \(number 2 of 2\)"),
        ([("a", 9, u32(13) + u64(1))], "metadata key 'a' has the value type 13"),
        ([("a", 9, (u32(9) + u64(1)) * 9)], "metadata key 'a' has arrays nested deeper than 4"),
        ([("general.alignment", 4, u32(24))], "general.alignment is '24', not a power of two"),
        ([("general.alignment", 4, u32(0))], "general.alignment is '0', not a power of two"),
        ([("general.alignment", 8, u64(2) + b"32")], "general.alignment is '32', not"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_metadata_is_named(entries: list[tuple[Any, int, bytes]], message: str, raw_gguf: Any) -> None:
    refused(raw_gguf.write([raw_gguf.architecture, *(raw_gguf.entry(*entry) for entry in entries)]), message)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([("a", [8]), ("a", [8], 0, 32)], "tensor 2 of 2 repeats the name 'a'"),
        ([("a", [1] * 5)], "tensor 'a' has 5 dimensions"),
        ([("a", [], 0, 0, 2**32 - 1)], "tensor 'a' has 4294967295 dimensions"),
        ([("a", [4, 0])], r"tensor 'a' has no elements: its shape is \(0, 4\)"),
        ([("a", [2**32, 2**32])], "tensor 'a' has more elements than can be counted"),
        ([("a", [HUGE])], "tensor 'a' has more elements than can be counted"),
        ([("a", [2**40])], "tensor 'a' takes bytes .* and the file ends at"),
        ([("a", [33], 3)], "tensor 'a' has rows of 33, not a multiple of Q4_1's 32"),
        ([("a", [8], 0, 4)], "tensor 'a' begins at 4, not a multiple of 32"),
        ([("a", [8], 0, HUGE - 31)], "tensor 'a' takes bytes .* and the file ends at"),
        ([("a", [16]), ("b", [8], 0, 32)], "tensors 'a' and 'b' overlap"),
        ([("b", [8], 0, 32), ("a", [8]), ("c", [8], 0, 32)], "tensors 'b' and 'c' overlap"),
        ([("a", [8], 99)], "tensor 'a' has the number format 99, which isn't known"),
        ([(b"\xc3", [8])], "tensor 1 of 1 has a string .* isn't UTF-8"),
        ([("a\n" * 1000, [0])], r"tensor 'a\\n.*\\u2026.*\\n' has no elements"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_tensor_lists_are_named(tensors: list[tuple[Any, ...]], message: str, raw_gguf: Any) -> None:
    refused(raw_gguf.write(tensors=[raw_gguf.tensor(*tensor) for tensor in tensors], data=bytes(128)), message)


@pytest.mark.parametrize(
    ("counts", "message"),
    [((0, HUGE), f"header wants {HUGE} metadata entries"), ((HUGE, 1), f"tensor list wants {HUGE} tensors")],
)
def test_huge_counts_are_refused_before_anything_is_allocated(
    counts: tuple[int, int], message: str, raw_gguf: Any
) -> None:
    path = raw_gguf.write(counts=counts, data=bytes(100_000))
    GGUFLoader().accepts(path)
    tracemalloc.start()
    refused(path, message)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


def test_a_file_cut_off_anywhere_is_never_opened(small_gguf: Path) -> None:
    content = small_gguf.read_bytes()
    header = GGUFLoader().open(small_gguf).raw.tensors
    first = min(weight.offset for weight in header.values())
    for length in [*range(1, 400), *range(400, first, 97), *range(first, len(content) - 128, 1999)]:
        small_gguf.write_bytes(content[:length])
        refused(small_gguf, "truncated or damaged|not a GGUF file")


# ------------------------------------------------------------------------------------------------------------ mutation


@st.composite
def mutations(draw: st.DrawFn) -> list[tuple[str, float, int]]:
    """Up to four changes of a file: what, where (a fraction of the file, the header more often), how much."""
    kinds = st.sampled_from(["cut", "flip", "u64", "u32", "delete", "insert", "swap"])
    place = st.one_of(st.floats(0, 1), st.floats(0, 0.3), st.floats(0, 0.01))
    amounts = st.one_of(st.integers(0, 300), st.sampled_from([2**31, 2**32 - 1, 2**63, HUGE, 2**40, 2**62 // 18]))
    return draw(st.lists(st.tuples(kinds, place, amounts), min_size=1, max_size=4))


def mutate(content: bytes, changes: list[tuple[str, float, int]]) -> bytes:
    mutated = bytearray(content)
    for kind, place, amount in changes:
        at = int(place * len(mutated))
        match kind:
            case "cut":
                del mutated[at:]
            case "flip" if at < len(mutated):
                mutated[at] ^= 1 << amount % 8
            case "u64":
                mutated[at : at + 8] = u64(amount)
            case "u32":
                mutated[at : at + 4] = u32(amount & 0xFFFFFFFF)
            case "delete":
                del mutated[at : at + amount % 300]
            case "insert":
                mutated[at:at] = bytes([amount % 256]) * (amount % 300)
            case "swap":
                mutated[at : at + 16] = mutated[at : at + 16][::-1]
    return bytes(mutated)


def read_everything(path: Path) -> None:
    for weight in GGUFLoader().open(path).tensors.values():
        if weight.encoding not in ("I8", "I16", "I32", "I64", "F64"):
            assert weight.dequantize().shape == weight.shape or weight.shape == ()
            assert weight.data.nbytes == weight.nbytes


@settings(max_examples=6000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=mutations())
def test_a_mutated_file_opens_whole_or_gives_one_of_our_errors(
    changes: list[tuple[str, float, int]], small_gguf: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mutated.gguf"
    content = mutate(small_gguf.read_bytes(), changes)
    path.write_bytes(content)
    read_everything(small_gguf)  # what is made once, such as tables of the IQ formats, isn't the mutant's doing
    message = ""
    tracemalloc.start()
    try:
        read_everything(path)
    except ForgeError as error:
        message = error.message
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 20 * len(content) + 2_000_000
    assert message.isprintable()
    assert len(message) < 1000
