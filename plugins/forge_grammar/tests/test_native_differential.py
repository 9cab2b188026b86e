"""The compiled machine against the one in Python: random programs and vocabularies, the same masks bit for bit."""

from __future__ import annotations

import random

import numpy as np
import pytest
from forge_grammar import _native
from forge_grammar.machine import matcher as python
from forge_grammar.machine.vocabulary import Vocabulary
from forge_grammar.program import (
    NONE,
    ArrayShape,
    Contains,
    KeyClass,
    ObjectShape,
    Program,
    Property,
    RootKind,
    StringTerm,
    Trigger,
    TypeNode,
    flatten,
)
from forge_grammar.regular import Language

LANGUAGES = [
    Language.any(),
    Language.regex("^(ab|é)*$"),
    Language.regex("^(a|ab|😀b)$"),
    Language.regex("^[^a-f]*$"),
    Language.regex("x"),
    Language.regex("^[ab]{0,3}$"),
    Language.regex("-?(0|[1-9][0-9]{0,3})", whole=True),
    Language.regex(r"[0-3](\.[0-9]{1,2})?(e[12])?", whole=True),
    Language.regex("[0-3]", whole=True),
]
STRINGS, NUMBERS = range(6), range(6, 9)
SCALARS = ("null", "true", "false", "0", "1", "12", "1.0", "1.5", '"a"', '"ab"', '"é\\n"', '"\\u001f"', '""', '"😀"')
NAMES = ("a", "ab", "abc", "é", "", '"', "x\n")
PIECES = [
    *'{}[]":,\\ab.-\n\r \t',
    "\\u00",
    "e9",
    "d83d",
    "de00",
    "\\n",
    "ab",
    "c",
    "x",
    "é",
    "😀",
    "0",
    "1",
    "12",
    "e1",
]
PIECES += ["null", "true", "fals", "e", '{ "', '":', '",', "<t>", "</t>"]


