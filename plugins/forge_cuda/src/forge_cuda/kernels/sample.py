"""Sampling on the device: one program for each row of logits, no sort. What it must compute: `Backend.sample`.

Top-k and top-p each keep a prefix of the ids in order of falling logits, ties by rising id. Such a prefix is known by
its least logit and by how many of the ids that share it belong to it. The least logit is found bit by bit, four at a
time: sixteen thresholds are tried in one pass over the row.

The draw inverts the distribution at the row's one uniform number, as every backend does, so that (seed, choice,
position) mean the same token on a CPU and here. Noise on each logit (the Gumbel trick) draws from the same distribution
in one pass less, but needs a random number for each id, which other backends would have to make too.
"""

from __future__ import annotations

import triton
import triton.language as tl

ROUNDS = tl.constexpr(8)
WAYS = tl.constexpr(16)
"""Rounds of thresholds, four of a logit's 32 bits each."""


@triton.jit
def bias_kernel(LOGITS, ROWS, IDS, VALUES, count, vocabulary, BLOCK: tl.constexpr):
    """Add a value to each of the listed logits."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = i < count
    at = tl.load(ROWS + i, mask=there, other=0) * vocabulary + tl.load(IDS + i, mask=there, other=0)
    values = tl.load(LOGITS + at, mask=there, other=0.0) + tl.load(VALUES + i, mask=there, other=0.0)
    tl.store(LOGITS + at, values, mask=there)


@triton.jit
def penalty_kernel(LOGITS, ROWS, IDS, COUNTS, REPETITION, PRESENCE, FREQUENCY, count, vocabulary, BLOCK: tl.constexpr):
    """Repetition, presence and frequency penalties on each of the listed logits, by its number of occurrences."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = i < count
    row = tl.load(ROWS + i, mask=there, other=0)
    at = row * vocabulary + tl.load(IDS + i, mask=there, other=0)
    occurrences = tl.load(COUNTS + i, mask=there, other=0).to(tl.float32)
    x = tl.load(LOGITS + at, mask=there, other=0.0)
    repetition = tl.load(REPETITION + row)
    x = tl.where(x > 0, x / repetition, x * repetition)
    x -= tl.where(occurrences > 0, tl.load(PRESENCE + row), 0.0) + tl.load(FREQUENCY + row) * occurrences
    tl.store(LOGITS + at, x, mask=there)


