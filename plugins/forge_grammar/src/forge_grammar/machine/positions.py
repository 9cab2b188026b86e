"""Positions: what has just been read, and with the stack of frames below it what may follow.

They are immutable. Where each byte leads::

    BeforeValue   gap, or the first byte of a value; after [ also ]
    InString      characters; the closing quote ends the value
    InBare        a number, true, false, null; ends at the first byte that can't belong to it
    BeforeKey     gap, or the opening quote of a key; after { also }
    InKey         characters; the closing quote leads to AfterKey
    AfterKey      only :
    AfterValue    , or the closing bracket, before which there may be a gap
    Done          nothing: the value is complete
    InText        raw text of a language
    FreeText      any byte; a trigger begins the text before a value
    BeginText     the rest of that text
    EndText       the text that follows a trigger's value

Every alternative that a position holds can be completed, hence a byte is allowed exactly if an alternative survives it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from attrs import evolve, frozen

from forge_grammar.machine.canonical import canonical
from forge_grammar.machine.characters import Partial, read_utf8
from forge_grammar.machine.distinct import array_differs, arrays_of, object_differs, objects_of, texts
from forge_grammar.machine.frames import (
    Accepted,
    ArrayAlternative,
    ArrayFrame,
    Frame,
    KeyTag,
    ObjectAlternative,
    ObjectFrame,
    Request,
    Root,
)
from forge_grammar.machine.grammar import Program, used_strings
from forge_grammar.machine.lexemes import BareLexeme, Formed, Number, StringLexeme, Words
from forge_grammar.machine.text import Gap, Text
from forge_grammar.machine.words import some_word_in
from forge_grammar.program import NONE
from forge_grammar.regular.dfa import DEAD, Dfa


@frozen
class Position:
    """What has been read last. `step` gets the text with the byte that it steps by."""

    def step(self, byte: int, program: Program, text: Text) -> Position | None:
        """The position after a byte."""
        raise NotImplementedError

    def is_final(self, program: Program) -> bool:
        """Whether the whole output may end here."""
        return False

    def text_from(self) -> int:
        """From which offset on the text so far matters for what follows; NONE if it doesn't."""
        return NONE


@frozen
class BeforeValue(Position):
    """A value is awaited as any of the requests. closing: the array that may end instead; frame: None if it must."""

    frame: Frame | None
    requests: tuple[Request, ...]
    gap: Gap | None = None
    closing: ArrayFrame | None = None

    def step(self, byte: int, program: Program, text: Text) -> Position | None:
        if self.gap is not None:
            gap = self.gap.step(byte, program.whitespace)
            if gap or self.gap.half:
                return evolve(self, gap=gap) if gap else None
        if byte == ord("]"):
            return _close(self.closing, program, text) if self.closing else None
        return None if self.frame is None else _begin(self.frame, self.requests, byte, program, text.length - 1)

    def text_from(self) -> int:
        return _recorded(self.frame if self.frame is not None else self.closing)


@frozen
class InString(Position):
    """In a string that's a value. start: where it begins, if its text will be asked for."""

    frame: Frame
    lexeme: StringLexeme[Request]
    start: int

    def step(self, byte: int, program: Program, text: Text) -> Position | None:
        if self.lexeme.ends_with(byte):
            return _end(self.frame, self.lexeme.accepted(), self.start, program, text)
        lexeme = self.lexeme.step(byte)
        return InString(self.frame, lexeme, self.start) if lexeme else None

    def text_from(self) -> int:
        return _recorded(self.frame, self.start)


@frozen
class InBare(Position):
    """In a number, true, false or null."""

    frame: Frame
    lexeme: BareLexeme[Request]

    def step(self, byte: int, program: Program, text: Text) -> Position | None:
        lexeme = self.lexeme.step(byte)
        if lexeme:
            return InBare(self.frame, lexeme)
        assert text.before is not None
        accepted, start = self.lexeme.accepted(), text.length - 1 - len(self.lexeme.text)
        after = _end(self.frame, accepted, start, program, text.before)
        return after.step(byte, program, text) if after else None

    def is_final(self, program: Program) -> bool:
        if not isinstance(self.frame, Root):
            return False
        trigger = self.frame.trigger
        return (trigger == NONE or not program.triggers[trigger].end) and bool(self.lexeme.accepted())

    def text_from(self) -> int:
        return _recorded(self.frame)


