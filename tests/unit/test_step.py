"""A step's inputs: every number where the definition says, whatever spans, tables and block sizes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import attrs
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from forge.interfaces.kv_cache import CacheShape
from forge.interfaces.scheduler import Batch, Span
from forge.interfaces.step import lay_out


@attrs.define(eq=False)
class Seq:
    tokens: list[int]
    prompt_len: int
    prompt_logprobs: bool = False


@st.composite
def spans(draw: st.DrawFn) -> Span:
    """A decode, a chunk, a last chunk, or a check of drafts."""
    length = draw(st.integers(1, 60))
    seq: Any = Seq(draw(st.lists(st.integers(0, 99), min_size=length, max_size=length)), draw(st.integers(1, length)))
    seq.prompt_logprobs = draw(st.booleans())
    start = draw(st.integers(0, length - 1))
    stop = draw(st.integers(start + 1, length))
    drafts = draw(st.lists(st.integers(100, 199), max_size=4).map(tuple)) if stop == length else ()
    return Span(seq, start, stop - start + len(drafts), drafts)


@given(st.lists(spans(), min_size=1, max_size=5), st.integers(1, 20), st.randoms(use_true_random=False))
def test_every_row_is_where_its_position_and_block_say(spans: list[Span], block_size: int, random: Any) -> None:
    tables = {
        id(span.seq): random.sample(range(1000), -(-span.stop // block_size) + random.randrange(3)) for span in spans
    }
    kv: Any = SimpleNamespace(shape=CacheShape(1000, block_size), table=lambda seq: tables[id(seq)])
    inputs: Any = lay_out(Batch(tuple(spans)), kv, ())
    rows = [(s, position) for s, span in enumerate(spans) for position in range(span.start, span.stop)]
    texts = [[*span.seq.tokens[: span.stop - len(span.drafts)], *span.drafts] for span in spans]
    assert inputs.token_ids.tolist() == [texts[s][position] for s, position in rows]
    assert inputs.positions.tolist() == [position for _, position in rows]
    assert inputs.slots.tolist() == [
        tables[id(spans[s].seq)][position // block_size] * block_size + position % block_size for s, position in rows
    ]
    starts = [sum(span.length for span in spans[:s]) for s in range(len(spans) + 1)]
    assert inputs.span_starts.tolist() == starts
    assert inputs.lengths.tolist() == [span.stop for span in spans]
    assert inputs.output_rows.tolist() == [starts[s] + row for s, span in enumerate(spans) for row in span.output_rows]
    for row, span in zip(inputs.block_table.tolist(), spans, strict=True):
        table = tables[id(span.seq)]
        assert row == table + [0] * (len(row) - len(table))
    for field in attrs.fields(type(inputs)):
        if field.name != "pages":
            array = getattr(inputs, field.name)
            assert array.dtype == np.int64
            assert array.flags.c_contiguous
            assert array.flags.writeable
