"""Tokenizers from GGUF metadata: byte-level BPE (``gpt2``) and SentencePiece's BPE (``llama``).

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The metadata is a hostile file's: every array is
checked before it's used. A special token's text isn't in the BPE model at all, so that no text can be merged into one;
the library's added tokens find it where that's wanted.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tokenizers
from attrs import field, frozen
from tokenizers import AddedToken, models, normalizers, processors
from tokenizers.pre_tokenizers import PreTokenizer as LibraryPreTokenizer

from forge.errors import ModelFileError, UnsupportedModel
from forge.text.gguf_metadata import KEY, MetadataReader
from forge.text.parts import BYTE_ALPHABET, Engines, TokenizerParts, byte_level_bytes, fallback_byte, library_errors
from forge.text.pretokenizers import pre_tokenizer

log = logging.getLogger(__name__)

MAX_PIECE = 256
"""Characters of a SentencePiece piece: merges are found by cutting each piece in two at every place."""

UTF8_BYTES = frozenset(range(256)) - {0xC0, 0xC1, *range(0xF5, 0x100)}
"""Bytes that occur in UTF-8."""


class TokenType(enum.IntEnum):
    """What a token is, by ``tokenizer.ggml.token_type``."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


SPECIAL_TYPES = frozenset({TokenType.UNKNOWN, TokenType.CONTROL, TokenType.UNUSED})
"""Never part of a text. Unused tokens can't be reached from one either."""


@frozen
class Entries:
    """The vocabulary as the file has it.

    special: ids of special types, and those that have a role: BOS, one of several EOS, unknown.
    """

    texts: tuple[str, ...]
    types: tuple[TokenType, ...]
    bos: int | None
    eos: tuple[int, ...]
    unknown: int | None
    special: frozenset[int] = field(init=False)

    def __attrs_post_init__(self) -> None:
        special = {token for token, kind in enumerate(self.types) if kind in SPECIAL_TYPES}
        special.update(token for token in (self.bos, *self.eos, self.unknown) if token is not None)
        object.__setattr__(self, "special", frozenset(special))

    def key(self, token: int) -> str:
        """How the BPE model spells an id: special and empty ones in a way that no text can reach."""
        text = self.texts[token]
        return text if text and token not in self.special else f"\x00forge {token}"

    @property
    def user_defined(self) -> list[int]:
        """Ids that are found in any text before it's tokenized."""
        return [
            token
            for token, kind in enumerate(self.types)
            if kind is TokenType.USER_DEFINED and self.texts[token] and token not in self.special
        ]

    @property
    def spoken_special(self) -> list[int]:
        """Special ids that trusted text can name."""
        return [
            token for token in sorted(self.special) if self.texts[token] and self.types[token] is not TokenType.UNUSED
        ]

    def vocabulary(self) -> dict[str, int]:
        """The BPE model's spelling of every id."""
        keys = {self.key(token): token for token in range(len(self.texts))}
        if len(keys) < len(self.texts):
            raise ModelFileError(f"{KEY}tokens has an entry of the form '\\0forge N'")
        return keys


def read_gguf(metadata: Mapping[str, Any]) -> TokenizerParts:
    """Build from the ``tokenizer.*`` keys. Errors: `ModelFileError`, `UnsupportedModel`."""
    reader = MetadataReader(metadata)
    kind = reader.text("model")
    for option in ("add_sep_token", "normalizer.lowercase", "normalizer.strip_accents", "remove_extra_whitespaces"):
        if reader.flag(option, default=False):
            raise UnsupportedModel(f"{KEY}{option} is not implemented")
    if kind == "gpt2":
        return read_byte_level(reader)
    if kind == "llama":
        return read_sentencepiece(reader)
    raise UnsupportedModel(f"tokenizer model {kind!r} ({KEY}model) is not implemented; known are 'gpt2', 'llama'")


def read_entries(reader: MetadataReader, *, sentencepiece: bool) -> Entries:
    """Tokens, their types, and the ids with a role.

    sentencepiece: unnamed roles fall to its usual ids (unknown 0, BOS 1, EOS 2), if those tokens are of such types.
    """
    texts = reader.texts("tokens")
    if not texts:
        raise ModelFileError(f"{KEY}tokens is empty")
    first: dict[str, int] = {}
    for token, text in enumerate(texts):
        if first.setdefault(text, token) != token and text:
            raise ModelFileError(f"{KEY}tokens has {text!r} twice, as {first[text]} and {token}")
    types = read_types(reader, texts)
    untyped = KEY + "token_type" not in reader.metadata

    def usual(token: int, kind: TokenType) -> int | None:
        fits = sentencepiece and token < len(texts) and (untyped or types[token] is kind)
        return token if fits else None

    ends = [reader.token("eos_token_id", len(texts), usual(2, TokenType.CONTROL))]
    ends += [reader.token(name, len(texts)) for name in ("eot_token_id", "eom_token_id")]
    unknown = reader.token("unknown_token_id", len(texts), usual(0, TokenType.UNKNOWN))
    return Entries(
        texts,
        types,
        bos=reader.token("bos_token_id", len(texts), usual(1, TokenType.CONTROL)),
        eos=tuple(dict.fromkeys(token for token in ends if token is not None)),
        unknown=unknown if sentencepiece else None,  # byte-level BPE knows every character
    )


