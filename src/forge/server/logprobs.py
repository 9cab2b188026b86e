"""Log-probabilities in the two shapes of OpenAI's API: one entry a token (chat), or parallel lists (completions)."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from forge.interfaces.sampler import TokenLogprobs

if TYPE_CHECKING:
    from forge.text.tokenizer import Tokenizer

LOWEST = -9999.0
"""Stands for a probability of zero, whose logarithm JSON can't express."""


def token_name(raw: bytes) -> str:
    """A token as a text: itself, or ``bytes:\\xe2\\x80`` where it isn't whole characters."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def chat_logprobs(
    tokenizer: Tokenizer, ids: Iterable[int], logprobs: Iterable[TokenLogprobs], alternatives: int
) -> dict[str, Any]:
    """A chat choice's ``logprobs`` for these tokens."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        raw = tokenizer.token_raw(token)
        return {"token": token_name(raw), "logprob": max(logprob, LOWEST), "bytes": list(raw)}

    content = [
        entry(token, found.token) | {"top_logprobs": [entry(*pair) for pair in found.top[:alternatives]]}
        for token, found in zip(ids, logprobs)
    ]
    return {"content": content, "refusal": None}


class LegacyLogprobs:
    """A completion choice's ``logprobs``, made piece by piece: offsets are characters of the choice's text so far."""

    def __init__(self, tokenizer: Tokenizer, alternatives: int) -> None:
        self._tokenizer = tokenizer
        self._alternatives = alternatives
        self._special = frozenset(tokenizer.special_ids)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def prompt(self, ids: Sequence[int], logprobs: Sequence[TokenLogprobs], text: str) -> dict[str, Any]:
        """Of an echoed prompt: `logprobs` has one entry for each id but the first, which has none.

        Tokens may say more than `text`, which they then begin with: a start token, the space that some tokenizers put
        first. These take no characters.
        """
        names, offsets = [], []
        for token in ids:
            raw = self._tokenizer.token_raw(token)
            names.append(token_name(raw))
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(raw))
        extra = max(0, self._offset - len(text))
        self._offset = len(text)
        return {
            "tokens": names,
            "token_logprobs": [None, *(max(found.token, LOWEST) for found in logprobs)],
            "top_logprobs": [None, *(self._top(token, found) for token, found in zip(ids[1:], logprobs))],
            "text_offset": [max(0, offset - extra) for offset in offsets],
        }

    def answer(self, ids: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> dict[str, Any]:
        """Of generated tokens; special ones take no characters."""
        names, offsets = [], []
        for token in ids:
            raw = self._tokenizer.token_raw(token)
            names.append(token_name(raw))
            offsets.append(self._offset)
            if token not in self._special:
                self._offset += len(self._decoder.decode(raw))
        return {
            "tokens": names,
            "token_logprobs": [max(found.token, LOWEST) for found in logprobs],
            "top_logprobs": [self._top(token, found) for token, found in zip(ids, logprobs)],
            "text_offset": offsets,
        }

    def _top(self, token: int, found: TokenLogprobs) -> dict[str, float]:
        """The alternatives, and the token itself if it isn't among them."""
        pairs = [*found.top[: self._alternatives], (token, found.token)]
        return {token_name(self._tokenizer.token_raw(other)): max(logprob, LOWEST) for other, logprob in pairs}


def joined(pieces: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several pieces of a completion choice's ``logprobs`` as one."""
    keys = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    return {key: [value for piece in pieces for value in piece[key]] for key in keys}
