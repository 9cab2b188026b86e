"""The machine: a configuration, a byte, the next configuration; None where the byte is refused.

A configuration is a position and the text so far. Positions are immutable, so that a walk over many continuations
shares them and taking back a token means going back to an earlier one. Every alternative that a position holds can be
completed, hence a byte is allowed exactly if an alternative survives it.
"""

from __future__ import annotations

from attrs import frozen

from forge_grammar.machine.frames import Request, Root
from forge_grammar.machine.grammar import Program
from forge_grammar.machine.positions import BeforeValue, FreeText, InText, Position
from forge_grammar.machine.text import Text
from forge_grammar.program import NONE, RootKind


@frozen(eq=False)
class Configuration:
    """A position, and the text that led there."""

    program: Program
    position: Position
    text: Text | None = None

    @staticmethod
    def start(program: Program) -> Configuration:
        """Before any byte."""
        match program.root_kind:
            case RootKind.JSON:
                return Configuration(program, BeforeValue(Root(), (Request(program.root),)))
            case RootKind.TEXT:
                dfa = program.dfas[program.root]
                return Configuration(program, InText(dfa, dfa.start))
            case _:
                return Configuration(program, FreeText())

    def step(self, byte: int) -> Configuration | None:
        """After a byte; None if the program refuses it."""
        text = Text(self.text, byte, self.text.length + 1 if self.text else 1)
        position = self.position.step(byte, self.program, text)
        return Configuration(self.program, position, text) if position else None

    def run(self, data: bytes) -> Configuration | None:
        """After some bytes; None if one is refused."""
        configuration: Configuration | None = self
        for byte in data:
            configuration = configuration.step(byte) if configuration else None
        return configuration

    @property
    def is_final(self) -> bool:
        """Whether the output may end here."""
        return self.position.is_final(self.program)

    def recorded(self) -> bytes:
        """The part of the text so far on which what follows depends, beside the position."""
        start = self.position.text_from()
        return b"" if start == NONE or self.text is None else self.text.since(start)


def accepts_text(program: Program, text: bytes) -> bool:
    """Whether the text is a whole output."""
    end = Configuration.start(program).run(text)
    return end is not None and end.is_final


def viable_prefix(program: Program, text: bytes) -> int:
    """How many bytes of the text could be the beginning of an output."""
    configuration = Configuration.start(program)
    for count, byte in enumerate(text):
        after = configuration.step(byte)
        if after is None:
            return count
        configuration = after
    return len(text)
