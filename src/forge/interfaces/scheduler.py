"""Schedulers: which tokens the next step computes. Here are also `Sequence`, `Span` and `Batch`, which all parts share.

A scheduler is policy only: it neither touches token values nor decides when a sequence ends.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING, Protocol

from attrs import field, frozen

from forge.interfaces.drafter import MAX_DRAFT, Draft

if TYPE_CHECKING:
    from forge.interfaces.constraint import Matcher
    from forge.interfaces.kv_cache import CacheMiss, KVCache
    from forge.interfaces.sampler import SamplingParams


class Sequence(Protocol):
    """One prompt and its continuation, as the components see it. The engine owns it and appends to `tokens`.

    ::

        tokens        | prompt, `prompt_len` ids      | generated ids                |
        KV cache      | computed: num_computed ids             | still to compute    |
    """

    @property
    def id(self) -> int:
        """Unique in this engine's life."""

    @property
    def tokens(self) -> Seq[int]:
        """Prompt and accepted tokens."""

    @property
    def prompt_len(self) -> int:
        """How many of `tokens` are the prompt."""

    @property
    def max_len(self) -> int:
        """The length at which the sequence ends at the latest, prompt included."""

    num_computed: int
    """How many of `tokens` have their keys and values in the cache. The scheduler sets it on attach and preemption,
    the engine advances it at commit."""

    num_cached: int
    """How many prompt tokens were found in the cache when the sequence was first scheduled."""

    cache_miss: CacheMiss | None
    """Why it weren't more, as the cache says; set at the same time."""

    @property
    def choice(self) -> int:
        """Which of the request's n answers this is."""

    @property
    def priority(self) -> int:
        """Lower is served first."""

    @property
    def arrival(self) -> float:
        """When it came, in seconds of a monotonic clock."""

    @property
    def sampling(self) -> SamplingParams:
        """How its tokens are drawn."""

    @property
    def banned(self) -> Seq[int]:
        """Ids that may not be drawn now (end of sequence under ``ignore_eos``)."""

    @property
    def matcher(self) -> Matcher | None:
        """Its grammar's state, if it is constrained."""

    @property
    def prompt_logprobs(self) -> bool:
        """Whether the log-probabilities of the prompt's own tokens are wanted, so that every row is scored."""


class Outputs(enum.Enum):
    """Which rows of a span need logits."""

    NONE = "none"
    """A prompt chunk that isn't the last: nothing."""
    LAST = "last"
    """The last row: the next token is drawn from it."""
    DRAFT = "draft"
    """The last row before the drafts and every draft's row."""
    SCORE = "score"
    """Every row: the prompt's own tokens are scored (and the next token drawn, if the span reaches the end)."""


NO_ROWS = range(0)

_set = object.__setattr__  # what frozen classes set their own fields with


@frozen
class Span:
    """The tokens of one sequence that a step computes: positions ``start`` to ``start + length - 1``.

    The last ``len(drafts)`` of them aren't in ``seq.tokens`` yet. What follows from these for the step is worked out
    once, here, since all parts ask for it. stop: one past the last position. samples: whether the span reaches the end
    of the sequence, so that its next token is drawn in this step. output_rows: the rows of this span, counted from its
    own start, that need logits.
    """

    seq: Sequence
    start: int
    length: int
    drafts: tuple[int, ...] = ()
    stop: int = field(init=False)
    samples: bool = field(init=False)
    output_rows: range = field(init=False)

    def __attrs_post_init__(self) -> None:
        seq, length, drafts = self.seq, self.length, len(self.drafts)
        stop = self.start + length
        samples = stop - drafts == len(seq.tokens)
        if seq.prompt_logprobs and self.start < seq.prompt_len - 1:
            rows = range(length)
        else:
            rows = range(length - 1 - drafts, length) if samples else NO_ROWS
        _set(self, "stop", stop)
        _set(self, "samples", samples)
        _set(self, "output_rows", rows)

    @property
    def token_ids(self) -> list[int]:
        """The ids to compute, drafts included; `length` of them."""
        return [*self.seq.tokens[self.start : self.stop - len(self.drafts)], *self.drafts]

    @property
    def outputs(self) -> Outputs:
        """Why `output_rows` are those."""
        if self.seq.prompt_logprobs and self.start < self.seq.prompt_len - 1:
            return Outputs.SCORE
        if not self.samples:
            return Outputs.NONE
        return Outputs.DRAFT if self.drafts else Outputs.LAST


@frozen
class Batch:
    """What one step computes: spans of different sequences, one after the other in the batch's rows."""

    spans: tuple[Span, ...]
    rows: int = field(init=False)
    """How many tokens that is."""

    def __attrs_post_init__(self) -> None:
        _set(self, "rows", sum([span.length for span in self.spans]))


@frozen
class SchedulerLimits:
    """What bounds a batch and a queue.

    max_batch_size: sequences in one step. max_prefill_tokens: prompt tokens in one step. max_model_len: positions a
    sequence may have. max_queue: sequences that may wait. queue_timeout: seconds that one may have to wait; 0: any.
    """

    max_batch_size: int
    max_prefill_tokens: int
    max_model_len: int
    max_queue: int
    queue_timeout: float = 0.0


class Scheduler(ABC):
    """Chooses the spans of each step and whom to preempt. The factory is called with ``(kv, limits, cost)``, plus
    ``options=`` where the component has some; `cost` says what steps take (`forge.interfaces.cost.StepCost`).
    """

    kv: KVCache
    limits: SchedulerLimits

    @abstractmethod
    def check(self, prompt_len: int, max_len: int, choices: int) -> None:
        """Refuse what can never or can't now be served.

        Errors: `ContextLengthExceeded` for what fits neither the context nor the whole cache, with the figures;
        `QueueFull`.
        """

    @abstractmethod
    def add(self, seq: Sequence) -> None:
        """Queue a sequence."""

    @abstractmethod
    def abort(self, seq_id: int) -> None:
        """Forget a sequence at any moment and free its blocks. Unknown ids are fine: it may have finished just now."""

    @abstractmethod
    def schedule(self, drafts: Mapping[int, Draft]) -> Batch | None:
        """The next step's spans, with their blocks reserved; None when there is nothing to compute.

        drafts: by sequence id, none empty and each with its chances; they are shed before anyone is preempted, and
        where they cost more than they bring.
        """

    @property
    def draft_limit(self) -> int:
        """How long a draft may be to be of use in the next step; 0: none would be, so that nobody needs to guess."""
        return MAX_DRAFT

    @abstractmethod
    def finished(self, seq: Sequence) -> None:
        """The sequence is over: free its blocks."""

    @property
    def preemption_count(self) -> int:
        """How many times a running sequence has lost its place since the start."""
        return 0

    @property
    @abstractmethod
    def running(self) -> Seq[Sequence]:
        """Sequences that hold blocks, oldest first."""

    @property
    @abstractmethod
    def waiting(self) -> Seq[Sequence]:
        """Sequences that wait for their first step, or again after a preemption, next one first."""