@frozen
class BeforeKey(Position):
    """A key is awaited; first: or the end of the object, which is empty."""

    frame: ObjectFrame
    gap: Gap
    first: bool

    def step(self, byte: int, program: Program, text: Text) -> Position | None:
        gap = self.gap.step(byte, program.whitespace)
        if gap or self.gap.half:
            return evolve(self, gap=gap) if gap else None
        if byte == ord("}") and self.first:
            return _close(self.frame, program, text)
        lexeme = self.frame.key_lexeme(program) if byte == ord('"') else None
        return InKey(self.frame, lexeme, text.length - 1) if lexeme else None

    def text_from(self) -> int:
        return _recorded(self.frame)


@frozen
class InKey(Position):
    """In a key, which begins at `start`."""

    frame: ObjectFrame
    lexeme: StringLexeme[KeyTag]
    start: int

    def step(self, byte: int, program: Program, text: Text) -> Position | None:
        if self.lexeme.ends_with(byte):
            accepted = self.lexeme.accepted()
            return AfterKey(self.frame.after_key(accepted, text.since(self.start), program)) if accepted else None
        lexeme = self.lexeme.step(byte)
        return InKey(self.frame, lexeme, self.start) if lexeme else None

    def text_from(self) -> int:
        return _recorded(self.frame, self.start)


@frozen
class AfterKey(Position):
    """A colon is awaited."""

    frame: ObjectFrame

    def step(self, byte: int, program: Program, text: Text) -> Position | None:
        return BeforeValue(self.frame, _awaited(self.frame), Gap()) if byte == ord(":") else None

    def text_from(self) -> int:
        return _recorded(self.frame)


@frozen
class AfterValue(Position):
    """A value of a frame has ended. gap: after it; only the closing bracket may follow one."""

    frame: ObjectFrame | ArrayFrame
    gap: Gap | None = None

    def step(self, byte: int, program: Program, text: Text) -> Position | None:
        gap = (self.gap or Gap()).step(byte, program.whitespace)
        if gap:
            frame = self.frame.closable()
            return AfterValue(frame, gap) if frame else None
        if self.gap and self.gap.half:
            return None
        if byte == (ord("}") if isinstance(self.frame, ObjectFrame) else ord("]")):
            return _close(self.frame, program, text)
        if byte != ord(",") or self.gap:
            return None
        if isinstance(self.frame, ObjectFrame):
            keyed = self.frame.before_key(program)
            return BeforeKey(keyed, Gap(), first=False) if keyed else None
        items = self.frame.await_item(program)
        return BeforeValue(items, _awaited(items), Gap()) if items else None

    def text_from(self) -> int:
        return _recorded(self.frame)


@frozen
class Done(Position):
    """The output is complete."""

    def step(self, byte: int, program: Program, text: Text) -> Position | None:
        return None

    def is_final(self, program: Program) -> bool:
        return True


@frozen
class InText(Position):
    """In raw text of a language."""

    dfa: Dfa
    state: int
    partial: Partial | None = None

    def step(self, byte: int, program: Program, text: Text) -> Position | None:
        character = read_utf8(self.partial, byte)
        if isinstance(character, Partial):
            viable = some_word_in(self.dfa, self.state, 0, NONE, (), character.ranges)
            return InText(self.dfa, self.state, character) if viable else None
        state = DEAD if character is None else self.dfa.step(self.state, character)
        return None if state == DEAD else InText(self.dfa, state)

    def is_final(self, program: Program) -> bool:
        return self.partial is None and bool(self.dfa.accepting[self.state])


@frozen
class FreeText(Position):
    """In free text. matched: its longest ending that begins a trigger."""

    matched: bytes = b""

    def step(self, byte: int, program: Program, text: Text) -> Position | None:
        tail = self.matched + bytes([byte])
        endings = [tail[at:] for at in range(len(tail))]
        for ending in endings:
            for number, trigger in enumerate(program.triggers):
                if trigger.trigger == ending:
                    return _begun(number, len(ending), program)
        begun = (e for e in endings if any(trigger.trigger.startswith(e) for trigger in program.triggers))
        return FreeText(next(begun, b""))

    def is_final(self, program: Program) -> bool:
        return True


@frozen
class BeginText(Position):
    """In the text before a trigger's value: any that begins with so many bytes of this one's."""

    trigger: int
    depth: int

    def step(self, byte: int, program: Program, text: Text) -> Position | None:
        so_far = program.triggers[self.trigger].begin[: self.depth] + bytes([byte])
        for number, trigger in enumerate(program.triggers):
            if trigger.begin.startswith(so_far):
                return _begun(number, len(so_far), program)
        return None


def _begun(number: int, depth: int, program: Program) -> Position:
    """After so many bytes of the text before a trigger's value."""
    so_far = program.triggers[number].begin[:depth]
    for each, trigger in enumerate(program.triggers):
        if trigger.begin == so_far:
            return BeforeValue(Root(each), (Request(trigger.type),))
    return BeginText(number, depth)