def read_types(reader: MetadataReader, texts: Sequence[str]) -> tuple[TokenType, ...]:
    """Each token's type: normal, if the file has none."""
    numbers = reader.numbers("token_type", len(texts), default=TokenType.NORMAL)
    kinds = {int(kind): kind for kind in TokenType}
    try:
        types = tuple([kinds[int(number)] for number in numbers])
    except KeyError as error:
        raise ModelFileError(f"{KEY}token_type: {error} is not a valid TokenType") from error
    for token, (text, kind) in enumerate(zip(texts, types)):
        if kind is TokenType.BYTE and fallback_byte(text) is None:
            raise ModelFileError(f"{KEY}tokens[{token}] is a byte token, but its text is {text!r}")
    return types


def read_byte_level(reader: MetadataReader) -> TokenizerParts:
    """GPT-2's kind: text is cut by a pre-tokenizer, its bytes are spelt with an alphabet, then merged by rank."""
    name = reader.text("pre", default="")
    if not name:
        log.warning("the model file names no pre-tokenizer (%spre); 'default' is used and may cut text wrongly", KEY)
    cut = pre_tokenizer(name or "default")
    entries = read_entries(reader, sentencepiece=False)
    present = set(entries.texts)
    missing = sorted(byte for letter, byte in BYTE_ALPHABET.items() if byte in UTF8_BYTES and letter not in present)
    if missing:
        # As in llama.cpp and Hugging Face's library: SmolLM2's own vocabulary lacks some control characters.
        spelt = " ".join(f"{byte:02X}" for byte in missing)
        log.info("the vocabulary has no token for these bytes, which are left out of prompts: %s", spelt)

    def engines() -> Engines:
        vocabulary = entries.vocabulary()
        merges = read_merges(reader, entries, vocabulary)
        plain = tokenizers.Tokenizer(models.BPE(vocabulary, merges, ignore_merges=cut.ignore_merges))
        return pair(reader, entries, plain, cut.build_normalizer(), cut.build(), add_bos=cut.add_bos)

    return assemble(entries, engines, [byte_level_bytes(text) for text in entries.texts])


def read_merges(reader: MetadataReader, entries: Entries, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """``"left right"`` as pairs. Those that would make a special token are dropped: text never becomes one."""
    special = {entries.texts[token] for token in entries.special}
    merges = []
    for place, merge in enumerate(reader.texts("merges")):
        left, _, right = merge.partition(" ")
        if not left or not right or " " in right:
            raise ModelFileError(f"{KEY}merges[{place}] is {merge!r}, not two tokens with a space between")
        whole = left + right
        if left in special or right in special or whole in special:
            continue
        if left not in vocabulary or right not in vocabulary or whole not in vocabulary:
            unknown = next(part for part in (left, right, whole) if part not in vocabulary)
            raise ModelFileError(f"{KEY}merges[{place}] ({merge!r}) needs {unknown!r}, which isn't a token")
        merges.append((left, right))
    return merges


def read_sentencepiece(reader: MetadataReader) -> TokenizerParts:
    """SentencePiece's BPE: spaces are spelt ▁, and of all neighbours that are a piece together the best are merged.

    As in llama.cpp, the space that stands before a text also stands after each special or user-defined token within it.
    """
    if reader.array("precompiled_charsmap", default=()):
        raise UnsupportedModel(f"{KEY}precompiled_charsmap (normalisation of text) is not implemented for 'llama'")
    entries = read_entries(reader, sentencepiece=True)
    scores = reader.numbers("scores", len(entries.texts))
    byte_values = {fallback_byte(text) for text, kind in zip(entries.texts, entries.types) if kind is TokenType.BYTE}
    byte_fallback = byte_values >= UTF8_BYTES
    if entries.unknown is None and not byte_fallback:
        raise ModelFileError("the vocabulary has neither a token for every byte nor one for unknown characters")
    unknown = None if entries.unknown is None else entries.key(entries.unknown)
    lead = reader.flag("add_space_prefix", default=True)

    def engines() -> Engines:
        merges = merges_by_score(entries, scores)
        model = models.BPE(entries.vocabulary(), merges, unk_token=unknown, fuse_unk=True, byte_fallback=byte_fallback)
        spell = normalizers.Replace(" ", "▁")
        normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spell]) if lead else spell
        return pair(reader, entries, tokenizers.Tokenizer(model), normalizer, None, add_bos=True)

    return assemble(entries, engines, [text.replace("▁", " ").encode() for text in entries.texts], lead=int(lead))


