"""Byte-level BPE from GGUF metadata: ids against independent implementations, special tokens, round trips."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
import regex
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from forge.errors import InvalidRequest, UnsupportedModel
from forge.text.pretokenizers import PRE_TOKENIZERS
from forge.text.tokenizer import Tokenizer

Metadata = dict[str, Any]
Build = Callable[[Metadata], Tokenizer]

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PUBLISHED = {
    "gpt-2": [GPT2],
    "smollm": [r"\p{N}", GPT2],
    "command-r": [r"\p{N}", GPT2],
    "llama-bpe": [LLAMA3],
    "qwen2": [QWEN2],
    "qwen35": [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ],
    "tekken": [TEKKEN],
    "gpt-4o": [O200K],
    "default": [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
    "falcon": [r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"],
    "deepseek-coder": [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥\u0800-一가-\ud7ff]+", r"\p{N}"],
    "deepseek-v3": [
        r"\p{N}{1,3}",
        "[一-龥぀-ゟ゠-ヿ]+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ],
    "seed-coder": [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    ],
}
"""One of each way to cut, as published in tokenizer.json files and in llama.cpp."""


def cut(text: str, pattern: str) -> Iterator[str]:
    """Matches, and what lies between them."""
    end = 0
    for match in regex.finditer(pattern, text, regex.V0):
        yield from (piece for piece in (text[end : match.start()], match.group()) if piece)
        end = match.end()
    if end < len(text):
        yield text[end:]


def spell(text: str) -> str:
    """Bytes in GPT-2's alphabet, by its definition in OpenAI's encoder.py."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in kept]
    return "".join(chr(byte) if byte in kept else chr(256 + moved.index(byte)) for byte in text.encode())


def merge(piece: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """BPE as the paper has it: the best pair first, each time over the whole piece."""
    symbols = list(piece)
    while len(symbols) > 1:
        best = min(pairwise(symbols), key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        merged, at = [], 0
        while at < len(symbols):
            whole = tuple(symbols[at : at + 2]) == best
            merged.append("".join(symbols[at : at + 1 + whole]))
            at += 1 + whole
        symbols = merged
    return symbols


@pytest.mark.parametrize("name", PUBLISHED)
def test_text_is_cut_and_merged_as_the_published_pattern_says(
    name: str, corpus: list[str], byte_level_metadata: Metadata, from_gguf: Build
) -> None:
    metadata = {**byte_level_metadata, "tokenizer.ggml.pre": name}
    tokenizer = from_gguf(metadata)
    tokens = {text: token for token, text in enumerate(metadata["tokenizer.ggml.tokens"])}
    ranks = {tuple(text.split(" ")): rank for rank, text in enumerate(metadata["tokenizer.ggml.merges"])}
    for text in corpus:
        text = text[:400]
        if PRE_TOKENIZERS[name].nfc:
            text = unicodedata.normalize("NFC", text)
        if any(special in text for special in ("<|end|>", "<s>", "<tool>")):
            continue
        pieces = [text] if text else []
        for pattern in PUBLISHED[name]:
            pieces = [part for piece in pieces for part in cut(piece, pattern)]
        expected: list[int] = []
        for piece in map(spell, pieces):
            whole = PRE_TOKENIZERS[name].ignore_merges and piece in tokens
            expected += [tokens[symbol] for symbol in ([piece] if whole else merge(piece, ranks))]
        assert tokenizer.encode(text, add_special=False) == expected, (name, text)


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_every_pre_tokenizer_compiles_and_loses_no_text(
    name: str, corpus: list[str], byte_level_metadata: Metadata, from_gguf: Build
) -> None:
    tokenizer = from_gguf({**byte_level_metadata, "tokenizer.ggml.pre": name})
    for text in corpus:
        expected = unicodedata.normalize("NFC", text) if PRE_TOKENIZERS[name].nfc else text
        ids = tokenizer.encode(text, add_special=False, parse_special=False)
        assert tokenizer.decode(ids, skip_special=False) == expected


def test_an_unknown_pre_tokenizer_is_refused_with_the_known_names(
    byte_level_metadata: Metadata, from_gguf: Build
) -> None:
    with pytest.raises(UnsupportedModel, match=r"'quux'.*command-r, .*llama-bpe"):
        from_gguf({**byte_level_metadata, "tokenizer.ggml.pre": "quux"})


def test_a_missing_pre_tokenizer_is_said_to_be_a_guess(
    byte_level_metadata: Metadata, from_gguf: Build, caplog: pytest.LogCaptureFixture
) -> None:
    metadata = {key: value for key, value in byte_level_metadata.items() if key != "tokenizer.ggml.pre"}
    default = from_gguf({**metadata, "tokenizer.ggml.pre": "default"})
    assert from_gguf(metadata).encode("a1234,5") == default.encode("a1234,5")
    assert "names no pre-tokenizer" in caplog.text


def test_special_tokens_are_found_in_trusted_text_only(byte_level_metadata: Metadata, from_gguf: Build) -> None:
    tokenizer = from_gguf(byte_level_metadata)
    texts = byte_level_metadata["tokenizer.ggml.tokens"]
    end, begin, tool = (texts.index(text) for text in ("<|end|>", "<s>", "<tool>"))
    text = "a<|end|><tool>b<s>"
    parsed = tokenizer.encode(text, add_special=False)
    assert [token for token in parsed if token in (end, begin, tool)] == [end, tool, begin]
    assert tokenizer.decode(parsed) == "a<tool>b"
    assert tokenizer.decode(parsed, skip_special=False) == text
    plain = tokenizer.encode(text, add_special=False, parse_special=False)
    assert tokenizer.special_ids.isdisjoint(plain)
    assert tool in plain  # user-defined tokens are text, whoever wrote it
    assert tokenizer.decode(plain) == text
    assert tokenizer.special_ids == {end, begin}
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids) == (begin, (end,))


@given(st.lists(st.sampled_from(["<|end|>", "<s>", "<|", "end", "|>", "<", "s>", " ", "é", "<tool>"])))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_untrusted_text_never_becomes_a_control_token(
    byte_level_metadata: Metadata, from_gguf: Build, parts: list[str]
) -> None:
    tokenizer = cached(from_gguf, {**byte_level_metadata, "tokenizer.ggml.pre": "llama-bpe"})
    text = "".join(parts)
    ids = tokenizer.encode(text, add_special=False, parse_special=False)
    assert tokenizer.special_ids.isdisjoint(ids)
    assert tokenizer.decode(ids) == text


_CACHE: dict[str, Tokenizer] = {}


def cached(build: Build, metadata: Metadata) -> Tokenizer:
    """Build once for all of hypothesis' examples."""
    name = metadata["tokenizer.ggml.pre"]
    if name not in _CACHE:
        _CACHE[name] = build(metadata)
    return _CACHE[name]


def test_a_control_token_that_merges_could_make_stays_out_of_reach(from_gguf: Build) -> None:
    tokens = [*pre_tokenizers.ByteLevel.alphabet(), "ab", "abc"]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * 257 + [3],
        "tokenizer.ggml.merges": ["a b", "ab c"],
        "tokenizer.ggml.add_bos_token": False,
    }
    tokenizer = from_gguf(metadata)
    assert tokenizer.encode("abc", parse_special=False) == [256, tokens.index("c")]
    assert tokenizer.encode("abc") == [257]


