"""A decoded program as objects: types, shapes and automata, with what the machine asks of them at every step.

Reads `program.Flat`. Knows nothing of bytes read so far: every question takes the state as arguments.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from functools import cached_property, lru_cache

from attrs import field, frozen

from forge_grammar.machine.canonical import canonical
from forge_grammar.machine.words import number_is_fresh, some_word
from forge_grammar.program import NONE, VERSION, Flat, RootKind
from forge_grammar.regular.dfa import INFINITE, Dfa


@frozen(eq=False)
class StringTerm:
    """Strings of an automaton, of minimum..maximum code points (NONE: unbounded), without the excluded ones."""

    dfa: Dfa
    minimum: int
    maximum: int
    excluded: tuple[str, ...]


@frozen(eq=False)
class Type:
    """A union over the kinds of JSON values; literals by their canonical JSON texts, shapes by their ids.

    values: how many it has at least, see `forge_grammar.cardinality`; INFINITE: no end of them.
    """

    strings: tuple[bytes, ...]
    bare: tuple[bytes, ...]
    terms: tuple[StringTerm, ...]
    numbers: tuple[Dfa, ...]
    arrays: tuple[int, ...]
    objects: tuple[int, ...]
    values: int

    def has_fresh_scalar(self, used: frozenset[str]) -> bool:
        """Whether some value that's neither array nor object is none of `used` (canonical texts)."""
        if any(canonical(word) not in used for word in (*self.strings, *self.bare)):
            return True
        if any(number_is_fresh(dfa, dfa.start, "", used) for dfa in self.numbers):
            return True
        taken = used_strings(used)
        return any(
            some_word(term.dfa, term.dfa.start, term.minimum, term.maximum, (*term.excluded, *taken))
            for term in self.terms
        )


@frozen(eq=False)
class Contains:
    """`program.Contains`: from minimum to maximum items count; both, neither: [prefix + 1] type ids."""

    minimum: int
    maximum: int
    both: tuple[int, ...]
    neither: tuple[int, ...]


@frozen(eq=False)
class ArrayShape:
    """`program.ArrayShape`. States are (index of the next item, how many items counted for each `contains`)."""

    minimum: int
    maximum: int
    unique: bool
    prefix: tuple[int, ...]
    rest: int
    contains: tuple[Contains, ...]
    _feasible: dict[tuple[int, tuple[int, ...]], bool] = field(factory=dict)

    @cached_property
    def ceiling(self) -> int:
        """How many items there can be at most, by their types, too; NONE: no end of them."""
        length = next((i for i, type_id in enumerate(self.prefix) if type_id == NONE), len(self.prefix))
        if length == len(self.prefix) and self.rest != NONE:
            return self.maximum
        return length if self.maximum == NONE else min(length, self.maximum)

    def type_at(self, index: int) -> int:
        """The type of the item at an index; NONE: there can't be one."""
        if self.maximum != NONE and index >= self.maximum:
            return NONE
        return self.prefix[index] if index < len(self.prefix) else self.rest

    def can_close(self, index: int, counts: tuple[int, ...]) -> bool:
        """Whether the array may end before the item at `index`."""
        return index >= self.minimum and all(
            count >= contains.minimum for count, contains in zip(counts, self.contains)
        )

    def choices(self, index: int, counts: tuple[int, ...]) -> Iterator[tuple[int, tuple[int, ...]]]:
        """The types that the item at `index` may be awaited as, with the counts after it.

        An item that counts for a `contains` is awaited as its `both` type. Where there's a maximum, one that doesn't is
        awaited as its `neither` type, else as the plain item type (which may count, but needn't). Only choices after
        which the array can still be completed are given. An item is credited to one `contains` at most.
        """
        plain = self.type_at(index)
        if plain == NONE:
            return
        at = min(index, len(self.prefix))
        options = [(_plain(self.contains, at, plain), counts)]
        for k, contains in enumerate(self.contains):
            counted = counts[k] + 1
            if contains.maximum == NONE:
                counted = min(counted, contains.minimum)
                if counted == counts[k]:
                    continue
            options.append((contains.both[at], (*counts[:k], counted, *counts[k + 1 :])))
        after = self.next_index(index)
        for type_id, then in options:
            if type_id != NONE and self.feasible(after, then):
                yield type_id, then

    def next_index(self, index: int) -> int:
        """The index after `index`; without a maximum it stops growing where nothing depends on it any more."""
        return index + 1 if self.maximum != NONE else min(index + 1, max(len(self.prefix), self.minimum))

    def feasible(self, index: int, counts: tuple[int, ...]) -> bool:
        """Whether an array can be completed from here: some number of further items fits all bounds."""
        known = self._feasible.get((index, counts))
        if known is None:
            known = self._feasible[index, counts] = self._search(index, counts)
        return known

    def _search(self, index: int, counts: tuple[int, ...]) -> bool:
        # forced, possible: of the further items, how many can't but count, and how many may.
        forced, possible = [0] * len(counts), [0] * len(counts)
        last = max(index, len(self.prefix), self.minimum) + sum(c.minimum for c in self.contains)
        while True:
            if any(c.maximum != NONE and n + f > c.maximum for n, f, c in zip(counts, forced, self.contains)):
                return False
            if index >= self.minimum and all(n + p >= c.minimum for n, p, c in zip(counts, possible, self.contains)):
                return True
            plain = self.type_at(index)
            if plain == NONE or index > last:
                return False
            at = min(index, len(self.prefix))
            for k, contains in enumerate(self.contains):
                possible[k] += contains.both[at] != NONE
                forced[k] += contains.maximum != NONE and contains.neither[at] == NONE
            index += 1


