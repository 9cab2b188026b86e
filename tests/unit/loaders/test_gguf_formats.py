"""Number formats and metadata types of GGUF, against the `gguf` package's own reading."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forge.builtin.gguf import GGUFLoader
from forge.builtin.mapped import MappedFile, MappedWeight
from forge.errors import ModelFileError, UnsupportedModel
from forge.interfaces.loader import Checkpoint

NumberFormat = gguf.GGMLQuantizationType
Stored = Callable[..., npt.NDArray[np.uint8]]


def readable(number_format: gguf.GGMLQuantizationType) -> bool:
    block_bytes = gguf.GGML_QUANT_SIZES[number_format][1]
    try:
        gguf.quants.dequantize(np.zeros((1, block_bytes), np.uint8), number_format)
    except NotImplementedError:
        return False
    return True


READABLE = [number_format for number_format in NumberFormat if readable(number_format)]
TABLES = ["I8", "I16", "I32", "I64", "F64"]
UNREADABLE = [f.name for f in NumberFormat if f not in READABLE and f.name not in TABLES]


def open_gguf(path: Path) -> Checkpoint:
    return GGUFLoader().open(path)


def reference(data: npt.NDArray[np.uint8], number_format: gguf.GGMLQuantizationType) -> npt.NDArray[np.float32]:
    with np.errstate(all="ignore"):  # random bytes make scales that overflow
        return gguf.quants.dequantize(data, number_format)


def test_the_formats_that_users_ask_for_are_among_those_tested() -> None:
    wanted = "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K TQ1_0 TQ2_0 MXFP4 IQ2_XXS IQ2_XS IQ2_S "
    wanted += "IQ3_XXS IQ3_S IQ1_S IQ1_M IQ4_NL IQ4_XS"
    assert set(wanted.split()) <= {number_format.name for number_format in READABLE}


@pytest.mark.parametrize("number_format", READABLE, ids=lambda number_format: number_format.name)
def test_every_readable_format_dequantizes_as_the_gguf_package_does(
    number_format: gguf.GGMLQuantizationType, stored: Stored, write_gguf: Callable[..., Path]
) -> None:
    shapes = {"vector": (512,), "matrix": (7, 768), "experts": (3, 5, 256)}
    tensors = {name: (number_format, stored(number_format, shape)) for name, shape in shapes.items()}
    checkpoint = open_gguf(write_gguf(tensors))
    assert list(checkpoint.tensors) == list(shapes)
    for name, (_, data) in tensors.items():
        weight, expected = checkpoint.tensors[name], reference(data, number_format)
        assert (weight.name, weight.shape, weight.encoding) == (name, shapes[name], number_format.name)
        np.testing.assert_array_equal(weight.data, data.reshape(-1, data.shape[-1]))
        assert weight.nbytes == data.nbytes
        values = weight.dequantize()
        assert values.dtype == np.float32
        assert values.flags.c_contiguous
        np.testing.assert_array_equal(values, expected)
        for start, stop in [(0, 1), (1, 3), (len(expected) - 1, len(expected)), (2, 2)]:
            np.testing.assert_array_equal(weight.dequantize(start, stop), expected[start:stop])
        np.testing.assert_array_equal(weight.dequantize(2), expected[2:])


@given(data=st.data())
def test_any_piece_of_a_tensor_equals_that_piece_of_the_whole(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    name = data.draw(st.sampled_from(["F16", "BF16", "Q5_1", "Q8_0", "Q3_K"]))
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[NumberFormat[name]]
    outer = data.draw(st.lists(st.integers(1, 5), max_size=2))
    shape = (*outer, block_size * data.draw(st.integers(1, 3)))
    offset = data.draw(st.integers(0, 5))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    stored = random.integers(0, 256, (*shape[:-1], shape[-1] // block_size * block_bytes), np.uint8)
    path = tmp_path_factory.mktemp("pieces") / "bytes"
    path.write_bytes(bytes(offset) + stored.tobytes())
    weight = MappedWeight("w", shape, name, MappedFile.open(path), offset, block_size, block_bytes)
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, shape[0])] * 2)))
    expected = reference(stored, NumberFormat[name]).reshape(shape)
    np.testing.assert_array_equal(weight.dequantize(start, stop), expected[start:stop])


def test_a_tensor_larger_than_one_chunk_comes_out_whole(stored: Stored, write_gguf: Callable[..., Path]) -> None:
    data = stored(NumberFormat.Q4_1, (300, 1024))
    weight = open_gguf(write_gguf({"w": (NumberFormat.Q4_1, data)})).tensors["w"]
    np.testing.assert_array_equal(weight.dequantize(), reference(data, NumberFormat.Q4_1))


def test_what_a_caller_writes_into_floats_never_reaches_the_file(
    stored: Stored, write_gguf: Callable[..., Path]
) -> None:
    path = write_gguf({"w": (NumberFormat.F32, stored(NumberFormat.F32, (4, 8)))})
    before, weight = path.read_bytes(), open_gguf(path).tensors["w"]
    weight.dequantize()[:] = 7
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="read-only"):
        weight.data[0, 0] = 1


def test_a_released_tensor_can_be_read_again(stored: Stored, write_gguf: Callable[..., Path]) -> None:
    data = stored(NumberFormat.F32, (64, 1024))
    weight = open_gguf(write_gguf({"w": (NumberFormat.F32, data)})).tensors["w"]
    weight.dequantize()
    weight.release()
    np.testing.assert_array_equal(weight.dequantize(), data.view(np.float32))


def resident(weight: MappedWeight) -> int:
    """Bytes of the weight's file that are mapped into this process at present, from Linux's own account."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        if line.endswith(str(weight.file.path)):
            return 1024 * next(int(detail.split()[1]) for detail in lines if detail.startswith("Rss:"))
    raise AssertionError("the file isn't mapped")


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's account of mappings")
def test_releasing_gives_a_tensors_memory_back(stored: Stored, write_gguf: Callable[..., Path]) -> None:
    weight = open_gguf(write_gguf({"w": (NumberFormat.F32, stored(NumberFormat.F32, (1024, 1024)))})).tensors["w"]
    assert isinstance(weight, MappedWeight)
    weight.dequantize()
    assert resident(weight) >= weight.nbytes
    weight.release()
    assert resident(weight) < weight.nbytes // 16


