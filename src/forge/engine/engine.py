"""The engine: one loop that takes requests, computes a step for all of them, and sends what they gained.

It calls components through `forge.interfaces` and knows neither HTTP nor which model or device is behind them.
"""

from __future__ import annotations

import itertools
import logging
import operator
import time
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from attrs import field, frozen

from forge.engine.commit import commit
from forge.engine.constraining import Constraining
from forge.engine.deadlines import Deadlines, TimeLimits
from forge.engine.request import (
    Abort,
    Accepted,
    Delta,
    Deltas,
    ErrorInfo,
    Inspect,
    ModelInfo,
    Refused,
    Report,
    Request,
    Stop,
    Submit,
)
from forge.engine.sequence import LiveSequence
from forge.errors import EngineFault, ForgeError, InvalidRequest
from forge.interfaces.cost import StepCost
from forge.interfaces.drafter import AcceptanceWindow, Draft, as_draft
from forge.interfaces.sampler import Picked, TokenLogprobs
from forge.interfaces.scheduler import Batch, Span

if TYPE_CHECKING:
    from forge.engine.channel import Channel
    from forge.interfaces.backend import Backend, Pages
    from forge.interfaces.drafter import Drafter
    from forge.interfaces.kv_cache import KVCache
    from forge.interfaces.model import Model
    from forge.interfaces.sampler import Sampler
    from forge.interfaces.scheduler import Scheduler
    from forge.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

T = TypeVar("T")

DRAFTS = 256
"""So many of the last drafts of all sequences tell how likely a new sequence's is right."""


@frozen
class Parts:
    """The components of one engine, assembled. eos: ids that end a sequence. drafter: None for no speculation. cost:
    what steps take, which the scheduler asks and the engine tells. constraining: what answers must follow.
    """

    backend: Backend
    model: Model
    pages: tuple[Pages, ...]
    kv: KVCache
    scheduler: Scheduler
    sampler: Sampler
    drafter: Drafter | None
    tokenizer: Tokenizer
    eos: tuple[int, ...]
    info: ModelInfo
    cost: StepCost = field(factory=StepCost)
    time_limits: TimeLimits = field(factory=TimeLimits)
    constraining: Constraining = field(factory=Constraining)


