"""Random small programs: what the Python machine allows can always be completed, and is what the documents say."""

from __future__ import annotations

import random

import numpy as np
import pytest
from forge_grammar.machine.grammar import Program as Machine
from forge_grammar.machine.machine import Configuration
from forge_grammar.machine.matcher import Grammar
from forge_grammar.machine.positions import InKey, InString
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
    TypeNode,
    flatten,
)
from forge_grammar.regular import Language

LANGUAGES = [
    Language.any(),
    Language.regex("^(ab|é)*$"),
    Language.regex("^(a|ab|😀b)$"),
    Language.regex("^[^a-f]*$"),
    Language.regex("-?(0|[1-9][0-9]{0,3})", whole=True),
    Language.regex(r"[0-3](\.[0-9]{1,2})?", whole=True),
]
SCALARS = ("null", "true", "false", "0", "12", "1.5", '"a"', '"ab"', '"é\\n"', '""')
NAMES = ("a", "ab", "é", "", '"')


def random_program(seed: int) -> Program:
    """A few types that refer to one another; the first three are scalars, so that everything is inhabited."""
    rng = random.Random(seed)
    arrays: list[ArrayShape] = []
    objects: list[ObjectShape] = []
    types = [_scalars(rng) for _ in range(3)]
    for _ in range(rng.randint(1, 4)):
        known = range(len(types) + (rng.random() < 0.3))  # sometimes itself
        shapes = [_array(rng, known) for _ in range(rng.randint(0, 2))]
        keyed = [_object(rng, known) for _ in range(rng.randint(0, 2))]
        base = _scalars(rng) if rng.random() < 0.5 or not shapes + keyed or len(known) > len(types) else TypeNode()
        first_array, first_object = len(arrays), len(objects)
        arrays += shapes
        objects += keyed
        types.append(
            TypeNode(
                base.literals,
                base.strings,
                base.numbers,
                tuple(range(first_array, len(arrays))),
                tuple(range(first_object, len(objects))),
            )
        )
    languages = [language.to_bytes() for language in LANGUAGES]
    order = rng.random() < 0.5
    return Program(RootKind.JSON, len(types) - 1, types, arrays, objects, languages, (), order, rng.choice((0, 1, 2)))


def _scalars(rng: random.Random) -> TypeNode:
    terms = []
    for _ in range(rng.randint(0, 2)):
        language = rng.randrange(4)
        low, high = rng.choice(((0, NONE), (0, 2), (1, 3), (1, 1), (2, NONE)))
        excluded = () if high == 1 else tuple(rng.sample(("ab", "éé", "é"), rng.randint(0, 2)))
        if _inhabited(LANGUAGES[language] - Language.literals(excluded), low, high):
            terms.append(StringTerm(language, low, high, excluded))
    numbers = tuple(rng.sample((4, 5), rng.choice((0, 0, 1, 2))))
    literals = tuple(rng.sample(SCALARS, rng.randint(0 if terms or numbers else 1, 3)))
    return TypeNode(literals, tuple(terms), numbers)


def _inhabited(language: Language, low: int, high: int) -> bool:
    return language.reaches(low, high)


def _array(rng: random.Random, types: range) -> ArrayShape:
    prefix = tuple(rng.choice(types) for _ in range(rng.randint(0, 2)))
    rest = rng.choice((NONE, *types))
    most = len(prefix) if rest == NONE else NONE
    low = rng.randint(0, len(prefix) if rest == NONE else 3)
    high = rng.choice((most, NONE if rest != NONE else most, low + 1 if rest != NONE else most))
    # Any value counts for `contains` here, so that `both` is the item's own type.
    contains: tuple[Contains, ...] = ()
    items = (*prefix, rest)
    if rng.random() < 0.3 and (rest != NONE or prefix):
        room = len(prefix) if rest == NONE else 3 if high == NONE else high
        least = rng.randint(0, min(2, room))
        contains = (
            Contains(least, rng.choice((NONE, max(least, low) + 1)), items, rng.choice((items, (NONE,) * len(items)))),
        )
    return ArrayShape(prefix, rest, low, high, False, contains)


