"""What a GGUF file says about its model, tokenizer and generation; files split in parts; which paths are taken."""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from forge.builtin.gguf import GGUFLoader
from forge.errors import ModelFileError
from forge.interfaces.loader import GenerationDefaults

NumberFormat = gguf.GGMLQuantizationType
Stored = Callable[..., npt.NDArray[np.uint8]]
Write = Callable[..., Path]


def test_a_checkpoint_says_what_the_file_says(small_gguf: Path) -> None:
    checkpoint = GGUFLoader().open(small_gguf)
    assert (checkpoint.format, checkpoint.path, checkpoint.architecture) == ("gguf", small_gguf, "llama")
    assert checkpoint.metadata["general.name"] == "small"
    assert checkpoint.metadata["llama.block_count"] == 2
    reader = gguf.GGUFReader(small_gguf)
    own = {key for key in reader.fields if not key.startswith("GGUF.")}
    tokenizer = {key for key in own if key.startswith("tokenizer.")}
    assert checkpoint.metadata.keys() == own - tokenizer
    assert checkpoint.tokenizer.format == "gguf"
    assert checkpoint.tokenizer.metadata.keys() == tokenizer
    for key in tokenizer:
        value = checkpoint.tokenizer.metadata[key]
        found = value.tolist() if isinstance(value, np.ndarray) else value
        assert found == reader.fields[key].contents()
    assert checkpoint.tokenizer.chat_template == reader.fields["tokenizer.chat_template"].contents()
    assert checkpoint.generation == GenerationDefaults(eos_token_ids=(2,))
    for tensor in reader.tensors:
        with np.errstate(all="ignore"):  # some are random bytes, with scales that overflow
            expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(checkpoint.tensors[tensor.name].dequantize(), expected)


def test_a_file_without_tokenizer_has_no_template_and_no_end_of_sequence(write_gguf: Write) -> None:
    checkpoint = GGUFLoader().open(write_gguf({}))
    assert checkpoint.tokenizer.chat_template is None
    assert checkpoint.tokenizer.metadata == {}
    assert checkpoint.generation == GenerationDefaults()


def test_all_kinds_of_end_tokens_end_an_answer_each_once(write_gguf: Write, caplog: pytest.LogCaptureFixture) -> None:
    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_token_list(["a", "b", "c", "d"])
        writer.add_eos_token_id(2)
        writer.add_eot_token_id(1)
        writer.add_eom_token_id(2)

    assert GGUFLoader().open(write_gguf({}, fill)).generation.eos_token_ids == (2, 1)

    def beyond(writer: gguf.GGUFWriter) -> None:
        writer.add_token_list(["a", "b"])
        writer.add_eos_token_id(2)
        writer.add_eot_token_id(1)

    assert GGUFLoader().open(write_gguf({}, beyond)).generation.eos_token_ids == (1,)
    assert "eos_token_id holds 2, beyond the vocabulary of 2" in caplog.text


def test_the_authors_sampling_values_are_found_and_unused_ones_logged(
    write_gguf: Write, caplog: pytest.LogCaptureFixture
) -> None:
    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_sampling_temp(0.6)
        writer.add_sampling_top_k(-1)
        writer.add_sampling_top_p(0.95)
        writer.add_sampling_min_p(0.05)
        writer.add_sampling_penalty_repeat(1.1)
        writer.add_sampling_mirostat(2)

    with caplog.at_level(logging.WARNING):
        generation = GGUFLoader().open(write_gguf({}, fill)).generation
    assert generation == GenerationDefaults((), 0.6, 0, 0.95, 0.05, 1.1)
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == [
        "'general.sampling.mirostat' isn't used"
    ]


@pytest.mark.parametrize(
    ("key", "code", "value"),
    [
        ("general.sampling.temp", 6, struct.pack("<f", float("nan"))),
        ("general.sampling.temp", 6, struct.pack("<f", -1.0)),
        ("general.sampling.top_p", 6, struct.pack("<f", 1.5)),
        ("general.sampling.top_k", 6, struct.pack("<f", 40.0)),
        ("general.sampling.penalty_repeat", 7, b"\1"),
        ("tokenizer.ggml.eos_token_id", 5, struct.pack("<i", -1)),
        ("tokenizer.ggml.eot_token_id", 8, struct.pack("<Q", 1) + b"2"),
        ("tokenizer.chat_template", 4, struct.pack("<I", 1)),
        ("general.architecture", 4, struct.pack("<I", 1)),
    ],
)
def test_impossible_values_are_errors_that_name_the_key(key: str, code: int, value: bytes, raw_gguf: Any) -> None:
    entries = [raw_gguf.entry(key, code, value)]
    if key != "general.architecture":
        entries.append(raw_gguf.architecture)
    with pytest.raises(ModelFileError, match=key.replace(".", r"\.")):
        GGUFLoader().open(raw_gguf.write(entries))


def test_a_file_without_architecture_is_refused(raw_gguf: Any) -> None:
    with pytest.raises(ModelFileError, match=r"general\.architecture is missing or empty"):
        GGUFLoader().open(raw_gguf.write([]))
    with pytest.raises(ModelFileError, match=r"general\.architecture is missing or empty"):
        GGUFLoader().open(raw_gguf.write([raw_gguf.entry("general.architecture", 8, raw_gguf.text(""))]))