class Engine:
    """Runs steps until it's told to stop. Not thread-safe: one thread calls `run`, or `admit` and `step`."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.requests: dict[str, dict[int, LiveSequence]] = {}
        """By request and choice: those that aren't over yet."""
        self._ids = itertools.count()
        self._failed: set[str] = set()
        self._drafts = AcceptanceWindow(DRAFTS)
        self._deadlines = Deadlines(parts.time_limits)
        self._began = 0.0
        self._steps = self._drafted = self._accepted = 0

    def run(self, channel: Channel) -> None:
        """Serve until the channel brings `Stop` or its other end is gone."""
        while self.admit(channel):
            deltas = self.step()
            if deltas:
                channel.send(Deltas(deltas))

    def step(self) -> list[Delta]:
        """Compute one batch and say what it brought; nothing to do brings nothing."""
        self._began = time.monotonic()
        deltas = self.expire(self._began)
        batch = self.parts.scheduler.schedule(self.speculate())
        if batch is None:
            return deltas
        for span, picked in self.compute(batch):
            delta = self.commit(span, picked)
            if delta is not None:
                deltas.append(delta)
        self._steps += 1
        self.parts.cost.observe(batch.rows, time.monotonic() - self._began)
        return deltas

    @property
    def idle(self) -> bool:
        """Whether no request is alive."""
        return not self.requests

    # -- requests

    def admit(self, channel: Channel) -> bool:
        """Take what has come, waiting for it if there's nothing else to do; False once it's time to stop."""
        for message in channel.receive(wait=self.idle):
            match message:
                case Submit(request):
                    try:
                        self.submit(request)
                        channel.send(Accepted(request.id))
                    except Exception as error:
                        if not isinstance(error, ForgeError):
                            log.exception("a request could not be queued")
                            self.abort(request.id)
                        channel.send(Refused(request.id, ErrorInfo.of(error)))
                case Abort(request_id):
                    self.abort(request_id)
                case Inspect():
                    channel.send(self.report())
                case Stop():
                    return False
        return True

    def submit(self, request: Request) -> None:
        """Queue a request's sequences. Errors: `InvalidRequest`, `ContextLengthExceeded`, `QueueFull`."""
        parts, prompt_len = self.parts, len(request.prompt)
        if request.id in self.requests:
            raise InvalidRequest(f"a request with the id {request.id!r} is running already")
        if not prompt_len:
            raise InvalidRequest("the prompt has no tokens", param="prompt")
        worst = max(request.prompt)
        if min(request.prompt) < 0 or worst >= parts.model.vocab_size:
            raise InvalidRequest(
                f"the prompt's token ids must be between 0 and {parts.model.vocab_size - 1}", param="prompt"
            )
        room = parts.info.max_model_len
        # With no limit asked for, an answer may fill the context; it needs room for one token at least.
        max_len = max(room, prompt_len + 1) if request.max_tokens is None else prompt_len + request.max_tokens
        parts.scheduler.check(prompt_len, max_len, request.n)
        matchers, arrival = parts.constraining.matchers(request), time.monotonic()
        live = self.requests[request.id] = {
            choice: LiveSequence(
                next(self._ids),
                request,
                choice,
                max_len,
                arrival,
                parts.eos,
                parts.tokenizer,
                self._drafts,
                matcher,
            )
            for choice, matcher in enumerate(matchers)
        }
        for seq in live.values():
            parts.scheduler.add(seq)
            self._deadlines.add(seq)

    def abort(self, request_id: str) -> None:
        """Drop a request and all that it holds; unknown ids are fine, since it may have finished just now."""
        for seq in self.requests.pop(request_id, {}).values():
            self.parts.scheduler.abort(seq.id)
            self._forget(seq)

    def expire(self, now: float) -> list[Delta]:
        """End what has taken too long; what its clients hear of it."""
        deltas = []
        for seq, error in self._deadlines.due(now):
            if seq.finish_reason is None and seq.choice in self.requests.get(seq.request.id, {}):
                delta = self._failed_with(seq, error)
                if delta is not None:
                    deltas.append(delta)
        return deltas

    def report(self) -> Report:
        """How the engine is doing."""
        parts = self.parts
        usage = parts.kv.usage()
        return Report(
            running=len(parts.scheduler.running),
            waiting=len(parts.scheduler.waiting),
            used_blocks=usage.used,
            cached_blocks=usage.cached,
            free_blocks=usage.free,
            hits=usage.hits,
            queries=usage.queries,
            preemptions=parts.scheduler.preemption_count,
            steps=self._steps,
            drafted=self._drafted,
            accepted=self._accepted,
        )

    # -- the step

    def speculate(self) -> Mapping[int, Draft]:
        """Drafts by sequence id, for those that are decoding."""
        drafter = self.parts.drafter
        longest = self.parts.scheduler.draft_limit
        if drafter is None or not longest:
            return {}
        drafts = {}
        for seq in self.parts.scheduler.running:
            assert isinstance(seq, LiveSequence)
            limit = min(longest, seq.max_len - len(seq.tokens) - 1)
            if limit > 0 and seq.num_computed == len(seq.tokens) - 1:
                draft = self._guarded(self._propose, drafter, seq, limit)
                if draft:
                    drafts[seq.id] = draft
        return drafts

    def _propose(self, drafter: Drafter, seq: LiveSequence, limit: int) -> Draft | None:
        """A draft up to the first id that there isn't. Errors: whatever the drafter raises, or what it returned."""
        proposed = drafter.propose(seq, limit)
        if not len(proposed):
            return None
        draft = as_draft(proposed).first(limit)
        tokens = [operator.index(token) for token in draft.tokens]
        known = range(self.parts.model.vocab_size)
        right = next((i for i, token in enumerate(tokens) if token not in known), len(tokens))
        return seq.judged(Draft(tokens, draft.chances).first(right))

    def compute(self, batch: Batch) -> Iterable[tuple[Span, Draws | ForgeError]]:
        """Run the model and the sampler; if a component raises, again row by row, so that only the culprits fail."""
        try:
            return self._compute(batch)
        except Exception as error:
            if len(batch.spans) == 1:
                log.exception("a step failed")
                if isinstance(error, ForgeError):
                    return [(batch.spans[0], error)]
                return [(batch.spans[0], EngineFault(f"this request's step failed: {type(error).__name__}: {error}"))]
            log.warning("a step of %d sequences failed and runs again one by one: %r", len(batch.spans), error)
            return [result for span in batch.spans for result in self.compute(Batch((span,)))]

    def _compute(self, batch: Batch) -> list[tuple[Span, Draws | ForgeError]]:
        parts = self.parts
        masks = parts.constraining.masks(batch)
        inputs = parts.backend.stage(batch, parts.kv, parts.pages)
        hidden = parts.backend.forward(parts.model, inputs)
        picked = parts.sampler.sample(parts.model.logits(hidden), masks, batch)
        return list(zip(batch.spans, draws(picked, batch)))

    def commit(self, span: Span, picked: Draws | ForgeError) -> Delta | None:
        """Take a span's draws into its sequence, and end it where it's over or has failed."""
        parts, seq = self.parts, span.seq
        assert isinstance(seq, LiveSequence)
        if seq.started is None:
            seq.started = self._began
        if isinstance(picked, ForgeError):
            return self._failed_with(seq, picked)
        commit(seq, span, picked.tokens, picked.logprobs, picked.prompt_logprobs, parts.kv)
        if seq.failure is not None:
            return self._failed_with(seq, seq.failure)
        if span.drafts and parts.drafter is not None:
            accepted = max(0, len(picked.tokens) - 1)
            self._drafted += len(span.drafts)
            self._accepted += accepted
            seq.drafts_checked(len(span.drafts), accepted)
            self._guarded(parts.drafter.observe, seq, span.drafts, accepted)
        delta = seq.delta()
        if seq.finish_reason is not None:
            self._conclude(seq)
        return delta

    def _failed_with(self, seq: LiveSequence, error: ForgeError) -> Delta | None:
        """End a sequence with an error."""
        seq.finish_reason = "error"
        self._conclude(seq)
        return seq.delta(ErrorInfo.of(error))

    def _conclude(self, seq: LiveSequence) -> None:
        """A sequence is over: give back what it holds."""
        self.parts.scheduler.finished(seq)
        self._forget(seq)
        live = self.requests[seq.request.id]
        del live[seq.choice]
        if not live:
            del self.requests[seq.request.id]

    def _forget(self, seq: LiveSequence) -> None:
        self._deadlines.remove(seq)
        self._guarded(self.parts.sampler.release, seq)
        if self.parts.drafter is not None:
            self._guarded(self.parts.drafter.release, seq)

    def _guarded(self, call: Callable[..., T], *arguments: Any) -> T | None:
        """Call what no answer depends on; None if it raises. The first failure of each kind is logged as an error."""
        try:
            return call(*arguments)
        except Exception as error:
            kind = f"{getattr(call, '__qualname__', call)}: {type(error).__name__}"
            log.log(logging.DEBUG if kind in self._failed else logging.ERROR, "%s; answers go on", kind, exc_info=True)
            self._failed.add(kind)
            return None

    # -- the end, and tests

    def check(self) -> None:
        """Prove that nothing is lost: the cache's books are right, and an idle engine holds nothing. AssertionError."""
        parts = self.parts
        parts.kv.check()
        live = sum(len(choices) for choices in self.requests.values())
        held = len(parts.scheduler.running) + len(parts.scheduler.waiting)
        assert held == live, f"{held} sequences are scheduled, {live} are alive"
        if self.idle:
            usage = parts.kv.usage()
            assert usage.used == 0, f"{usage.used} blocks are held by nobody"
            assert not parts.sampler.state(), "the sampler remembers sequences that are over"
            assert not len(self._deadlines), "time limits hold sequences that are over"

    def close(self) -> None:
        """Drop all requests and free the device."""
        for request_id in list(self.requests):
            self.abort(request_id)
        self.parts.backend.close()


