"""Which words an automaton still has when some are taken.

Exact answers, not estimates: a byte is allowed exactly if a word that isn't taken can follow it.
"""

from __future__ import annotations

from collections.abc import Iterator

from forge_grammar.machine.canonical import number
from forge_grammar.regular.dfa import DEAD, INFINITE, Dfa

Ranges = tuple[tuple[int, int], ...]
EVERYTHING: Ranges = ((0, 0x10FFFF),)


def some_word(dfa: Dfa, state: int, minimum: int, maximum: int, taken: tuple[str, ...]) -> bool:
    """Whether a word of minimum..maximum code points (maximum -1: unbounded) follows that is none of `taken`."""
    minimum = max(minimum, 0)
    if not dfa.reaches(state, minimum, maximum):
        return False
    if not taken or (minimum == 0 and dfa.accepting[state] and "" not in taken):
        return True
    return some_word_in(dfa, state, minimum, maximum, taken, EVERYTHING)


def some_word_in(dfa: Dfa, state: int, minimum: int, maximum: int, taken: tuple[str, ...], ranges: Ranges) -> bool:
    """As `some_word`, of words that begin with a code point in one of the ranges (first, last).

    A first code point that no taken word has decides by lengths alone; the others are followed one by one, so the work
    is bounded by the length of the taken words.
    """
    if state == DEAD or maximum == 0:
        return False
    if not taken and minimum <= 1 and maximum < 0:
        return any(dfa.live_in(state, first, last) for first, last in ranges)
    minimum, maximum = max(minimum - 1, 0), maximum - 1 if maximum > 0 else maximum
    for first, last, target in _segments(dfa, state, ranges):
        if not dfa.reaches(target, minimum, maximum):
            continue
        heads = {word[0] for word in taken if word and first <= ord(word[0]) <= last}
        if len(heads) <= last - first:
            return True
        if any(some_word(dfa, target, minimum, maximum, after(taken, head)) for head in heads):
            return True
    return False


def after(words: tuple[str, ...], char: str) -> tuple[str, ...]:
    """What follows the character in those words that begin with it."""
    return tuple(word[1:] for word in words if word.startswith(char))


def number_is_fresh(dfa: Dfa, state: int, text: str, used: frozenset[str]) -> bool:
    """Whether a number that begins with `text`, after which the automaton is in `state`, has a value not in `used`.

    One value has boundedly many texts, so that either there are words without end or the search is short.
    """
    if not used or dfa.words_from(state) >= INFINITE:
        return state != DEAD
    return any(number(word) not in used for word in _numbers(dfa, state, text))


def _numbers(dfa: Dfa, state: int, text: str) -> Iterator[str]:
    if state == DEAD:
        return
    if dfa.accepting[state]:
        yield text
    for char in "9876543210.eE+-":
        yield from _numbers(dfa, dfa.step(state, ord(char)), text + char)


def _segments(dfa: Dfa, state: int, ranges: Ranges) -> Iterator[tuple[int, int, int]]:
    """The parts of the ranges that lead to one live state each: (first, last, state)."""
    row = state * dfa.classes
    for first, last in ranges:
        for at, bound in enumerate(dfa.bounds):
            if bound > last:
                break
            end = dfa.bounds[at + 1] - 1 if at + 1 < len(dfa.bounds) else 0x10FFFF
            target = dfa.delta[row + dfa.range_class[at]]
            if end >= first and target != DEAD:
                yield max(first, bound), min(last, end), target
