"""The `grammar` constraint: lowers specifications on the server's side, compiles and matches them in the engine."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from functools import cache
from threading import Lock
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from forge.errors import InvalidRequest
from forge.interfaces import constraint as interface
from forge.interfaces.constraint import MaskRow, Vocabulary
from forge_grammar.cardinality import uncertain
from forge_grammar.native import extension
from forge_grammar.options import GrammarOptions
from forge_grammar.program import Program, RootKind, decode, encode
from forge_grammar.structural import structural_tag


@cache
def machine() -> Any:
    """The module with `Vocabulary`, `Grammar`, `Matcher` and `fill_batch`: the native one, or its twin in Python."""
    native = extension()
    if native is not None:
        return native
    from forge_grammar import machine as twin

    return twin


class GrammarConstraint(interface.Constraint):
    """JSON Schema, regular expressions, choices, and JSON after triggers in free text. Thread-safe."""

    def __init__(self, options: GrammarOptions) -> None:
        self.options = options
        self._vocabulary: tuple[Vocabulary, Any] | None = None
        self._grammars: OrderedDict[bytes, CompiledGrammar] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def lower(self, kind: str, spec: object, *, strict: bool = False) -> bytes:
        from forge_grammar.regular import Limits, limited

        try:
            with limited(Limits(self.options.max_states, self.options.max_work)):
                return self._lowered(kind, spec, strict)
        except RecursionError as error:
            raise InvalidRequest("it is nested too deeply") from error

    def _lowered(self, kind: str, spec: object, strict: bool) -> bytes:
        match kind:
            case "json_object":
                return encode(self._schema({"type": "object"}, strict))
            case "json_schema":
                return encode(self._schema(spec, strict))
            case "regex":
                return encode(self._regex(spec))
            case "choice":
                return encode(self._choice(spec))
            case "structural_tag":
                return encode(structural_tag(spec, lambda schema: self._schema(schema, strict)))
            case _:
                raise InvalidRequest(f"this server has no constraints of the kind {kind!r}")

    def compile(self, lowered: bytes, vocabulary: Vocabulary) -> CompiledGrammar:
        with self._lock:
            found = self._grammars.get(lowered)
            if found is not None:
                self._grammars.move_to_end(lowered)
                return found
            flat = decode(lowered)
            words = self._prepared(vocabulary)
            grammar = CompiledGrammar(machine().Grammar(words, flat.languages, flat.texts, flat.words))
            self._remember(lowered, grammar)
            return grammar

    def fill(self, matchers: Sequence[interface.Matcher], rows: npt.NDArray[np.int32]) -> None:
        machine().fill_batch([matcher.core for matcher in matchers if isinstance(matcher, GrammarMatcher)], rows)

    def _prepared(self, vocabulary: Vocabulary) -> Any:
        """The machine's own form of the vocabulary, made once."""
        if self._vocabulary is None or self._vocabulary[0] is not vocabulary:
            core = machine().Vocabulary(
                list(vocabulary.token_bytes),
                sorted(vocabulary.special),
                list(vocabulary.eos),
                vocabulary.size,
                self.options.cache_bytes,
            )
            self._vocabulary = (vocabulary, core)
            self._grammars.clear()
            self._bytes = 0
        return self._vocabulary[1]

    def _remember(self, lowered: bytes, grammar: CompiledGrammar) -> None:
        self._grammars[lowered] = grammar
        self._bytes += len(lowered) + grammar.nbytes
        while self._bytes > self.options.cache_bytes and len(self._grammars) > 1:
            key, oldest = self._grammars.popitem(last=False)
            self._bytes -= len(key) + oldest.nbytes

    def _schema(self, schema: object, strict: bool) -> Program:
        from forge_grammar.schema import lower

        size = _json_size(schema)
        if size > self.options.max_schema_bytes:
            raise InvalidRequest(
                f"the schema has {size} bytes; constraint.options.max_schema_bytes is {self.options.max_schema_bytes}"
            )
        program = lower(schema, self.options.resolved(strict))
        shape = uncertain(program)
        if shape is not None:
            raise InvalidRequest(
                f"uniqueItems: with minItems {shape.minimum} it can't be made sure that distinct items are left",
                param=_place_of_unique_items(schema),
            )
        return program

    def _regex(self, pattern: object) -> Program:
        from forge_grammar.regular import Language, LimitExceeded, RegexError

        if not isinstance(pattern, str):
            raise InvalidRequest("a regular expression must be a text")
        try:
            language = Language.regex(pattern, whole=True)
        except RegexError as error:
            raise InvalidRequest(f"the regular expression can't be used: {error}") from error
        except LimitExceeded as error:
            raise InvalidRequest(f"the regular expression is too large: {error}") from error
        return self._text(language, "no text matches the regular expression")

    def _choice(self, choices: object) -> Program:
        from forge_grammar.regular import Language, LimitExceeded

        if not isinstance(choices, list) or not choices or not all(isinstance(text, str) for text in choices):
            raise InvalidRequest("a choice must be a list of one or more texts")
        try:
            return self._text(Language.literals(choices), "there is nothing to choose from")
        except LimitExceeded as error:
            raise InvalidRequest(f"the choices are too many: {error}") from error

    def _text(self, language: Any, empty: str) -> Program:
        if language.is_empty:
            raise InvalidRequest(empty)
        return Program(RootKind.TEXT, 0, languages=[language.to_bytes()])


def _place_of_unique_items(schema: object) -> str:
    """The JSON pointer of the schema's `uniqueItems`; that of the whole schema where there are several."""
    found = []
    pending = [(schema, "")]
    while pending:
        node, at = pending.pop()
        if isinstance(node, dict):
            if node.get("uniqueItems") is True:
                found.append(f"{at}/uniqueItems")
            steps = [(str(key).replace("~", "~0").replace("/", "~1"), value) for key, value in node.items()]
        else:
            steps = [(str(i), value) for i, value in enumerate(node)] if isinstance(node, list) else []
        pending += [(value, f"{at}/{step}") for step, value in steps]
    return found[0] if len(found) == 1 else ""


def _json_size(value: object) -> int:
    """The bytes of a value as compact JSON."""
    try:
        return len(msgspec.json.encode(value))
    except (UnicodeEncodeError, OverflowError):  # lone surrogates, long integers
        return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="surrogatepass"))


class CompiledGrammar(interface.Grammar):
    """A grammar over one vocabulary. nbytes: of memory."""

    def __init__(self, core: Any) -> None:
        self._core = core
        self.nbytes = int(core.nbytes)

    def matcher(self) -> GrammarMatcher:
        return GrammarMatcher(self._core.matcher())


class GrammarMatcher(interface.Matcher):
    """The machine's matcher behind the interface."""

    def __init__(self, core: Any) -> None:
        self.core = core

    def fill(self, row: MaskRow) -> None:
        self.core.fill(row)

    def accept(self, token: int) -> bool:
        return bool(self.core.accept(token))

    def validate(self, tokens: Sequence[int]) -> int:
        return int(self.core.validate(list(tokens)))

    def rollback(self, tokens: int) -> None:
        self.core.rollback(tokens)

    def forced(self) -> bytes:
        return bytes(self.core.forced())

    @property
    def is_final(self) -> bool:
        return bool(self.core.is_final)
