"""The continuous scheduler: every step takes one token of each decoding sequence, and prompt chunks up to a budget.

Policy only, on top of any `KVCache`: it never looks at token values. What they're computed with it knows by its cost.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

from forge.builtin.policy import ContinuousOptions, Pace, affordable, draft_limit
from forge.errors import ContextLengthExceeded, InvalidRequest, QueueFull
from forge.interfaces.cost import StepCost
from forge.interfaces.drafter import MAX_DRAFT, Draft
from forge.interfaces.kv_cache import Growth, KVCache
from forge.interfaces.scheduler import Batch, Scheduler, SchedulerLimits, Span

if TYPE_CHECKING:
    from forge.interfaces.scheduler import Sequence

LONG_PROMPTS = 4
"""So many prompts that need several steps share the chunk budget; more would each take longer, and none end sooner."""

MUCH_LONGER = 4
"""Prompts with so many times the tokens left don't keep a shorter one waiting: they wouldn't notice it."""

SHORT_PART = 8
"""A prompt up to this part of a step's chunk budget is short: computed in one step, past long ones that wait."""

STARTS = 64
"""So many sequences that have left the queue tell how fast it moves."""

FEW_STARTS = 16
"""Fewer tell nothing."""

LOOKAHEAD = 256
"""So many waiting sequences are looked at in one step."""

NO_DRAFT = Draft()

Rank = tuple[float, int, int]


