"""Constraints: which tokens may follow, by a grammar. Lowered in a worker, compiled and matched in the engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence as Seq

import numpy as np
import numpy.typing as npt
from attrs import frozen

MaskRow = npt.NDArray[np.int32]
"""One bit a vocabulary entry, least significant first: int32 ``[ceil(vocabulary / 32)]``; 1 means allowed."""


@frozen
class Vocabulary:
    """What a grammar needs to know of a tokenizer.

    token_bytes: the bytes each id stands for, empty for special tokens. special: ids that are never part of the text.
    eos: ids that end a sequence. size: how many ids the model has; masks have a bit for each, and those beyond the
    tokenizer's are never allowed.
    """

    token_bytes: tuple[bytes, ...]
    special: frozenset[int]
    eos: tuple[int, ...]
    size: int


class Matcher(ABC):
    """Where one sequence stands in its grammar."""

    @abstractmethod
    def fill(self, row: MaskRow) -> None:
        """Overwrite `row` with the tokens allowed next (end of sequence included where the value may end)."""

    @abstractmethod
    def accept(self, token: int) -> bool:
        """Advance by one token; False (and no change) if the grammar forbids it."""

    @abstractmethod
    def validate(self, tokens: Seq[int]) -> int:
        """How many of these tokens could be accepted in order; the state is unchanged."""

    @abstractmethod
    def rollback(self, tokens: int) -> None:
        """Take back the last so many accepted tokens, exactly."""

    def forced(self) -> bytes:
        """The text that must follow whatever is sampled; empty when there's a choice."""
        return b""

    @property
    @abstractmethod
    def is_final(self) -> bool:
        """Whether the sequence may end here."""


class Grammar(ABC):
    """A compiled constraint, shared by all requests that use it."""

    @abstractmethod
    def matcher(self) -> Matcher:
        """A new matcher at the start of the grammar."""


class Constraint(ABC):
    """A kind of grammar. The factory is called with no argument, or with ``options=`` where the component has some."""

    @abstractmethod
    def lower(self, kind: str, spec: object, *, strict: bool = False) -> bytes:
        """Check a specification and make it compact.

        kind: ``"json_schema"`` (the schema), ``"json_object"`` (None), ``"regex"`` (a pattern that the whole answer
        matches), ``"choice"`` (a list of texts), ``"structural_tag"`` (free text in which triggers begin JSON:
        ``{"structures": [{"begin": text, "schema": schema, "end": text}, ...], "triggers": [text, ...]}``). strict:
        the request asked for OpenAI's strict mode, whose answers have their keys in the schema's order; every schema
        is enforced or refused either way. Called in worker threads of the server process, never in the engine.
        Errors: `InvalidRequest` whose `param` is the place within the specification, as a JSON pointer.
        """

    @abstractmethod
    def compile(self, lowered: bytes, vocabulary: Vocabulary) -> Grammar:
        """Turn the compact form into a grammar over this vocabulary (engine side; quick, cached by the constraint)."""

    def fill(self, matchers: Seq[Matcher], rows: npt.NDArray[np.int32]) -> None:
        """`Matcher.fill` for a batch: int32 ``[len(matchers), words]``, C-contiguous. Override it to need one call."""
        for matcher, row in zip(matchers, rows):
            matcher.fill(row)
