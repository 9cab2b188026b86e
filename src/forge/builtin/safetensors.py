"""The loader of Hugging Face directories: config.json, weights in SafeTensors (one file or shards), tokenizer files.

Maps the weights; `forge.builtin.safetensors_header` reads their headers. Knows what the files are called and which of
their keys say how to generate; models read the rest of config.json. Pickled checkpoints are never opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import evolve

from forge.builtin.generation import eos_token_ids, sampling_defaults
from forge.builtin.json_file import read_object, read_text
from forge.builtin.mapped import MappedFile, MappedWeight, is_there, shown
from forge.builtin.safetensors_header import read_header
from forge.errors import ModelFileError
from forge.interfaces.loader import Checkpoint, GenerationDefaults, Loader, TokenizerSource

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"

SAMPLING_KEYS = {key: key for key in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")}


class SafeTensorsLoader(Loader):
    """Reads a directory with config.json and SafeTensors weights: F32, F16 and BF16.

    Tensors of integers and booleans are listed too, and refused when something reads them as weights.
    `Checkpoint.metadata` is config.json, `Checkpoint.raw` the directory.
    """

    def accepts(self, path: Path) -> bool:
        try:
            return (path / CONFIG).is_file()
        except OSError:
            return False

    def open(self, path: Path) -> Checkpoint:
        config_path = path / CONFIG
        config = read_object(config_path)
        architecture = config.get("model_type")
        if not isinstance(architecture, str) or not architecture:
            raise ModelFileError(f"{config_path}: model_type is missing or not a name")
        return Checkpoint(
            format="safetensors",
            path=path,
            architecture=architecture,
            metadata=config,
            tensors=_tensors(path),
            tokenizer=_tokenizer(path),
            generation=_generation(path, config),
            raw=path,
        )


# ----------------------------------------------------------------------------------------------------------- weights


def _tensors(directory: Path) -> dict[str, MappedWeight]:
    if is_there(directory / WEIGHTS):  # before an index, as in transformers
        return read_header(MappedFile.open(directory / WEIGHTS))
    if is_there(directory / INDEX):
        return _sharded(directory)
    raise ModelFileError(f"{directory}: has neither {WEIGHTS} nor {INDEX}")


def _sharded(directory: Path) -> dict[str, MappedWeight]:
    """The tensors of all shards, each of which must have exactly what the index says."""
    index = directory / INDEX
    placed = _weight_map(index)
    tensors: dict[str, MappedWeight] = {}
    for shard in dict.fromkeys(placed.values()):
        if not is_there(directory / shard):
            raise ModelFileError(f"{directory}: the shard {shown(shard)}, which {INDEX} names, is missing")
        for name, weight in read_header(MappedFile.open(directory / shard)).items():
            if placed.get(name) != shard:
                says = f"is in {shown(placed[name])}" if name in placed else "doesn't exist"
                raise weight.file.damaged(f"has tensor {shown(name)}, which {says} according to {INDEX}")
            tensors[name] = weight
    for name, shard in placed.items():
        if name not in tensors:
            raise ModelFileError(f"{index}: tensor {shown(name)} isn't in {shown(shard)}")
    return tensors


def _weight_map(index: Path) -> Mapping[str, str]:
    """Which shard has which tensor. Shards lie in the index's own directory: a name can't lead out of it."""
    placed = read_object(index).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise ModelFileError(f"{index}: weight_map is missing, empty or not an object")
    for name, shard in placed.items():
        if not isinstance(shard, str):
            raise ModelFileError(f"{index}: weight_map[{shown(name)}] isn't a file name")
        if not shard.endswith(".safetensors") or any(character in shard for character in "/\\:\0"):
            raise ModelFileError(
                f"{index}: weight_map[{shown(name)}] is {shown(shard)}, not the name of a .safetensors file beside it"
            )
    return placed


# --------------------------------------------------------------------------------------------- tokenizer, generation


def _optional(path: Path) -> dict[str, Any]:
    return read_object(path) if is_there(path) else {}


def _tokenizer(directory: Path) -> TokenizerSource:
    config_path = directory / "tokenizer_config.json"
    config = _optional(config_path)
    template = config.pop("chat_template") if isinstance(config.get("chat_template"), str) else None
    jinja, legacy = directory / "chat_template.jinja", directory / "chat_template.json"
    if is_there(jinja):
        template = read_text(jinja)
    elif is_there(legacy):
        template = read_object(legacy).get("chat_template")
        if not isinstance(template, str):
            raise ModelFileError(f"{legacy}: chat_template is missing or not a string")
    vocabulary = directory / "tokenizer.json"
    return TokenizerSource("huggingface", config, vocabulary if is_there(vocabulary) else None, template)


def _generation(directory: Path, config: Mapping[str, Any]) -> GenerationDefaults:
    """generation_config.json's values; end-of-sequence ids from config.json too.

    ``do_sample: false`` means greedy only where it's written out. It's also transformers' unwritten default, which
    other servers don't take as the author's wish either.
    """
    path = directory / "generation_config.json"
    said = _optional(path)
    defaults = sampling_defaults(said, SAMPLING_KEYS, path)
    if said.get("do_sample") is False:
        defaults = evolve(defaults, temperature=0.0)
    vocab_size = config.get("vocab_size")
    eos = eos_token_ids(
        [
            (f"{path.name}: eos_token_id", said.get("eos_token_id")),
            (f"{CONFIG}: eos_token_id", config.get("eos_token_id")),
        ],
        vocab_size if type(vocab_size) is int else None,
        directory,
    )
    return evolve(defaults, eos_token_ids=eos)