@triton.jit
def ban_kernel(LOGITS, ROWS, IDS, count, vocabulary, BLOCK: tl.constexpr):
    """Forbid each of the listed ids."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = i < count
    at = tl.load(ROWS + i, mask=there, other=0) * vocabulary + tl.load(IDS + i, mask=there, other=0)
    tl.store(LOGITS + at, float("-inf"), mask=there)


@triton.jit
def mask_kernel(LOGITS, MASKS, vocabulary, words, BLOCK: tl.constexpr):
    """Forbid every id whose bit isn't set."""
    row = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = token < vocabulary
    word = tl.load(MASKS + row * words + token // 32, mask=inside, other=-1)
    tl.store(LOGITS + row * vocabulary + token, float("-inf"), mask=inside & ((word >> token % 32 & 1) == 0))


@triton.jit
def _ordered(x):
    """Numbers as unsigned integers in the same order; both zeros are equal."""
    bits = tl.where(x == 0, 0.0, x).to(tl.uint32, bitcast=True)
    return tl.where(bits >> 31 != 0, bits ^ 0xFFFFFFFF, bits | 0x80000000)


@triton.jit
def _threshold(LOGITS, vocabulary, most, heat, wanted, BY_MASS: tl.constexpr, BLOCK: tl.constexpr):
    """The largest threshold that logits of so much mass, or so many, reach; with the mass and number above it."""
    way = tl.arange(0, WAYS)
    prefix = tl.full([], 0, tl.uint32)
    for turn in tl.range(0, ROUNDS):
        shift = 28 - 4 * turn
        tried = prefix + (way.to(tl.uint32) << shift)
        reached = tl.zeros([WAYS], tl.float32)
        for start in tl.range(0, vocabulary, BLOCK):
            token = start + tl.arange(0, BLOCK)
            x = tl.load(LOGITS + token, mask=token < vocabulary, other=float("-inf"))
            weight = tl.exp((x - most) * heat) if BY_MASS else tl.where(token < vocabulary, 1.0, 0.0)
            reached += tl.sum(tl.where(_ordered(x)[None, :] >= tried[:, None], weight[None, :], 0.0), 1)
        enough = tl.sum((reached >= wanted).to(tl.int32), 0)
        prefix += tl.maximum(enough - 1, 0).to(tl.uint32) << shift
    above = 0.0
    number = 0.0
    for start in tl.range(0, vocabulary, BLOCK):
        token = start + tl.arange(0, BLOCK)
        x = tl.load(LOGITS + token, mask=token < vocabulary, other=float("-inf"))
        over = _ordered(x) > prefix
        above += tl.sum(tl.where(over, tl.exp((x - most) * heat), 0.0), 0)
        number += tl.sum(tl.where(over, 1.0, 0.0), 0)
    bits = tl.where(prefix >> 31 != 0, prefix & 0x7FFFFFFF, prefix ^ 0xFFFFFFFF)
    return prefix, tl.exp((bits.to(tl.float32, bitcast=True) - most) * heat), above, number


@triton.jit
def _kept(LOGITS, start, vocabulary, most, heat, least, ties, before, min_p, BLOCK: tl.constexpr):
    """A block's weights, 0 for what the filters drop, and how many ids so far share the least logit."""
    token = start + tl.arange(0, BLOCK)
    x = tl.load(LOGITS + token, mask=token < vocabulary, other=float("-inf"))
    key = _ordered(x)
    tie = (key == least).to(tl.int32)
    rank = before + tl.cumsum(tie, 0) - tie
    weight = tl.exp((x - most) * heat)
    keep = ((key > least) | ((tie != 0) & (rank < ties))) & (weight >= min_p)
    return tl.where(keep, weight, 0.0), before + tl.sum(tie, 0)


@triton.jit
def pick_kernel(
    LOGITS, TEMPERATURE, TOP_K, TOP_P, MIN_P, UNIFORM, TARGETS, RESULTS, vocabulary, results_stride,
    BLOCK: tl.constexpr, TRIED: tl.constexpr,
):  # fmt: skip
    """The token of one row: its target, its largest logit, or a draw; and whether there was anything to choose from."""
    row = tl.program_id(0).to(tl.int64)
    LOGITS += row * vocabulary
    most = float("-inf")
    token = 0
    odd = 0
    for start in tl.range(0, vocabulary, BLOCK):
        i = start + tl.arange(0, BLOCK)
        x = tl.load(LOGITS + i, mask=i < vocabulary, other=float("-inf"))
        odd += tl.sum((x != x).to(tl.int32), 0)
        here = tl.max(x, 0)
        first = tl.min(tl.where(x == here, i, vocabulary), 0)
        token = tl.where(here > most, first, token)
        most = tl.maximum(most, here)
    target = tl.load(TARGETS + row)
    temperature = tl.load(TEMPERATURE + row)
    sound = (odd == 0) & (most > float("-inf")) & (most < float("inf"))
    if (temperature > 0) & sound & (target < 0):
        top_k = tl.load(TOP_K + row)
        top_p = tl.load(TOP_P + row)
        min_p = tl.load(MIN_P + row)
        heat = 1.0 / temperature
        least = tl.full([], 0, tl.uint32)
        ties = vocabulary
        total = 0.0
        if top_p < 1:
            for start in tl.range(0, vocabulary, TRIED):
                i = start + tl.arange(0, TRIED)
                x = tl.load(LOGITS + i, mask=i < vocabulary, other=float("-inf"))
                total += tl.sum(tl.exp((x - most) * heat), 0)
        if (top_k > 0) & (top_k < vocabulary):
            least, weight, above, number = _threshold(LOGITS, vocabulary, most, heat, top_k * 1.0, False, TRIED)
            ties = top_k - number.to(tl.int32)
            total = above + weight * ties
        if top_p < 1:
            wanted = top_p * total
            least, weight, above, number = _threshold(LOGITS, vocabulary, most, heat, wanted, True, TRIED)
            ties = tl.maximum(tl.ceil((wanted - above) / weight).to(tl.int32), 1)
        mass = tl.full([], 0.0, tl.float64)
        before = 0
        for start in tl.range(0, vocabulary, BLOCK):
            weights, before = _kept(LOGITS, start, vocabulary, most, heat, least, ties, before, min_p, BLOCK)
            mass += tl.sum(weights, 0)
        goal = tl.load(UNIFORM + row) * mass
        passed = tl.full([], 0.0, tl.float64)
        before = 0
        drawn = vocabulary
        last = 0
        for start in tl.range(0, vocabulary, BLOCK):
            weights, before = _kept(LOGITS, start, vocabulary, most, heat, least, ties, before, min_p, BLOCK)
            i = start + tl.arange(0, BLOCK)
            over = (passed + tl.cumsum(weights, 0) > goal) & (weights > 0)
            drawn = tl.minimum(drawn, tl.min(tl.where(over, i, vocabulary), 0))
            last = tl.maximum(last, tl.max(tl.where(weights > 0, i, 0), 0))
            passed += tl.sum(weights, 0)
        token = tl.where(drawn < vocabulary, drawn, last)
    tl.store(RESULTS + row * results_stride, tl.where(target < 0, token, target.to(tl.int32)))
    tl.store(RESULTS + row * results_stride + 1, (sound | (target >= 0)).to(tl.int32))


@triton.jit
def logprob_kernel(LOGITS, RESULTS, vocabulary, results_stride, alternatives, BLOCK: tl.constexpr):
    """Log-probabilities of a row's token and of its most probable ids, best first, ties by rising id."""
    row = tl.program_id(0).to(tl.int64)
    LOGITS += row * vocabulary
    RESULTS += row * results_stride
    most = float("-inf")
    for start in tl.range(0, vocabulary, BLOCK):
        i = start + tl.arange(0, BLOCK)
        most = tl.maximum(most, tl.max(tl.load(LOGITS + i, mask=i < vocabulary, other=float("-inf")), 0))
    total = 0.0
    for start in tl.range(0, vocabulary, BLOCK):
        i = start + tl.arange(0, BLOCK)
        total += tl.sum(tl.exp(tl.load(LOGITS + i, mask=i < vocabulary, other=float("-inf")) - most), 0)
    norm = most + tl.log(total)
    token = tl.load(RESULTS)
    tl.store(RESULTS + 2, (tl.load(LOGITS + token) - norm).to(tl.int32, bitcast=True))
    value, last = float("inf"), -1
    for place in tl.range(0, alternatives):
        best, best_id = float("-inf"), vocabulary
        for start in tl.range(0, vocabulary, BLOCK):
            i = start + tl.arange(0, BLOCK)
            x = tl.load(LOGITS + i, mask=i < vocabulary, other=float("-inf"))
            left = (i < vocabulary) & ((x < value) | ((x == value) & (i > last)))
            here = tl.max(tl.where(left, x, float("-inf")), 0)
            first = tl.min(tl.where(left & (x == here), i, vocabulary), 0)
            best_id = tl.where((here > best) | (best_id == vocabulary), first, best_id)
            best = tl.maximum(best, here)
        value, last = best, best_id
        tl.store(RESULTS + 3 + place, best_id)
        tl.store(RESULTS + 3 + alternatives + place, (best - norm).to(tl.int32, bitcast=True))