class ContinuousScheduler(Scheduler):
    """Ragged batches, first come first served within a priority; a step of priority counts as much as `aging` seconds
    of waiting, so that nobody waits forever.

    A step, in this order:

    1. Every running sequence gets blocks for all of its tokens, oldest first. If there are none, the youngest running
       one is preempted: it gives back its blocks and is computed again later, with prompt and answer so far as one
       prompt. So the oldest always goes on.
    2. Waiting sequences are let in while there are seats, chunk budget and blocks for their whole prompt, plus one
       block for each sequence that will want another: letting one in never costs another its place soon after.
    3. Prompts share the chunk budget: evenly within a priority, and what one doesn't need goes to the others. The
       budget is what may be computed beside this step's decodes without holding them up (see `Pace`).
    4. Drafts get what blocks are left, as far as they're expected to bring more than they cost.

    A waiting sequence whose prefix another one is computing is passed over. It keeps the blocks it has found, which
    that other one holds as well; they're given up before anybody is preempted.
    """

    def __init__(
        self,
        kv: KVCache,
        limits: SchedulerLimits,
        cost: StepCost | None = None,
        options: ContinuousOptions | None = None,
    ) -> None:
        self.kv = kv
        self.limits = limits
        self.cost = cost
        self.options = options or ContinuousOptions()
        self.preemptions = 0
        self._pace = Pace(None if isinstance(self.options.step_time, str) else self.options.step_time)
        self._running = _Ranked(self.rank)
        self._waiting = _Ranked(self.rank)
        self._pinned: dict[int, Sequence] = {}
        self._counted: set[int] = set()
        """Sequences whose cached tokens have been counted: those that have run before."""
        self._budget = limits.max_prefill_tokens
        """Prompt tokens of this step."""
        self._starts: deque[float] = deque(maxlen=STARTS)
        """When the last sequences left the queue, as far back as somebody has waited all the time."""
        self._prices = cost if self.options.drafts == "auto" else None
        """What drafts are weighed by, if they are."""

    def rank(self, seq: Sequence) -> Rank:
        """Who is served first and preempted last: by priority and arrival, weighed against each other."""
        return seq.arrival + self.options.aging * seq.priority, seq.priority, seq.id

    @property
    def preemption_count(self) -> int:
        return self.preemptions

    @property
    def draft_limit(self) -> int:
        return MAX_DRAFT if self._prices is None else draft_limit(self._prices, len(self._running))

    @property
    def running(self) -> Seq[Sequence]:
        return tuple(self._running)

    @property
    def waiting(self) -> Seq[Sequence]:
        return tuple(self._waiting)

    # -- arrivals and departures

    def check(self, prompt_len: int, max_len: int, choices: int) -> None:
        """Refuse what can't be served.

        Errors: `InvalidRequest` for an empty prompt, or more choices than could ever wait; `ContextLengthExceeded`;
        `QueueFull`, also where the queue is so slow that they'd wait longer than it allows, with the seconds to wait.
        """
        if prompt_len < 1:
            raise InvalidRequest("the prompt is empty", param="prompt")
        self._check_length(prompt_len, max_len)
        queue = self.limits.max_queue
        if choices > queue:
            raise InvalidRequest(f"{choices} answers are asked for, but only {queue} may wait at a time", param="n")
        if len(self._waiting) + choices > queue:
            message = f"{len(self._waiting)} sequences wait and {choices} more would exceed {queue}; try again later"
            raise QueueFull(message, retry_after=self._retry_after())
        wait, longest = self._expected_wait(), self.limits.queue_timeout
        if longest and wait > longest:
            message = (
                f"{len(self._waiting)} sequences wait, which takes {wait:.0f} s, more than {longest:g}; try again later"
            )
            raise QueueFull(message, retry_after=self._retry_after())

    def _expected_wait(self) -> float:
        """Seconds that a sequence would wait which came now, by how fast the queue has moved; 0 if nobody knows."""
        if len(self._starts) < FEW_STARTS or not self._waiting:
            return 0.0
        return len(self._waiting) * (time.monotonic() - self._starts[0]) / len(self._starts)

    def _retry_after(self) -> int:
        """When the queue may be half as long, in whole seconds."""
        wait = self._expected_wait()
        return max(1, math.ceil(wait / 2)) if wait else 1 + len(self._waiting) // self.limits.max_batch_size

    def add(self, seq: Sequence) -> None:
        self._check_length(seq.prompt_len, seq.max_len)
        self._waiting.add(seq)

    def abort(self, seq_id: int) -> None:
        seq = self._running.get(seq_id) or self._waiting.get(seq_id)
        if seq is not None:
            self.finished(seq)

    def finished(self, seq: Sequence) -> None:
        self._running.discard(seq)
        self._waiting.discard(seq)
        self._pinned.pop(seq.id, None)
        self._counted.discard(seq.id)
        self.kv.release(seq)

    def _check_length(self, prompt_len: int, max_len: int) -> None:
        longest, figures = max(prompt_len, max_len), f"{prompt_len} prompt tokens"
        if max_len > prompt_len:
            figures += f" and {max_len - prompt_len} requested ones make {max_len}"
        if longest > self.limits.max_model_len:
            raise ContextLengthExceeded(f"{figures}: more than the context of {self.limits.max_model_len} tokens")
        if longest > self.kv.max_sequence_len:
            raise ContextLengthExceeded(f"{figures}: more than the KV cache holds, {self.kv.max_sequence_len} tokens")

    # -- a step

    def schedule(self, drafts: Mapping[int, Draft]) -> Batch | None:
        preemptions = self.preemptions
        decodes: list[Sequence] = []
        prompts: list[Sequence] = []
        position = 0
        while position < len(self._running):  # preemption shortens it from the end
            seq = self._running[position]
            if not self._secure(seq):
                break
            todo = len(seq.tokens) - seq.num_computed
            if todo == 1:
                decodes.append(seq)
            elif todo > 1:
                prompts.append(seq)
            position += 1
        if prompts or self._waiting:  # in most steps nobody asks
            self._budget = self._prompt_tokens(len(decodes))
        if self._waiting and self.preemptions == preemptions:
            prompts += self._admit(prompts)
        if not self._waiting:
            self._starts.clear()  # how often somebody comes doesn't say how fast a queue moves
        chunks = self._chunks(prompts)
        kept = self._worthwhile(drafts, decodes, len(decodes) + sum(chunks))
        spans = [self._decode(seq, kept.get(seq.id, NO_DRAFT)) for seq in decodes]
        spans += [Span(seq, seq.num_computed, chunk) for seq, chunk in zip(prompts, chunks) if chunk]
        return Batch(tuple(spans)) if spans else None

    def _prompt_tokens(self, decodes: int) -> int:
        """The chunk budget beside so many decodes."""
        most = self.limits.max_prefill_tokens
        return most if self.cost is None else self._pace.prompt_tokens(self.cost, decodes, most)

    def _worthwhile(self, drafts: Mapping[int, Draft], decodes: Seq[Sequence], rows: int) -> Mapping[int, Draft]:
        """The beginnings of these drafts that pay beside `rows` other rows."""
        if self._prices is None or not drafts:
            return drafts
        chances = {seq.id: drafts[seq.id].chances for seq in decodes if seq.id in drafts}
        kept = affordable(self._prices, rows, chances)
        return {seq_id: drafts[seq_id].first(count) for seq_id, count in kept.items()}

    def _decode(self, seq: Sequence, draft: Draft) -> Span:
        """The span of a decoding sequence, with as much of its draft as it may use and there's room for."""
        if not draft:
            return Span(seq, seq.num_computed, 1)
        length = len(seq.tokens)
        wanted = min(len(draft), seq.max_len - length - 1)  # the step yields one token more than it accepts
        if self.kv.grow(seq, length + wanted) is not Growth.READY:
            wanted = min(wanted, len(self.kv.table(seq)) * self.kv.shape.block_size - length)
        kept = draft.tokens[: max(0, wanted)]
        return Span(seq, seq.num_computed, 1 + len(kept), kept)

    @property
    def _short(self) -> int:
        return max(1, self._budget // SHORT_PART)

    def _chunks(self, prompts: Seq[Sequence]) -> list[int]:
        """How many tokens of each prompt to compute: its claim (see `_admit`), then the rest by priority."""
        todo = [len(seq.tokens) - seq.num_computed for seq in prompts]
        chunks = fair_shares(self._budget, [min(tokens, self._short) for tokens in todo])
        rest = self._budget - sum(chunks)
        for priority in sorted({seq.priority for seq in prompts}):
            peers = [i for i, seq in enumerate(prompts) if seq.priority == priority]
            for i, more in zip(peers, fair_shares(rest, [todo[i] - chunks[i] for i in peers])):
                chunks[i] += more
                rest -= more
        return chunks

    # -- blocks

    def _secure(self, seq: Sequence) -> bool:
        """Get blocks for all tokens of a running sequence; False if it was itself the youngest and had to go."""
        while self.kv.grow(seq, len(seq.tokens)) is Growth.FULL:
            if self._pinned:
                self._unpin()
                continue
            victim = self._running[-1]
            self._preempt(victim)
            if victim is seq:
                return False
        return True

    def _preempt(self, seq: Sequence) -> None:
        self.kv.release(seq)
        seq.num_computed = 0
        self._running.discard(seq)
        self._waiting.add(seq)
        self.preemptions += 1

    def _unpin(self, but: Sequence | None = None) -> None:
        """Give up the blocks that waiting sequences have found; they'll look for them again."""
        for seq in [seq for seq in self._pinned.values() if seq is not but]:
            self.kv.release(seq)
            del self._pinned[seq.id]

    def _blocks(self, positions: int) -> int:
        return -(-positions // self.kv.shape.block_size)

    def _will_grow(self, seq: Sequence) -> bool:
        """Whether the blocks that its tokens take now aren't enough to its end."""
        return self._blocks(seq.max_len) > self._blocks(len(seq.tokens))

    # -- admission

    def _admit(self, in_progress: Seq[Sequence]) -> list[Sequence]:
        """Let waiting sequences in, next one first; returns them.

        Each prompt in progress has a claim on the budget: a short one on all it needs, a long one on as much as would
        be short. Claims never exceed the budget, so everybody gets at least that (until the budget shrinks, because
        others decode). Where too many prompts of the same or a better priority and of no other order of length are in
        progress, one that waits may be passed by much shorter ones: it's the first to take their place.
        """
        seats = self.limits.max_batch_size - len(self._running)
        todo = [len(seq.tokens) - seq.num_computed for seq in in_progress]
        budget = self._budget - sum(min(tokens, self._short) for tokens in todo)
        if seats <= 0 or budget <= 0:
            return []
        long = [(seq.priority, tokens) for seq, tokens in zip(in_progress, todo) if tokens > self._short]
        reserve = sum(map(self._will_grow, self._running))
        admitted: list[Sequence] = []
        for seq in self._waiting.first(LOOKAHEAD):
            if len(seq.tokens) > self._short and _crowded(seq, long):
                continue
            found = self._attach(seq)
            tokens = len(seq.tokens) - found
            claim = min(tokens, self._short)
            growth = self._place(seq, reserve) if claim <= budget else Growth.FULL
            if growth is Growth.LATER:
                continue
            if growth is Growth.FULL:
                break
            self._start(seq, found)
            admitted.append(seq)
            budget -= claim
            reserve += self._will_grow(seq)
            if tokens > self._short:
                long.append((seq.priority, tokens))
            if budget <= 0 or len(admitted) == seats:
                break
        return admitted

    def _attach(self, seq: Sequence) -> int:
        """Pin what the cache has of the sequence's prefix; one whose prompt is scored computes all of it itself."""
        self._pinned[seq.id] = seq
        return self.kv.attach(seq, 0 if seq.prompt_logprobs else len(seq.tokens) - 1)

    def _place(self, seq: Sequence, reserve: int) -> Growth:
        """Get blocks for a waiting sequence's whole prompt, if `reserve` blocks are left for those that run."""
        length = len(seq.tokens)
        if self._running:
            usage = self.kv.usage()
            missing = self._blocks(length) - len(self.kv.table(seq))
            if usage.free + usage.cached - missing < reserve + self._will_grow(seq):
                return Growth.FULL
        else:  # nothing runs, so there must be room, whatever else waits
            self._unpin(but=seq)
        return self.kv.grow(seq, length)

    def _start(self, seq: Sequence, found: int) -> None:
        seq.num_computed = found
        if seq.id not in self._counted:
            seq.num_cached = min(found, seq.prompt_len)
            seq.cache_miss = self.kv.explain(seq)
            self._starts.append(time.monotonic())
            self._counted.add(seq.id)
        del self._pinned[seq.id]
        self._waiting.discard(seq)
        self._running.add(seq)


def _crowded(seq: Sequence, long: Seq[tuple[int, int]]) -> bool:
    """Whether enough prompts (priority, tokens left) are in progress for this one to wait for the end of one."""
    limit = MUCH_LONGER * len(seq.tokens)
    return sum(priority <= seq.priority and left <= limit for priority, left in long) >= LONG_PROMPTS


def fair_shares(budget: int, wants: Seq[int]) -> list[int]:
    """Split a budget so that the smallest share is as large as can be (max-min fairness); odd units to the first.

    One share for each of `wants`, none larger than it.
    """
    shares = [0] * len(wants)
    smallest_first = sorted(range(len(wants)), key=lambda i: (wants[i], -i))
    for served, i in enumerate(smallest_first):
        shares[i] = min(wants[i], budget // (len(wants) - served))
        budget -= shares[i]
    return shares


class _Ranked:
    """Sequences in order of rank; to find one by id, or its place, takes no search through all."""

    def __init__(self, rank: Callable[[Sequence], Rank]) -> None:
        self._rank = rank
        self._order: list[Sequence] = []
        self._by_id: dict[int, Sequence] = {}

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._order)

    def __getitem__(self, position: int) -> Sequence:
        return self._order[position]

    def first(self, count: int) -> list[Sequence]:
        return self._order[:count]

    def get(self, seq_id: int) -> Sequence | None:
        return self._by_id.get(seq_id)

    def add(self, seq: Sequence) -> None:
        insort(self._order, seq, key=self._rank)
        self._by_id[seq.id] = seq

    def discard(self, seq: Sequence) -> None:
        if self._by_id.pop(seq.id, None) is not None:
            del self._order[bisect_left(self._order, self._rank(seq), key=self._rank)]