def merges_by_score(entries: Entries, scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every way to make a normal piece of two others, best score first.

    SentencePiece merges the pair whose result scores best, the leftmost on ties; a rank for each pair is the same where
    scores differ, as training makes them. Pieces of equal score rank by id.
    """
    pieces = {
        text: token
        for token, (text, kind) in enumerate(zip(entries.texts, entries.types))
        if kind is TokenType.NORMAL and token not in entries.special and text
    }
    ranked = []
    for text, token in pieces.items():
        if len(text) > MAX_PIECE:
            raise ModelFileError(f"{KEY}tokens[{token}] has {len(text)} characters; a piece may have {MAX_PIECE}")
        for cut in range(1, len(text)):
            if text[:cut] in pieces and text[cut:] in pieces:
                ranked.append((-scores[token], token, cut))
    ranked.sort()
    return [(entries.texts[token][:cut], entries.texts[token][cut:]) for _, token, cut in ranked]


def pair(
    reader: MetadataReader,
    entries: Entries,
    plain: tokenizers.Tokenizer,
    normalizer: normalizers.Normalizer | None,
    cutter: LibraryPreTokenizer | None,
    *,
    add_bos: bool,
) -> Engines:
    """Make the second engine, on the same model, and give both what they need around it."""
    parsing = tokenizers.Tokenizer(plain.model)
    around = frame(reader, entries, add_bos)
    aliases = {}
    for engine in (plain, parsing):
        if normalizer is not None:
            engine.normalizer = normalizer
        if cutter is not None:
            engine.pre_tokenizer = cutter
        engine.post_processor = around
        engine.add_tokens([AddedToken(entries.texts[token], normalized=False) for token in entries.user_defined])
    special = entries.spoken_special
    parsing.add_special_tokens([AddedToken(entries.texts[token], normalized=False, special=True) for token in special])
    for token in special:
        alias = parsing.token_to_id(entries.texts[token])
        if alias is None:
            raise ModelFileError(f"special token {token} ({entries.texts[token]!r}) can't be told from other text")
        aliases[alias] = token
    return Engines(parsing, plain, aliases)


def assemble(
    entries: Entries, engines: Callable[[], Engines], token_bytes: Sequence[bytes], lead: int = 0
) -> TokenizerParts:
    """The tables, and what makes the engines, whose errors become ours."""

    def guarded() -> Engines:
        with library_errors(lambda reason: ModelFileError(f"the tokenizer's metadata is inconsistent: {reason}")):
            return engines()

    return TokenizerParts(
        engines=guarded,
        texts=entries.texts,
        token_bytes=tuple([final_bytes(entries, token, data) for token, data in enumerate(token_bytes)]),
        special_ids=entries.special,
        bos_id=entries.bos,
        eos_ids=entries.eos,
        unknown_id=entries.unknown,
        lead=lead,
    )


def final_bytes(entries: Entries, token: int, spelt: bytes) -> bytes:
    """What an id stands for. spelt: its bytes if it's a normal token."""
    if token in entries.special:
        return b""
    kind = entries.types[token]
    if kind is TokenType.BYTE:
        return bytes([fallback_byte(entries.texts[token]) or 0])
    return entries.texts[token].encode() if kind is TokenType.USER_DEFINED else spelt


def frame(reader: MetadataReader, entries: Entries, add_bos: bool) -> processors.TemplateProcessing:
    """What puts BOS and EOS around a prompt. add_bos: whether this kind has BOS where the file doesn't say."""
    wanted = {"bos": reader.flag("add_bos_token", default=add_bos and entries.bos is not None)}
    wanted["eos"] = reader.flag("add_eos_token", default=False)
    bos = entries.bos if wanted["bos"] else None
    eos = entries.eos[0] if wanted["eos"] and entries.eos else None
    for name, token in (("bos", bos), ("eos", eos)):
        if wanted[name] and token is None:
            log.warning("%sadd_%s_token is set, but the file has no such token; none is added", KEY, name)
    single = [*(["BOS"] if bos is not None else []), "$A", *(["EOS"] if eos is not None else [])]
    named = [(name, token) for name, token in (("BOS", bos), ("EOS", eos)) if token is not None]
    return processors.TemplateProcessing(single=single, special_tokens=named)
