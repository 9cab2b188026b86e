"""Damaged and hostile SafeTensors files and the JSON beside them: one clear error each, in bounded memory."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from forge.builtin.safetensors import SafeTensorsLoader
from forge.errors import ForgeError, ModelFileError, UnsupportedModel

Write = Callable[..., Path]


def refused(directory: Path, message: str, error: type[ForgeError] = ModelFileError) -> None:
    with pytest.raises(error, match=message) as caught:
        SafeTensorsLoader().open(directory)
    assert str(directory) in caught.value.message
    assert caught.value.message.isprintable()


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HALF_HOLE = {"a": entry(), "b": entry(offsets=(12, 20))}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": entry()}, 4, "the tensors end at byte .* truncated or damaged"),
        ({"a": entry()}, 12, "the tensors end at byte .* truncated or damaged"),
        ({"a": entry(), "b": entry(offsets=(4, 12))}, 12, "tensor 'b' overlaps another one"),
        (HALF_HOLE, 20, "tensor 'b' leaves a hole before it"),
        ({"a": entry(offsets=(8, 0))}, 8, "tensor 'a' is F32 .* takes"),
        ({"a": entry(shape=(3,))}, 8, r"tensor 'a' is F32 '\[3\]', 12 bytes, and takes \[0, 8\]"),
        ({"a": entry(shape=(-2,))}, 8, "tensor 'a' has a shape or data_offsets"),
        ({"a": entry(shape=(2.0,))}, 8, "tensor 'a' has a shape or data_offsets"),
        ({"a": entry(shape=(True, 2))}, 8, "tensor 'a' has a shape or data_offsets"),
        ({"a": entry(offsets=(0, 4, 8))}, 8, "tensor 'a' has a shape or data_offsets"),
        ({"a": entry(offsets=(0, 2**64))}, 8, "tensor 'a' has a shape or data_offsets"),
        ({"a": entry(shape=(1,) * 17)}, 8, "tensor 'a' has a shape of 17 dimensions"),
        ({"a": entry(dtype="F31")}, 8, "tensor 'a' has the dtype 'F31', which isn't known"),
        ({"a": entry(dtype=["F32"])}, 8, "tensor 'a' has a dtype that isn't a name"),
        ({"a": {"dtype": "F32"}}, 8, "tensor 'a' isn't described by"),
        ({"a": 7}, 8, "tensor 'a' isn't described by"),
        ({"__metadata__": {"format": 1}, "a": entry()}, 8, "__metadata__ isn't an object of strings"),
        (b"[]", 0, "the header begins with"),
        (b' {"a": {}}', 0, "the header begins with b' '"),
        (b'{"a": 1, "a": 2}', 0, "header: the key 'a' is repeated"),
        (b'{"a": \n}', 0, "header: not JSON at line 2, column 1"),
        (b'{"a\xff": 1}', 0, "header: not UTF-8 at byte 3"),
        (b'{"a": ' + b"[" * 100_000, 0, "header: .*recursion"),
        (b'{"a": ' + b"1" * 5000 + b"}", 0, "header: .*4300 digits"),
        (b'{"\\ud800": {}}', 0, "header: .*surrogates not allowed"),
    ],
    ids=range(25),
)
def test_damaged_headers_are_named(
    header: Any, data: int, message: str, model_directory: Path, write_safetensors: Write
) -> None:
    path = write_safetensors(model_directory / "model.safetensors", header, bytes(data))
    refused(model_directory, rf"model\.safetensors: {message}")
    with pytest.raises(SafetensorError):  # the reference agrees
        safe_open(path, framework="numpy")


def test_what_the_reference_lets_pass_and_we_could_not_honour_is_refused(
    model_directory: Path, write_safetensors: Write
) -> None:
    path = model_directory / "model.safetensors"
    write_safetensors(path, {"a": {**entry(), "stride": 1}}, bytes(8))
    refused(model_directory, "tensor 'a' isn't described by dtype, shape and data_offsets")
    write_safetensors(path, {"a": entry(shape=(0, 2**62), offsets=(0, 0))})
    refused(model_directory, "tensor 'a' has a shape of 2 dimensions that no memory could hold")


@pytest.mark.parametrize("length", [3, 2**63, 2**64 - 1, 101])
def test_a_header_longer_than_the_file_is_refused_before_it_is_read(
    length: int, model_directory: Path, write_safetensors: Write
) -> None:
    path = model_directory / "model.safetensors"
    if length == 3:
        path.write_bytes(b"abc")
    else:
        write_safetensors(path, b" " * 100, length=length)
    refused(model_directory, r"a header of \d+ bytes is announced, .* truncated or damaged")


def test_a_header_over_the_limit_is_refused_before_it_is_read(model_directory: Path) -> None:
    with (model_directory / "model.safetensors").open("wb") as file:  # sparse: takes no disk space
        file.write(struct.pack("<Q", 100_000_001))
        file.truncate(200_000_000)
    refused(model_directory, "a header of 100000001 bytes is announced; 100000000 are allowed")


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F8_E8M0", "F4"])
def test_number_formats_that_need_scales_are_refused_by_name(
    dtype: str, model_directory: Path, write_safetensors: Write
) -> None:
    write_safetensors(model_directory / "model.safetensors", {"a": entry(dtype)}, bytes(8))
    refused(model_directory, f"tensor 'a' is {dtype}, which isn't supported", UnsupportedModel)


# --------------------------------------------------------------------------------------------------------------- index


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "weight_map is missing"),
        ({"weight_map": {}}, "weight_map is missing, empty"),
        ({"weight_map": ["a"]}, "weight_map is missing, empty or not an object"),
        ({"weight_map": {"a": 1}}, r"weight_map\['a'\] isn't a file name"),
        ({"weight_map": {"a": "../x.safetensors"}}, r"weight_map\['a'\] is '\.\./x\.safetensors', not the name"),
        ({"weight_map": {"a": "/etc/x.safetensors"}}, r"weight_map\['a'\] is '/etc/x\.safetensors', not the name"),
        ({"weight_map": {"a": "..\\x.safetensors"}}, r"weight_map\['a'\] is .*, not the name"),
        ({"weight_map": {"a": ".."}}, r"weight_map\['a'\] is '\.\.', not the name"),
        ({"weight_map": {"a": "x\0.safetensors"}}, r"weight_map\['a'\] is 'x\\x00\.safetensors', not the name"),
        ({"weight_map": {"a": "x" * 500 + ".safetensors"}}, "can't be read: File name too long"),
        ({"weight_map": {"a": "gone.safetensors"}}, r"the shard 'gone\.safetensors', .* is missing"),
        ({"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}, r"tensor 'b' isn't in 'one\.safetensors'"),
        (
            {"weight_map": {"a": "two.safetensors"}},
            r"two\.safetensors: has tensor 'b', which doesn't exist according to",
        ),
        (
            {"weight_map": {"b": "one.safetensors", "a": "two.safetensors"}},
            r"one\.safetensors: has tensor 'a', which is in 'two\.safetensors' according to",
        ),
    ],
    ids=range(14),
)
def test_an_index_that_does_not_fit_its_shards_is_refused(
    index: Any, message: str, model_directory: Path, write_safetensors: Write
) -> None:
    (model_directory / "model.safetensors").unlink()
    (model_directory / "model.safetensors.index.json").write_text(json.dumps(index))
    write_safetensors(model_directory / "one.safetensors", {"a": entry()}, bytes(8))
    write_safetensors(model_directory / "two.safetensors", {"a": entry(), "b": entry(offsets=(8, 16))}, bytes(16))
    refused(model_directory, message)


def test_a_directory_without_safetensors_is_refused(model_directory: Path) -> None:
    (model_directory / "model.safetensors").rename(model_directory / "pytorch_model.bin")
    refused(model_directory, r"has neither model\.safetensors nor model\.safetensors\.index\.json")


# ---------------------------------------------------------------------------------------------------------------- JSON


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer_config.json", "chat_template.json"]
)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1,\n "b" 2}', "not JSON at line 2, column 6"),
        (b"[1]", "a JSON object is wanted, not list"),
        (b"", "not JSON at line 1, column 1"),
        (b"\xff\xfe{}", "not UTF-8 at byte 0"),
        (b'{"a": ' + b'{"a":' * 100_000, "recursion"),
        (b'{"a": {"b": 1, "b": 2}}', "the key 'b' is repeated"),
    ],
    ids=["syntax", "list", "empty", "encoding", "nesting", "repetition"],
)
def test_damaged_json_is_an_error_with_file_and_place(
    name: str, content: bytes, message: str, model_directory: Path
) -> None:
    (model_directory / name).write_bytes(content)
    refused(model_directory, f"{name}: .*{message}")


@pytest.mark.parametrize("value", [None, 7, "", ["llama"]])
def test_a_configuration_without_architecture_is_refused(value: Any, model_directory: Path) -> None:
    (model_directory / "config.json").write_text(json.dumps({"model_type": value}))
    refused(model_directory, r"config\.json: model_type is missing or not a name")


def test_not_a_number_in_a_configuration_is_let_through(model_directory: Path) -> None:
    (model_directory / "config.json").write_text('{"model_type": "llama", "limit": Infinity}')
    assert SafeTensorsLoader().open(model_directory).metadata["limit"] == float("inf")


def test_files_that_cannot_be_read_are_named(model_directory: Path) -> None:
    (model_directory / "tokenizer_config.json").unlink()
    (model_directory / "tokenizer_config.json").mkdir()
    refused(model_directory, r"tokenizer_config\.json: a directory or special file")
    refused(model_directory / "none", r"none/config\.json: can't be read: No such file")


# ------------------------------------------------------------------------------------------------------------ mutation

FILES = ["model.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json"]
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["cut", "flip", "length", "delete", "insert", "text"]),
        st.one_of(st.floats(0, 1), st.floats(0, 0.4)),
        st.integers(0, 2**64 - 1),
    ),
    min_size=1,
    max_size=4,
)
TEXTS = [b"null", b"-1", b"1e99", b"NaN", b"[]", b"{}", b'"', b"18446744073709551616", b"[[", b"../", b"F16", b"I64"]


def mutate(content: bytes, changes: list[tuple[str, float, int]]) -> bytes:
    mutated = bytearray(content)
    for kind, place, amount in changes:
        at = int(place * len(mutated))
        match kind:
            case "cut":
                del mutated[at:]
            case "flip" if at < len(mutated):
                mutated[at] ^= 1 << amount % 8
            case "length":
                mutated[:8] = struct.pack("<Q", amount % 400 if amount % 2 else amount)
            case "delete":
                del mutated[at : at + amount % 30]
            case "insert":
                mutated[at:at] = bytes([amount % 256]) * (amount % 50)
            case "text":
                text = TEXTS[amount % len(TEXTS)]
                mutated[at : at + amount % 9] = text
    return bytes(mutated)


def sound_directory(directory: Path, write_safetensors: Write) -> None:
    """The same six tensors in model.safetensors and in a shard with an index, and the two configurations."""
    kinds = [("F32", [2, 2]), ("F16", [2, 4]), ("I64", [2])]
    tensors = {f"t{n}": entry(*kinds[n % 3], [16 * n, 16 * n + 16]) for n in range(6)}
    for name in ("model.safetensors", "s.safetensors"):
        write_safetensors(directory / name, tensors, bytes(96))
    for name, content in {
        "model.safetensors.index.json": {"weight_map": dict.fromkeys(tensors, "s.safetensors")},
        "config.json": {"model_type": "llama", "vocab_size": 20, "eos_token_id": [1, 2], "rope": {"type": None}},
        "generation_config.json": {"eos_token_id": [1, 2], "temperature": 0.5, "top_k": 5, "do_sample": False},
    }.items():
        (directory / name).write_text(json.dumps(content))


@settings(max_examples=6000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(FILES), changes=CHANGES, whole=st.booleans())
def test_a_mutated_directory_opens_whole_or_gives_one_of_our_errors(
    name: str, changes: list[tuple[str, float, int]], whole: bool, model_directory: Path, write_safetensors: Write
) -> None:
    sound_directory(model_directory, write_safetensors)
    mutated = model_directory / name
    mutated.write_bytes(mutate(mutated.read_bytes(), changes))
    if name != "model.safetensors" and not whole:
        (model_directory / "model.safetensors").unlink()  # so that the index is read
    message = ""
    tracemalloc.start()
    try:
        for weight in SafeTensorsLoader().open(model_directory).tensors.values():
            if weight.encoding in ("F32", "F16", "BF16"):
                assert weight.dequantize().shape == weight.shape or weight.shape == ()
    except ForgeError as error:
        message = error.message
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 2_000_000
    assert message.isprintable()
    assert len(message) < 1000
