"""Open objects and arrays: a stack of frames, each a small vector of alternatives.

All alternatives of a frame read the same text, hence the same brackets and commas; they differ in the shape they follow
and how far they are in it. An alternative answers for a `Request` of the value position that the frame stands in, and
awaits one for the value to come. When a value has ended, the requests that accept it are known, and the alternatives
that await one of them go on. Frames are immutable and shared between configurations.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TypeVar

from attrs import frozen

from forge_grammar.machine.distinct import (
    NOTHING,
    Value,
    Values,
    array_closes,
    is_fresh,
    item_avoids,
    member_avoids,
    object_closes,
)
from forge_grammar.machine.grammar import ArrayShape, ObjectShape, Program
from forge_grammar.machine.lexemes import Formed, StringLexeme, Words
from forge_grammar.program import NONE

A = TypeVar("A")


@frozen
class Request:
    """What a value is awaited as: a type; and none of the values to avoid."""

    type: int
    avoid: Values = NOTHING


Accepted = frozenset[Request]
KeyTag = tuple[int, int, int]


@frozen
class Root:
    """The bottom of every stack. trigger: which one began the value; NONE where the value is the whole output."""

    trigger: int = NONE


@frozen
class ObjectAlternative:
    """One way to read an object.

    at, count: see `ObjectShape`. ties: the objects that it mustn't become and still could; awaited: as what the last
    key's value is awaited.
    """

    request: Request
    shape: ObjectShape
    at: int
    count: int
    ties: Values = NOTHING
    awaited: Request | None = None


@frozen
class ArrayAlternative:
    """One way to read an array.

    index: of the next item, or after the one awaited; counts: one for each `contains`. ties, awaited: as of objects.
    """

    request: Request
    shape: ArrayShape
    index: int
    counts: tuple[int, ...]
    ties: Values = NOTHING
    awaited: Request | None = None


@frozen
class ObjectFrame:
    """An open object.

    start: where its text begins, NONE where nobody will ask for it. used: the keys so far, kept only where a class of
    keys is possible. Only kept while there are ties: written, how many members are complete; key, that of the next one.
    """

    below: Frame
    start: int
    alternatives: tuple[ObjectAlternative, ...]
    used: frozenset[str] = frozenset()
    written: int = 0
    key: str = ""

    def closed(self) -> Accepted:
        """The requests that accept the object if it ends now."""
        return frozenset(a.request for a in self.alternatives if self._closes(a))

    def closable(self) -> ObjectFrame | None:
        """The alternatives that may end now."""
        return self._keep(a for a in self.alternatives if self._closes(a))

    def _closes(self, a: ObjectAlternative) -> bool:
        return object_closes(a.shape, a.at, a.count, self.written, a.ties)

    def before_key(self, program: Program) -> ObjectFrame | None:
        """The alternatives that may have another key."""
        return self._keep(a for a in self.alternatives if any(self._keys(a, program)))

    def _keys(self, a: ObjectAlternative, program: Program) -> tuple[list[int], bool]:
        """The declared properties that may come next, and whether a key of a class may."""
        names, others = a.shape.allowed(a.at, a.count, self.used)
        if not a.ties:
            return names, others
        names = [i for i in names if self._has_value(a, a.shape.names[i], i, a.shape.properties[i].type, program)]
        return names, others and a.shape.has_endless_keys()

    def _avoids(self, a: ObjectAlternative, key: str, index: int, program: Program) -> Values:
        return member_avoids(program, a.shape, a.at, a.count, self.written, key, index, a.ties)

    def _has_value(self, a: ObjectAlternative, key: str, index: int, type_id: int, program: Program) -> bool:
        return is_fresh(program, type_id, self._avoids(a, key, index, program))

    def key_lexeme(self, program: Program) -> StringLexeme[KeyTag] | None:
        """The key after its opening quote. Tags: (number of the alternative, index of the property or NONE, type)."""
        literals: list[Words[KeyTag]] = []
        terms: list[Formed[KeyTag] | None] = []
        for number, a in enumerate(self.alternatives):
            names, others = self._keys(a, program)
            for i in names:
                prop = a.shape.properties[i]
                literals.append(Words((number, i, prop.type), (prop.text,)))
            if others:
                taken = (*self.used, *a.shape.names)
                known = {key for tie in a.ties for key in tie.members or ()}
                terms += (
                    Formed.start(
                        (number, NONE, c.type),
                        c.keys,
                        (*taken, *(key for key in known if not self._has_value(a, key, NONE, c.type, program))),
                    )
                    for c in a.shape.classes
                    if c.type != NONE
                )
        return StringLexeme.start(literals, terms)

    def after_key(self, accepted: frozenset[KeyTag], text: bytes, program: Program) -> ObjectFrame:
        """After a key, by the tags that accept it. text: of the key, as JSON."""
        key = json.loads(text)
        alternatives = []
        for number, index, type_id in sorted(accepted):
            a = self.alternatives[number]
            awaited = Request(type_id, self._avoids(a, key, index, program) if a.ties else NOTHING)
            ties = frozenset(tie for tie in a.ties if key in (tie.members or ()))
            at, count = a.shape.after(a.at, index), a.shape.counted(a.count)
            alternatives.append(ObjectAlternative(a.request, a.shape, at, count, ties, awaited))
        used = self.used | {key} if any(a.shape.classes for a in self.alternatives) else self.used
        tied = _tied(alternatives)
        return ObjectFrame(
            self.below, self.start, _distinct(alternatives), used, self.written if tied else 0, key if tied else ""
        )

    @property
    def keeps_values(self) -> bool:
        """Whether the text of the next value is asked for."""
        return _tied(self.alternatives)

    def after_value(self, accepted: Accepted, text: bytes) -> ObjectFrame | None:
        """The alternatives whose awaited request is among those that accept the value. text: its, if asked for."""
        value = Value.read(text) if self.keeps_values else None
        kept = _distinct(
            ObjectAlternative(
                a.request,
                a.shape,
                a.at,
                a.count,
                frozenset(tie for tie in a.ties if tie.members and tie.members[self.key] == value),
            )
            for a in self.alternatives
            if a.awaited in accepted
        )
        written = self.written + 1 if _tied(kept) else 0
        return ObjectFrame(self.below, self.start, kept, self.used, written) if kept else None

    def _keep(self, alternatives: Iterable[ObjectAlternative]) -> ObjectFrame | None:
        kept = _distinct(alternatives)
        if not kept:
            return None
        return ObjectFrame(self.below, self.start, kept, self.used, self.written if _tied(kept) else 0)


@frozen
class ArrayFrame:
    """An open array. start, written: see `ObjectFrame`; used: its items, kept only where unique."""

    below: Frame
    start: int
    alternatives: tuple[ArrayAlternative, ...]
    used: Values = NOTHING
    written: int = 0

    def closed(self) -> Accepted:
        """The requests that accept the array if it ends now."""
        return frozenset(a.request for a in self.alternatives if self._closes(a))

    def closable(self) -> ArrayFrame | None:
        """The alternatives that may end now."""
        return self._keep(a for a in self.alternatives if self._closes(a))

    def _closes(self, a: ArrayAlternative) -> bool:
        return array_closes(a.shape, a.index, a.counts, self.written, a.ties)

    def await_item(self, program: Program) -> ArrayFrame | None:
        """The alternatives for one more item: one for each way in which it may count."""
        alternatives = []
        for a in self.alternatives:
            for type_id, counts in a.shape.choices(a.index, a.counts):
                index = a.shape.next_index(a.index)
                avoid = self.used if a.shape.unique else NOTHING
                if a.ties:
                    avoid |= item_avoids(program, a.shape, index, counts, self.written, a.ties)
                if is_fresh(program, type_id, avoid):
                    ties = frozenset(tie for tie in a.ties if len(tie.items or ()) > self.written)
                    awaited = Request(type_id, avoid)
                    alternatives.append(ArrayAlternative(a.request, a.shape, index, counts, ties, awaited))
        return self._keep(alternatives)

    @property
    def keeps_values(self) -> bool:
        """Whether the text of the next item is asked for."""
        return any(a.shape.unique for a in self.alternatives) or _tied(self.alternatives)

    def after_value(self, accepted: Accepted, text: bytes) -> ArrayFrame | None:
        """The alternatives whose awaited request is among those that accept the item. text: its, if asked for."""
        value = Value.read(text) if self.keeps_values else None
        alternatives = _distinct(
            ArrayAlternative(
                a.request,
                a.shape,
                a.index,
                a.counts,
                frozenset(tie for tie in a.ties if tie.items and tie.items[self.written] == value),
            )
            for a in self.alternatives
            if a.awaited in accepted
        )
        if not alternatives:
            return None
        used = self.used
        if value is not None and any(a.shape.unique for a in alternatives):
            used = used | {value}
        return ArrayFrame(self.below, self.start, alternatives, used, self.written + 1 if _tied(alternatives) else 0)

    def _keep(self, alternatives: Iterable[ArrayAlternative]) -> ArrayFrame | None:
        kept = _distinct(alternatives)
        if not kept:
            return None
        return ArrayFrame(self.below, self.start, kept, self.used, self.written if _tied(kept) else 0)


Frame = Root | ObjectFrame | ArrayFrame


def _tied(alternatives: Iterable[ObjectAlternative | ArrayAlternative]) -> bool:
    return any(a.ties for a in alternatives)


def _distinct(alternatives: Iterable[A]) -> tuple[A, ...]:
    return tuple(dict.fromkeys(alternatives))
