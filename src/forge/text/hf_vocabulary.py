"""Tokenizers from a Hugging Face directory: tokenizer.json as the library reads it, roles from tokenizer_config.json.

What each token stands for follows from the file's decoder, by the two spellings that language models use: GPT-2's byte
alphabet, and SentencePiece's ▁ with <0xNN>. A decoder of another kind is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from attrs import frozen

from forge.errors import ModelFileError, UnsupportedModel
from forge.text.parts import Engines, TokenizerParts, byte_level_bytes, fallback_byte, library_errors

MAX_FILE_BYTES = 256 << 20
"""tokenizer.json is read as a whole; published ones have up to 40 MB."""

MAX_GAP = 65536
"""Ids that may be missing from a vocabulary."""


@frozen
class Spelling:
    """How a vocabulary's strings spell bytes.

    byte_level: with GPT-2's alphabet. Otherwise replacements, in order, and perhaps fallback bytes. lead: spaces that
    decoding takes from the start of a text.
    """

    byte_level: bool = False
    replacements: tuple[tuple[str, str], ...] = ()
    byte_fallback: bool = False
    lead: int = 0

    def bytes_of(self, text: str) -> bytes:
        """What a token of this text stands for."""
        if self.byte_level:
            return byte_level_bytes(text)
        if self.byte_fallback and (byte := fallback_byte(text)) is not None:
            return bytes([byte])
        for old, new in self.replacements:
            text = text.replace(old, new)
        return text.encode()


def read_huggingface(path: Path | None, config: Mapping[str, Any]) -> TokenizerParts:
    """Build from tokenizer.json at `path` and the contents of tokenizer_config.json.

    Errors: `ModelFileError`, `UnsupportedModel`.
    """
    if path is None:
        raise UnsupportedModel("the model has no tokenizer.json")
    data = read_bytes(path)
    description = parse(path, data)
    added = read_added(path, description)
    spelling = read_spelling(description.get("decoder"))
    refuse_dropout(path, description.get("model"))
    with library_errors(lambda reason: ModelFileError(f"{path}: not a tokenizer: {reason}")):
        parsing, plain = (tokenizers.Tokenizer.from_buffer(data) for _ in range(2))
        for engine in (parsing, plain):
            engine.no_truncation()
            engine.no_padding()
        plain.encode_special_tokens = True
        vocabulary = parsing.get_vocab(with_added_tokens=True)
        for engine in (parsing, plain):  # parts that contradict each other show only in use
            engine.encode("probe \n", add_special_tokens=True)
    texts = by_id(path, vocabulary)
    check_config_tokens(path, config, texts)
    bos, eos, unknown = (role(path, config, name, vocabulary) for name in ("bos_token", "eos_token", "unk_token"))
    special = {token for token, entry in added.items() if entry.get("special") is True}
    special.update(token for token in (bos, eos) if token is not None)
    special.update(token for token, text in enumerate(texts) if text is None)
    engines = Engines(parsing, plain)
    return TokenizerParts(
        engines=lambda: engines,
        texts=tuple(text or "" for text in texts),
        token_bytes=tuple(
            b"" if text is None or token in special else text.encode() if token in added else spelling.bytes_of(text)
            for token, text in enumerate(texts)
        ),
        special_ids=frozenset(special),
        bos_id=bos,
        eos_ids=() if eos is None else (eos,),
        unknown_id=unknown,
        lead=spelling.lead,
    )


def read_bytes(path: Path) -> bytes:
    """The file, if it has a sensible size."""
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ModelFileError(f"{path} has {size} bytes; at most {MAX_FILE_BYTES} are read")
        return path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path} can't be read: {error.strerror}") from error


def parse(path: Path, data: bytes) -> dict[str, Any]:
    """The file as JSON."""
    try:
        description = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} isn't JSON: {error}") from error
    if not isinstance(description, dict):
        raise ModelFileError(f"{path} holds {type(description).__name__}, not an object")
    return description


def refuse_dropout(path: Path, model: object) -> None:
    """BPE dropout is for training: with it, the same text would get other ids every time."""
    dropout = model.get("dropout") if isinstance(model, dict) else None
    if dropout:
        raise UnsupportedModel(f"{path}: BPE dropout ({dropout}) makes ids random, which is not implemented")


def read_added(path: Path, description: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    """The ``added_tokens``, by id."""
    entries = description.get("added_tokens") or []
    if not isinstance(entries, list):
        raise ModelFileError(f"{path}: added_tokens is {type(entries).__name__}, not a list")
    added: dict[int, Mapping[str, Any]] = {}
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), int):
            raise ModelFileError(f"{path}: added_tokens[{place}] has no id")
        added[entry["id"]] = entry
    return added


def read_spelling(decoder: object) -> Spelling:
    """Tell the spelling from the decoder's steps."""
    steps = list(flatten(decoder))
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return Spelling(byte_level=True)
    replacements: list[tuple[str, str]] = []
    byte_fallback = fused = False
    lead = 0
    for step in steps:
        match step:
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if old and not fused:
                replacements.append((old, new))
            case {"type": "Metaspace", "replacement": str(old)} if not fused:
                replacements.append((old, " "))
                lead = 0 if step.get("prepend_scheme") == "never" or step.get("add_prefix_space") is False else 1
            case {"type": "ByteFallback"}:
                byte_fallback = True
            case {"type": "Fuse"}:
                fused = True
            case {"type": "Strip", "content": " ", "start": int(start), "stop": 0} if fused and start >= 0:
                lead = start
            case _:
                replacements.clear()
                break
    if not replacements:
        raise UnsupportedModel(f"the bytes of tokens can't be told from a decoder of the kind {kinds or None}")
    return Spelling(replacements=tuple(replacements), byte_fallback=byte_fallback, lead=lead)


