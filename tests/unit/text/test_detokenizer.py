"""Text as it streams: whole characters only, and stop strings wherever tokens end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forge.errors import InvalidRequest
from forge.text.detokenizer import Detokenizer, StopStrings
from forge.text.tokenizer import Tokenizer

Metadata = dict[str, Any]
Build = Callable[[Metadata], Tokenizer]


@pytest.fixture(scope="module")
def tokenizer(byte_level_metadata: Metadata, from_gguf: Build) -> Tokenizer:
    return from_gguf(byte_level_metadata)


def byte_tokens(tokenizer: Tokenizer, data: bytes) -> list[int]:
    """One token a byte."""
    return [tokenizer.token_bytes.index(bytes([byte])) for byte in data]


def test_a_character_comes_with_its_last_byte(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.add(token) for token in byte_tokens(tokenizer, "é字👍".encode())]
    assert pieces == ["", "é", "", "", "字", "", "", "", "👍"]
    assert detokenizer.finish() == ""


def test_an_unfinished_character_is_shown_as_a_replacement_at_the_end(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.add(token) for token in byte_tokens(tokenizer, b"a\xf0\x9f\x91")] == ["a", "", "", ""]
    assert detokenizer.finish() == "\ufffd"


def test_special_tokens_and_padding_rows_of_the_model_have_no_text(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer)
    [end] = tokenizer.eos_token_ids
    [first, second] = byte_tokens(tokenizer, "é".encode())
    pieces = [detokenizer.add(token) for token in (first, end, tokenizer.vocab_size, -1, second)]
    assert pieces == ["", "", "", "", "é"]


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
def test_the_pieces_add_up_to_the_whole_text(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, 300) | st.integers(0, tokenizer.vocab_size - 1)))
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.add(token) for token in ids]
    assert "".join(pieces) + detokenizer.finish() == b"".join(tokenizer.token_bytes[token] for token in ids).decode(
        errors="replace"
    )


@given(text=st.text(max_size=80), cuts=st.lists(st.integers(1, 3), min_size=300, max_size=300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_valid_text_never_shows_a_replacement_wherever_tokens_end(
    tokenizer: Tokenizer, text: str, cuts: list[int]
) -> None:
    detokenizer = Detokenizer(tokenizer)
    shown = ""
    for token in byte_tokens(tokenizer, text.encode()):
        shown += detokenizer.add(token)
        assert text.startswith(shown)
    assert shown + detokenizer.finish() == text


def test_an_answer_keeps_the_space_it_begins_with(sentencepiece_metadata: Metadata, from_gguf: Build) -> None:
    tokenizer = from_gguf(sentencepiece_metadata)
    ids = tokenizer.encode("the dog", add_special=False)
    detokenizer = Detokenizer(tokenizer)
    assert "".join(detokenizer.add(token) for token in ids) == " the dog"


# ------------------------------------------------------------------------------------------------------- stop strings


def feed(stops: Sequence[str], pieces: Sequence[str]) -> tuple[list[str], bool]:
    """What is shown after each piece, and at last whether it stopped; the held text comes last if it didn't."""
    finder = StopStrings(stops)
    shown = []
    for piece in pieces:
        text, stopped = finder.feed(piece)
        shown.append(text)
        if stopped:
            return shown, True
    return [*shown, finder.finish()], False


@pytest.mark.parametrize(
    ("stops", "pieces", "shown", "stopped"),
    [
        ([], ["ab", "c"], ["ab", "c", ""], False),
        (["END"], ["abE", "N", "Dx"], ["ab", "", ""], True),
        (["END"], ["abE", "N", "x"], ["ab", "", "ENx", ""], False),
        (["END"], ["abE", "N"], ["ab", "", "EN"], False),
        (["END"], ["a EN", "END b"], ["a ", "EN"], True),
        (["\n\n"], ["a\n", "b\n\nc"], ["a", "\nb"], True),
        (["aab"], ["aaa", "ab"], ["a", "a"], True),
        (["ab", "b"], ["xa", "b"], ["x", ""], True),
        (["abcd", "c"], ["ab", "c", "d"], ["", "ab"], True),
        (["é"], ["caf", "é"], ["caf", ""], True),
        (["a"], ["bab"], ["b"], True),
    ],
)
def test_the_text_before_a_stop_string_is_kept_and_no_part_of_it_is_shown(
    stops: list[str], pieces: list[str], shown: list[str], stopped: bool
) -> None:
    assert feed(stops, pieces) == (shown, stopped)


def test_text_after_a_stop_is_discarded() -> None:
    finder = StopStrings(["."])
    assert finder.feed("a.b") == ("a", True)
    assert finder.feed("c") == ("", True)
    assert finder.finish() == ""


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="must not be empty"):
        StopStrings(["a", ""])


def first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the text before the first stop string ends, by trying every place."""
    for end in range(1, len(text) + 1):
        lengths = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if lengths:
            return end - max(lengths)
    return None


@given(
    stops=st.lists(st.text("ab.", min_size=1, max_size=5), max_size=4),
    pieces=st.lists(st.text("ab.", max_size=4), max_size=12),
)
@settings(max_examples=500)
def test_stopping_depends_on_the_text_alone_and_nothing_is_held_longer_than_needed(
    stops: list[str], pieces: list[str]
) -> None:
    text = "".join(pieces)
    end = first_stop(text, stops)
    shown, stopped = feed(stops, pieces)
    assert stopped == (end is not None)
    assert "".join(shown) == text[:end]
    so_far, visible = "", ""
    for piece, part in zip(pieces, shown[: len(shown) - (not stopped)], strict=False):
        so_far, visible = so_far + piece, visible + part
        if first_stop(so_far, stops) is None:
            starts = [len(stop[:n]) for stop in stops for n in range(len(stop)) if so_far.endswith(stop[:n])]
            assert visible == so_far[: len(so_far) - max(starts, default=0)]


def test_long_stop_strings_and_long_answers_are_searched_in_linear_time() -> None:
    """A search that starts over for every piece would take hours here."""
    finder = StopStrings(["a" * 50_000 + "b", "c" * 50_000])
    shown = [finder.feed("a") for _ in range(300_000)]
    assert sum(len(text) for text, _ in shown) == 250_000
    assert finder.feed("b") == ("", True)
