"""A live sequence: one of a request's answers, from its acceptance to its last token."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from forge.engine.request import Delta, ErrorInfo, FinishReason, Request, Usage
from forge.errors import EngineFault, ForgeError
from forge.interfaces.constraint import Matcher
from forge.interfaces.drafter import AcceptanceWindow, Draft
from forge.interfaces.kv_cache import CacheMiss
from forge.interfaces.sampler import SamplingParams, TokenLogprobs
from forge.text.detokenizer import Detokenizer, StopStrings
from forge.text.tokenizer import Tokenizer

WINDOW = 32
"""So many of a sequence's last drafts tell how likely its next one is right."""

LEAN = 4.0
"""How many tries the acceptance of all sequences counts for in one sequence's."""


class LiveSequence:
    """What `forge.interfaces.scheduler.Sequence` promises to the components, and what the engine needs besides: the
    ids that end it, its text, and what no delta has reported yet.
    """

    __slots__ = (  # noqa: RUF023 (in the order of `__init__`)
        "id", "request", "choice", "priority", "sampling", "prompt_logprobs", "tokens", "prompt_len", "max_len",
        "arrival", "num_computed", "num_cached", "cache_miss", "started", "matcher", "eos", "banned",
        "finish_reason", "failure", "_detokenizer", "_stops", "_text", "_pending_ids", "_pending_logprobs",
        "_prompt_logprobs", "_drafts", "_all_drafts", "_tells", "drafted", "accepted", "_scored",
    )  # fmt: skip

    def __init__(
        self,
        id: int,
        request: Request,
        choice: int,
        max_len: int,
        arrival: float,
        eos: Seq[int],
        tokenizer: Tokenizer,
        drafts: AcceptanceWindow,
        matcher: Matcher | None,
    ) -> None:
        self.id = id
        self.request = request
        self.choice = choice
        self.priority = request.priority
        self.sampling: SamplingParams = request.sampling
        self.prompt_logprobs = request.prompt_logprobs
        self.tokens: list[int] = list(request.prompt)
        self.prompt_len = len(request.prompt)
        self.max_len = max_len
        self.arrival = arrival
        self.num_computed = 0
        self.num_cached = 0
        self.cache_miss: CacheMiss | None = None
        self.started: float | None = None
        self.matcher = matcher
        self.eos = frozenset(request.stop_token_ids if request.ignore_eos else [*request.stop_token_ids, *eos])
        self.banned: Seq[int] = tuple(eos) if request.ignore_eos else ()
        self.finish_reason: FinishReason | None = None
        self.failure: ForgeError | None = None
        """Why it can't go on, where `finish_reason` is "error" by itself."""
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopStrings(request.stop) if request.stop else None
        self._text: list[str] = []
        self._pending_ids: list[int] = []
        self._pending_logprobs: list[TokenLogprobs] = []
        self._prompt_logprobs: list[TokenLogprobs] = []
        self._drafts, self._all_drafts = AcceptanceWindow(WINDOW), drafts
        self._tells = False
        """Whether the last draft's fate tells how good the next ones are: not of those that say so themselves."""
        self.drafted = self.accepted = 0
        self._scored = 1  # the first prompt token follows nothing, so that it has no score

    def judged(self, draft: Draft) -> Draft:
        """The draft with its chances; where it has none, those that earlier ones suggest."""
        self._tells = not draft.chances
        if not self._tells:
            return draft
        chance = self._drafts.rate(prior=self._all_drafts.rate(prior=0.5, weight=LEAN), weight=LEAN)
        return Draft(draft.tokens, (chance,) * len(draft))

    def drafts_checked(self, proposed: int, accepted: int) -> None:
        """Of a draft of `proposed` tokens the first `accepted` were right."""
        if self._tells:
            self._drafts.add(proposed, accepted)
            self._all_drafts.add(proposed, accepted)
        self.drafted += proposed
        self.accepted += accepted

    def append(self, token: int, logprobs: TokenLogprobs | None) -> None:
        """Take a token in; sets `finish_reason` if it's the last one, and `failure` if it can't be taken."""
        self.tokens.append(token)
        if token in self.eos:
            self.finish("stop")
            return
        if self.matcher is not None and not self._matches(self.matcher, token):
            self.finish_reason = "error"
            return
        self._pending_ids.append(token)
        if logprobs is not None:
            self._pending_logprobs.append(logprobs)
        text, stopped = self._detokenizer.add(token), False
        if self._stops is not None:
            text, stopped = self._stops.feed(text)
        self._text.append(text)
        if stopped:
            self.finish_reason = "stop"
        elif len(self.tokens) >= self.max_len:
            self.finish("length")

    def _matches(self, matcher: Matcher, token: int) -> bool:
        """Advance the grammar by a token; if that fails, so does this sequence, and no other."""
        try:
            if matcher.accept(token):
                return True
            self.failure = EngineFault(f"token {token} was drawn, which the constraint forbids")
        except Exception as error:
            self.failure = EngineFault(f"the constraint failed: {type(error).__name__}: {error}")
        return False

    def finish(self, reason: FinishReason) -> None:
        """End here: what was held back, for it might have become a stop string or a character, is text after all."""
        text, stopped = self._detokenizer.finish(), False
        if self._stops is not None:
            text, stopped = self._stops.feed(text)
            text = text if stopped else text + self._stops.finish()
        self._text.append(text)
        self.finish_reason = "stop" if stopped else reason

    def score(self, first: int, logprobs: Seq[TokenLogprobs]) -> None:
        """Log-probabilities of prompt tokens from position `first` on; a recomputation brings the same ones again."""
        self._prompt_logprobs += logprobs[max(0, self._scored - first) :]
        self._scored = max(self._scored, first + len(logprobs))

    def delta(self, error: ErrorInfo | None = None) -> Delta | None:
        """What there is to report since the last one; None if that isn't worth a message."""
        text = "".join(self._text)
        if not text and self.finish_reason is None:
            return None
        delta = Delta(
            request_id=self.request.id,
            choice=self.choice,
            text=text,
            token_ids=self._pending_ids,
            logprobs=self._pending_logprobs if self.sampling.logprobs is not None else None,
            prompt_logprobs=self._prompt_logprobs or None,
            finish_reason=self.finish_reason,
            usage=self._usage() if self.finish_reason is not None else None,
            error=error,
        )
        self._text.clear()
        self._pending_ids = []
        if self._pending_logprobs or self._prompt_logprobs:
            self._pending_logprobs, self._prompt_logprobs = [], []
        return delta

    def _usage(self) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_len,
            completion_tokens=len(self.tokens) - self.prompt_len,
            cached_tokens=self.num_cached,
            drafted_tokens=self.drafted,
            accepted_tokens=self.accepted,
            queue_seconds=0.0 if self.started is None else self.started - self.arrival,
            cache_miss=self.cache_miss,
        )
