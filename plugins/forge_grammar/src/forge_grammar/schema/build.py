"""Types from conjunctions of subschemas: each is made once, when it is first needed, and equal ones are shared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from forge_grammar.numbers import number_language
from forge_grammar.program import (
    NONE,
    ArrayShape,
    KeyClass,
    ObjectShape,
    Property,
    StringTerm,
    TypeNode,
    json_text,
)
from forge_grammar.regular import INFINITE, Language, LimitExceeded
from forge_grammar.schema.algebra import Algebra
from forge_grammar.schema.arrays import ArrayShapes
from forge_grammar.schema.plain import Plain
from forge_grammar.schema.terms import (
    ANY_TEXT,
    FALSE,
    TRUE,
    Conjunction,
    Numbers,
    Objects,
    Strings,
    both,
    language_of,
)  # fmt: skip
from forge_grammar.schema.unions import declared_children, merged_children

_MAX_DEPTH = 40


class Builder:
    """Makes types. Errors of all methods: `SchemaError`."""

    def __init__(self, algebra: Algebra) -> None:
        self.algebra = algebra
        self.types: list[TypeNode] = []
        self.arrays: list[ArrayShape] = []
        self.objects: list[ObjectShape] = []
        self.languages: dict[Language, int] = {}
        self._ids: dict[Conjunction, int] = {FALSE: NONE}
        self._open: dict[Conjunction, int | None] = {}
        self.equal: dict[object, int] = {}
        self._later: list[Conjunction] = []
        self._plain = Plain(self)
        self._arrays = ArrayShapes(self)

    def build(self, root: Conjunction) -> int:
        """The type of the root, with all that it needs."""
        made = self.type_of(root)
        while self._later:
            conjunction = self._later.pop()
            self._make(conjunction, self._ids[conjunction])
        return made

    def type_of(self, conjunction: Conjunction) -> int:
        """The type of a conjunction; of one that is still being made, the number it will have."""
        made = self._ids.get(conjunction)
        if made is not None:
            return made
        if conjunction in self._open:
            if (made := self._open[conjunction]) is None:
                made = self._open[conjunction] = self._reserve()
            return made
        if (fewer := self.algebra.without_idle(conjunction)) != conjunction:
            made = self._ids[conjunction] = self.type_of(fewer)
            return made
        if len(self._open) >= _MAX_DEPTH:
            made = self._ids[conjunction] = self._reserve()
            self._later.append(conjunction)
            return made
        return self._make(conjunction, None)

    def _reserve(self) -> int:
        self.types.append(TypeNode())
        return len(self.types) - 1

    def _make(self, conjunction: Conjunction, reserved: int | None) -> int:
        self.algebra.spend(4)
        self._open[conjunction] = reserved
        try:
            node = self._short(conjunction) or self._node(conjunction)
        except LimitExceeded as error:
            schema = self.algebra.schemas[min(map(abs, conjunction), default=0)]
            raise self.algebra.document.error(schema, "", f"needs {error}") from None
        reserved = self._open.pop(conjunction)
        if reserved is not None:
            self.types[reserved] = node
            made = reserved
        else:
            made = self.added(node)
        self._ids[conjunction] = made
        return made

    def added(self, node: TypeNode) -> int:
        """The number of a type."""
        made = self.equal.setdefault(node, len(self.types))
        if made == len(self.types):
            self.types.append(node)
        return made

    def _short(self, conjunction: Conjunction) -> TypeNode | None:
        """The type of one plain subschema."""
        if len(conjunction) != 1:
            return None
        (key,) = conjunction
        return self._plain.node(self.algebra.schemas[key]) if key > 0 else None

    def _node(self, conjunction: Conjunction) -> TypeNode:
        literals: list[str] = []
        kind = self.algebra.conjunction
        if kind(conjunction, "null"):
            literals.append("null")
        literals += {json_text(value) for term in kind(conjunction, "boolean") for value in term}
        strings = self.string_terms(kind(conjunction, "string"), literals)
        terms = kind(conjunction, "number")
        literals += {text for term in terms if term.values is not None for _, text in term.values}
        numbers = self.number_languages(terms, integer=False)
        arrays = _known(shape for term in kind(conjunction, "array") for shape in self._arrays.of(term))
        objects = _known(self._object(term) for term in kind(conjunction, "object"))
        return TypeNode(tuple(sorted(literals)), strings, numbers, arrays, objects)

    def string_terms(self, terms: Sequence[Strings], literals: list[str]) -> tuple[StringTerm, ...]:
        """Strings of a union; those of finite sets are added to `literals`."""
        literals += {json_text(word) for term in terms if term.words is not None for word in term.words}
        return tuple(dict.fromkeys(self._string(term) for term in terms if term.words is None))

    def number_languages(self, terms: Sequence[Numbers], *, integer: bool) -> tuple[int, ...]:
        """The languages of a union of numbers but its finite sets; integer: of integers only."""
        found = (_number_language(term, integer=integer) for term in terms if term.values is None)
        return tuple(dict.fromkeys(self.language(language) for language in found if not language.is_empty))

    def array_shape(self, shape: ArrayShape) -> int:
        """The number of a shape."""
        found = self.equal.get(shape)
        if found is None:
            found = self.equal[shape] = len(self.arrays)
            self.arrays.append(shape)
        return found

    def language(self, language: Language) -> int:
        return self.languages.setdefault(language, len(self.languages))

    def _string(self, term: Strings) -> StringTerm:
        return StringTerm(self.language(term.language), term.low, term.high, tuple(sorted(term.excluded)))

    def _object(self, term: Objects) -> int | None:
        """The shape of a term; None if no object has it."""
        keys = language_of(self.algebra.conjunction(term.names, "string")) if term.names else ANY_TEXT
        type_of = self.type_of
        if keys is ANY_TEXT and not any(group.patterns for group in term.groups):
            named, rest = merged_children(term)
            classes = [(ANY_TEXT, made)] if (made := type_of(rest)) != NONE else []
            ids = [type_of(child) for child in named.values()]
        else:
            named = declared_children(term)
            classes = [(language, type_of(child)) for language, child in self._cells(term, keys)]
            classes = [each for each in classes if each[1] != NONE]
            ids = [type_of(child) if keys.is_any or keys.accepts(name) else NONE for name, child in named.items()]
        return self.object_shape(list(named), ids, frozenset(term.required), classes, (term.low, term.high))

    def object_shape(
        self,
        names: list[str],
        ids: list[int],
        required: frozenset[str],
        classes: Sequence[tuple[Language, int]],
        bounds: tuple[int, int],
    ) -> int | None:
        """The shape of objects with declared names of some types (NONE: not there), in which keys of the languages have
        others, and low..high keys. None if there is no such object.
        """
        if NONE in ids:
            if any(type_id == NONE and name in required for name, type_id in zip(names, ids)):
                return None
            if not classes:  # a name that isn't declared can't be there either
                names = [name for name, type_id in zip(names, ids) if type_id != NONE]
                ids = [type_id for type_id in ids if type_id != NONE]
        low, high = bounds
        if low and len(ids) - ids.count(NONE) + sum(_other_words(found, names) for found, _ in classes) < low:
            return None
        key_classes = tuple([(self.language(language), type_id) for language, type_id in classes])
        key = ("object", tuple(names), tuple(ids), required, key_classes, low, high)
        found = self.equal.get(key)
        if found is None:
            found = self.equal[key] = len(self.objects)
            properties = tuple([Property(name, type_id, name in required) for name, type_id in zip(names, ids)])
            self.objects.append(ObjectShape(properties, tuple([KeyClass(*each) for each in key_classes]), low, high))
        return found

    def _cells(self, term: Objects, keys: Language) -> list[tuple[Language, Conjunction]]:
        """Disjoint languages of undeclared keys, with what their values must match."""
        if keys.is_empty:
            return []
        patterns = {language: None for group in term.groups for language, _ in group.patterns}
        cells: list[tuple[Language, frozenset[Language]]] = [(keys, frozenset())]
        for pattern in patterns:
            self.algebra.spend(8 * len(cells))
            split = [(language & pattern, inside | {pattern}) for language, inside in cells]
            split += [(language - pattern, inside) for language, inside in cells]
            cells = [cell for cell in split if not cell[0].is_empty]
        merged: dict[Conjunction, Language] = {}
        for language, inside in cells:
            met = TRUE
            for group in term.groups:
                matched = [child for pattern, child in group.patterns if pattern in inside]
                for child in matched or [group.rest]:
                    met = both(met, child)
            if met != FALSE:
                merged[met] = merged[met] | language if met in merged else language
        return [(language, met) for met, language in merged.items()]


def _known(found: Iterable[int | None]) -> tuple[int, ...]:
    """Those that there are, each once."""
    return tuple(dict.fromkeys(each for each in found if each is not None))


def _other_words(language: Language, names: list[str]) -> int:
    """How many words a language has beside some names."""
    return language.count - sum(map(language.accepts, names)) if language.count < INFINITE else INFINITE


def _number_language(term: Numbers, *, integer: bool) -> Language:
    low, high = (
        ("exclusive_minimum" if term.low_open else "minimum"),
        ("exclusive_maximum" if term.high_open else "maximum"),
    )
    bounds = {low: term.low, high: term.high}
    excluded = tuple(sorted(term.excluded))
    language = number_language(
        integer=integer or term.integer, multiple_of=tuple(sorted(term.multiples)), excluded=excluded, **bounds
    )
    if term.others:
        language &= Language.regex("^[^eE]*$")  # as the languages of multiples have no exponents
    for divisor in sorted(term.others):
        language -= number_language(integer=False, multiple_of=(divisor,))
    return language
