"""The tokens as a trie of their bytes, and the masks computed so far.

Masks are found by walking the trie from a configuration: a subtree is left at the first byte that is refused.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

import numpy as np

from forge.interfaces.constraint import MaskRow
from forge_grammar.machine.machine import Configuration


class Node:
    """The tokens whose bytes end here, and the nodes one byte further."""

    __slots__ = ("children", "tokens")

    def __init__(self) -> None:
        self.children: dict[int, Node] = {}
        self.tokens: list[int] = []


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
        self.root = Node()
        for token, data in enumerate(self.token_bytes):
            if data:
                node = self.root
                for byte in data:
                    node = node.children.setdefault(byte, Node())
                node.tokens.append(token)
        self._cache: OrderedDict[Hashable, MaskRow] = OrderedDict()
        self._cached_rows = cache_bytes // (4 * self.words)

    def bytes_of(self, token: int) -> bytes:
        """A token's bytes; none if it isn't part of a text or no token at all."""
        return self.token_bytes[token] if 0 <= token < len(self.token_bytes) else b""

    def mask(self, configuration: Configuration) -> MaskRow:
        """The tokens that may follow, end of sequence included: int32 [ceil(width / 32)]. Not to be written to."""
        key = _key(configuration)
        if key is not None and (known := self._cache.get(key)) is not None:
            self._cache.move_to_end(key)
            return known
        mask = self._walk(configuration)
        if key is not None and self._cached_rows:
            self._cache[key] = mask
            if len(self._cache) > self._cached_rows:
                self._cache.popitem(last=False)
        return mask

    def _walk(self, configuration: Configuration) -> MaskRow:
        bits = np.zeros(self.words * 32, np.uint8)
        stack = [(self.root, configuration)]
        while stack:
            node, at = stack.pop()
            for byte, child in node.children.items():
                after = at.step(byte)
                if after is not None:
                    bits[child.tokens] = 1
                    if child.children:
                        stack.append((child, after))
        if configuration.is_final:
            bits[list(self.eos)] = 1
        return np.packbits(bits, bitorder="little").view("<i4").astype(np.int32)


def _key(configuration: Configuration) -> Hashable | None:
    """Equal for configurations of one program after which the same follows; None if that's too deep to compare."""
    try:
        key = (id(configuration.program), configuration.position, configuration.recorded())
        hash(key)
    except RecursionError:
        return None
    return key
