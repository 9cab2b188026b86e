"""The bytes read so far, and the white space between two tokens of JSON."""

from __future__ import annotations

from attrs import evolve, frozen


@frozen(eq=False)
class Text:
    """The bytes so far, newest first, shared between configurations."""

    before: Text | None
    byte: int
    length: int

    def since(self, start: int) -> bytes:
        """The bytes from an offset on."""
        data = bytearray()
        node: Text | None = self
        while node is not None and node.length > start:
            data.append(node.byte)
            node = node.before
        data.reverse()
        return bytes(data)


@frozen
class Gap:
    """White space so far: one line break (`\\n` or `\\r\\n`) at most, and a bounded number of blanks around it."""

    blanks: int = 0
    line_break: bool = False
    half: bool = False

    def step(self, byte: int, limit: int) -> Gap | None:
        """After a byte; None if it doesn't belong to the gap. limit: of blanks; 0 allows no gap at all."""
        if not limit:
            return None
        if self.half:
            return Gap(self.blanks, True) if byte == 0x0A else None
        if byte in b" \t":
            return evolve(self, blanks=self.blanks + 1) if self.blanks < limit else None
        if byte in b"\r\n" and not self.line_break:
            return Gap(self.blanks, True, half=byte == 0x0D)
        return None