# ------------------------------------------------------------------------------------------------------- split files


@pytest.fixture
def split(write_gguf: Write, stored: Stored, tmp_path: Path) -> list[Path]:
    """A model of five tensors in three parts, as the reference writer splits it."""
    tensors = {f"blk.{n}": (NumberFormat.Q8_0, stored(NumberFormat.Q8_0, (n + 1, 64))) for n in range(5)}
    write_gguf(tensors, lambda writer: writer.add_block_count(5), name="big.gguf", split_max_tensors=2)
    return sorted(tmp_path.glob("big-*.gguf"))


def test_any_part_of_a_split_file_opens_all_of_it(split: list[Path]) -> None:
    assert [path.name for path in split] == [f"big-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    parts = [gguf.GGUFReader(path) for path in split]
    expected = {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for part in parts
        for tensor in part.tensors
    }
    for path in split:
        checkpoint = GGUFLoader().open(path)
        assert checkpoint.architecture == "llama"
        assert checkpoint.metadata == {"general.architecture": "llama", "llama.block_count": 5}
        assert checkpoint.tensors.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_array_equal(checkpoint.tensors[name].dequantize(), values)


def test_a_missing_part_is_named(split: list[Path]) -> None:
    split[1].unlink()
    with pytest.raises(ModelFileError, match=r"big-00002-of-00003\.gguf: this part .* is missing"):
        GGUFLoader().open(split[0])


def test_a_renamed_part_says_what_its_name_must_be(split: list[Path]) -> None:
    renamed = split[0].rename(split[0].with_name("model.gguf"))
    with pytest.raises(ModelFileError, match=r"part 1 of 3 .* must end in -00001-of-00003\.gguf"):
        GGUFLoader().open(renamed)


def test_parts_in_the_wrong_order_are_refused(split: list[Path]) -> None:
    first, last = split[1].read_bytes(), split[2].read_bytes()
    split[1].write_bytes(last)
    split[2].write_bytes(first)
    with pytest.raises(ModelFileError, match=r"big-00002-of-00003\.gguf: .* don't say that it's part 2 of 3"):
        GGUFLoader().open(split[0])


def shard(raw_gguf: Any, number: int, count: int, total: int, names: list[str]) -> None:
    keys = {"split.no": number, "split.count": count, "split.tensors.count": total}
    entries = [raw_gguf.architecture, *(raw_gguf.entry(key, 4, struct.pack("<I", n)) for key, n in keys.items())]
    raw_gguf.path = raw_gguf.path.with_name(f"m-{number + 1:05}-of-{count:05}.gguf")
    tensors = [raw_gguf.tensor(name, [8], offset=32 * index) for index, name in enumerate(names)]
    raw_gguf.write(entries, tensors, bytes(32 * len(names)))


def test_a_tensor_in_two_parts_is_refused(raw_gguf: Any) -> None:
    shard(raw_gguf, 0, 2, 3, ["a", "b"])
    shard(raw_gguf, 1, 2, 3, ["b"])
    with pytest.raises(ModelFileError, match=r"m-00002-of-00002\.gguf: tensor 'b' is in m-00001-of-00002\.gguf too"):
        GGUFLoader().open(raw_gguf.path)


def test_parts_with_fewer_tensors_than_promised_are_refused(raw_gguf: Any) -> None:
    shard(raw_gguf, 0, 2, 4, ["a", "b"])
    shard(raw_gguf, 1, 2, 4, ["c"])
    with pytest.raises(ModelFileError, match=r"split\.tensors\.count is 4, and the parts have 3 tensors"):
        GGUFLoader().open(raw_gguf.path)


# -------------------------------------------------------------------------------------------------------------- paths


def test_gguf_files_are_known_by_their_first_bytes_or_their_name(small_gguf: Path, tmp_path: Path) -> None:
    nameless = small_gguf.rename(tmp_path / "weights")
    damaged = tmp_path / "damaged.GGUF"
    damaged.write_bytes(b"")
    other, folder = tmp_path / "other.bin", tmp_path / "folder.gguf"
    other.write_bytes(b"GG")
    folder.mkdir()
    loader = GGUFLoader()
    assert loader.accepts(nameless)
    assert loader.accepts(damaged)  # so that `open` can say what is wrong with it
    assert not any(loader.accepts(path) for path in (other, folder, tmp_path, tmp_path / "none", Path("a\0b")))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert not loader.accepts(pipe)


def test_what_cannot_be_read_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty, pipe, locked = (tmp_path / name for name in ("empty.gguf", "pipe.gguf", "locked.gguf"))
    empty.touch()
    locked.touch()
    os.mkfifo(pipe)
    loader = GGUFLoader()
    for path, problem in [
        (empty, "the file is empty"),
        (tmp_path, "a directory or special file"),
        (pipe, "a directory or special file"),
        (tmp_path / "none.gguf", "No such file"),
    ]:
        with pytest.raises(ModelFileError, match=f"{path.name}: .*{problem}|{problem}"):
            loader.open(path)

    def refuse(*_: Any, **__: Any) -> None:  # tests may run as root, whom no permission stops
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ModelFileError, match=r"locked\.gguf: can't be read: Permission denied"):
        loader.open(locked)
