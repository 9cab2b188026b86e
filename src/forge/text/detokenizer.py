"""Text from tokens as they come, and stop strings in it: one of each for every answer.

For the engine's commit. Knows nothing of sampling or sequences.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from forge.errors import InvalidRequest

if TYPE_CHECKING:
    from forge.text.tokenizer import Tokenizer


class Detokenizer:
    """Turns one answer's tokens into text, token by token, in time linear in the bytes.

    What `add` and `finish` return adds up to the answer's text, whatever the pieces. A character (a code point) whose
    bytes span tokens comes with its last one. Unlike `Tokenizer.decode`, a space at the start is kept: an answer
    continues its prompt.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._table = tokenizer.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._begun = False
        """Whether the decoder holds a part of a character."""

    def add(self, token: int) -> str:
        """The text that this token completes, perhaps none.

        Special ids have no text, nor have ids beyond the vocabulary, which a model's padded matrix may yield.
        """
        if not 0 <= token < len(self._table):
            return ""
        data = self._table[token]
        if data.isascii() and not self._begun:  # most tokens: nothing to wait for
            return data.decode()
        text = self._decoder.decode(data)
        self._begun = bool(self._decoder.getstate()[0])
        return text

    def finish(self) -> str:
        """The answer is over: U+FFFD for a character of which only a part came, else nothing."""
        return self._decoder.decode(b"", final=True)


class StopStrings:
    """Finds the first of several strings in a text that comes in pieces, and holds back what might become one.

    That is the one whose last character comes first, the longest of them if several end there: so where the pieces
    begin and end doesn't matter. The search is Aho and Corasick's ("Efficient string matching", 1975): time linear in
    the text, whatever the strings. Errors: `InvalidRequest` for an empty string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise InvalidRequest("a stop string must not be empty", param="stop")
        self._build_trie(stops)
        self._link()
        self._state = 0
        self._held: deque[str] = deque()
        self._stopped = False

    def feed(self, text: str) -> tuple[str, bool]:
        """Take the next piece of text: what can be shown by now, and whether a stop string is complete.

        After that, what follows is discarded.
        """
        if self._stopped:
            return "", True
        if len(self._next) == 1:
            return text, False
        for character in text:
            self._held.append(character)
            self._state = self._step(self._state, character)
            if self._match[self._state]:
                shown = self._release(len(self._held) - self._match[self._state])
                self._held.clear()
                self._stopped = True
                return shown, True
        return self._release(len(self._held) - self._depth[self._state]), False

    def finish(self) -> str:
        """The answer ended otherwise: the text that was held back."""
        return self._release(len(self._held))

    def _release(self, count: int) -> str:
        return "".join(self._held.popleft() for _ in range(count))

    def _step(self, state: int, character: str) -> int:
        while state and character not in self._next[state]:
            state = self._fail[state]
        return self._next[state].get(character, 0)

    def _build_trie(self, stops: Sequence[str]) -> None:
        """States are numbered in the order of their making; 0 is the root.

        For each: its successors, how many characters lead to it, and the length of the longest stop string that ends
        there (0: none does).
        """
        self._next: list[dict[str, int]] = [{}]
        self._depth = [0]
        self._match = [0]
        for stop in stops:
            state = 0
            for character in stop:
                if character not in self._next[state]:
                    self._next[state][character] = len(self._next)
                    self._next.append({})
                    self._depth.append(self._depth[state] + 1)
                    self._match.append(0)
                state = self._next[state][character]
            self._match[state] = len(stop)

    def _link(self) -> None:
        """Each state's fallback: the longest proper suffix of what led to it that leads to another state."""
        self._fail = [0] * len(self._next)
        queue = deque(self._next[0].values())
        while queue:
            state = queue.popleft()
            for character, successor in self._next[state].items():
                self._fail[successor] = self._step(self._fail[state], character)
                self._match[successor] = self._match[successor] or self._match[self._fail[successor]]
                queue.append(successor)