def _plain(contains: tuple[Contains, ...], at: int, plain: int) -> int:
    """The type of an item that counts for no `contains` with a maximum."""
    bounded = [c for c in contains if c.maximum != NONE]
    return bounded[0].neither[at] if bounded else plain


@frozen(eq=False)
class Property:
    """A declared property: its name as JSON text with quotes, its type (NONE: forbidden)."""

    text: bytes
    type: int
    required: bool


@frozen(eq=False)
class KeyClass:
    """Other keys, and the type of their values (NONE: forbidden)."""

    keys: StringTerm
    type: int


@frozen(eq=False)
class ObjectShape:
    """`program.ObjectShape`, and what its states allow.

    A state is (at, count): how many properties there are (not counted on where nothing depends on it); at: with keys in
    schema order the index of the first declared property that may still come, else the bit set of those seen.
    """

    minimum: int
    maximum: int
    properties: tuple[Property, ...]
    classes: tuple[KeyClass, ...]
    any_order: bool

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The declared names, decoded."""
        return tuple(json.loads(prop.text) for prop in self.properties)

    def _open(self, at: int) -> list[int]:
        """The declared properties that may still come."""
        start = 0 if self.any_order else at
        return [
            i
            for i in range(start, len(self.properties))
            if self.properties[i].type != NONE and not (self.any_order and at >> i & 1)
        ]

    @lru_cache(maxsize=4096)  # noqa: B019  (a shape lives as long as its grammar; the cache is bounded)
    def _remaining(self, at: int) -> tuple[int, int]:
        """How many required and how many optional declared properties may still come."""
        open_ = self._open(at)
        required = sum(self.properties[i].required for i in open_)
        return required, len(open_) - required

    def _capacity(self, used: frozenset[str]) -> int:
        """How many more keys the classes have; INFINITE if no end of them."""
        total = 0
        for key_class in self.classes:
            if key_class.type == NONE:
                continue
            dfa = key_class.keys.dfa
            words = dfa.words_from(dfa.start)
            if words >= INFINITE:
                return INFINITE
            total += words - sum(map(dfa.accepts, used.union(self.names)))
        return total

    def _feasible(self, at: int, count: int, capacity: int) -> bool:
        required, optional = self._remaining(at)
        if self.maximum != NONE and count + required > self.maximum:
            return False
        return capacity >= INFINITE or count + required + optional + capacity >= self.minimum

    def always_extensible(self, at: int, count: int) -> bool:
        """Whether a key that nobody could know may still come, now or after the required ones."""
        room = self.maximum == NONE or count + self._remaining(at)[0] < self.maximum
        return room and any(
            c.type != NONE and c.keys.dfa.words_from(c.keys.dfa.start) >= INFINITE for c in self.classes
        )

    def fullest(self, at: int, count: int) -> list[int] | None:
        """The declared properties of the object that has as many more as there's room for; None if they're too few."""
        open_ = self._open(at)
        if self.maximum != NONE and count + len(open_) > self.maximum:
            optional = self.maximum - count - self._remaining(at)[0]
            taken = [i for i in open_ if not self.properties[i].required][: max(optional, 0)]
            open_ = [i for i in open_ if self.properties[i].required or i in taken]
        return open_ if count + len(open_) >= self.minimum else None

    def has_endless_keys(self) -> bool:
        """Whether its classes have keys without end."""
        return self._capacity(frozenset()) >= INFINITE

    def counted(self, count: int) -> int:
        """The count after one more property."""
        return count + 1 if self.maximum != NONE else min(count + 1, self.minimum)

    def can_close(self, at: int, count: int) -> bool:
        """Whether the object may end."""
        return count >= self.minimum and not self._remaining(at)[0]

    def allowed(self, at: int, count: int, used: frozenset[str]) -> tuple[list[int], bool]:
        """The declared properties that may come next, and whether a key of a class may.

        Only what leaves an object that can be completed. used: the keys that there are.
        """
        capacity = self._capacity(used)
        names = []
        for i in self._open(at):
            if self._feasible(self.after(at, i), count + 1, capacity):
                names.append(i)
            if self.properties[i].required and not self.any_order:
                break
        in_order = self.any_order or not self._remaining(at)[0]
        others = in_order and capacity > 0 and self._feasible(self.after(at, NONE), count + 1, capacity - 1)
        return names, others

    def after(self, at: int, index: int) -> int:
        """`at` after the declared property of an index, or after a key of a class (NONE)."""
        if self.any_order:
            return at if index == NONE else at | 1 << index
        return len(self.properties) if index == NONE else index + 1


@frozen(eq=False)
class Trigger:
    """`program.Trigger`."""

    trigger: bytes
    begin: bytes
    type: int
    end: bytes


def used_strings(used: frozenset[str]) -> tuple[str, ...]:
    """Those of the canonical texts that are strings, decoded."""
    return tuple(json.loads(text) for text in used if text.startswith('"'))


class Program:
    """A program, decoded. root_kind, root: what the whole output is. whitespace: blanks a gap may have."""

    def __init__(self, languages: list[bytes], texts: list[bytes], words: bytes) -> None:
        reader = _Reader(words, texts, [Dfa.from_bytes(data) for data in languages])
        version, kind, self.root, any_order, self.whitespace, *counts = reader.take(9)
        if version != VERSION:
            raise ValueError(f"a grammar of version {version}, this is version {VERSION}")
        self.root_kind = RootKind(kind)
        self.dfas = reader.dfas
        self.triggers = tuple(Trigger(*reader.trigger()) for _ in range(counts[3]))
        offsets = iter(reader.take(sum(counts[:3])))
        self.types = [reader.at(next(offsets)).type() for _ in range(counts[0])]
        self.arrays = [reader.at(next(offsets)).array() for _ in range(counts[1])]
        self.objects = [reader.at(next(offsets)).object(bool(any_order)) for _ in range(counts[2])]

    @staticmethod
    def of(flat: Flat) -> Program:
        """What `program.decode` or `program.flatten` returned."""
        return Program(flat.languages, flat.texts, flat.words)


class _Reader:
    """A cursor over the words of `program.Flat`."""

    def __init__(self, words: bytes, texts: list[bytes], dfas: list[Dfa]) -> None:
        self._words = array("i", words)
        self._texts = texts
        self.dfas = dfas
        self._next = 0

    def at(self, offset: int) -> _Reader:
        self._next = offset
        return self

    def take(self, count: int) -> tuple[int, ...]:
        self._next += count
        return tuple(self._words[self._next - count : self._next])

    def counted(self) -> tuple[int, ...]:
        return self.take(self.take(1)[0])

    def trigger(self) -> tuple[bytes, bytes, int, bytes]:
        trigger, begin, type_id, end = self.take(4)
        return self._texts[trigger], self._texts[begin], type_id, self._texts[end]

    def type(self) -> Type:
        literals = [self._texts[i] for i in self.counted()]
        terms = []
        for _ in range(self.take(1)[0]):
            language, minimum, maximum = self.take(3)
            excluded = tuple(self._texts[i].decode() for i in self.counted())
            terms.append(StringTerm(self.dfas[language], minimum, maximum, excluded))
        numbers = tuple(self.dfas[i] for i in self.counted())
        strings = tuple(text for text in literals if text.startswith(b'"'))
        bare = tuple(text for text in literals if not text.startswith(b'"'))
        return Type(strings, bare, tuple(terms), numbers, self.counted(), self.counted(), self.take(1)[0])

    def array(self) -> ArrayShape:
        minimum, maximum, unique = self.take(3)
        prefix = self.counted()
        rest, n_contains = self.take(2)
        contains = []
        for _ in range(n_contains):
            least, most = self.take(2)
            contains.append(Contains(least, most, self.take(len(prefix) + 1), self.take(len(prefix) + 1)))
        return ArrayShape(minimum, maximum, bool(unique), prefix, rest, tuple(contains))

    def object(self, any_order: bool) -> ObjectShape:
        minimum, maximum, count = self.take(3)
        properties = []
        for _ in range(count):
            name, type_id, required = self.take(3)
            properties.append(Property(self._texts[name], type_id, bool(required)))
        self.take(count)  # `by_name` is for machines that search by halving
        classes = []
        for _ in range(self.take(1)[0]):
            language, type_id = self.take(2)
            classes.append(KeyClass(StringTerm(self.dfas[language], 0, NONE, ()), type_id))
        return ObjectShape(minimum, maximum, tuple(properties), tuple(classes), any_order)
