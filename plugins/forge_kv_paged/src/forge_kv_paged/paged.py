"""The paged cache: blocks of a few positions, shared between sequences that begin with the same tokens.

Bookkeeping only; it never sees a key or a value. After PagedAttention (Kwon et al., 2023, https://arxiv.org/abs/2309.06180):
full blocks are found again by a hash of their tokens chained to the hash of the block before.

A block is in one of three states::

    free   in no table, content worthless       handed out first, the one freed last before all others
    used   in the table of one or more sequences; in several only if it is published
    idle   published, in no table               found by attach, evicted when no block is free, longest idle first

"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

from attrs import define, field, frozen

from forge.interfaces.kv_cache import CacheLimits, CacheMiss, CacheShape, CacheUsage, Growth, KVCache
from forge_kv_paged.options import PagedOptions, plan_blocks

if TYPE_CHECKING:
    from forge.interfaces.scheduler import Sequence

ROOT = -1
"""The parent of a sequence's first block."""

SIBLINGS = 64
"""So many of the blocks that follow the same beginning are looked at to say where a prompt departs from them."""

ChainHash = Callable[[int, tuple[int, ...]], int]
"""(hash of the block before, this block's tokens) → hash."""


def chain_hash(parent: int, tokens: tuple[int, ...]) -> int:
    """Python's own hash of numbers: fast, and the same in every process. Nothing rests on its being collision-free."""
    return hash((parent, tokens))


@frozen
class _Published:
    """What a published block holds: `tokens`, after all that block `parent` and those before it hold."""

    chain: int
    parent: int
    tokens: tuple[int, ...]


@define(eq=False)
class _Holder:
    """One sequence's part of the cache.

    ::

        table     | shared: published, by others or itself     | own: nobody else's        |
        hashes    | one for each full block looked at so far; may be longer or shorter than the table
    """

    seq: Sequence
    table: list[int] = field(factory=list)
    hashes: list[int] = field(factory=list)
    shared: int = 0
    limit: int = 0
    """How many positions `attach` may find."""
    started: bool = False
    """It computes blocks of its own, so that others wait for it and it waits for nobody."""
    chained: bool = True
    """Its blocks can be published; no longer so after a hash collision, for want of a parent that can be found."""
    queries: int = 0
    hits: int = 0


