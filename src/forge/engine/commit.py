"""Commit: what a step drew becomes part of its sequences, in their tokens, text and cache."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from forge.engine.sequence import LiveSequence
from forge.interfaces.kv_cache import KVCache
from forge.interfaces.sampler import TokenLogprobs
from forge.interfaces.scheduler import Span


def commit(
    seq: LiveSequence,
    span: Span,
    tokens: Seq[int],
    logprobs: Seq[TokenLogprobs] | None,
    prompt_logprobs: Seq[TokenLogprobs],
    kv: KVCache,
) -> None:
    """Append the picked tokens one by one until the sequence ends, then bring the cache in line.

    ::

        computed     | start ... stop - drafts | accepted drafts | rejected drafts |
        afterwards   | computed                | computed        | given back      |

    The token drawn last isn't computed yet, so that `num_computed` ends one short of ``len(seq.tokens)``. Tokens after
    the one that ends the sequence are discarded.
    """
    seq.num_computed = span.stop - len(span.drafts)
    if prompt_logprobs:
        seq.score(span.start + 1, prompt_logprobs)
    if span.samples and len(seq.tokens) >= seq.max_len:  # max_tokens = 0: only the prompt's scores were wanted
        seq.finish("length")
    for i, token in enumerate(tokens):
        if seq.finish_reason is not None:
            break
        seq.num_computed += i > 0  # the draft before this token was right, so its row is real
        seq.append(token, logprobs[i] if logprobs else None)
    if span.drafts:
        kv.truncate(seq, seq.num_computed)
    kv.publish(seq, seq.num_computed)