def test_entries_that_are_not_there_are_an_error(stored: Stored, write_gguf: Callable[..., Path]) -> None:
    weight = open_gguf(write_gguf({"w": (NumberFormat.F32, stored(NumberFormat.F32, (4, 8)))})).tensors["w"]
    for start, stop in [(0, 5), (-1, 2), (3, 2)]:
        with pytest.raises(IndexError, match=f"w: entries {start}:{stop} of 4"):
            weight.dequantize(start, stop)


@pytest.mark.parametrize("name", TABLES)
def test_tables_that_are_not_weights_are_listed_and_refused_when_read(
    name: str, stored: Stored, write_gguf: Callable[..., Path]
) -> None:
    block_bytes = gguf.GGML_QUANT_SIZES[NumberFormat[name]][1]
    table = np.arange(4 * block_bytes, dtype=np.uint8)
    path = write_gguf({"table": (NumberFormat[name], table), "w": (NumberFormat.F32, stored(NumberFormat.F32, (4,)))})
    checkpoint = open_gguf(path)
    np.testing.assert_array_equal(checkpoint.tensors["table"].data, table[None])
    assert checkpoint.tensors["w"].dequantize().shape == (4,)
    with pytest.raises(UnsupportedModel, match=rf"model\.gguf: tensor 'table' is {name}"):
        checkpoint.tensors["table"].dequantize()


@pytest.mark.parametrize("name", UNREADABLE)
def test_quantized_formats_that_cannot_be_read_are_refused_at_once(name: str, raw_gguf: Any) -> None:
    tensor = raw_gguf.tensor("w", [256], NumberFormat[name])
    with pytest.raises(UnsupportedModel, match=f"tensor 'w' is {name}, which can't be read"):
        open_gguf(raw_gguf.write(tensors=[tensor], data=bytes(1024)))


def test_a_tensor_without_dimensions_is_one_number(raw_gguf: Any) -> None:
    weight = open_gguf(raw_gguf.write(tensors=[raw_gguf.tensor("w", [])], data=struct.pack("<f", 1.5))).tensors["w"]
    assert weight.shape == ()
    assert weight.data.shape == (1, 4)
    assert weight.dequantize().tolist() == [1.5]