def _object(rng: random.Random, types: range) -> ObjectShape:
    names = rng.sample(NAMES, rng.randint(0, 3))
    properties = []
    for name in names:
        type_id = rng.choice((NONE, *types))
        properties.append(Property(name, type_id, type_id != NONE and rng.random() < 0.4))
    classes = rng.choice(
        ((), (KeyClass(1, rng.choice(types)),), (KeyClass(0, rng.choice(types)),), (KeyClass(2, NONE),))
    )
    required = sum(prop.required for prop in properties)
    room = sum(prop.type != NONE for prop in properties) if not classes or classes[0].type == NONE else 9
    low = rng.randint(0, min(3, room))
    high = rng.choice((NONE, max(low, required), max(low, required) + 1))
    return ObjectShape(tuple(properties), classes, low, high)


def steps(configuration: Configuration) -> list[tuple[int, Configuration]]:
    return [(byte, after) for byte in range(256) if (after := configuration.step(byte))]


def complete(configuration: Configuration, rng: random.Random, patience: int = 2000) -> bytes | None:
    """Some bytes after which the output may end, the soonest closing ones first; None if there's no way on."""
    written = bytearray()
    while not configuration.is_final:
        position = configuration.position
        preferred = list(b']}:0"tfn-[{,')
        if isinstance(position, InString | InKey):
            literals = position.lexeme.literals
            preferred = [word[position.lexeme.depth] for entry in literals for word in entry.words]
            preferred += [*b'"', *rng.sample(range(256), 256)]
        for byte in (*preferred, *range(256)):
            after = configuration.step(byte)
            if after is not None:
                configuration = after
                break
        else:
            return None
        written.append(byte)
        assert len(written) < patience, bytes(written)
    return bytes(written)


@pytest.mark.parametrize("seed", range(60))
def test_no_way_that_is_allowed_is_a_dead_end(seed: int) -> None:
    rng = random.Random(seed)
    machine = Machine.of(flatten(random_program(seed)))
    for _ in range(2):
        configuration = Configuration.start(machine)
        text = b""
        for _ in range(rng.randint(1, 15)):
            ways = steps(configuration)
            for byte, after in ways if len(ways) < 4 else rng.sample(ways, 4):
                assert complete(after, rng) is not None, (text, bytes([byte]))
            assert ways or configuration.is_final, text
            if not ways:
                break
            byte, configuration = rng.choice(ways)
            text += bytes([byte])


@pytest.mark.parametrize("seed", range(25))
def test_masks_are_what_stepping_each_token_finds(seed: int) -> None:
    rng = random.Random(1000 + seed)
    alphabet = '{}[]":,\\u0a9eEfbnrtl1.2-+ \n'
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += ["".join(rng.choices(alphabet, k=rng.randint(2, 4))).encode() for _ in range(150)]
    tokens += [
        b'":',
        b'","',
        b'"]',
        b"],",
        b'{"a":',
        b'{"ab"',
        "é".encode(),
        b"\xf0\x9f",
        b"\x98\x80",
        b'a","a"',
        b"1,1",
        b"[[",
    ]
    eos = len(tokens)
    flat = flatten(random_program(seed))
    vocabulary = Vocabulary([*tokens, b"</s>"], [], [eos], eos + 1, 1 << 16)
    grammar = Grammar(vocabulary, flat.languages, flat.texts, flat.words)
    for _ in range(2):
        matcher, configuration = grammar.matcher(), Configuration.start(grammar.program)
        for _ in range(10):
            row = np.full(vocabulary.words, -1, np.int32)
            matcher.fill(row)
            bits = np.unpackbits(row.view(np.uint8), bitorder="little")
            expected = [token for token, data in enumerate(tokens) if configuration.run(data)]
            expected += [eos] if configuration.is_final else []
            assert np.flatnonzero(bits).tolist() == expected
            ways = [token for token in expected if token != eos]
            if not ways:
                break
            token = rng.choice(ways)
            after = configuration.run(tokens[token])
            assert after is not None
            assert matcher.accept(token)
            configuration = after