@pytest.mark.parametrize(("pre", "expected"), [("llama-bpe", True), ("gpt-2", False)])
def test_bos_is_added_where_the_family_or_the_file_says_so(
    pre: str, expected: bool, byte_level_metadata: Metadata, from_gguf: Build
) -> None:
    metadata = {**byte_level_metadata, "tokenizer.ggml.pre": pre}
    bos, eos = metadata["tokenizer.ggml.bos_token_id"], metadata["tokenizer.ggml.eos_token_id"]
    plain = from_gguf(metadata).encode("word", add_special=False)
    assert from_gguf(metadata).encode("word") == ([bos] if expected else []) + plain
    flags = {"tokenizer.ggml.add_bos_token": not expected, "tokenizer.ggml.add_eos_token": True}
    assert from_gguf({**metadata, **flags}).encode("word") == ([] if expected else [bos]) + plain + [eos]


def test_a_wanted_bos_that_the_file_does_not_have_is_said_to_be_left_out(
    byte_level_metadata: Metadata, from_gguf: Build, caplog: pytest.LogCaptureFixture
) -> None:
    metadata = {**byte_level_metadata, "tokenizer.ggml.add_bos_token": True}
    del metadata["tokenizer.ggml.bos_token_id"]
    tokenizer = from_gguf(metadata)
    assert tokenizer.encode("word") == tokenizer.encode("word", add_special=False)
    assert "add_bos_token is set, but the file has no such token" in caplog.text


def test_all_ends_that_the_metadata_names_are_reported(byte_level_metadata: Metadata, from_gguf: Build) -> None:
    eos = byte_level_metadata["tokenizer.ggml.eos_token_id"]
    ends = {"tokenizer.ggml.eot_token_id": eos + 1, "tokenizer.ggml.eom_token_id": eos}
    assert from_gguf({**byte_level_metadata, **ends}).eos_token_ids == (eos, eos + 1)


