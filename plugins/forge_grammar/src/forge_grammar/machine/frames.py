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

from forge_grammar.machine.canonical import canonical
from forge_grammar.machine.grammar import ArrayShape, ObjectShape, Program
from forge_grammar.machine.lexemes import Formed, StringLexeme, Words
from forge_grammar.program import NONE

A = TypeVar("A")
NOTHING_USED: frozenset[str] = frozenset()


@frozen
class Request:
    """What a value is awaited as: a type; unique: and unequal to all earlier items of the array it's an item of."""

    type: int
    unique: bool = False


Accepted = frozenset[Request]
KeyTag = tuple[int, int, int]


@frozen
class Root:
    """The bottom of every stack. trigger: which one began the value; NONE where the value is the whole output."""

    trigger: int = NONE


@frozen
class ObjectAlternative:
    """One way to read an object. at, count: see `ObjectShape`; awaited: as what the last key's value is awaited."""

    request: Request
    shape: ObjectShape
    at: int
    count: int
    awaited: Request | None = None


@frozen
class ArrayAlternative:
    """One way to read an array. index: of the next item, or after the one awaited; counts: one for each `contains`."""

    request: Request
    shape: ArrayShape
    index: int
    counts: tuple[int, ...]
    awaited: Request | None = None


@frozen
class ObjectFrame:
    """An open object.

    start: where its text begins, NONE where nobody will ask for it. used: the keys so far, kept only where a class of
    keys is possible.
    """

    below: Frame
    start: int
    alternatives: tuple[ObjectAlternative, ...]
    used: frozenset[str] = NOTHING_USED

    def closed(self) -> Accepted:
        """The requests that accept the object if it ends now."""
        return frozenset(a.request for a in self.alternatives if a.shape.can_close(a.at, a.count))

    def closable(self) -> ObjectFrame | None:
        """The alternatives that may end now."""
        return self._keep(a for a in self.alternatives if a.shape.can_close(a.at, a.count))

    def before_key(self) -> ObjectFrame | None:
        """The alternatives that may have another key."""
        return self._keep(a for a in self.alternatives if any(a.shape.allowed(a.at, a.count, self.used)))

    def key(self) -> StringLexeme[KeyTag] | None:
        """The key after its opening quote. Tags: (number of the alternative, index of the property or NONE, type)."""
        literals: list[Words[KeyTag]] = []
        terms: list[Formed[KeyTag] | None] = []
        for number, a in enumerate(self.alternatives):
            names, others = a.shape.allowed(a.at, a.count, self.used)
            for i in names:
                prop = a.shape.properties[i]
                literals.append(Words((number, i, prop.type), (prop.text,)))
            if others:
                taken = (*self.used, *a.shape.names)
                terms += (
                    Formed.start((number, NONE, c.type), c.keys, taken) for c in a.shape.classes if c.type != NONE
                )
        return StringLexeme.start(literals, terms)

    def after_key(self, accepted: frozenset[KeyTag], text: bytes) -> ObjectFrame:
        """After a key, by the tags that accept it. text: of the key, as JSON."""
        alternatives = []
        for number, index, type_id in sorted(accepted):
            a = self.alternatives[number]
            count = a.shape.counted(a.count)
            awaited = Request(type_id)
            alternatives.append(ObjectAlternative(a.request, a.shape, a.shape.after(a.at, index), count, awaited))
        used = self.used | {json.loads(text)} if self.keeps_keys else self.used
        return ObjectFrame(self.below, self.start, _distinct(alternatives), used)

    @property
    def keeps_keys(self) -> bool:
        """Whether a key's text is asked for."""
        return any(a.shape.classes for a in self.alternatives)

    def after_value(self, accepted: Accepted) -> ObjectFrame | None:
        """The alternatives whose awaited request is among those that accept the value."""
        return self._keep(
            ObjectAlternative(a.request, a.shape, a.at, a.count) for a in self.alternatives if a.awaited in accepted
        )

    def _keep(self, alternatives: Iterable[ObjectAlternative]) -> ObjectFrame | None:
        kept = _distinct(alternatives)
        if not kept:
            return None
        return ObjectFrame(self.below, self.start, kept, self.used)


@frozen
class ArrayFrame:
    """An open array. start: see `ObjectFrame`; used: its items as canonical texts, kept only where unique."""

    below: Frame
    start: int
    alternatives: tuple[ArrayAlternative, ...]
    used: frozenset[str] = NOTHING_USED

    def closed(self) -> Accepted:
        """The requests that accept the array if it ends now."""
        return frozenset(a.request for a in self.alternatives if a.shape.can_close(a.index, a.counts))

    def closable(self) -> ArrayFrame | None:
        """The alternatives that may end now."""
        return self._keep(a for a in self.alternatives if a.shape.can_close(a.index, a.counts))

    def await_item(self, program: Program) -> ArrayFrame | None:
        """The alternatives for one more item: one for each way in which it may count."""
        alternatives = []
        for a in self.alternatives:
            for type_id, counts in a.shape.choices(a.index, a.counts):
                if a.shape.unique and not program.types[type_id].has_fresh(self.used):
                    continue
                awaited = Request(type_id, a.shape.unique)
                alternatives.append(ArrayAlternative(a.request, a.shape, a.shape.next_index(a.index), counts, awaited))
        return self._keep(alternatives)

    @property
    def keeps_items(self) -> bool:
        """Whether an item's text is asked for."""
        return any(a.shape.unique for a in self.alternatives)

    def after_value(self, accepted: Accepted, text: bytes) -> ArrayFrame | None:
        """The alternatives whose awaited request is among those that accept the item. text: its, if asked for."""
        alternatives = _distinct(
            ArrayAlternative(a.request, a.shape, a.index, a.counts) for a in self.alternatives if a.awaited in accepted
        )
        if not alternatives:
            return None
        used = self.used
        if any(a.shape.unique for a in alternatives):
            used = used | {canonical(text)}
        return ArrayFrame(self.below, self.start, alternatives, used)

    def _keep(self, alternatives: Iterable[ArrayAlternative]) -> ArrayFrame | None:
        kept = _distinct(alternatives)
        return ArrayFrame(self.below, self.start, kept, self.used) if kept else None


Frame = Root | ObjectFrame | ArrayFrame


def used_items(frame: Frame) -> frozenset[str]:
    """The items that a unique value in this frame mustn't equal."""
    return frame.used if isinstance(frame, ArrayFrame) else NOTHING_USED


def _distinct(alternatives: Iterable[A]) -> tuple[A, ...]:
    return tuple(dict.fromkeys(alternatives))
