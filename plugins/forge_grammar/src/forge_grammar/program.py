"""The program: what the front end makes of a schema, a regex or a choice, and all that the machine knows of it.

It crosses from the server's worker to the engine as bytes. Ids are indices into the lists of `Program`; -1 stands for
"no such type" and for "unbounded". Knows neither schemas nor automata.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Sequence
from enum import IntEnum
from json import JSONEncoder
from json.encoder import encode_basestring

import msgspec
from attrs import field, frozen

VERSION = 2
NONE = -1


class RootKind(IntEnum):
    """What the whole output is: a JSON value of the type `root`, raw text of the language `root`, or free text in which
    triggers begin JSON values (`root` unused).
    """

    JSON = 0
    TEXT = 1
    TRIGGERS = 2


@frozen(slots=True)
class StringTerm:
    """Strings of a language, with lengths in code points; `excluded` ones (plain text, not JSON) are not among them."""

    language: int
    min_length: int = 0
    max_length: int = NONE
    excluded: tuple[str, ...] = ()


@frozen(slots=True)
class TypeNode:
    """A union over the kinds of JSON values.

    literals: scalars by their canonical JSON text; numbers: languages of number texts; arrays, objects: shapes.
    """

    literals: tuple[str, ...] = ()
    strings: tuple[StringTerm, ...] = ()
    numbers: tuple[int, ...] = ()
    arrays: tuple[int, ...] = ()
    objects: tuple[int, ...] = ()


@frozen(slots=True)
class Contains:
    """At least `minimum` and at most `maximum` items are of some type.

    both: for each prefix position, then for the rest, the type of an item that counts; neither: of one that doesn't
    (read only where there's a maximum). NONE: no such item.
    """

    minimum: int
    maximum: int
    both: tuple[int, ...]
    neither: tuple[int, ...]


@frozen(slots=True)
class ArrayShape:
    """Arrays: the types of the first items, of all others (NONE: there are none), and how many."""

    prefix: tuple[int, ...] = ()
    rest: int = NONE
    minimum: int = 0
    maximum: int = NONE
    unique: bool = False
    contains: tuple[Contains, ...] = ()


@frozen(slots=True)
class Property:
    """A declared property; type NONE: the name is forbidden."""

    name: str
    type: int
    required: bool = False


@frozen(slots=True)
class KeyClass:
    """Keys of a language (but no declared name) have values of one type. Classes of one shape don't overlap."""

    language: int
    type: int


@frozen(slots=True)
class ObjectShape:
    """Objects: the declared properties in order, the classes of other keys, and how many properties."""

    properties: tuple[Property, ...] = ()
    classes: tuple[KeyClass, ...] = ()
    minimum: int = 0
    maximum: int = NONE


@frozen(slots=True)
class Trigger:
    """In free text, `begin` starts a JSON value of a type, which `end` follows.

    trigger: how `begin` begins: after so much of it one of the texts that begin so must follow; empty: the whole of it.
    """

    begin: str
    type: int
    end: str
    trigger: str = ""


@frozen
class Program:
    """A constraint, ready for the machine. languages: serialised automata (`forge_grammar.regular`)."""

    root_kind: RootKind
    root: int = NONE
    types: Sequence[TypeNode] = ()
    arrays: Sequence[ArrayShape] = ()
    objects: Sequence[ObjectShape] = ()
    languages: Sequence[bytes] = ()
    triggers: Sequence[Trigger] = ()
    any_key_order: bool = False
    whitespace: int = 16


@frozen
class Flat:
    """A program as the machines read it.

    texts: UTF-8; literals and names as JSON texts with their quotes, excluded strings and trigger texts as they are.
    words: int32, little-endian::

        version root_kind root any_key_order whitespace n_types n_arrays n_objects n_triggers
        n_triggers x (trigger begin type end)
        n_types offsets, n_arrays offsets, n_objects offsets     (in words, from the start)
        type:   n literals...  n (language min max n excluded...)...  n numbers...  n arrays...  n objects...  values
        array:  min max unique n_prefix prefix... rest n (min max both[n_prefix + 1] neither[n_prefix + 1])...
        object: min max n (name type required)...  by_name[n]  n (language type)...

    values: how many the type has at least (`forge_grammar.cardinality`); only written where there are unique arrays.
    Literals, excluded strings, and `by_name` (indices of the properties) are sorted by the bytes of their texts.
    """

    languages: list[bytes]
    texts: list[bytes]
    words: bytes
    version: int = field(default=VERSION)


def json_text(value: str | int | float | bool | None) -> str:
    """The canonical JSON text of a scalar: the only form in which literals and names are written."""
    return encode_basestring(value) if type(value) is str else _ENCODE(value)


def encode(program: Program) -> bytes:
    """The program as bytes; `decode` reads them."""
    flat = flatten(program)
    return _ENCODER.encode((flat.version, flat.languages, flat.texts, flat.words))


def decode(data: bytes) -> Flat:
    """What `encode` wrote. Errors: `ValueError` if it wasn't this version of it."""
    version, languages, texts, words = _DECODER.decode(data)
    if version != VERSION:
        raise ValueError(f"a grammar of version {version}, this is version {VERSION}")
    return Flat(languages, texts, words, version)


def flatten(program: Program) -> Flat:
    """Lay a program out as `Flat` documents it."""
    from forge_grammar.cardinality import count_values

    pool = _Texts()
    triggers = [
        word
        for t in program.triggers
        for word in (pool.add(t.trigger or t.begin), pool.add(t.begin), t.type, pool.add(t.end))
    ]
    values = count_values(program)
    bodies = [
        *([*_type_words(node, pool), many] for node, many in zip(program.types, values)),
        *(_array_words(shape) for shape in program.arrays),
        *(_object_words(shape, pool) for shape in program.objects),
    ]
    sizes = [len(program.types), len(program.arrays), len(program.objects), len(program.triggers)]
    words = [VERSION, program.root_kind, program.root, program.any_key_order, program.whitespace, *sizes, *triggers]
    offset = len(words) + len(bodies)
    for body in bodies:
        words.append(offset)
        offset += len(body)
    for body in bodies:
        words += body
    packed = array("i", words)
    if packed.itemsize != 4 or _BIG_ENDIAN:
        raise NotImplementedError("grammars need a little-endian machine")
    return Flat(list(program.languages), pool.texts, packed.tobytes())


class _Texts:
    """The pool of texts, each once."""

    def __init__(self) -> None:
        self.texts: list[bytes] = []
        self._ids: dict[bytes, int] = {}

    def add(self, text: str) -> int:
        return self.add_bytes(text.encode())

    def add_bytes(self, data: bytes) -> int:
        at = self._ids.setdefault(data, len(self.texts))
        if at == len(self.texts):
            self.texts.append(data)
        return at

    def sorted(self, texts: Iterable[str]) -> list[int]:
        return [self.add_bytes(data) for data in sorted({text.encode() for text in texts})]


def _type_words(node: TypeNode, pool: _Texts) -> list[int]:
    words = _counted(pool.sorted(node.literals)) if node.literals else [0]
    words.append(len(node.strings))
    for term in node.strings:
        words += (term.language, term.min_length, term.max_length, *_counted(pool.sorted(term.excluded)))
    words += (*_counted(node.numbers), *_counted(node.arrays), *_counted(node.objects))
    return words


def _array_words(shape: ArrayShape) -> list[int]:
    words = [shape.minimum, shape.maximum, shape.unique, *_counted(shape.prefix), shape.rest, len(shape.contains)]
    for contains in shape.contains:
        words += (contains.minimum, contains.maximum, *contains.both, *contains.neither)
    return words


def _object_words(shape: ObjectShape, pool: _Texts) -> list[int]:
    names = [encode_basestring(prop.name).encode() for prop in shape.properties]
    words = [shape.minimum, shape.maximum, len(names)]
    for name, prop in zip(names, shape.properties):
        words += (pool.add_bytes(name), prop.type, prop.required)
    words += sorted(range(len(names)), key=names.__getitem__)
    words.append(len(shape.classes))
    for key_class in shape.classes:
        words += (key_class.language, key_class.type)
    return words


def _counted(ids: Sequence[int]) -> list[int]:
    return [len(ids), *ids]


_ENCODE = JSONEncoder(ensure_ascii=False, allow_nan=False).encode
_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(tuple[int, list[bytes], list[bytes], bytes])
_BIG_ENDIAN = sys.byteorder == "big"
