"""SentencePiece's BPE from GGUF metadata: ids against the sentencepiece package, prefixes as llama.cpp puts them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forge.errors import ModelFileError, UnsupportedModel
from forge.text.tokenizer import Tokenizer

Metadata = dict[str, Any]
Build = Callable[[Metadata], Tokenizer]
Processor = sentencepiece.SentencePieceProcessor


@pytest.fixture(scope="module")
def tokenizer(sentencepiece_metadata: Metadata, from_gguf: Build) -> Tokenizer:
    return from_gguf(sentencepiece_metadata)


def with_tokens(metadata: Metadata, *extra: tuple[str, int], **keys: Any) -> Metadata:
    """More tokens at the end, each with its type."""
    named = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    return {
        **metadata,
        "tokenizer.ggml.tokens": metadata["tokenizer.ggml.tokens"] + [text for text, _ in extra],
        "tokenizer.ggml.token_type": metadata["tokenizer.ggml.token_type"] + [kind for _, kind in extra],
        "tokenizer.ggml.scores": metadata["tokenizer.ggml.scores"] + [0.0] * len(extra),
        **named,
    }


def test_ids_and_text_are_sentencepieces_own(
    corpus: list[str], tokenizer: Tokenizer, sentencepiece_model: Processor
) -> None:
    for text in corpus:
        ids = tokenizer.encode(text, add_special=False, parse_special=False)
        assert ids == sentencepiece_model.Encode(text), text
        assert tokenizer.decode(ids) == sentencepiece_model.Decode(ids) == text.replace("▁", " ")


@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(" ▁aeintos\n"), max_size=120))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=400)
def test_ids_are_right_for_any_text(tokenizer: Tokenizer, sentencepiece_model: Processor, text: str) -> None:
    ids = tokenizer.encode(text, add_special=False, parse_special=False)
    assert ids == sentencepiece_model.Encode(text)
    assert tokenizer.decode(ids) == text.replace("▁", " ")


def test_bos_comes_first_unless_the_file_says_otherwise(
    sentencepiece_metadata: Metadata, tokenizer: Tokenizer, from_gguf: Build
) -> None:
    bare = tokenizer.encode("Hallo", add_special=False)
    assert tokenizer.encode("Hallo") == [1, *bare]
    assert tokenizer.encode("") == [1]
    flags = {"tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_eos_token": True}
    assert from_gguf({**sentencepiece_metadata, **flags}).encode("Hallo") == [*bare, 2]


def test_special_tokens_are_found_in_trusted_text_only(tokenizer: Tokenizer, sentencepiece_model: Processor) -> None:
    first, second = (sentencepiece_model.Encode(text) for text in ("one", "two"))
    # The space that begins a text begins every stretch of it, as in llama.cpp.
    assert tokenizer.encode("one</s>two", add_special=False) == [*first, 2, *second]
    plain = tokenizer.encode("one</s>two", add_special=False, parse_special=False)
    assert plain == sentencepiece_model.Encode("one</s>two")
    assert tokenizer.special_ids == {0, 1, 2}
    assert tokenizer.decode([1, *first, 2]) == "one"
    assert tokenizer.decode([1, *first, 2], skip_special=False) == "<s> one</s>"


def test_without_a_space_prefix_none_is_added_or_taken(
    sentencepiece_metadata: Metadata, tokenizer: Tokenizer, from_gguf: Build
) -> None:
    bare = from_gguf({**sentencepiece_metadata, "tokenizer.ggml.add_space_prefix": False})
    assert bare.encode(" the dog", add_special=False) == tokenizer.encode("the dog", add_special=False)
    for text in ("the dog", " the dog", "  x"):
        assert bare.decode(bare.encode(text)) == text


def test_user_defined_tokens_are_found_in_any_text_and_shown_as_they_are(
    sentencepiece_metadata: Metadata, sentencepiece_model: Processor, from_gguf: Build
) -> None:
    tokenizer = from_gguf(with_tokens(sentencepiece_metadata, ("<tool>", 4), ("  ▁", 4)))
    tool = sentencepiece_model.GetPieceSize()
    for parse in (True, False):
        ids = tokenizer.encode("one<tool>two", add_special=False, parse_special=parse)
        assert ids == [*sentencepiece_model.Encode("one"), tool, *sentencepiece_model.Encode("two")]
    assert tokenizer.decode([tool, tool + 1]) == "<tool>  ▁"


def test_unused_tokens_are_never_made(sentencepiece_metadata: Metadata, from_gguf: Build) -> None:
    texts = sentencepiece_metadata["tokenizer.ggml.tokens"]
    the = texts.index("▁the")
    types = list(sentencepiece_metadata["tokenizer.ggml.token_type"])
    types[the] = 5
    tokenizer = from_gguf({**sentencepiece_metadata, "tokenizer.ggml.token_type": types})
    ids = tokenizer.encode("the dog")
    assert the not in ids
    assert tokenizer.decode(ids) == "the dog"
    assert the in tokenizer.special_ids


def test_unknown_characters_are_one_unknown_token_where_there_are_no_bytes(from_gguf: Build) -> None:
    tokens = ["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a", "ab"]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1, 1, 1],
        "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -3.0, -4.0, -5.0, -1.0, -2.0],
    }
    tokenizer = from_gguf(metadata)
    for parse in (True, False):
        assert tokenizer.encode("ab字字b", parse_special=parse) == [1, 6, 5, 0, 5]
    with pytest.raises(ModelFileError, match="neither a token for every byte nor one for unknown"):
        from_gguf({**metadata, "tokenizer.ggml.token_type": [1, *metadata["tokenizer.ggml.token_type"][1:]]})


def test_byte_tokens_stand_for_their_byte_and_not_for_their_text(tokenizer: Tokenizer) -> None:
    newline = tokenizer.encode("\n", add_special=False)[-1]
    assert tokenizer.token_raw(newline) == b"\n"
    assert newline not in tokenizer.encode("<0x0A>", add_special=False)


def test_normalisation_that_is_not_implemented_is_refused(sentencepiece_metadata: Metadata, from_gguf: Build) -> None:
    for key, value in [("precompiled_charsmap", [1, 2]), ("remove_extra_whitespaces", True), ("add_sep_token", True)]:
        with pytest.raises(UnsupportedModel, match=key):
            from_gguf({**sentencepiece_metadata, f"tokenizer.ggml.{key}": value})


def test_very_long_text_without_spaces_is_tokenized_whole(tokenizer: Tokenizer) -> None:
    """A method that is quadratic in the text's length would take hours here."""
    for run in ("a", " ", "字", "the dog "):
        text = run * 100_000
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_piece_of_absurd_length_is_refused(sentencepiece_metadata: Metadata, from_gguf: Build) -> None:
    with pytest.raises(ModelFileError, match="has 1000 characters"):
        from_gguf(with_tokens(sentencepiece_metadata, ("a" * 1000, 1)))