class Draws(NamedTuple):
    """One span's share of `Picked`, as plain numbers."""

    tokens: list[int]
    logprobs: list[TokenLogprobs] | None
    prompt_logprobs: list[TokenLogprobs]


def draws(picked: Picked, batch: Batch) -> list[Draws]:
    """The draws of each of a batch's spans. Errors: `ValueError`, `TypeError` if they make no sense."""
    shares = []
    for span, given, logprobs, scored in zip(
        batch.spans, picked.tokens, picked.logprobs, picked.prompt_logprobs, strict=True
    ):
        tokens = list(map(operator.index, given))
        if not span.samples <= len(tokens) <= span.samples * (1 + len(span.drafts)):
            raise ValueError(f"the sampler drew {len(tokens)} tokens for {len(span.drafts)} drafts")
        if logprobs is not None and len(logprobs) != len(tokens):
            raise ValueError(f"the sampler reports {len(logprobs)} log-probabilities of {len(tokens)} tokens")
        shares.append(Draws(tokens, None if logprobs is None else _plain(logprobs), _plain(scored) if scored else []))
    return shares


def _plain(logprobs: Seq[TokenLogprobs]) -> list[TokenLogprobs]:
    """Log-probabilities that any codec takes, whatever numbers a sampler made them of."""
    return [
        lp
        if type(lp.token) is float
        else TokenLogprobs(float(lp.token), tuple((int(token), float(value)) for token, value in lp.top))
        for lp in logprobs
    ]
