"""Regular expressions of ECMA-262 as JSON Schema uses them (code points, as with the `u` flag) to a tree.

What only older patterns do is taken as without the flag: escaped punctuation, `{`, `}` and `]` as themselves, `-`
next to a class escape. Backreferences and lookbehinds are refused.
"""

from __future__ import annotations

from attrs import frozen

from forge_grammar.regular.errors import MAX_REGEX_DEPTH, MAX_REGEX_NODES, LimitExceeded, RegexError
from forge_grammar.regular.nfa import CharSet, Op, Range, complement, normal
from forge_grammar.regular.unicode import ESCAPES, LINE_ENDS, unicode_property


@frozen
class Chars:
    """One character of a set."""

    chars: CharSet


@frozen
class Sequence:
    """One part after the other; none: the empty text."""

    parts: tuple[Node, ...]


@frozen
class Choice:
    """One of the parts."""

    parts: tuple[Node, ...]


@frozen
class Repeat:
    """minimum to maximum times; maximum None: without end."""

    node: Node
    minimum: int
    maximum: int | None


@frozen
class Assertion:
    """BEGIN, END, BOUNDARY or NO_BOUNDARY."""

    kind: Op


@frozen
class Look:
    """What follows begins with the node, or doesn't."""

    node: Node
    negative: bool


Node = Chars | Sequence | Choice | Repeat | Assertion | Look

_QUANTIFIERS: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_CONTROLS = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13}
_HEX = set("0123456789abcdefABCDEF")
_NOT_HERE = {
    "A": "\\A is no anchor here, use ^",
    "Z": "\\Z is no anchor here, use $",
    "z": "\\z is no anchor here, use $",
    "k": "backreferences are not regular",
}


def parse(pattern: str) -> Node:
    """The tree of a pattern. Errors: `RegexError`, `LimitExceeded`."""
    parser = _Parser(pattern)
    node = parser.choice(0)
    if parser.at < len(pattern):
        raise RegexError("unmatched )", parser.at)
    return node


