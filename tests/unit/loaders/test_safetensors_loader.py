"""Hugging Face directories: weights against the `safetensors` package, and what the JSON files beside them say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from forge.builtin.safetensors import SafeTensorsLoader
from forge.errors import ModelFileError, UnsupportedModel
from forge.interfaces.loader import GenerationDefaults

Write = Callable[..., Path]


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


@pytest.fixture
def sharded(model_directory: Path, random: np.random.Generator) -> tuple[Path, dict[str, npt.NDArray[np.float32]]]:
    """The directory with its weights in three shards and an index, and the weights."""
    (model_directory / "model.safetensors").unlink()
    tensors = {f"layer.{n}": random.standard_normal((3, n + 1), dtype=np.float32) for n in range(5)}
    placed = {name: f"model-0000{1 + int(name[-1]) // 2}-of-00003.safetensors" for name in tensors}
    for shard in set(placed.values()):
        save_file({name: tensors[name] for name in tensors if placed[name] == shard}, model_directory / shard)
    write_json(model_directory / "model.safetensors.index.json", {"metadata": {}, "weight_map": placed})
    return model_directory, tensors


def test_a_checkpoint_says_what_the_directory_says(model_directory: Path) -> None:
    checkpoint = SafeTensorsLoader().open(model_directory)
    assert (checkpoint.format, checkpoint.path, checkpoint.raw) == ("safetensors", model_directory, model_directory)
    assert checkpoint.architecture == "llama"
    assert checkpoint.metadata == json.loads((model_directory / "config.json").read_text())
    assert checkpoint.tokenizer.format == "huggingface"
    assert checkpoint.tokenizer.metadata == {"tokenizer_class": "LlamaTokenizer"}
    assert checkpoint.tokenizer.path == model_directory / "tokenizer.json"
    assert checkpoint.tokenizer.chat_template == "{{ messages }}"
    assert checkpoint.generation == GenerationDefaults((3, 2), temperature=0.6, top_p=0.9)
    with safe_open(model_directory / "model.safetensors", framework="numpy") as reference:
        assert checkpoint.tensors.keys() == set(reference.keys())
        for name, weight in checkpoint.tensors.items():
            expected = reference.get_tensor(name)
            assert weight.shape == expected.shape
            assert weight.data.tobytes() == expected.tobytes()
            values = weight.dequantize()
            assert values.dtype == np.float32
            np.testing.assert_array_equal(values, expected)
            np.testing.assert_array_equal(weight.dequantize(2, 5), expected[2:5])


def test_bfloat16_is_the_upper_half_of_float32(model_directory: Path, write_safetensors: Write) -> None:
    halves = np.random.default_rng(3).integers(0, 2**16, (4, 3, 2), np.uint16)
    header = {"w": {"dtype": "BF16", "shape": [4, 3, 2], "data_offsets": [0, 48]}}
    write_safetensors(model_directory / "model.safetensors", header, halves.tobytes())
    weight = SafeTensorsLoader().open(model_directory).tensors["w"]
    expected = (halves.astype(np.uint32) << 16).view(np.float32)
    assert weight.encoding == "BF16"
    assert weight.dequantize(1, 3).tobytes() == expected[1:3].tobytes()


def test_what_a_caller_writes_into_floats_never_reaches_the_file(model_directory: Path) -> None:
    path = model_directory / "model.safetensors"
    before, weights = path.read_bytes(), SafeTensorsLoader().open(model_directory).tensors
    for weight in weights.values():
        weight.dequantize()[:] = 7
        weight.release()
        with pytest.raises(ValueError, match="read-only"):
            weight.data[0, 0] = 1
    assert path.read_bytes() == before


def test_shards_open_as_one_model(sharded: tuple[Path, dict[str, npt.NDArray[np.float32]]]) -> None:
    directory, tensors = sharded
    found = SafeTensorsLoader().open(directory).tensors
    assert found.keys() == tensors.keys()
    for name, expected in tensors.items():
        np.testing.assert_array_equal(found[name].dequantize(), expected)


def test_empty_and_scalar_tensors_and_integer_tables_may_stand_in_a_file(
    model_directory: Path, write_safetensors: Write
) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "empty": {"dtype": "F32", "shape": [3, 0], "data_offsets": [0, 0]},
        "scalar": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
        "ids": {"dtype": "I64", "shape": [2], "data_offsets": [4, 20]},
    }
    data = np.float32(1.5).tobytes() + np.array([1, 2], "<i8").tobytes()
    write_safetensors(model_directory / "model.safetensors", json.dumps(header).encode() + b"   ", data)
    tensors = SafeTensorsLoader().open(model_directory).tensors
    assert tensors["empty"].dequantize().shape == (3, 0)
    assert tensors["empty"].data.shape == (3, 0)
    assert tensors["scalar"].dequantize().tolist() == [1.5]
    assert tensors["ids"].data.view("<i8").tolist() == [[1, 2]]
    with pytest.raises(UnsupportedModel, match="tensor 'ids' is I64, which can't serve as a weight"):
        tensors["ids"].dequantize()


# --------------------------------------------------------------------------------------------- tokenizer, generation


def test_a_template_file_comes_before_the_configurations_own(model_directory: Path) -> None:
    write_json(model_directory / "chat_template.json", {"chat_template": "legacy"})
    assert SafeTensorsLoader().open(model_directory).tokenizer.chat_template == "legacy"
    (model_directory / "chat_template.jinja").write_text("{# é #}")
    tokenizer = SafeTensorsLoader().open(model_directory).tokenizer
    assert tokenizer.chat_template == "{# é #}"
    assert "chat_template" not in tokenizer.metadata


def test_several_named_templates_are_left_to_the_tokenizer(model_directory: Path) -> None:
    named = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    write_json(model_directory / "tokenizer_config.json", {"chat_template": named})
    tokenizer = SafeTensorsLoader().open(model_directory).tokenizer
    assert tokenizer.chat_template is None
    assert tokenizer.metadata["chat_template"] == named


def test_only_config_and_weights_are_needed(model_directory: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (model_directory / name).unlink()
    checkpoint = SafeTensorsLoader().open(model_directory)
    assert (checkpoint.tokenizer.path, checkpoint.tokenizer.chat_template) == (None, None)
    assert checkpoint.generation == GenerationDefaults((2,))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, GenerationDefaults((2,))),
        ({"do_sample": False}, GenerationDefaults((2,), temperature=0.0)),
        ({"do_sample": False, "temperature": 0.7}, GenerationDefaults((2,), temperature=0.0)),
        ({"temperature": 0.7, "top_k": None}, GenerationDefaults((2,), temperature=0.7)),
        ({"top_k": 40, "min_p": 0.1, "repetition_penalty": 1}, GenerationDefaults((2,), None, 40, None, 0.1, 1.0)),
        ({"eos_token_id": 5}, GenerationDefaults((5, 2))),
        ({"eos_token_id": [2, 19, 20]}, GenerationDefaults((2, 19))),  # the vocabulary has 20 entries
    ],
)
def test_generation_defaults_are_those_written_out(
    said: dict[str, Any], expected: GenerationDefaults, model_directory: Path
) -> None:
    write_json(model_directory / "generation_config.json", said)
    assert SafeTensorsLoader().open(model_directory).generation == expected


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", "0.7"), ("temperature", -1), ("temperature", float("nan")), ("temperature", 10**400),
        ("top_p", 1.1), ("top_k", 1.0), ("top_k", 2**31), ("min_p", True), ("repetition_penalty", 0),
        ("eos_token_id", "2"), ("eos_token_id", [1, -1]), ("eos_token_id", True), ("eos_token_id", [[2]]),
    ],
)  # fmt: skip
def test_impossible_generation_values_are_named(key: str, value: Any, model_directory: Path) -> None:
    write_json(model_directory / "generation_config.json", {key: value})
    with pytest.raises(ModelFileError, match=key):
        SafeTensorsLoader().open(model_directory)


def test_a_directory_with_a_configuration_is_accepted_and_nothing_else(model_directory: Path, tmp_path: Path) -> None:
    loader = SafeTensorsLoader()
    assert loader.accepts(model_directory)
    others = [tmp_path, model_directory / "config.json", tmp_path / "none", Path("a\0b"), Path("x" * 5000)]
    assert not any(loader.accepts(path) for path in others)