@frozen
class EndText(Position):
    """In the text after a trigger's value."""

    trigger: int
    depth: int = 0

    def step(self, byte: int, program: Program, text: Text) -> Position | None:
        end = program.triggers[self.trigger].end
        if self.depth == len(end):
            return FreeText().step(byte, program, text)
        if byte != end[self.depth]:
            return None
        return EndText(self.trigger, self.depth + 1) if self.depth + 1 < len(end) else FreeText()

    def is_final(self, program: Program) -> bool:
        return self.depth == len(program.triggers[self.trigger].end)


def _begin(frame: Frame, requests: tuple[Request, ...], byte: int, program: Program, start: int) -> Position | None:
    """The first byte of a value, at offset `start`."""
    asked = start if not isinstance(frame, Root) and frame.keeps_values else NONE
    if byte == ord("{"):
        objects = tuple(_objects(requests, program))
        return BeforeKey(ObjectFrame(frame, asked, objects), Gap(), first=True) if objects else None
    if byte == ord("["):
        arrays = tuple(_arrays(requests, program))
        return _opened(ArrayFrame(frame, asked, arrays), program) if arrays else None
    if byte == ord('"'):
        lexeme = _string(requests, program)
        return InString(frame, lexeme, asked) if lexeme else None
    bare = _bare(requests, program).step(byte)
    return InBare(frame, bare) if bare else None


def _objects(requests: Iterable[Request], program: Program) -> Iterator[ObjectAlternative]:
    for r in requests:
        ties = objects_of(r.avoid)
        for shape in (program.objects[at] for at in program.types[r.type].objects):
            if object_differs(program, shape, 0, 0, 0, ties):
                yield ObjectAlternative(r, shape, 0, 0, ties)


def _arrays(requests: Iterable[Request], program: Program) -> Iterator[ArrayAlternative]:
    for r in requests:
        ties = arrays_of(r.avoid)
        for shape in (program.arrays[at] for at in program.types[r.type].arrays):
            counts = (0,) * len(shape.contains)
            if array_differs(program, shape, 0, counts, 0, ties):
                yield ArrayAlternative(r, shape, 0, counts, ties)


def _opened(frame: ArrayFrame, program: Program) -> Position:
    items = frame.await_item(program)
    return BeforeValue(items, _awaited(items) if items else (), Gap(), frame.closable())


def _string(requests: tuple[Request, ...], program: Program) -> StringLexeme[Request] | None:
    literals: list[Words[Request]] = []
    terms: list[Formed[Request] | None] = []
    for r in requests:
        node = program.types[r.type]
        used = texts(r.avoid)
        literals.append(Words(r, tuple(w for w in node.strings if not used or canonical(w) not in used)))
        taken = used_strings(used)
        terms += (Formed.start(r, term, taken) for term in node.terms)
    return StringLexeme.start(literals, terms)


def _bare(requests: tuple[Request, ...], program: Program) -> BareLexeme[Request]:
    literals: list[Words[Request]] = []
    numbers: list[Number[Request]] = []
    for r in requests:
        node = program.types[r.type]
        used = texts(r.avoid)
        literals.append(Words(r, tuple(w for w in node.bare if not used or canonical(w) not in used)))
        numbers += (Number(r, dfa, dfa.start, used) for dfa in node.numbers)
    return BareLexeme(tuple(literals), tuple(numbers))


def _close(frame: ObjectFrame | ArrayFrame, program: Program, text: Text) -> Position | None:
    """The closing bracket of a frame; `text` ends with it."""
    return _end(frame.below, frame.closed(), frame.start, program, text)


def _end(frame: Frame, accepted: Accepted, start: int, program: Program, text: Text) -> Position | None:
    """A value of a frame has ended: `text` from `start` on."""
    if not accepted:
        return None
    if isinstance(frame, Root):
        return Done() if frame.trigger == NONE else EndText(frame.trigger)
    after = frame.after_value(accepted, text.since(start) if frame.keeps_values else b"")
    return AfterValue(after) if after else None


def _awaited(frame: ObjectFrame | ArrayFrame) -> tuple[Request, ...]:
    """The requests that a frame's alternatives await, each once."""
    return tuple(dict.fromkeys(a.awaited for a in frame.alternatives if a.awaited is not None))


def _recorded(frame: Frame | None, start: int = NONE) -> int:
    """The first offset that a lexeme from `start` on, or a frame of the stack, will ask for."""
    while frame is not None and not isinstance(frame, Root):
        if frame.start != NONE:
            start = frame.start if start == NONE else min(start, frame.start)
        frame = frame.below
    return start