def test_a_special_token_is_shown_in_log_probabilities_by_its_text(
    byte_level_metadata: Metadata, from_gguf: Build
) -> None:
    tokenizer = from_gguf(byte_level_metadata)
    end = tokenizer.eos_token_ids[0]
    assert tokenizer.token_bytes[end] == b""
    assert (tokenizer.token_text(end), tokenizer.token_raw(end)) == ("<|end|>", b"<|end|>")
    [first, *_] = tokenizer.encode("\u00e9", add_special=False)
    assert tokenizer.token_raw(first) == "é".encode()[: len(tokenizer.token_raw(first))]
    assert tokenizer.token_text(tokenizer.vocab_size) == ""


def test_ids_outside_the_vocabulary_and_broken_unicode_are_refused(
    byte_level_metadata: Metadata, from_gguf: Build
) -> None:
    tokenizer = from_gguf(byte_level_metadata)
    for token in (-1, tokenizer.vocab_size):
        with pytest.raises(InvalidRequest, match=rf"token id {token} at position 1"):
            tokenizer.decode([0, token])
    with pytest.raises(InvalidRequest, match=r"U\+D800 at 2"):
        tokenizer.encode("ab\ud800")


def test_bytes_that_are_no_utf8_show_as_replacement_characters(byte_level_metadata: Metadata, from_gguf: Build) -> None:
    tokenizer = from_gguf(byte_level_metadata)
    texts = byte_level_metadata["tokenizer.ggml.tokens"]
    assert tokenizer.decode([texts.index("Ã"), texts.index("a")]) == "\ufffda"


# ----------------------------------------------------------------------------------------------------- the real model


@pytest.fixture(scope="session")
def published_smollm2(smollm2_metadata: Metadata) -> tokenizers.Tokenizer:
    """SmolLM2's tokenizer.json: Digits, then GPT-2's own byte-level cut; all 17 special tokens added."""
    texts = smollm2_metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in smollm2_metadata["tokenizer.ggml.merges"]]
    published = tokenizers.Tokenizer(models.BPE({text: token for token, text in enumerate(texts)}, merges))
    published.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    published.decoder = decoders.ByteLevel()
    published.add_special_tokens(texts[:17])
    return published


@pytest.mark.model
def test_smollm2_ids_are_those_of_its_published_tokenizer(
    corpus: list[str], smollm2: Tokenizer, published_smollm2: tokenizers.Tokenizer
) -> None:
    for text in [*corpus, "<|im_start|>user\nHi 2025!<|im_end|>\n", "\n\n".join(corpus)]:
        assert smollm2.encode(text) == published_smollm2.encode(text).ids
        assert smollm2.decode(smollm2.encode(text)) == published_smollm2.decode(published_smollm2.encode(text).ids)


@pytest.mark.model
@given(st.text(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
def test_smollm2_ids_are_right_for_any_text(
    smollm2: Tokenizer, published_smollm2: tokenizers.Tokenizer, text: str
) -> None:
    ids = smollm2.encode(text, parse_special=False)
    assert ids == published_smollm2.encode(text).ids
    lost = "\x04\x06\x13\x14\x16\x1d"  # its vocabulary has no token for these, nor for bytes F1 and F2
    if not any(character in lost or 0x40000 <= ord(character) < 0xC0000 for character in text):
        assert smollm2.decode(ids) == text


@pytest.mark.model
def test_smollm2_says_which_bytes_its_vocabulary_lacks(
    smollm2_metadata: Metadata, from_gguf: Build, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    tokenizer = from_gguf(smollm2_metadata)
    assert "04 06 13 14 16 1D F1 F2" in caplog.text
    assert tokenizer.special_ids == set(range(17))
    assert (tokenizer.vocab_size, tokenizer.bos_token_id, tokenizer.eos_token_ids) == (49152, 1, (2,))


def test_very_long_runs_are_tokenized_whole(byte_level_metadata: Metadata, from_gguf: Build) -> None:
    """A method that is quadratic in the run's length would take hours here."""
    tokenizer = from_gguf({**byte_level_metadata, "tokenizer.ggml.pre": "llama-bpe"})
    for run in ("a", " ", "\n", "!", "7", "字", "\u0301", "A"):
        text = run * 300_000
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_threads_can_share_a_tokenizer(corpus: list[str], byte_level_metadata: Metadata, from_gguf: Build) -> None:
    tokenizer = from_gguf(byte_level_metadata)
    work = [(text, parse) for text in corpus for parse in (True, False)] * 4
    alone = [tokenizer.encode(text, parse_special=parse) for text, parse in work]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda item: tokenizer.encode(item[0], parse_special=item[1]), work))
    assert together == alone
