"""The default sampler: turns a batch into rows, keeps the token counts that penalties need, and has the backend draw.

It knows which row belongs to whom; the arithmetic is `Backend.sample`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from attrs import define

from forge.interfaces.sampler import Picked, RowSampling, Sampled, Sampler, TokenLogprobs

if TYPE_CHECKING:
    import torch

    from forge.interfaces.backend import Backend
    from forge.interfaces.scheduler import Batch, Sequence, Span

NO_TARGET = -1

PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")


class History:
    """How often each id occurs in a sequence's answer; ids of the prompt are there with 0 occurrences."""

    def __init__(self, prompt: Iterable[int] = ()) -> None:
        self.ids = array("q", dict.fromkeys(prompt))
        self.counts = array("q", bytes(8 * len(self.ids)))
        self.index = {token: i for i, token in enumerate(self.ids)}
        self.generated = 0

    def extend(self, tokens: Iterable[int]) -> None:
        """Count more tokens of the answer."""
        for token in tokens:
            at = self.index.setdefault(token, len(self.ids))
            if at == len(self.ids):
                self.ids.append(token)
                self.counts.append(0)
            self.counts[at] += 1
            self.generated += 1

    def copy(self) -> History:
        """An independent copy, to count drafts in."""
        other = History()
        other.ids, other.counts = self.ids[:], self.counts[:]
        other.index, other.generated = dict(self.index), self.generated
        return other


@define(eq=False)
class Row:
    """One row of logits: it predicts the token at `position`. target: the id to score instead of drawing one."""

    seq: Sequence
    position: int
    target: int = NO_TARGET
    history: History | None = None
    mask: npt.NDArray[np.int32] | None = None


Columns = dict[str, Any]
"""Arrays of `RowSampling` by name."""


@define(eq=False)
class Known:
    """What a slab's sampling keeps from step to step while its rows are those of the same sequences.

    columns: what their requests say. plain: all of it, positions aside, if that's all there is to a row that is
    simply drawn; the positions are written into it for each step.
    """

    seqs: list[Sequence]
    banned: list[Seq[int]]
    columns: Columns
    plain: RowSampling | None


