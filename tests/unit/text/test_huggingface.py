"""Tokenizers from a Hugging Face directory, against the library that wrote the files."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from transformers import Qwen2Tokenizer

from forge.errors import InvalidRequest
from forge.interfaces.loader import TokenizerSource
from forge.text.tokenizer import Tokenizer, build_tokenizer

Metadata = dict[str, Any]


def vocabulary(metadata: Metadata) -> dict[str, int]:
    return {text: token for token, text in enumerate(metadata["tokenizer.ggml.tokens"])}


def build(path: Path, library: tokenizers.Tokenizer, **config: Any) -> Tokenizer:
    library.save(str(path / "tokenizer.json"))
    return build_tokenizer(TokenizerSource("huggingface", config, path / "tokenizer.json"))


@pytest.fixture
def llama3_like(byte_level_metadata: Metadata) -> tokenizers.Tokenizer:
    """As in Llama 3's directory: byte-level, BOS by the post-processor, special tokens after the vocabulary."""
    tokens = {text: token for text, token in vocabulary(byte_level_metadata).items() if token < 1200}
    merges = [tuple(merge.split(" ")) for merge in byte_level_metadata["tokenizer.ggml.merges"]]
    library = tokenizers.Tokenizer(models.BPE(tokens, merges, ignore_merges=True))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<|begin|>", "<|end|>"])
    library.add_tokens([AddedToken("<tool>", normalized=False)])
    library.post_processor = processors.TemplateProcessing("<|begin|> $A", special_tokens=[("<|begin|>", 1200)])
    return library


@pytest.fixture
def llama2_like(sentencepiece_metadata: Metadata, sentencepiece_model: Any) -> tokenizers.Tokenizer:
    """As in Llama 2's directory: SentencePiece's pieces, with merges by score, and its chain of decoders."""
    tokens = vocabulary(sentencepiece_metadata)
    pairs = [
        (piece[:cut], piece[cut:])
        for piece in sorted(tokens, key=lambda piece: -sentencepiece_model.GetScore(tokens[piece]))
        for cut in range(1, len(piece))
        if piece[:cut] in tokens and piece[cut:] in tokens and tokens[piece] > sentencepiece_model.PieceToId("<0xFF>")
    ]
    library = tokenizers.Tokenizer(models.BPE(tokens, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.add_special_tokens([AddedToken(text, normalized=False) for text in ("<unk>", "<s>", "</s>")])
    library.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return library


def test_byte_level_ids_and_text_are_the_librarys(
    corpus: list[str], llama3_like: tokenizers.Tokenizer, tmp_path: Path
) -> None:
    tokenizer = build(tmp_path, llama3_like, bos_token="<|begin|>", eos_token={"content": "<|end|>"})
    for text in [*corpus, "x<|end|>y<tool>z"]:
        for special in (True, False):
            ids = tokenizer.encode(text, add_special=special)
            assert ids == llama3_like.encode(text, add_special_tokens=special).ids
        assert tokenizer.decode(ids) == llama3_like.decode(ids)
        plain = tokenizer.encode(text, add_special=False, parse_special=False)
        assert tokenizer.special_ids.isdisjoint(plain)
        assert tokenizer.decode(plain) == text
    assert (tokenizer.vocab_size, tokenizer.bos_token_id, tokenizer.eos_token_ids) == (1203, 1200, (1201,))
    assert tokenizer.special_ids == {1200, 1201}
    assert tokenizer.token_bytes[1200:] == (b"", b"", b"<tool>")


def test_sentencepiece_ids_and_text_are_the_librarys(
    corpus: list[str], llama2_like: tokenizers.Tokenizer, tmp_path: Path
) -> None:
    tokenizer = build(tmp_path, llama2_like, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    for text in [*corpus, "one</s>two"]:
        ids = tokenizer.encode(text)
        assert ids == llama2_like.encode(text).ids
        assert tokenizer.decode(ids) == llama2_like.decode(ids)
    assert tokenizer.encode("</s>", parse_special=False)[1:] != [2]
    newline = tokenizer.encode("\n", add_special=False)[-1]
    assert tokenizer.token_bytes[newline] == b"\n"


def test_gguf_and_directory_of_one_model_give_the_same_ids(
    corpus: list[str], llama2_like: tokenizers.Tokenizer, sentencepiece_metadata: Metadata, tmp_path: Path
) -> None:
    directory = build(tmp_path, llama2_like, bos_token="<s>", eos_token="</s>")
    file = build_tokenizer(TokenizerSource("gguf", sentencepiece_metadata))
    for text in [*corpus, "one</s>two"]:
        assert directory.encode(text) == file.encode(text)
        assert directory.encode(text, parse_special=False) == file.encode(text, parse_special=False)
    assert directory.token_bytes == file.token_bytes


def test_a_metaspace_decoder_tells_the_spelling_too(
    corpus: list[str], llama2_like: tokenizers.Tokenizer, tmp_path: Path
) -> None:
    llama2_like.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace("▁", prepend_scheme="always", split=False)]
    )
    tokenizer = build(tmp_path, llama2_like)
    for text in corpus:
        assert tokenizer.decode(tokenizer.encode(text, parse_special=False)) == text.replace("▁", " ")


def test_qwen2_from_gguf_has_the_ids_of_transformers_including_composition(
    corpus: list[str], byte_level_metadata: Metadata
) -> None:
    metadata = {**byte_level_metadata, "tokenizer.ggml.pre": "qwen2"}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    reference = Qwen2Tokenizer(
        vocab=vocabulary(metadata), merges=merges, unk_token=None, pad_token=None, eos_token=None
    )
    tokenizer = build_tokenizer(TokenizerSource("gguf", metadata))
    composed = 0
    for text in corpus:
        text = text.replace("<tool>", "")  # the reference knows no added tokens
        assert tokenizer.encode(text, parse_special=False) == reference.encode(text, add_special_tokens=False)
        composed += text != unicodedata.normalize("NFC", text)
    assert composed  # some of the corpus does need it


def test_truncation_and_padding_in_the_file_do_not_apply(llama3_like: tokenizers.Tokenizer, tmp_path: Path) -> None:
    expected = llama3_like.encode("a b c d e f").ids
    llama3_like.enable_truncation(2)
    llama3_like.enable_padding(length=64)
    assert build(tmp_path, llama3_like).encode("a b c d e f") == expected


def test_plain_text_that_the_vocabulary_can_only_spell_as_a_control_token_is_refused(tmp_path: Path) -> None:
    library = tokenizers.Tokenizer(models.BPE({"s": 0, "e": 1, "se": 2}, [("s", "e")]))
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["se"])
    tokenizer = build(tmp_path, library)
    assert tokenizer.encode("se") == [2]
    assert tokenizer.encode("es", parse_special=False) == [1, 0]
    with pytest.raises(InvalidRequest, match="can't encode 'se' as plain text"):
        tokenizer.encode("se", parse_special=False)


def test_gaps_in_the_ids_are_no_tokens(tmp_path: Path) -> None:
    model = {"type": "BPE", "vocab": {"a": 0, "b": 3}, "merges": []}
    decoder = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"version": "1.0", "added_tokens": [], "decoder": decoder, "model": model}))
    tokenizer = build_tokenizer(TokenizerSource("huggingface", {}, path))
    assert (tokenizer.vocab_size, tokenizer.special_ids) == (4, {1, 2})
    assert tokenizer.token_bytes == (b"a", b"", b"", b"b")
    assert tokenizer.decode([0, 1, 2, 3]) == "ab"
