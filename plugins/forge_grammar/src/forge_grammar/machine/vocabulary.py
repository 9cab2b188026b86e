"""The tokens as a trie of their bytes, and the masks computed so far.

Masks are found by walking the trie from a configuration: a subtree is left at the first byte that is refused. Inside a
string nearly all tokens are without a quote, hence stay in it: which of them may follow depends on the lexeme alone;
the few that may leave it are walked each time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

import numpy as np

from forge.interfaces.constraint import MaskRow
from forge_grammar.machine.lexemes import QUOTE
from forge_grammar.machine.machine import Configuration
from forge_grammar.machine.positions import InKey, InString


class Node:
    """The tokens whose bytes end here, and the nodes one byte further."""

    __slots__ = ("children", "tokens")

    def __init__(self) -> None:
        self.children: dict[int, Node] = {}
        self.tokens: list[int] = []

    def add(self, token: int, data: bytes) -> None:
        """Add a token below this node."""
        node = self
        for byte in data:
            node = node.children.setdefault(byte, Node())
        node.tokens.append(token)


class Vocabulary:
    """Tokens by id.

    token_bytes: of each id, empty for none. special: ids that are never part of the text. eos: ids that end it. width:
    how many ids a mask has, at least as many as there are tokens (models pad). cache_bytes: of masks kept, those used
    longest ago out first. Errors: `ValueError` for ids out of range or a width that's too small.
    """

    def __init__(
        self, token_bytes: list[bytes], special: list[int], eos: list[int], width: int, cache_bytes: int
    ) -> None:
        if width < len(token_bytes):
            raise ValueError(f"masks of {width} tokens for a vocabulary of {len(token_bytes)}")
        for token in (*special, *eos):
            if not 0 <= token < width:
                raise ValueError(f"token {token} is none of the {width} of the vocabulary")
        never = {*special, *eos}
        self.width = width
        self.words = -(-width // 32)
        self.eos = frozenset(eos)
        self.token_bytes = [b"" if token in never else data for token, data in enumerate(token_bytes)]
        self._plain, self._quoted = Node(), Node()
        for token, data in enumerate(self.token_bytes):
            if data:
                (self._quoted if QUOTE in data else self._plain).add(token, data)
        self._longest = max(map(len, self.token_bytes), default=0)
        self._cache: OrderedDict[Hashable, MaskRow] = OrderedDict()
        self._cached_rows = cache_bytes // (4 * self.words)

    def bytes_of(self, token: int) -> bytes:
        """A token's bytes; none if it isn't part of a text or no token at all."""
        return self.token_bytes[token] if 0 <= token < len(self.token_bytes) else b""

    def mask(self, configuration: Configuration) -> MaskRow:
        """The tokens that may follow, end of sequence included: int32 [ceil(width / 32)]. Not to be written to."""
        return self._kept(_key(configuration), lambda: self._walk(configuration))

    def _kept(self, key: Hashable | None, compute: Callable[[], MaskRow]) -> MaskRow:
        """The mask kept under a key, else a new one."""
        known = None if key is None else self._cache.get(key)
        mask = compute() if known is None else known
        if key is not None and self._cached_rows:
            self._cache[key] = mask
            self._cache.move_to_end(key)
            if len(self._cache) > self._cached_rows:
                self._cache.popitem(last=False)
        return mask

    def _walk(self, configuration: Configuration) -> MaskRow:
        position = configuration.position
        if isinstance(position, InString | InKey):
            key = (id(configuration.program), position.lexeme.settled(self._longest))
            inside = self._kept(key, lambda: self._below(self._plain, configuration))
        else:
            inside = self._below(self._plain, configuration)
        mask = inside | self._below(self._quoted, configuration)
        return mask | self._bits(list(self.eos)) if configuration.is_final else mask

    def _below(self, root: Node, configuration: Configuration) -> MaskRow:
        """Those tokens of a trie that may follow."""
        tokens: list[int] = []
        stack = [(root, configuration)]
        while stack:
            node, at = stack.pop()
            for byte, child in node.children.items():
                after = at.step(byte)
                if after is not None:
                    tokens += child.tokens
                    if child.children:
                        stack.append((child, after))
        return self._bits(tokens)

    def _bits(self, tokens: list[int]) -> MaskRow:
        bits = np.zeros(self.words * 32, np.uint8)
        bits[tokens] = 1
        return np.packbits(bits, bitorder="little").view("<i4").astype(np.int32)


def _key(configuration: Configuration) -> Hashable | None:
    """Equal for configurations of one program after which the same follows; None if that's too deep to compare."""
    try:
        key = (id(configuration.program), configuration.position, configuration.recorded())
        hash(key)
    except RecursionError:
        return None
    return key