class _Parser:
    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.at = 0
        self.nodes = 0
        self.names: set[str] = set()

    def peek(self) -> str:
        return self.pattern[self.at] if self.at < len(self.pattern) else ""

    def take(self, text: str) -> bool:
        if self.pattern.startswith(text, self.at):
            self.at += len(text)
            return True
        return False

    def choice(self, depth: int) -> Node:
        if depth > MAX_REGEX_DEPTH:
            raise LimitExceeded("nested groups of a regex", MAX_REGEX_DEPTH)
        parts = [self.sequence(depth)]
        while self.take("|"):
            parts.append(self.sequence(depth))
        return parts[0] if len(parts) == 1 else Choice(tuple(parts))

    def sequence(self, depth: int) -> Node:
        parts: list[Node] = []
        while self.peek() not in ("", "|", ")"):
            self.nodes += 1
            if self.nodes > MAX_REGEX_NODES:
                raise LimitExceeded("nodes of a regex", MAX_REGEX_NODES)
            parts.append(self.quantified(self.atom(depth)))
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def quantified(self, node: Node) -> Node:
        at = self.at
        bounds = self.quantifier()
        if bounds is None:
            return node
        if isinstance(node, Assertion):
            raise RegexError("nothing to repeat: an assertion", at)
        self.take("?")
        if self.peek() in ("*", "+", "?") or (self.peek() == "{" and self.braces() is not None):
            raise RegexError("nothing to repeat: a quantifier", self.at)
        return Repeat(node, *bounds)

    def quantifier(self) -> tuple[int, int | None] | None:
        char = self.peek()
        if char in _QUANTIFIERS:
            self.at += 1
            return _QUANTIFIERS[char]
        if char != "{":
            return None
        found = self.braces()
        if found is None:
            return None
        low, high, end = found
        if high is not None and high < low:
            raise RegexError("a quantifier whose bounds are out of order", self.at)
        self.at = end
        return low, high

    def braces(self) -> tuple[int, int | None, int] | None:
        """Bounds and end of `{n}`, `{n,}` or `{n,m}` here; None where the brace is a character."""
        end = self.pattern.find("}", self.at)
        low, comma, high = self.pattern[self.at + 1 : end].partition(",") if end > 0 else ("", "", "")
        if not _digits(low) or (high and not _digits(high)):
            return None
        if max(len(low), len(high)) > 9:
            raise LimitExceeded("repetitions in a regex", 999_999_999)
        return int(low), (int(high) if high else None) if comma else int(low), end + 1

    def atom(self, depth: int) -> Node:
        at = self.at
        char = self.pattern[at]
        if char == "{" and self.braces() is not None:
            raise RegexError("nothing to repeat", at)
        self.at += 1
        match char:
            case ".":
                return Chars(complement(LINE_ENDS))
            case "^":
                return Assertion(Op.BEGIN)
            case "$":
                return Assertion(Op.END)
            case "(":
                return self.group(at, depth)
            case "[":
                return Chars(self.char_class(at))
            case "\\":
                return self.escape(at)
            case "*" | "+" | "?":
                raise RegexError("nothing to repeat", at)
        return _char(ord(char))

    def group(self, at: int, depth: int) -> Node:
        look = None
        if self.take("?"):
            if self.take("=") or self.take("!"):
                look = self.pattern[self.at - 1]
            elif self.pattern.startswith(("<=", "<!"), self.at):
                raise RegexError("lookbehind is not supported", at)
            elif self.take("<"):
                self.name(at)
            elif not self.take(":"):
                raise RegexError("an unknown kind of group", at)
        node = self.choice(depth + 1)
        if not self.take(")"):
            raise RegexError("a group without )", at)
        if look:
            return Look(node, look == "!")
        # An assertion in a group may be repeated.
        return Sequence((node,)) if isinstance(node, Assertion) else node

    def name(self, at: int) -> None:
        end = self.pattern.find(">", self.at)
        name = self.pattern[self.at : end] if end > 0 else ""
        if not name.replace("$", "_").isidentifier():
            raise RegexError("a group with an invalid name", at)
        if name in self.names:
            raise RegexError(f"a second group named {name}", at)
        self.names.add(name)
        self.at = end + 1

    def escape(self, at: int) -> Node:
        char = self.peek()
        if char in ("b", "B"):
            self.at += 1
            return Assertion(Op.BOUNDARY if char == "b" else Op.NO_BOUNDARY)
        chars = self.set_escape(at)
        return _char(self.char_escape(at)) if chars is None else Chars(chars)

    def set_escape(self, at: int) -> CharSet | None:
        """The set of an escape that stands for several characters; None where it stands for one."""
        char = self.peek()
        lower = char.lower()
        if lower in ESCAPES and char.isascii():
            self.at += 1
            return ESCAPES[lower] if char == lower else complement(ESCAPES[lower])
        if char not in ("p", "P"):
            return None
        end = self.pattern.find("}", self.at)
        if not self.pattern.startswith("{", self.at + 1) or end < 0:
            raise RegexError("a property escape without {name}", at)
        name = self.pattern[self.at + 2 : end]
        chars = unicode_property(name)
        if chars is None:
            raise RegexError(f"the Unicode property {name!r} is unknown or not supported", at)
        self.at = end + 1
        return chars if char == "p" else complement(chars)

    def char_escape(self, at: int) -> int:
        """The code point of an escape that stands for one character."""
        char = self.peek()
        self.at += 1
        if char in _CONTROLS:
            return _CONTROLS[char]
        if char == "c" and self.peek().isascii() and self.peek().isalpha():
            self.at += 1
            return ord(self.pattern[self.at - 1]) % 32
        if char == "0" and not _digits(self.peek()):
            return 0
        if char == "x":
            return self.hexadecimal(2, at)
        if char == "u":
            return self.unicode_escape(at)
        if char in _NOT_HERE:
            raise RegexError(_NOT_HERE[char], at)
        if _digits(char):
            raise RegexError("backreferences and octal escapes are not supported", at)
        if not char or (char.isascii() and char.isalpha()):
            raise RegexError(f"an unknown escape \\{char}", at)
        return ord(char)

    def unicode_escape(self, at: int) -> int:
        if self.take("{"):
            end = self.pattern.find("}", self.at)
            digits = self.pattern[self.at : end] if end > 0 else ""
            if not digits or not set(digits) <= _HEX or int(digits, 16) > 0x10FFFF:
                raise RegexError("\\u{...} without a code point", at)
            self.at = end + 1
            return int(digits, 16)
        unit = self.hexadecimal(4, at)
        if 0xD800 <= unit <= 0xDBFF and self.pattern.startswith("\\u", self.at):
            digits = self.pattern[self.at + 2 : self.at + 6]
            if len(digits) == 4 and set(digits) <= _HEX and 0xDC00 <= int(digits, 16) <= 0xDFFF:
                self.at += 6
                return 0x10000 + (unit - 0xD800) * 0x400 + int(digits, 16) - 0xDC00
        return unit

    def hexadecimal(self, count: int, at: int) -> int:
        digits = self.pattern[self.at : self.at + count]
        if len(digits) != count or not set(digits) <= _HEX:
            raise RegexError(f"an escape without {count} hexadecimal digits", at)
        self.at += count
        return int(digits, 16)

    def char_class(self, at: int) -> CharSet:
        negative = self.take("^")
        ranges: list[Range] = []
        while not self.take("]"):
            self.nodes += 1
            if self.nodes > MAX_REGEX_NODES:
                raise LimitExceeded("nodes of a regex", MAX_REGEX_NODES)
            start = self.at
            low = self.class_atom(at)
            if isinstance(low, tuple):
                ranges += low
                continue
            if self.peek() != "-" or self.pattern.startswith("-]", self.at):
                ranges.append((low, low))
                continue
            self.at += 1
            high = self.class_atom(at)
            if isinstance(high, tuple):
                ranges += [(low, low), (0x2D, 0x2D), *high]
            elif high < low:
                raise RegexError("a range out of order in a character class", start)
            else:
                ranges.append((low, high))
        chars = normal(ranges)
        return complement(chars) if negative else chars

    def class_atom(self, start: int) -> int | CharSet:
        at = self.at
        if at >= len(self.pattern):
            raise RegexError("a character class without ]", start)
        self.at += 1
        if self.pattern[at] != "\\":
            return ord(self.pattern[at])
        if self.take("b"):
            return 8
        chars = self.set_escape(at)
        return self.char_escape(at) if chars is None else chars


def _char(cp: int) -> Chars:
    return Chars(normal([(cp, cp)]))


def _digits(text: str) -> bool:
    return text.isascii() and text.isdigit()
