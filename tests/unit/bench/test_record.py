"""One stream's figures: right from any cut of the bytes, and a failure with its reason where there is none."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge.bench.record import Events, Outcome, Recorder, apportion, token_gaps

USAGE = {"prompt_tokens": 158, "completion_tokens": 4}


def record(*arrivals: tuple[float, bytes], wanted: int = 4, exactly: bool = True) -> Outcome:
    """What comes of these bytes at these times, for a request sent at 10."""
    recorder = Recorder()
    for time, data in arrivals:
        recorder.feed(data, time)
    return recorder.outcome(7, 10.0, 99.0, wanted, exactly=exactly)


def kind(outcome: Outcome) -> str | None:
    return None if outcome.failure is None else outcome.failure.kind


def test_times_count_from_the_request_to_text_and_not_to_the_role_or_the_usage(wire: Any) -> None:
    outcome = record(
        (11.0, wire.event(delta={"role": "assistant", "content": ""})),
        (12.0, wire.event(delta={"content": "a"})),
        (12.5, b": keep-alive\n\n"),
        (13.0, wire.event(delta={"content": "b"})),
        (15.0, wire.event(delta={"content": "c"}) + wire.event(delta={"content": "d"})),
        (15.5, wire.event(delta={}, finish_reason="length")),
        (17.0, wire.event(usage=USAGE) + b"data: [DONE]\n\n"),
    )
    assert outcome.failure is None
    assert outcome.ttft == 2.0
    assert outcome.e2e == 5.5
    assert outcome.gaps == (1.0, 2.0, 0.0)
    assert outcome.tpot == pytest.approx(3.5 / 3)
    assert (outcome.index, outcome.prompt_tokens, outcome.output_tokens) == (7, 158, 4)


def test_a_chunk_of_several_tokens_counts_as_so_many_gaps_and_not_as_one_token(wire: Any) -> None:
    outcome = record(
        (12.0, wire.event(text="a")),
        (18.0, wire.event(text="bcd", finish_reason="length")),
        (18.0, wire.event(usage=USAGE) + b"data: [DONE]\n\n"),
    )
    assert outcome.output_tokens == 4
    assert outcome.chunks == 2
    assert outcome.gaps == (2.0, 2.0, 2.0)
    assert outcome.tpot == 2.0


def test_counts_that_the_server_gives_with_every_chunk_are_believed(wire: Any) -> None:
    def usage(tokens: int) -> dict[str, int]:
        return {"prompt_tokens": 158, "completion_tokens": tokens}

    outcome = record(
        (12.0, wire.event(delta={"content": "a long first text of one token"}, usage=usage(1))),
        (15.0, wire.event(delta={"content": "x"}, usage=usage(4))),
        (15.0, wire.event(delta={}, finish_reason="length") + b"data: [DONE]\n\n"),
    )
    assert outcome.gaps == (1.0, 1.0, 1.0)


def test_reasoning_is_text_too(wire: Any) -> None:
    outcome = record(
        (12.0, wire.event(delta={"reasoning_content": "hm"})),
        (13.0, wire.event(delta={"reasoning": "hm"})),
        (14.0, wire.event(delta={"content": "a"}, finish_reason="stop") + wire.event(usage=USAGE)),
        exactly=False,
    )
    assert outcome.failure is None
    assert outcome.ttft == 2.0


@pytest.mark.parametrize("tokens", [3, 5])
def test_another_number_of_tokens_than_asked_for_is_a_failure(wire: Any, tokens: int) -> None:
    stream = b"".join(
        [wire.event(delta={"content": "a"}), wire.event(delta={}, finish_reason="length"),
         wire.event(usage=USAGE | {"completion_tokens": tokens})]
    )  # fmt: skip
    outcome = record((11.0, stream))
    assert kind(outcome) == "token count"
    assert outcome.failure is not None
    assert f"{tokens} tokens instead of 4" in outcome.failure.message
    assert kind(record((11.0, stream), exactly=False)) == (None if tokens == 3 else "token count")


def test_an_answer_without_usage_is_a_failure_and_its_chunks_are_not_counted_instead(wire: Any) -> None:
    texts = b"".join(wire.event(delta={"content": "a"}) for _ in range(4))
    outcome = record((11.0, texts + wire.event(delta={}, finish_reason="length") + b"data: [DONE]\n\n"))
    assert kind(outcome) == "token count"
    assert outcome.output_tokens is None


def test_a_stream_that_stops_before_its_end_is_a_failure(wire: Any) -> None:
    assert kind(record((11.0, wire.event(delta={"content": "a"})))) == "broken stream"
    assert kind(record()) == "broken stream"


@pytest.mark.parametrize("said", [{"message": "out of blocks"}, "out of blocks"])
def test_an_error_in_the_stream_is_a_failure_in_the_servers_words(wire: Any, said: object) -> None:
    outcome = record((11.0, wire.event(delta={"content": "a"})), (12.0, wire.event(error=said)))
    assert outcome.failure is not None
    assert (outcome.failure.kind, outcome.failure.message) == ("server error", "out of blocks")


@pytest.mark.parametrize("data", [b"data: {\n\n", b"data: []\n\n", b'data: {"choices": [{"delta": 5}]}\n\n'])
def test_what_is_no_chunk_is_a_failure_that_shows_it(data: bytes) -> None:
    outcome = record((11.0, data))
    assert kind(outcome) == "broken stream"
    assert outcome.failure is not None
    assert data[6:10].decode().strip() in outcome.failure.message


@given(st.lists(st.integers(0, 200), max_size=8), st.sampled_from([b"\n", b"\r\n"]))
@settings(max_examples=60, deadline=None)
def test_events_are_the_same_wherever_the_network_cuts_them(cuts: list[int], newline: bytes) -> None:
    lines = [
        b": note",
        b'data: {"a": 1}',
        b"",
        b"event: x",
        b"data:two",
        b"data: lines",
        b"",
        b"",
        b"data: [DONE]",
        b"",
    ]
    stream = newline.join([*lines, b""])
    marks = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
    events = Events()
    found = [data for start, stop in itertools.pairwise(marks) for data in events.feed(stream[start:stop])]
    assert found == [b'{"a": 1}', b"two\nlines", b"[DONE]"]


@given(st.integers(1, 500), st.lists(st.integers(1, 60), min_size=1, max_size=80))
@settings(max_examples=200, deadline=None)
def test_apportioned_tokens_add_up_and_the_first_chunk_has_one(tokens: int, lengths: list[int]) -> None:
    counts = apportion(tokens, lengths)
    assert sum(counts) == tokens
    assert counts[0] >= 1
    if tokens >= len(lengths):
        assert min(counts) >= 1
        more = tokens - len(lengths)
        assert all(abs(n - 1 - more * length / sum(lengths)) < 1 for n, length in zip(counts, lengths))
    else:
        assert set(counts) <= {0, 1}


@given(st.integers(1, 200), st.lists(st.floats(0.001, 5), min_size=1, max_size=60))
@settings(max_examples=100, deadline=None)
def test_gaps_are_one_for_each_token_after_the_first_chunk_and_add_up(tokens: int, pauses: list[float]) -> None:
    times = [sum(pauses[: number + 1]) for number in range(len(pauses))]
    counts = apportion(tokens, [1] * len(times))
    gaps = list(token_gaps(times, counts))
    assert len(gaps) == tokens - counts[0]
    last = max(number for number, count in enumerate(counts) if count)
    assert sum(gaps) == pytest.approx(times[last] - times[0])


def test_what_came_before_a_failure_is_counted_and_its_own_error_comes_first() -> None:
    recorder = Recorder()
    recorder.feed(b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n', 11.0)
    recorder.fail("timeout", "too late")
    outcome = recorder.outcome(0, 10.0, 12.0, 1, exactly=True)
    assert outcome.chunks == 1
    assert outcome.failure is not None
    assert outcome.failure.kind == "timeout"
    broken = Recorder()
    broken.feed(b"data: {nothing\n\n", 11.0)
    broken.fail("connection", "reset")
    failure = broken.outcome(0, 10.0, 12.0, 1, exactly=True).failure
    assert failure is not None
    assert failure.kind == "broken stream"