class Programs:
    """Draws random programs. What they say may be impossible; both machines must then agree on that, too."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.types = 5

    def program(self) -> Program:
        rng = self.rng
        arrays = [self.array() for _ in range(4)]
        objects = [self.object() for _ in range(4)]
        types = [self.scalar() for _ in range(2)] + [self.type() for _ in range(3)]
        kind = rng.choices((RootKind.JSON, RootKind.TEXT, RootKind.TRIGGERS), (8, 1, 1))[0]
        root = {RootKind.JSON: rng.randrange(2, 5), RootKind.TEXT: rng.randrange(len(LANGUAGES))}.get(kind, NONE)
        begins, ends = ("<t>", "<t", "ab", "b"), ("</t>", "", "1")
        triggers = []
        for _ in range(rng.randint(1, 3)):
            begin = rng.choice(begins) + rng.choice(("", "a", "ab", "=1>"))
            triggers.append(Trigger(begin, rng.randrange(5), rng.choice(ends), begin[: rng.randint(0, len(begin))]))
        return Program(
            kind,
            root,
            types,
            arrays,
            objects,
            [language.to_bytes() for language in LANGUAGES],
            triggers if kind is RootKind.TRIGGERS else (),
            rng.random() < 0.5,
            rng.choice((0, 1, 2, 16)),
        )

    def scalar(self) -> TypeNode:
        rng = self.rng
        terms = []
        for _ in range(rng.randint(0, 2)):
            low, high = rng.choice(((0, NONE), (0, 2), (1, 3), (1, 1), (2, NONE), (3, 6), (0, 0)))
            excluded = tuple(rng.sample(("ab", "éé", "é", "", "x"), rng.randint(0, 2)))
            terms.append(StringTerm(rng.choice(STRINGS), low, high, excluded))
        numbers = tuple(rng.sample(NUMBERS, rng.choice((0, 0, 1, 2))))
        return TypeNode(tuple(rng.sample(SCALARS, rng.randint(0 if terms or numbers else 1, 4))), tuple(terms), numbers)

    def type(self) -> TypeNode:
        rng = self.rng
        base = self.scalar() if rng.random() < 0.5 else TypeNode()
        arrays = tuple(rng.sample(range(4), rng.randint(0, 2)))
        objects = tuple(rng.sample(range(4), rng.randint(0 if arrays else 1, 3)))
        return TypeNode(base.literals, base.strings, base.numbers, arrays, objects)

    def any_type(self, none: float = 0.2) -> int:
        return NONE if self.rng.random() < none else self.rng.randrange(self.types)

    def array(self) -> ArrayShape:
        rng = self.rng
        prefix = tuple(self.any_type(0.1) for _ in range(rng.randint(0, 2)))
        low = rng.randint(0, 2)
        contains = []
        for _ in range(rng.choice((0, 0, 1, 2))):
            least = rng.randint(0, 2)
            both, neither = (tuple(self.any_type() for _ in range(len(prefix) + 1)) for _ in range(2))
            contains.append(Contains(least, rng.choice((NONE, least, least + 1)), both, neither))
        high = rng.choice((NONE, low, low + 1, low + 3))
        return ArrayShape(prefix, self.any_type(), low, high, rng.random() < 0.4, tuple(contains))

    def object(self) -> ObjectShape:
        rng = self.rng
        properties = []
        for name in rng.sample(NAMES, rng.randint(0, 4)):
            type_id = self.any_type(0.1)
            properties.append(Property(name, type_id, type_id != NONE and rng.random() < 0.4))
        classes = tuple(KeyClass(rng.choice(STRINGS), self.any_type(0.1)) for _ in range(rng.choice((0, 1, 1, 2))))
        low = rng.choice((0, 0, 1, 3))
        return ObjectShape(tuple(properties), classes, low, rng.choice((NONE, NONE, low + 1, low + 2)))

    def tokens(self) -> list[bytes]:
        rng = self.rng
        tokens = [bytes([byte]) for byte in range(256)]
        tokens += ["".join(rng.choices(PIECES, k=rng.randint(2, 6))).encode() for _ in range(150)]
        cut = [token for token in tokens if len(token) > 2]
        tokens += [token[rng.randint(0, 2) : rng.randint(3, len(token))] for token in cut]
        tokens += [b'":1,"a', b'":"","x', b'{"a":1,', b'["a","', b"],[", b"abab", "éé".encode(), "ab😀b".encode()]
        rng.shuffle(tokens)
        return tokens


class Twins:
    """A matcher of each machine, in step."""

    def __init__(self, program: Program, tokens: list[bytes], cache_bytes: int = 1 << 20) -> None:
        eos, width = len(tokens), len(tokens) + 40
        arguments = ([*tokens, b"</s>", b"special"], [eos + 1], [eos], width, cache_bytes)
        flat = flatten(program)
        self.tokens, self.words = tokens, -(-width // 32)
        self.grammars = [
            part.Grammar(vocabulary, flat.languages, flat.texts, flat.words)
            for part, vocabulary in ((python, Vocabulary(*arguments)), (_native, _native.Vocabulary(*arguments)))
        ]
        self.restart()

    def restart(self) -> None:
        self.matchers = [grammar.matcher() for grammar in self.grammars]

    def length(self, token: int) -> int:
        return len(self.tokens[token].strip()) if token < len(self.tokens) else 0

    def allowed(self) -> list[int]:
        """The tokens allowed, on which both agree."""
        rows = [np.full(self.words, fill, np.int32) for fill in (-1, 0x55555555)]
        for matcher, row in zip(self.matchers, rows):
            matcher.fill(row)
        expected, actual = (np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")) for row in rows)
        differing = set(expected.tolist()) ^ set(actual.tolist())
        assert not differing, {self.tokens[t] if t < len(self.tokens) else t: t in expected for t in differing}
        return expected.tolist()

    def both(self, call: str, *arguments: object) -> object:
        """What a method gives, on which both agree."""
        expected, actual = (getattr(matcher, call)(*arguments) for matcher in self.matchers)
        assert actual == expected, (call, arguments)
        return expected

    def is_final(self) -> bool:
        expected, actual = (matcher.is_final for matcher in self.matchers)
        assert actual == expected
        return expected


@pytest.mark.parametrize("seed", range(100))
def test_masks_are_those_of_the_python_machine(seed: int) -> None:
    programs = Programs(seed)
    rng = programs.rng
    twins = Twins(programs.program(), programs.tokens(), rng.choice((0, 2000, 1 << 20)))
    for _ in range(3):
        twins.restart()
        for _ in range(25):
            allowed = twins.allowed()
            twins.is_final()
            if rng.random() < 0.3:
                twins.both("forced")
            if not allowed:
                break
            # Structure rather than white space: longer ones make for deeper states.
            twins.both("accept", max(rng.choices(allowed, k=2), key=twins.length))


@pytest.mark.parametrize("seed", range(300, 330))
def test_rollback_and_validation_are_exact(seed: int) -> None:
    programs = Programs(seed)
    rng = programs.rng
    twins = Twins(programs.program(), programs.tokens())
    accepted = 0
    for _ in range(40):
        allowed = twins.allowed()
        anything = range(-1, len(twins.tokens) + 50)
        drafts = [rng.choice(allowed if allowed and rng.random() < 0.8 else anything) for _ in range(4)]
        twins.both("validate", drafts)
        if accepted and (not allowed or rng.random() < 0.3):
            back = rng.randint(1, accepted)
            twins.both("rollback", back)
            accepted -= back
        elif allowed:
            accepted += bool(twins.both("accept", rng.choice(drafts + allowed[:2])))


def test_batches_are_filled_as_one_by_one() -> None:
    programs = Programs(7)
    twins = Twins(programs.program(), programs.tokens())
    native = twins.grammars[1]
    matchers = [native.matcher() for _ in range(5)]
    for matcher in matchers[1:]:
        row = np.zeros(twins.words, np.int32)
        matcher.fill(row)
        allowed = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))
        assert matcher.accept(int(programs.rng.choice(allowed)))
    rows = np.full((5, twins.words), -1, np.int32)
    _native.fill_batch(matchers, rows)
    for matcher, row in zip(matchers, rows):
        single = np.zeros(twins.words, np.int32)
        matcher.fill(single)
        assert np.array_equal(row, single)