class PagedKVCache(KVCache):
    """Blocks with reference counts, prefix reuse and eviction.

    Three rules carry the rest:

    - A sequence that holds a published block holds all blocks before it. So of two idle blocks the later one of a chain
      has always been idle for longer, and eviction takes leaves first: a published block's parent is always there.
    - That makes (parent block, tokens) a complete description of a prefix. A hash only finds a candidate; it is taken
      if parent and tokens are equal, so that a collision costs a chance of reuse and nothing else.
    - A sequence that begins to compute becomes the *leader* for the full blocks of its known tokens, and keeps them
      until it publishes or goes. Only one that hasn't begun is told to wait, so that nobody waits for one who waits.
    """

    def __init__(self, shape: CacheShape, options: PagedOptions | None = None, chain: ChainHash = chain_hash) -> None:
        self.shape = shape
        self.options = options or PagedOptions()
        self._chain = chain
        self._size = shape.block_size
        self._free = list(range(shape.num_blocks - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._users = [0] * shape.num_blocks
        self._published: dict[int, _Published] = {}
        self._index: dict[int, int] = {}
        self._leaders: dict[int, _Holder] = {}
        self._holders: dict[int, _Holder] = {}
        self._children: defaultdict[int, dict[int, None]] = defaultdict(dict)
        """Published blocks by the block before them."""
        self._evicted: OrderedDict[int, None] = OrderedDict()
        """Hashes of the blocks evicted last, at most as many as there are blocks."""
        self._hits = self._queries = 0

    @classmethod
    def plan(cls, limits: CacheLimits, options: PagedOptions | None = None) -> CacheShape:
        """As many blocks as the options allow, at most what a full batch of the longest sequences could use."""
        options = options or PagedOptions()
        most = limits.max_batch_size * -(-limits.max_model_len // options.block_size)
        return CacheShape(plan_blocks(limits, options, options.block_size, most), options.block_size)

    @property
    def max_sequence_len(self) -> int:
        return self.shape.capacity

    # -- a sequence's life, in order

    def attach(self, seq: Sequence, limit: int) -> int:
        """Find and pin the longest reusable prefix, in whole blocks. What the sequence had of its own is given back."""
        holder = self._holders.setdefault(seq.id, _Holder(seq))
        self._resign(holder)
        holder.started, holder.chained = False, True
        holder.limit = min(limit, len(seq.tokens) - 1) if self.options.prefix_reuse else 0
        self._shrink(holder, min(holder.shared, holder.limit // self._size))
        while (holder.shared + 1) * self._size <= holder.limit:
            block = self._find(holder, holder.shared)
            if block is None:
                break
            self._pin(block)
            holder.table.append(block)
            holder.shared += 1
        self._count(holder)
        return holder.shared * self._size

    def grow(self, seq: Sequence, total: int) -> Growth:
        holder = self._holders.get(seq.id) or _Holder(seq)
        missing = -(-total // self._size) - len(holder.table)
        if missing <= 0:
            return Growth.READY
        if not holder.started and self._led(holder):
            return Growth.LATER
        if missing > len(self._free) + len(self._idle):
            return Growth.FULL
        holder.table.extend([self._take() for _ in range(missing)])
        if not holder.started:
            self._holders[seq.id] = holder
            self._lead(holder)
        return Growth.READY

    def publish(self, seq: Sequence, upto: int) -> None:
        """Make full blocks findable.

        Where another sequence has published the same block in the meantime, this one's table takes that block and
        its own is free: equal prefixes are in the cache once, and its table differs before and after.
        """
        holder = self._holders[seq.id]
        full = upto // self._size
        if full <= holder.shared or not holder.chained or not self.options.prefix_reuse:
            return
        if upto > len(seq.tokens) or full > len(holder.table):
            raise ValueError(f"publish({upto}) of {len(seq.tokens)} tokens in {len(holder.table)} blocks")
        for position in range(holder.shared, full):
            if not self._publish_block(holder, position):
                holder.chained = False
                self._resign(holder)
                return
            holder.shared = position + 1

    def truncate(self, seq: Sequence, length: int) -> None:
        holder = self._holders[seq.id]
        keep = -(-length // self._size)
        if keep >= len(holder.table):
            return
        if keep < holder.shared:
            raise ValueError(f"truncate({length}) of a sequence whose first {holder.shared * self._size} are published")
        self._shrink(holder, keep)

    def release(self, seq: Sequence) -> None:
        holder = self._holders.pop(seq.id, None)
        if holder is not None:
            self._resign(holder)
            self._shrink(holder, 0)

    def table(self, seq: Sequence) -> Seq[int]:
        holder = self._holders.get(seq.id)
        return holder.table if holder is not None else ()

    def explain(self, seq: Sequence) -> CacheMiss | None:
        holder = self._holders[seq.id]
        at = holder.shared * self._size
        if len(seq.tokens) <= self._size:  # not a whole block that could be found
            return None
        if holder.limit == 0:
            return CacheMiss("disabled", 0)
        if at + self._size > holder.limit:
            return None
        if self._hash(holder, holder.shared) in self._evicted:
            return CacheMiss("evicted", at)
        siblings = list(self._children.get(_parent(holder, holder.shared), ()))[-SIBLINGS:]
        if not siblings:
            return CacheMiss("new", at)
        own = self._tokens(holder, holder.shared)
        return CacheMiss("diverged", at + max(_common(own, self._published[block].tokens) for block in siblings))

    def usage(self) -> CacheUsage:
        free, idle = len(self._free), len(self._idle)
        return CacheUsage(self.shape.num_blocks - free - idle, idle, free, self._hits, self._queries)

    # -- blocks

    def _take(self) -> int:
        """A block for one user, evicting the one that is idle for longest if none is free."""
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._idle.popitem(last=False)
            self._withdraw(block)
        self._users[block] = 1
        return block

    def _withdraw(self, block: int) -> None:
        """A published block is evicted."""
        known = self._published.pop(block)
        del self._index[known.chain]
        del self._children[known.parent][block]
        if not self._children[known.parent]:
            del self._children[known.parent]
        self._evicted[known.chain] = None
        if len(self._evicted) > self.shape.num_blocks:
            self._evicted.popitem(last=False)

    def _pin(self, block: int) -> None:
        """One more user of a published block."""
        self._idle.pop(block, None)
        self._users[block] += 1

    def _shrink(self, holder: _Holder, keep: int) -> None:
        """Give back all but the first `keep` blocks, from the end, so that leaves are idle before their parents."""
        for block in reversed(holder.table[keep:]):
            self._users[block] -= 1
            if self._users[block] == 0:
                if block in self._published:
                    self._idle[block] = None
                else:
                    self._free.append(block)
        del holder.table[keep:]
        holder.shared = min(holder.shared, keep)

    # -- prefixes

    def _tokens(self, holder: _Holder, position: int) -> tuple[int, ...]:
        return tuple(holder.seq.tokens[position * self._size : (position + 1) * self._size])

    def _hash(self, holder: _Holder, position: int) -> int:
        """The chained hash of the sequence's block at `position` of its table."""
        hashes = holder.hashes
        while len(hashes) <= position:
            hashes.append(self._chain(hashes[-1] if hashes else ROOT, self._tokens(holder, len(hashes))))
        return hashes[position]

    def _find(self, holder: _Holder, position: int) -> int | None:
        """The published block that continues the sequence's first `position` blocks, all published."""
        block = self._index.get(self._hash(holder, position))
        if block is None:
            return None
        known = self._published[block]
        same = known.parent == _parent(holder, position) and known.tokens == self._tokens(holder, position)
        return block if same else None

    def _publish_block(self, holder: _Holder, position: int) -> bool:
        """Make one more block findable; False if its hash belongs to other tokens."""
        chain, own = self._hash(holder, position), holder.table[position]
        if self._leaders.get(chain) is holder:
            del self._leaders[chain]
        twin = self._find(holder, position)
        if twin is not None:
            self._pin(twin)
            holder.table[position] = twin
            self._users[own] = 0
            self._free.append(own)
            return True
        if chain in self._index:
            return False
        self._index[chain] = own
        self._evicted.pop(chain, None)
        self._children[_parent(holder, position)][own] = None
        self._published[own] = _Published(chain, _parent(holder, position), self._tokens(holder, position))
        return True

    def _led(self, holder: _Holder) -> bool:
        """Whether another sequence is computing the very block that this one needs next and could attach."""
        position = holder.shared
        if (position + 1) * self._size > holder.limit:
            return False
        leader = self._leaders.get(self._hash(holder, position))
        return (
            leader is not None
            and position <= len(leader.table)
            and _parent(leader, position) == _parent(holder, position)
            and self._tokens(leader, position) == self._tokens(holder, position)
        )

    def _lead(self, holder: _Holder) -> None:
        """The sequence begins to compute: full blocks of its known tokens are its own to publish, if nobody's yet."""
        holder.started = True
        if self.options.prefix_reuse:
            for position in range(holder.shared, len(holder.seq.tokens) // self._size):
                self._leaders.setdefault(self._hash(holder, position), holder)

    def _resign(self, holder: _Holder) -> None:
        """The sequence publishes no more of what it has begun: whoever waits for it may go on."""
        if holder.started:
            for chain in holder.hashes[holder.shared :]:
                if self._leaders.get(chain) is holder:
                    del self._leaders[chain]

    def _count(self, holder: _Holder) -> None:
        """Count prompt tokens looked up and found, once each however often the sequence attaches."""
        queries = holder.seq.prompt_len if holder.limit > 0 else 0
        hits = min(holder.shared * self._size, holder.seq.prompt_len)
        self._queries += max(0, queries - holder.queries)
        self._hits += max(0, hits - holder.hits)
        holder.queries, holder.hits = max(queries, holder.queries), max(hits, holder.hits)

    # -- proof

    def check(self) -> None:
        self._check_blocks()
        self._check_prefixes()
        for holder in self._holders.values():
            self._check_holder(holder)
        for chain, leader in self._leaders.items():
            assert self._holders.get(leader.seq.id) is leader, "a leader that holds nothing"
            assert leader.started, "a leader that hasn't begun"
            assert leader.chained, "a leader that can't publish"
            assert chain in leader.hashes[leader.shared :], "a leader of what it has published"

    def _check_blocks(self) -> None:
        users = Counter(block for holder in self._holders.values() for block in holder.table)
        assert all(self._users[block] == users[block] for block in range(self.shape.num_blocks)), "a wrong count"
        places = sorted([*self._free, *self._idle, *users])
        assert places == list(range(self.shape.num_blocks)), "a block is lost, or in two states"
        assert not self._published.keys() & set(self._free), "a free block is published"
        assert self._published.keys() >= self._idle.keys(), "an idle block isn't published"
        assert all(block in self._published for block, count in users.items() if count > 1), "a private block is shared"

    def _check_prefixes(self) -> None:
        assert {known.chain: block for block, known in self._published.items()} == self._index, "index"
        children = {(known.parent, block) for block, known in self._published.items()}
        assert children == {(parent, block) for parent, blocks in self._children.items() for block in blocks}, (
            "children"
        )
        age = {block: number for number, block in enumerate(self._idle)}
        for block, known in self._published.items():
            assert len(known.tokens) == self._size, "a published block isn't full"
            if known.parent == ROOT:
                continue
            assert known.parent in self._published, "a published block's parent was evicted"
            if block not in age:
                assert known.parent not in age, "a block is used and its parent isn't"
            elif known.parent in age:
                assert age[block] < age[known.parent], "a parent would be evicted before its child"

    def _check_holder(self, holder: _Holder) -> None:
        assert len(set(holder.table)) == len(holder.table), "a block twice in one table"
        assert 0 <= holder.shared <= len(holder.table)
        assert holder.started or holder.shared == len(holder.table), "own blocks of a sequence that hasn't begun"
        for position, block in enumerate(holder.table):
            known = self._published.get(block)
            assert (known is not None) == (position < holder.shared), "published out of order"
            if known is not None:
                assert known.parent == _parent(holder, position), "a block after the wrong one"
                assert known.tokens == self._tokens(holder, position), "a block with other tokens"


def _common(a: Seq[int], b: Seq[int]) -> int:
    """How many tokens two blocks begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def _parent(holder: _Holder, position: int) -> int:
    return holder.table[position - 1] if position else ROOT
