"""Grammars and matchers over tokens: what the compiled part offers, in Python.

Same names, arguments and results as `forge_grammar._native`, and the reference for it; many times slower.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from forge.interfaces.constraint import MaskRow
from forge_grammar.machine.grammar import Program
from forge_grammar.machine.machine import Configuration
from forge_grammar.machine.vocabulary import Vocabulary

MAX_FORCED = 256


class Grammar:
    """A program over a vocabulary. languages, texts, words: see `program.Flat`."""

    def __init__(self, vocabulary: Vocabulary, languages: list[bytes], texts: list[bytes], words: bytes) -> None:
        self.vocabulary = vocabulary
        self.program = Program(languages, texts, words)
        self.nbytes = sum(map(len, languages)) + sum(map(len, texts)) + len(words)

    def matcher(self) -> Matcher:
        """A matcher at the start."""
        return Matcher(self)


class Matcher:
    """Where one sequence stands: a configuration for every token accepted."""

    def __init__(self, grammar: Grammar) -> None:
        self._vocabulary = grammar.vocabulary
        # None: the sequence has ended.
        self._history: list[Configuration | None] = [Configuration.start(grammar.program)]

    def fill(self, row: MaskRow) -> None:
        """Write the tokens allowed next: int32 [ceil(width / 32)], all bits. Errors: `ValueError` for another row."""
        words = self._vocabulary.words
        if row.shape != (words,) or row.dtype != np.int32:
            raise ValueError(f"a mask row is int32 [{words}], not {row.dtype} {list(row.shape)}")
        configuration = self._history[-1]
        row[:] = 0 if configuration is None else self._vocabulary.mask(configuration)

    def accept(self, token: int) -> bool:
        """Advance by a token; False, and no change, if it isn't allowed."""
        allowed, after = self._after(self._history[-1], token)
        if allowed:
            self._history.append(after)
        return allowed

    def validate(self, tokens: Sequence[int]) -> int:
        """How many of the tokens could be accepted in order. End of sequence is the last that can."""
        configuration = self._history[-1]
        for count, token in enumerate(tokens):
            allowed, configuration = self._after(configuration, token)
            if not allowed:
                return count
        return len(tokens)

    def rollback(self, tokens: int) -> None:
        """Take back the last tokens accepted. Errors: `ValueError` if there aren't so many."""
        accepted = len(self._history) - 1
        if not 0 <= tokens <= accepted:
            raise ValueError(f"can't take back {tokens} of {accepted} tokens")
        del self._history[accepted + 1 - tokens :]

    def forced(self) -> bytes:
        """The bytes that must follow: up to where there's a choice or the output may end; 256 at most."""
        forced = bytearray()
        configuration = self._history[-1]
        while configuration is not None and not configuration.is_final and len(forced) < MAX_FORCED:
            steps = [(byte, after) for byte in range(256) if (after := configuration.step(byte))]
            if len(steps) != 1:
                break
            byte, configuration = steps[0]
            forced.append(byte)
        return bytes(forced)

    @property
    def is_final(self) -> bool:
        """Whether the sequence may end here, or has ended."""
        configuration = self._history[-1]
        return configuration is None or configuration.is_final

    def _after(self, configuration: Configuration | None, token: int) -> tuple[bool, Configuration | None]:
        """Whether a token may follow, and the configuration after it."""
        if configuration is None:
            return False, None
        if token in self._vocabulary.eos:
            return configuration.is_final, None
        data = self._vocabulary.bytes_of(token)
        after = configuration.run(data) if data else None
        return after is not None, after


def fill_batch(matchers: Sequence[Matcher], rows: npt.NDArray[np.int32]) -> None:
    """`Matcher.fill` for each row: int32 [matchers, ceil(width / 32)]. Errors: `ValueError` for another shape."""
    if rows.ndim != 2 or len(rows) != len(matchers):
        raise ValueError(f"{len(matchers)} matchers for rows {list(rows.shape)}")
    for matcher, row in zip(matchers, rows):
        matcher.fill(row)
