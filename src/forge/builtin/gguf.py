"""The loader of GGUF files, whole or split in parts. Maps them; `forge.builtin.gguf_header` reads their headers.

Knows what a few keys mean (architecture, tokenizer, end of sequence, sampling); models read the others.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
from attrs import evolve

from forge.builtin.generation import eos_token_ids, sampling_defaults
from forge.builtin.gguf_header import MAGIC, GGUFHeader, read_header
from forge.builtin.mapped import MappedFile, MappedWeight, is_there, open_regular, shown
from forge.errors import ModelFileError
from forge.interfaces.loader import Checkpoint, GenerationDefaults, Loader, TokenizerSource

log = logging.getLogger(__name__)

PART_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL | re.ASCII)
"""How parts of a split file are called; their numbers begin with 1."""

EOS_KEYS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")

SAMPLING = "general.sampling."
SAMPLING_KEYS = {
    "temperature": f"{SAMPLING}temp",
    "top_k": f"{SAMPLING}top_k",
    "top_p": f"{SAMPLING}top_p",
    "min_p": f"{SAMPLING}min_p",
    "repetition_penalty": f"{SAMPLING}penalty_repeat",
}
"""The author's sampling values that we have a use for (https://github.com/ggml-org/llama.cpp/pull/17120)."""


class GGUFLoader(Loader):
    """Reads GGUF, version 2 and 3, little-endian, with every number format that the `gguf` package can dequantise.

    Any part of a split file stands for all of them. `Checkpoint.raw` is the `GGUFHeader` of the file, or of the first
    part; keys of the split itself aren't in `Checkpoint.metadata`.
    """

    def accepts(self, path: Path) -> bool:
        try:
            if path.suffix.lower() == ".gguf":  # if it can't be read, `open` says why
                return not path.is_dir()
            with open_regular(path) as file:
                return file.read(len(MAGIC)) == MAGIC
        except (ModelFileError, OSError):
            return False

    def open(self, path: Path) -> Checkpoint:
        headers = _parts(read_header(MappedFile.open(path)))
        head, tensors = headers[0], _merged(headers)
        architecture = _text(head, "general.architecture")
        if not architecture:
            raise head.file.damaged("the key general.architecture is missing or empty")
        tokenizer = {key: value for key, value in head.metadata.items() if key.startswith("tokenizer.")}
        return Checkpoint(
            format="gguf",
            path=path,
            architecture=architecture,
            metadata={
                key: value for key, value in head.metadata.items() if not key.startswith(("tokenizer.", "split."))
            },
            tensors=tensors,
            tokenizer=TokenizerSource("gguf", tokenizer, chat_template=_text(head, "tokenizer.chat_template")),
            generation=_generation(head),
            raw=head,
        )


def _text(header: GGUFHeader, key: str) -> str | None:
    value = header.metadata.get(key)
    if value is not None and not isinstance(value, str):
        raise header.file.damaged(f"the key {key} is {shown(str(value))}, not a string")
    return value


def _count(header: GGUFHeader, key: str) -> int:
    value = header.metadata.get(key)
    if type(value) is not int or value < 0:
        raise header.file.damaged(f"the key {key} is {shown(str(value))}, not a count")
    return value


# ------------------------------------------------------------------------------------------------------- split files


def _parts(opened: GGUFHeader) -> list[GGUFHeader]:
    """All parts of the file that this one belongs to, in order; just the one if it isn't split."""
    path = opened.file.path
    if "split.count" not in opened.metadata or (count := _count(opened, "split.count")) < 2:
        return [opened]
    name = PART_NAME.fullmatch(path.name)
    number = _count(opened, "split.no") + 1
    if name is None or (int(name["number"]), int(name["count"])) != (number, count):
        raise opened.file.damaged(
            f"this is part {number} of {count} of a split file, whose name must end in {_part('', number, count)} "
            "for the other parts to be found"
        )
    headers = []
    for part in range(1, count + 1):
        part_path = path.with_name(_part(name["stem"], part, count))
        header = opened if part == number else read_header(_open_part(part_path, path))
        if (_count(header, "split.no") + 1, _count(header, "split.count")) != (part, count):
            raise header.file.damaged(f"its keys split.no and split.count don't say that it's part {part} of {count}")
        headers.append(header)
    return headers


def _part(stem: str, number: int, count: int) -> str:
    return f"{stem}-{number:05}-of-{count:05}.gguf"


def _open_part(path: Path, opened: Path) -> MappedFile:
    if not is_there(path):
        raise ModelFileError(f"{path}: this part of the split file {opened.name} is missing")
    return MappedFile.open(path)


def _merged(headers: list[GGUFHeader]) -> dict[str, MappedWeight]:
    tensors: dict[str, MappedWeight] = {}
    for header in headers:
        for name, weight in header.tensors.items():
            if name in tensors:
                raise header.file.damaged(f"tensor {shown(name)} is in {tensors[name].file.path.name} too")
            tensors[name] = weight
    head = headers[0]
    if len(headers) > 1 and (promised := _count(head, "split.tensors.count")) != len(tensors):
        raise head.file.damaged(f"split.tensors.count is {promised}, and the parts have {len(tensors)} tensors")
    return tensors


# -------------------------------------------------------------------------------------------------------- generation


def _generation(header: GGUFHeader) -> GenerationDefaults:
    metadata, path = header.metadata, header.file.path
    tokens = metadata.get("tokenizer.ggml.tokens")
    eos = eos_token_ids(
        ((key, metadata.get(key)) for key in EOS_KEYS), len(tokens) if isinstance(tokens, list) else None, path
    )
    sampling = {key: _shortest(value) for key, value in metadata.items() if key.startswith(SAMPLING)}
    for key in sampling.keys() - SAMPLING_KEYS.values():
        log.warning("%s: %s isn't used", path, shown(key))
    return evolve(sampling_defaults(sampling, SAMPLING_KEYS, path), eos_token_ids=eos)


def _shortest(value: Any) -> Any:
    """Of the numbers that are the same in float32, the shortest: 0.6 rather than 0.6000000238418579."""
    return float(str(np.float32(value))) if isinstance(value, float) and abs(value) < 1e30 else value
