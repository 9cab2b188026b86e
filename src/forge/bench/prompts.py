"""Prompts of natural words and of a given length in the server's own tokens, each with a beginning of its own."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence

from attrs import frozen

from forge.bench.http import Server

# Short and frequent: nearly every vocabulary has each of them as one token, so that words count tokens almost exactly.
_FREQUENT = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother "
    "area money story fact month lot right study book eye job word business issue side kind head house service friend "
    "father power hour game line end member law car city community name president team minute idea body information "
    "back parent face others level office door health person art war history party result change morning reason "
    "research girl guy moment air teacher force education foot boy age policy music mind road letter summer winter "
    "river stone glass paper field light green white black small large early young important public good new first "
    "last long great little other old different high big next bad same able think take see come want look use find "
    "give tell call try ask need feel become leave put mean keep let begin seem help talk turn start show hear play "
    "run move like live believe hold bring happen write provide sit stand lose pay meet include continue set learn "
    "lead understand watch follow stop create speak read spend grow open walk win offer remember love consider appear "
    "buy wait serve die send expect build stay fall cut reach remain"
)
WORDS = tuple(_FREQUENT.split())

TRIES = 6

Count = Callable[[str], Awaitable[int | None]]
"""How many tokens the server makes of a text; None if it has no way to say."""


@frozen
class Length:
    """How long a prompt is to be. overhead: tokens that the chat template and special tokens add to a text's own."""

    target: int
    overhead: int

    @property
    def own(self) -> int:
        """Tokens that are left for the text."""
        return max(1, self.target - self.overhead)


class PromptMaker:
    """Makes prompts, no two with the same words at the start, other than those of a common prefix.

    A prompt begins with its own number, written in words as in a number system of base ``len(WORDS)``, last digit
    first: requests that follow each other differ in their very first token.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._digits = self._random.sample(WORDS, len(WORDS))
        self._made = 0

    def words(self, count: int) -> list[str]:
        """The words of a new prompt. A prompt of fewer words than its number has digits may not be unique."""
        number, beginning = self._made, []
        self._made += 1
        for _ in range(3):
            number, digit = divmod(number, len(self._digits))
            beginning.append(self._digits[digit])
        return [*beginning, *self._random.choices(WORDS, k=max(0, count - len(beginning)))][:count]

    def more(self, count: int) -> list[str]:
        """Any words."""
        return self._random.choices(WORDS, k=count)


async def fit(words: Sequence[str], wanted: int, count: Count, maker: PromptMaker) -> str:
    """The text of these words, cut or continued until the server counts `wanted` tokens, or as near as it gets.

    Where the server can't count, a word is taken for a token.
    """
    kept = list(words)
    best, missed = " ".join(kept), None
    for _ in range(TRIES):
        text = " ".join(kept)
        tokens = await count(text)
        if tokens is None:
            return text
        if missed is None or abs(wanted - tokens) < missed:
            best, missed = text, abs(wanted - tokens)
        if not missed:
            break
        step = max(1, round(abs(wanted - tokens) * len(kept) / max(1, tokens)))  # words
        if tokens > wanted:
            del kept[max(1, len(kept) - step) :]
        else:
            kept += maker.more(step)
    return best


def tokenizer_of(server: Server, model: str) -> Count:
    """Counts through ``POST /tokenize``, in Forge's and llama.cpp's form or in vLLM's; asks no more once it failed."""
    missing = False

    async def count(text: str) -> int | None:
        nonlocal missing
        if missing:
            return None
        body = {"model": model, "content": text, "prompt": text, "add_special": False, "add_special_tokens": False}
        answer = await server.lookup("POST", "/tokenize", body)
        tokens = answer.get("tokens") if isinstance(answer, dict) else None
        missing = not isinstance(tokens, list)
        return len(tokens) if isinstance(tokens, list) else None

    return count


async def make_prompts(maker: PromptMaker, length: Length, prefix: str, number: int, count: Count) -> list[str]:
    """As many prompts as asked for, each with `prefix` (may be empty) at its start."""
    prompts = []
    shared = prefix.split()
    for _ in range(number):
        own = maker.words(max(1, length.own - len(shared)))
        prompts.append(await fit([*shared, *own], length.own, count, maker))
    return prompts
