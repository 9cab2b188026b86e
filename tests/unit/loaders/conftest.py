"""Small model files for the loaders' tests: sound ones from the reference writers, damaged ones byte by byte."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file

Array = npt.NDArray[Any]
NumberFormat = gguf.GGMLQuantizationType


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(20240613)


def _stored(random: np.random.Generator, number_format: gguf.GGMLQuantizationType, shape: tuple[int, ...]) -> Array:
    """Stored bytes ``[*shape[:-1], bytes a row]`` in a format: quantised by `gguf` if it can, else random."""
    values = random.standard_normal(shape, dtype=np.float32)
    try:
        stored = gguf.quants.quantize(values, number_format)
    except NotImplementedError:
        stored = random.integers(0, 256, gguf.quant_shape_to_byte_shape(shape, number_format), np.uint8)
    return np.ascontiguousarray(stored).view(np.uint8)


@pytest.fixture
def stored(random: np.random.Generator) -> Callable[..., Array]:
    return lambda number_format, shape: _stored(random, number_format, shape)


def _write_gguf(
    path: Path,
    tensors: Mapping[str, tuple[gguf.GGMLQuantizationType, Array]],
    fill: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
    **options: Any,
) -> Path:
    writer = gguf.GGUFWriter(path, "llama", **options)
    fill(writer)
    for name, (number_format, data) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=number_format)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def write_gguf(tmp_path: Path) -> Callable[..., Path]:
    """Write tensors, name → (format, stored bytes), by the reference writer; `fill` adds metadata."""
    return lambda tensors, *more, name="model.gguf", **options: _write_gguf(tmp_path / name, tensors, *more, **options)


def _text(value: str | bytes) -> bytes:
    content = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(content)) + content


def _entry(key: str | bytes, code: int, value: bytes) -> bytes:
    return _text(key) + struct.pack("<I", code) + value


def _tensor_info(
    name: str | bytes, dims: Sequence[int], number_format: int = 0, offset: int = 0, n_dims: int | None = None
) -> bytes:
    count = len(dims) if n_dims is None else n_dims
    return _text(name) + struct.pack(f"<I{len(dims)}QIQ", count, *dims, number_format, offset)


class RawGGUF:
    """Lays out a GGUF file from its parts, right or wrong."""

    text = staticmethod(_text)
    entry = staticmethod(_entry)
    tensor = staticmethod(_tensor_info)
    architecture = _entry("general.architecture", 8, _text("llama"))

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(
        self,
        entries: Sequence[bytes] = (architecture,),
        tensors: Sequence[bytes] = (),
        data: bytes = b"",
        *,
        version: int = 3,
        counts: tuple[int, int] | None = None,
        alignment: int = 32,
    ) -> Path:
        tensor_count, entry_count = counts or (len(tensors), len(entries))
        header = struct.pack("<4sIQQ", b"GGUF", version, tensor_count, entry_count) + b"".join([*entries, *tensors])
        self.path.write_bytes(header + bytes(-len(header) % alignment) + data)
        return self.path


@pytest.fixture
def raw_gguf(tmp_path: Path) -> RawGGUF:
    return RawGGUF(tmp_path / "raw.gguf")


@pytest.fixture
def small_gguf(tmp_path: Path, random: np.random.Generator) -> Path:
    """A file of some 25 kB with everything that real ones have: a vocabulary, merges, several formats."""

    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_name("small")
        writer.add_block_count(2)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list([f"tok{n}é" for n in range(300)])
        writer.add_token_types([1] * 300)
        writer.add_token_scores([-0.5 * n for n in range(300)])
        writer.add_token_merges([f"a{n} b" for n in range(200)])
        writer.add_eos_token_id(2)
        writer.add_add_bos_token(True)
        writer.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")

    formats = {"F32": 32, "F16": 32, "BF16": 32, "Q4_1": 32, "Q8_0": 64, "Q4_K": 256, "Q6_K": 256, "IQ4_NL": 64}
    tensors = {
        f"blk.{n}.{name}": (NumberFormat[name], _stored(random, NumberFormat[name], (4, columns)))
        for n in range(2)
        for name, columns in formats.items()
    }
    tensors["norm"] = (NumberFormat.F32, _stored(random, NumberFormat.F32, (32,)))
    return _write_gguf(tmp_path / "small.gguf", tensors, fill)


@pytest.fixture
def model_directory(tmp_path: Path, random: np.random.Generator) -> Path:
    """A Hugging Face directory with one weight file, a tokenizer's configuration and generation defaults."""
    directory = tmp_path / "model"
    directory.mkdir()
    tensors = {
        "model.embed_tokens.weight": random.standard_normal((20, 8), dtype=np.float32),
        "model.norm.weight": random.standard_normal(8).astype(np.float16),
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    files = {
        "config.json": {"model_type": "llama", "hidden_size": 8, "vocab_size": 20, "eos_token_id": 2},
        "generation_config.json": {"eos_token_id": [3, 2], "temperature": 0.6, "top_p": 0.9, "do_sample": True},
        "tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer", "chat_template": "{{ messages }}"},
        "tokenizer.json": {"version": "1.0"},
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content))
    return directory


def _write_safetensors(path: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(content) if length is None else length) + content + data)
    return path


@pytest.fixture
def write_safetensors() -> Callable[..., Path]:
    """Lay out a SafeTensors file from a header (an object, or bytes) and the data section, right or wrong."""
    return _write_safetensors