def flatten(decoder: object) -> list[Mapping[str, Any]]:
    """A decoder's steps, sequences within sequences laid out flat."""
    if not isinstance(decoder, dict):
        return []
    if decoder.get("type") != "Sequence":
        return [decoder]
    steps = decoder.get("decoders")
    return [inner for step in steps for inner in flatten(step)] if isinstance(steps, list) else []


def by_id(path: Path, vocabulary: Mapping[str, int]) -> list[str | None]:
    """Each id's text; None for ids that the vocabulary leaves out."""
    size = max(vocabulary.values(), default=-1) + 1
    if size == 0:
        raise ModelFileError(f"{path}: the vocabulary is empty")
    if size > len(vocabulary) + MAX_GAP:
        raise ModelFileError(f"{path}: ids reach {size - 1}, but there are {len(vocabulary)} tokens")
    texts: list[str | None] = [None] * size
    for text, token in vocabulary.items():
        if texts[token] is not None:
            raise ModelFileError(f"{path}: {texts[token]!r} and {text!r} both have the id {token}")
        texts[token] = text
    return texts


def role(path: Path, config: Mapping[str, Any], name: str, vocabulary: Mapping[str, int]) -> int | None:
    """The id of ``bos_token`` and the like, which are strings or objects with a ``content``."""
    value = config.get(name)
    if isinstance(value, dict):
        value = value.get("content")
    if value is None:
        return None
    if not isinstance(value, str):
        raise ModelFileError(f"tokenizer_config.json: {name} is {type(value).__name__}, not a string or an object")
    if value not in vocabulary:
        raise ModelFileError(f"tokenizer_config.json: {name} is {value!r}, which {path} doesn't have")
    return vocabulary[value]


def check_config_tokens(path: Path, config: Mapping[str, Any], texts: list[str | None]) -> None:
    """What tokenizer_config.json says of added tokens must be what tokenizer.json has."""
    declared = config.get("added_tokens_decoder") or {}
    if not isinstance(declared, dict):
        raise ModelFileError(f"tokenizer_config.json: added_tokens_decoder is {type(declared).__name__}, not an object")
    for key, entry in declared.items():
        content = entry.get("content") if isinstance(entry, dict) else None
        token = int(key) if isinstance(key, str) and key.isdecimal() else -1
        if not 0 <= token < len(texts) or texts[token] != content:
            raise ModelFileError(f"tokenizer_config.json: added token {key} is {content!r}, but {path} has another")