class DefaultSampler(Sampler):
    """Samples every row as if it were alone, in the order that `forge.interfaces.sampler.SamplingParams` documents."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.histories: dict[int, History] = {}
        self._known: dict[int, Known] = {}
        """By a slab's first row."""
        self._drawn: list[Sequence] = []
        """The sequences of the last step in which there was no more to it than to draw."""

    def sample(
        self, logits: Iterable[torch.Tensor], masks: Mapping[int, npt.NDArray[np.int32]], batch: Batch
    ) -> Picked:
        seqs = [span.seq for span in batch.spans if span.samples and len(span.output_rows) == 1]
        if len(seqs) == len(batch.spans) and not masks and self._simple(seqs):
            return self._draw(logits, seqs, [span.stop for span in batch.spans])
        rows = [row for span in batch.spans for row in self._rows(span, masks.get(span.seq.id))]
        drawn: list[tuple[int, TokenLogprobs | None]] = []
        for slab in logits:
            first = len(drawn)
            part = rows[first : first + len(slab)]
            words = -(-slab.shape[1] // 32)
            sampling = row_sampling(part, words, self._constant(first, [row.seq for row in part]).columns)
            drawn += _unpack(part, self.backend.sample(slab, sampling))
        return _by_span(batch, rows, drawn)

    def _simple(self, seqs: list[Sequence]) -> bool:
        """Whether the tokens so far don't matter to any of them, and none wants log-probabilities."""
        if seqs != self._drawn:
            if any(seq.sampling.penalized or seq.sampling.logprobs is not None for seq in seqs):
                return False
            self._drawn = seqs
        return True

    def _draw(self, logits: Iterable[torch.Tensor], seqs: list[Sequence], positions: list[int]) -> Picked:
        """Draw the next token of each sequence, where nothing else is asked for: most steps."""
        tokens: list[int] = []
        for slab in logits:
            rows = slice(len(tokens), len(tokens) + len(slab))
            known = self._constant(rows.start, seqs[rows])
            if known.plain is None:
                known.plain = RowSampling(position=np.empty(len(slab), dtype=np.uint32), **known.columns)
            known.plain.position[:] = positions[rows]
            tokens += self.backend.sample(slab, known.plain).tokens.tolist()
        return Picked([[token] for token in tokens], [None] * len(seqs), [[] for _ in seqs])

    def release(self, seq: Sequence) -> None:
        self.histories.pop(seq.id, None)
        self._known.clear()
        self._drawn = []

    def state(self) -> Any:
        return self.histories

    def _constant(self, first: int, seqs: list[Sequence]) -> Known:
        """What doesn't change from step to step while the rows are those of the same sequences."""
        known, banned = self._known.get(first), [seq.banned for seq in seqs]
        if known is None or known.seqs != seqs or known.banned != banned:
            known = self._known[first] = Known(seqs, banned, constant_columns(seqs), None)
        return known

    def _rows(self, span: Span, masks: npt.NDArray[np.int32] | None) -> list[Row]:
        seq = span.seq
        known = len(seq.tokens)
        history = self._history(seq) if span.samples and seq.sampling.penalized else None
        if span.samples and len(span.output_rows) == 1:  # by far the most
            return [Row(seq, known, NO_TARGET, history, None if masks is None else masks[0])]
        rows = []
        for row in span.output_rows:
            position = span.start + row + 1
            if position < known:
                rows.append(Row(seq, position, target=seq.tokens[position]))
                continue
            drafted = position - known
            if history is not None and drafted:
                history = history.copy()
                history.extend(span.drafts[drafted - 1 : drafted])
            rows.append(Row(seq, position, history=history, mask=None if masks is None else masks[drafted]))
        return rows

    def _history(self, seq: Sequence) -> History:
        history = self.histories.get(seq.id)
        if history is None:
            prompt = seq.tokens[: seq.prompt_len] if seq.sampling.repetition_penalty != 1.0 else ()
            history = self.histories[seq.id] = History(prompt)
        history.extend(seq.tokens[seq.prompt_len + history.generated :])
        return history


def constant_columns(seqs: Seq[Sequence]) -> Columns:
    """What the requests of these rows say, as flat arrays; parts that none uses are absent."""
    params = [seq.sampling for seq in seqs]

    def column(name: str, dtype: Any) -> npt.NDArray[Any]:
        return np.array([getattr(p, name) for p in params], dtype=dtype)

    columns: Columns = {
        "temperature": column("temperature", np.float32),
        "top_k": column("top_k", np.int32),
        "top_p": column("top_p", np.float32),
        "min_p": column("min_p", np.float32),
        "seed": column("seed", np.uint64),
        "choice": np.array([seq.choice for seq in seqs], dtype=np.uint32),
        "logprobs": max((p.logprobs for p in params if p.logprobs is not None), default=None),
    }
    if any(p.penalized for p in params):
        for name in PENALTIES:
            columns[name] = column(name, np.float32)
    if any(p.logit_bias for p in params):
        columns.update(
            bias_starts=_starts(len(p.logit_bias) for p in params),
            bias_ids=np.array([token for p in params for token in p.logit_bias], dtype=np.int64),
            bias_values=np.array([bias for p in params for bias in p.logit_bias.values()], dtype=np.float32),
        )
    banned = [seq.banned for seq in seqs]
    if any(banned):
        columns.update(
            banned_starts=_starts(len(ids) for ids in banned),
            banned_ids=np.array([token for ids in banned for token in ids], dtype=np.int64),
        )
    return columns


def row_sampling(rows: Seq[Row], mask_words: int, constant: Columns) -> RowSampling:
    """The flat arrays of these rows; parts that no row uses are None."""
    columns = dict(constant)
    histories = [row.history or _EMPTY for row in rows]
    if any(history is not _EMPTY for history in histories):
        columns.update(
            history_starts=_starts(len(h.ids) for h in histories),
            history_ids=_joined(h.ids for h in histories),
            history_counts=_joined(h.counts for h in histories),
        )
    else:
        for name in PENALTIES:
            columns.pop(name, None)
    if any(row.mask is not None for row in rows):
        everything = np.full(mask_words, -1, dtype=np.int32)
        columns["masks"] = np.stack([everything if row.mask is None else row.mask for row in rows])
    targets = [row.target for row in rows]
    if targets.count(NO_TARGET) != len(targets):
        columns["targets"] = np.array(targets, dtype=np.int64)
    return RowSampling(position=np.array([row.position for row in rows], dtype=np.uint32), **columns)


def _joined(numbers: Iterable[array[int]]) -> npt.NDArray[np.int64]:
    filled = [np.frombuffer(each, dtype=np.int64) for each in numbers if each]
    return np.concatenate(filled) if filled else np.empty(0, dtype=np.int64)


def _starts(lengths: Iterable[int]) -> npt.NDArray[np.int64]:
    return np.array([0, *accumulate(lengths)], dtype=np.int64)


def _unpack(rows: Seq[Row], sampled: Sampled) -> list[tuple[int, TokenLogprobs | None]]:
    """Each row's token, and its log-probabilities where they were asked for."""
    tokens = sampled.tokens.tolist()
    if sampled.logprobs is None or sampled.top_ids is None or sampled.top_logprobs is None:
        return [(token, None) for token in tokens]
    out: list[tuple[int, TokenLogprobs | None]] = []
    for r, (row, token) in enumerate(zip(rows, tokens)):
        wanted = row.seq.sampling.logprobs
        if wanted is None:
            out.append((token, None))
            continue
        top = zip(sampled.top_ids[r, :wanted].tolist(), sampled.top_logprobs[r, :wanted].tolist())
        out.append((token, TokenLogprobs(float(sampled.logprobs[r]), tuple(top))))
    return out


def _by_span(batch: Batch, rows: Seq[Row], drawn: Seq[tuple[int, TokenLogprobs | None]]) -> Picked:
    """Sort the rows' draws out by span; of a span with drafts, keep what a draw without drafts would have given."""
    tokens: list[list[int]] = []
    logprobs: list[list[TokenLogprobs] | None] = []
    prompt_logprobs: list[list[TokenLogprobs]] = []
    at = 0
    for span in batch.spans:
        if span.samples and len(span.output_rows) == 1:  # by far the most: a row that is drawn
            token, found = drawn[at]
            at += 1
            tokens.append([token])
            logprobs.append(None if span.seq.sampling.logprobs is None else [] if found is None else [found])
            prompt_logprobs.append([])
            continue
        scored = [
            lp
            for row, (_, lp) in zip(rows[at : at + len(span.output_rows)], drawn[at : at + len(span.output_rows)])
            if row.target != NO_TARGET and row.position < span.seq.prompt_len and lp is not None
        ]
        at += len(span.output_rows)
        picked: list[tuple[int, TokenLogprobs | None]] = []
        if span.samples:
            first = at - 1 - len(span.drafts)
            picked.append(drawn[first])
            for j, draft in enumerate(span.drafts):
                if draft != drawn[first + j][0]:
                    break
                picked.append(drawn[first + j + 1])
        tokens.append([token for token, _ in picked])
        with_logprobs = [lp for _, lp in picked if lp is not None]
        logprobs.append(with_logprobs if span.seq.sampling.logprobs is not None else None)
        prompt_logprobs.append(scored)
    return Picked(tokens, logprobs, prompt_logprobs)


_EMPTY = History()