# ---------------------------------------------------------------------------------------------------------- metadata


SCALARS = {
    "uint8": 200, "int8": -100, "uint16": 60000, "int16": -30000, "uint32": 4_000_000_000, "int32": -2_000_000_000,
    "uint64": 2**63 + 5, "int64": -(2**62), "float32": 0.1, "float64": 0.1, "bool": True, "string": "naïve ☕",
}  # fmt: skip


@pytest.mark.parametrize("version", [2, 3])
def test_every_scalar_type_reads_as_the_gguf_package_reads_it(version: int, write_gguf: Callable[..., Path]) -> None:
    def fill(writer: gguf.GGUFWriter) -> None:
        for kind, value in SCALARS.items():
            getattr(writer, f"add_{kind}")(f"test.{kind}", value)

    path = write_gguf({}, fill)
    content = path.read_bytes()
    path.write_bytes(content[:4] + struct.pack("<I", version) + content[8:])
    metadata, reader = open_gguf(path).metadata, gguf.GGUFReader(path)
    for kind, value in SCALARS.items():
        found = metadata[f"test.{kind}"]
        assert type(found) is type(value)
        assert found == reader.fields[f"test.{kind}"].contents()
    assert metadata["test.float32"] == pytest.approx(0.1)
    assert metadata["test.uint64"] == 2**63 + 5


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("UINT8", [0, 255]), ("INT8", [-128, 127]), ("UINT16", [1, 65535]), ("INT16", [-5]), ("UINT32", [2**32 - 1]),
        ("INT32", [1, 2, 3]), ("UINT64", [2**64 - 1]), ("INT64", [-(2**63)]), ("FLOAT32", [0.5, -2.0]),
        ("FLOAT64", [0.1]), ("BOOL", [True, False, True]),
    ],
)  # fmt: skip
def test_arrays_of_numbers_become_arrays_of_that_type(
    kind: str, values: list[Any], write_gguf: Callable[..., Path]
) -> None:
    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_key_value("test.array", values, gguf.GGUFValueType.ARRAY, gguf.GGUFValueType[kind])

    array = open_gguf(write_gguf({}, fill)).metadata["test.array"]
    assert array.dtype == np.dtype(kind.lower())
    assert array.tolist() == values
    assert array.flags.aligned
    assert not array.flags.writeable


def test_arrays_of_strings_and_empty_and_nested_arrays(raw_gguf: Any) -> None:
    texts = struct.pack("<IQ", 8, 3) + b"".join(map(raw_gguf.text, ["", "ab", "é\0☕"]))
    empty = struct.pack("<IQ", 5, 0)
    numbers = struct.pack("<IQ3i", 5, 3, 1, 2, 3)
    nested = struct.pack("<IQ", 9, 3) + numbers + empty + texts
    entries = [raw_gguf.entry(key, 9, value) for key, value in [("a", texts), ("b", empty), ("c", nested)]]
    metadata = open_gguf(raw_gguf.write([raw_gguf.architecture, *entries])).metadata
    assert metadata["a"] == ["", "ab", "é\0☕"]
    assert metadata["b"].tolist() == []
    first, second, third = metadata["c"]
    assert (first.tolist(), second.tolist(), third) == ([1, 2, 3], [], metadata["a"])


def test_a_files_own_alignment_is_followed(stored: Stored, write_gguf: Callable[..., Path]) -> None:
    data = {name: stored(NumberFormat.F32, (3,)) for name in "abc"}
    tensors = {name: (NumberFormat.F32, content) for name, content in data.items()}
    for alignment in (8, 256):
        path = write_gguf(tensors, lambda writer, n=alignment: writer.add_custom_alignment(n))
        checkpoint = open_gguf(path)
        for name, content in data.items():
            np.testing.assert_array_equal(checkpoint.tensors[name].dequantize(), content.view(np.float32))


def test_a_boolean_must_be_zero_or_one(raw_gguf: Any) -> None:
    with pytest.raises(ModelFileError, match="metadata key 'flag' has a boolean of 2"):
        open_gguf(raw_gguf.write([raw_gguf.architecture, raw_gguf.entry("flag", 7, b"\2")]))
