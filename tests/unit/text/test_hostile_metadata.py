"""Damaged and hostile tokenizer metadata: one clear error, whatever is in there."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge.errors import ForgeError, ModelFileError, UnsupportedModel
from forge.interfaces.loader import TokenizerSource
from forge.text.tokenizer import Tokenizer, build_tokenizer

Metadata = dict[str, Any]
Build = Callable[[Metadata], Tokenizer]


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("model", None, "no tokenizer.ggml.model"),
        ("model", 7, "model is int, not a string"),
        ("pre", ["gpt-2"], "pre is list, not a string"),
        ("tokens", None, "no tokenizer.ggml.tokens"),
        ("tokens", [], "tokens is empty"),
        ("tokens", "abc", "tokens is str, not an array"),
        ("tokens", ["a", b"b"], r"tokens\[1\] is bytes, not a string"),
        ("tokens", ["a", "\ud800"], r"tokens\[1\] isn't valid Unicode"),
        ("tokens", ["a", "b", "a"], "'a' twice, as 0 and 2"),
        ("token_type", [1, 1], "2 entries for 1203 tokens"),
        ("token_type", [1] * 1202 + [9], "9 is not a valid TokenType"),
        ("token_type", [1] * 1202 + ["x"], r"token_type\[1202\] is str"),
        ("token_type", [1] * 1202 + [math.nan], r"token_type\[1202\] is nan"),
        ("token_type", [1] * 1202 + [6], "byte token, but its text is '<tool>'"),
        ("merges", None, "no tokenizer.ggml.merges"),
        ("merges", ["a"], r"merges\[0\] is 'a', not two tokens"),
        ("merges", ["a b c"], r"merges\[0\] is 'a b c', not two tokens"),
        ("merges", ["a quux"], "needs 'quux', which isn't a token"),
        ("merges", [7], r"merges\[0\] is int"),
        ("bos_token_id", 5000, "bos_token_id is 5000, but the vocabulary has 1203 tokens"),
        ("eos_token_id", -1, "eos_token_id is -1"),
        ("eot_token_id", "2", "eot_token_id is str, not a token id"),
        ("eom_token_id", True, "eom_token_id is bool, not a token id"),
        ("add_bos_token", 1, "add_bos_token is int, not a truth value"),
    ],
)
def test_wrong_byte_level_metadata_is_named(
    key: str, value: object, reason: str, byte_level_metadata: Metadata, from_gguf: Build
) -> None:
    with pytest.raises(ModelFileError, match=reason):
        from_gguf({**byte_level_metadata, f"tokenizer.ggml.{key}": value})


@pytest.mark.parametrize(
    ("value", "reason"),
    [(None, "no tokenizer.ggml.scores"), ([0.5], "1 entries for"), ("x", "not an array"), ([math.inf] * 1100, "inf")],
)
def test_wrong_scores_are_named(value: object, reason: str, sentencepiece_metadata: Metadata, from_gguf: Build) -> None:
    with pytest.raises(ModelFileError, match=reason):
        from_gguf({**sentencepiece_metadata, "tokenizer.ggml.scores": value})


def test_a_token_that_looks_like_an_internal_name_is_refused(from_gguf: Build) -> None:
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["<s>", "\x00forge 0"],
        "tokenizer.ggml.token_type": [3, 1],
        "tokenizer.ggml.merges": [],
    }
    with pytest.raises(ModelFileError, match="forge N"):
        from_gguf(metadata)


def test_an_unknown_kind_of_tokenizer_is_refused(byte_level_metadata: Metadata, from_gguf: Build) -> None:
    with pytest.raises(UnsupportedModel, match=r"'t5'.*known are 'gpt2', 'llama'"):
        from_gguf({**byte_level_metadata, "tokenizer.ggml.model": "t5"})


def test_numpy_arrays_and_numbers_serve_as_well(
    corpus: list[str], sentencepiece_metadata: Metadata, from_gguf: Build
) -> None:
    arrays = {
        **sentencepiece_metadata,
        "tokenizer.ggml.scores": np.array(sentencepiece_metadata["tokenizer.ggml.scores"], dtype=np.float32),
        "tokenizer.ggml.token_type": np.array(sentencepiece_metadata["tokenizer.ggml.token_type"], dtype=np.int32),
        "tokenizer.ggml.bos_token_id": np.uint32(1),
        "tokenizer.ggml.add_bos_token": np.bool_(True),
    }
    plain, other = from_gguf(sentencepiece_metadata), from_gguf(arrays)
    assert [other.encode(text) for text in corpus] == [plain.encode(text) for text in corpus]


ODD = st.one_of(
    *(st.none(), st.integers(-3, 40), st.floats(), st.text(max_size=4), st.booleans(), st.binary(max_size=2)),
    *(st.lists(st.integers(-1, 8)), st.lists(st.floats(), max_size=12), st.dictionaries(st.text(), st.none())),
    st.lists(st.text("ab <>\x00▁Ġ", max_size=3), max_size=12),
)
KEYS = [
    *("pre", "tokens", "token_type", "scores", "merges", "bos_token_id", "eos_token_id", "eot_token_id"),
    *("unknown_token_id", "add_bos_token", "add_eos_token", "add_space_prefix", "precompiled_charsmap"),
]


@given(
    st.sampled_from(["gpt2", "llama", "x"]),
    st.dictionaries(st.sampled_from(KEYS), ODD, max_size=5),
    st.text(max_size=9),
)
@settings(max_examples=400)
def test_whatever_the_metadata_the_answer_is_a_tokenizer_or_one_of_our_errors(
    kind: str, odd: dict[str, Any], text: str
) -> None:
    sound: Metadata = {
        "pre": "gpt-2",
        "tokens": ["<unk>", "<s>", "</s>", "a", "b", "ab", "", " ", "<0x0A>"],
        "token_type": [2, 3, 3, 1, 1, 1, 1, 4, 6],
        "scores": [0.0, 0.0, 0.0, -1.0, -2.0, -0.5, 0.0, 0.0, 0.0],
        "merges": ["a b"],
    }
    metadata = {f"tokenizer.ggml.{key}": value for key, value in {**sound, "model": kind, **odd}.items()}
    try:
        tokenizer = build_tokenizer(TokenizerSource("gguf", metadata))
    except (ModelFileError, UnsupportedModel):
        return
    for parse in (True, False):
        ids = tokenizer.encode(text + "<s>ab", parse_special=parse)
        assert all(0 <= token < tokenizer.vocab_size for token in ids)
        assert isinstance(tokenizer.decode(ids), str)


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
BPE = {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}
TOKEN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def write(path: Path, **changes: object) -> Path:
    """A tokenizer.json with two tokens, and something else in it."""
    sound = {"version": "1.0", "added_tokens": [], "decoder": BYTE_LEVEL, "model": BPE}
    path.write_text(json.dumps({**sound, **changes}))
    return path


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"model": {**BPE, "vocab": {}}}, ModelFileError, "vocabulary is empty"),
        ({"model": {**BPE, "vocab": {"a": 0, "b": 0}}}, ModelFileError, "both have the id 0"),
        ({"model": {**BPE, "vocab": {"a": 0, "b": 4_000_000_000}}}, ModelFileError, "ids reach 4000000000"),
        ({"model": {**BPE, "vocab": {"a": -1}}}, ModelFileError, "not a tokenizer"),
        ({"model": {**BPE, "merges": ["a c"]}}, ModelFileError, "Token `c` out of vocabulary"),
        ({"model": {**BPE, "dropout": 0.1}}, UnsupportedModel, "dropout"),
        ({"model": None}, ModelFileError, "not a tokenizer"),
        ({"added_tokens": {"x": 1}}, ModelFileError, "added_tokens is dict"),
        ({"added_tokens": [{**TOKEN, "content": "x"}]}, ModelFileError, r"added_tokens\[0\] has no id"),
        ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, ModelFileError, "chunk size must be non-zero"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, ModelFileError, "Precompiled"),
        ({"decoder": None}, UnsupportedModel, "a decoder of the kind None"),
        ({"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}}, UnsupportedModel, "WordPiece"),
        ({"decoder": {"type": "Sequence", "decoders": [BYTE_LEVEL, {"type": "Fuse"}]}}, UnsupportedModel, "Fuse"),
    ],
)
def test_wrong_tokenizer_json_is_named(
    changes: dict[str, Any], error: type[ForgeError], reason: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "tokenizer.json", **changes)
    with pytest.raises(error, match=reason):
        build_tokenizer(TokenizerSource("huggingface", {}, path))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"bos_token": "x"}, "bos_token is 'x', which .* doesn't have"),
        ({"eos_token": ["a"]}, "eos_token is list"),
        ({"added_tokens_decoder": {"1": {"content": "a"}}}, "added token 1 is 'a'"),
        ({"added_tokens_decoder": {"-1": {"content": "b"}}}, "added token -1 is 'b'"),
        ({"added_tokens_decoder": []}, None),
        ({"added_tokens_decoder": [1]}, "added_tokens_decoder is list"),
    ],
)
def test_a_tokenizer_config_that_contradicts_the_tokenizer_is_named(
    config: dict[str, Any], reason: str | None, tmp_path: Path
) -> None:
    source = TokenizerSource("huggingface", config, write(tmp_path / "tokenizer.json"))
    if reason is None:
        assert build_tokenizer(source).vocab_size == 2
        return
    with pytest.raises(ModelFileError, match=reason):
        build_tokenizer(source)


def test_a_tokenizer_json_that_is_missing_or_no_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"no tokenizer\.json"):
        build_tokenizer(TokenizerSource("huggingface", {}))
    with pytest.raises(ModelFileError, match="can't be read: No such file"):
        build_tokenizer(TokenizerSource("huggingface", {}, tmp_path / "tokenizer.json"))
    for data in (b"\xff\xfe", b"{", b"[]", b"[" * 100_000):
        (tmp_path / "tokenizer.json").write_bytes(data)
        with pytest.raises(ModelFileError, match=r"tokenizer\.json"):
            build_tokenizer(TokenizerSource("huggingface", {}, tmp_path / "tokenizer.json"))
