"""Constraints in the engine: masks reach every draw, drafts respect them, a failing matcher harms one answer only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from attrs import evolve

from forge.engine.channel import LocalChannel
from forge.engine.constraining import ConstrainedDrafter, Constraining
from forge.engine.engine import Engine
from forge.engine.request import Accepted, Refused, Request, Submit
from forge.errors import InvalidRequest
from forge.interfaces.constraint import Constraint, Grammar, MaskRow, Matcher, Vocabulary
from forge.interfaces.drafter import Drafter, as_draft
from forge.interfaces.sampler import SamplingParams
from forge.interfaces.scheduler import Sequence as LiveSeq
from forge.testing.kv_cache import PlainSequence

EOS = 2
PROMPT = [5, 9, 14, 23]

Run = Callable[..., Any]
Refit = Callable[..., Engine]


class Parity(Grammar, Matcher):
    """Even and odd ids by turns, `length` of them, then the end. broken: the call that raises."""

    def __init__(self, length: int, size: int, broken: str = "") -> None:
        self.length, self.size, self.broken = length, size, broken
        self.taken: list[int] = []

    def matcher(self) -> Matcher:
        return Parity(self.length, self.size, self.broken)

    def allows(self, token: int) -> bool:
        over = len(self.taken) >= self.length
        return token == EOS if over else token != EOS and token % 2 == len(self.taken) % 2

    def fill(self, row: MaskRow) -> None:
        if self.broken == "fill":
            raise RuntimeError("no mask today")
        row.fill(0)
        if self.broken == "stuck":
            return
        for token in range(self.size):
            if self.allows(token):
                row[token // 32] |= -(1 << 31) if token % 32 == 31 else 1 << (token % 32)

    def accept(self, token: int) -> bool:
        if self.broken == "accept":
            raise RuntimeError("not this one")
        allowed = self.broken != "denying" and self.allows(token)
        if allowed:
            self.taken.append(token)
        return allowed

    def validate(self, tokens: Sequence[int]) -> int:
        trial = Parity(self.length, self.size)
        trial.taken = list(self.taken)
        return next((i for i, token in enumerate(tokens) if not trial.accept(token)), len(tokens))

    def rollback(self, tokens: int) -> None:
        del self.taken[len(self.taken) - tokens :]

    @property
    def is_final(self) -> bool:
        return len(self.taken) >= self.length


class ParityConstraint(Constraint):
    """Lowered form: the length, and what is broken."""

    def lower(self, kind: str, spec: object, *, strict: bool = False) -> bytes:
        raise NotImplementedError("requests of this test bring the lowered form")

    def compile(self, lowered: bytes, vocabulary: Vocabulary) -> Grammar:
        length, _, broken = lowered.decode().partition(" ")
        if broken == "compile":
            raise RuntimeError("I do not understand")
        return Parity(int(length), vocabulary.size, broken)


class Guess(Drafter):
    """Proposes what came after the prompt in an earlier answer, as it is or spoilt."""

    def __init__(self, known: Sequence[int], spoil: int = -1) -> None:
        self.known, self.spoil = list(known), spoil

    def propose(self, seq: LiveSeq, limit: int) -> list[int]:
        done = len(seq.tokens) - seq.prompt_len
        return [token + (i == self.spoil) for i, token in enumerate(self.known[done : done + limit])]


@pytest.fixture
def constrained(tiny_engine: Engine, refit: Refit) -> Callable[..., Engine]:
    def make(drafter: Drafter | None = None, **setup: Any) -> Engine:
        engine = refit(tiny_engine, **setup)
        parts = engine.parts
        size = parts.model.vocab_size
        vocabulary = Vocabulary(parts.tokenizer.token_bytes[:size], parts.tokenizer.special_ids, (EOS,), size)
        inner = ConstrainedDrafter(drafter, parts.tokenizer)
        return Engine(evolve(parts, drafter=inner, constraining=Constraining(ParityConstraint(), vocabulary)))

    return make


def request(name: str, lowered: str | None = "12", seed: int = 3, **fields: Any) -> Request:
    constraint = None if lowered is None else lowered.encode()
    return Request(name, PROMPT, SamplingParams(seed=seed), max_tokens=40, constraint=constraint, **fields)


def follows(tokens: Sequence[int]) -> bool:
    return len(tokens) == 12 and all(token % 2 == i % 2 for i, token in enumerate(tokens))


def test_every_choice_follows_the_constraint_beside_answers_that_are_free(
    constrained: Callable[..., Engine], run: Run
) -> None:
    engine = constrained()
    alone = run(constrained(), request("free", None, ignore_eos=True)).tokens("free")
    answers = run(engine, request("a", n=3), request("free", None, ignore_eos=True), request("b", seed=8))
    for key in (("a", 0), ("a", 1), ("a", 2), ("b", 0)):
        assert follows(answers.tokens(*key)), key
        assert answers.last(*key).finish_reason == "stop"
    assert answers.tokens("free") == alone


def test_an_answer_cut_short_says_length(constrained: Callable[..., Engine], run: Run) -> None:
    answers = run(constrained(), evolve(request("a"), max_tokens=5))
    assert answers.last("a").finish_reason == "length"
    assert len(answers.tokens("a")) == 5


@pytest.mark.parametrize("spoil", [-1, 0, 2])
def test_drafts_right_or_wrong_change_nothing(constrained: Callable[..., Engine], run: Run, spoil: int) -> None:
    plain = run(constrained(), request("a")).tokens("a")
    drafted = run(constrained(Guess([*plain, EOS, 7, 7], spoil)), request("a"))
    assert drafted.tokens("a") == plain
    assert drafted.last("a").finish_reason == "stop"


def test_drafts_are_cut_where_the_grammar_forbids_them(constrained: Callable[..., Engine]) -> None:
    engine = constrained(Guess([4, 5, 6, 6, 8]))
    engine.submit(request("a"))
    engine.step()
    [seq] = engine.parts.scheduler.running
    assert engine.parts.drafter is not None
    assert seq.matcher is not None
    seq.matcher.rollback(1)
    seq.tokens.pop()  # type: ignore[attr-defined]
    assert as_draft(engine.parts.drafter.propose(seq, 5)).tokens == (4, 5, 6)
    engine.abort("a")


class Forcing(Parity):
    """Says that "abcdef" comes next, whatever the model thinks of it."""

    def matcher(self) -> Matcher:
        return Forcing(self.length, self.size)

    def allows(self, token: int) -> bool:
        return True

    def forced(self) -> bytes:
        return b"abcdef"


def test_forced_text_is_taken_to_be_nearly_sure_and_its_fate_is_not_the_other_drafters(tiny_engine: Engine) -> None:
    heard: list[int] = []

    class Listening(Guess):
        def observe(self, seq: LiveSeq, proposed: Sequence[int], accepted: int) -> None:
            heard.append(accepted)

    drafter = ConstrainedDrafter(Listening([7] * 9), tiny_engine.parts.tokenizer)
    seq = PlainSequence(1, PROMPT)
    free = as_draft(drafter.propose(seq, 4))
    drafter.observe(seq, free.tokens, 0)
    seq.matcher = Forcing(12, 300)
    forced = as_draft(drafter.propose(seq, 4))
    assert (free.tokens, free.chances) == ((7,) * 4, ())
    assert forced.tokens
    assert set(forced.chances) == {0.95}
    for _ in range(40):
        drafter.observe(seq, forced.tokens, 0)
    assert as_draft(drafter.propose(seq, 4)).chances[0] < 0.4, "tokens that aren't drawn as expected aren't sure"
    assert heard == [0]


def test_a_preempted_answer_goes_on_where_its_matcher_stood(constrained: Callable[..., Engine], run: Run) -> None:
    requests = [evolve(request(f"r{i}", "60", seed=i), max_tokens=80) for i in range(4)]
    roomy = run(constrained(), *requests)
    tight = run(constrained(num_blocks=12, max_model_len=128), *requests)
    for each in requests:
        assert len(roomy.tokens(each.id)) == 60
        assert tight.tokens(each.id) == roomy.tokens(each.id)


@pytest.mark.parametrize("broken", ["fill", "accept", "denying", "stuck"])
def test_a_failing_matcher_ends_its_own_answer_with_an_error_and_no_other(
    constrained: Callable[..., Engine], run: Run, broken: str
) -> None:
    answers = run(constrained(), request("good"), request("bad", f"12 {broken}"), request("free", None))
    last = answers.last("bad")
    assert last.finish_reason == "error"
    assert "constraint" in last.error.message or "no mask today" in last.error.message
    assert follows(answers.tokens("good"))
    assert answers.last("free").finish_reason in ("stop", "length")


def test_a_constraint_that_cannot_be_compiled_refuses_its_own_request_and_no_other(
    constrained: Callable[..., Engine],
) -> None:
    engine, heard = constrained(), list[Any]()
    channel = LocalChannel(heard.append)
    for each in (request("good"), request("bad", "12 compile"), request("free", None)):
        channel.put(Submit(each))
    assert engine.admit(channel)
    while not engine.idle:
        heard += engine.step()
    engine.check()
    assert [message.request_id for message in heard if isinstance(message, Accepted)] == ["good", "free"]
    [refused] = [message for message in heard if isinstance(message, Refused)]
    assert (refused.request_id, refused.error.code) == ("bad", "internal_error")
    assert "I do not understand" in refused.error.message


def test_a_constraint_is_refused_where_there_is_no_component(tiny_engine: Engine, refit: Refit) -> None:
    engine = refit(tiny_engine)
    engine = Engine(evolve(engine.parts, constraining=Constraining()))
    with pytest.raises(InvalidRequest, match="without a constraint component"):
        engine.submit(request("a"))
    assert engine.idle
