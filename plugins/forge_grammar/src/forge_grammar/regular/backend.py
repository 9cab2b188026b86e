"""The implementations of automata, the extension's and the pure-Python one: same results bit for bit."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from types import ModuleType
from typing import Any

from attrs import frozen

from forge_grammar.native import extension
from forge_grammar.regular import automaton, determinize
from forge_grammar.regular.dfa import Dfa
from forge_grammar.regular.limits import Limits
from forge_grammar.regular.nfa import Nfa


@frozen
class Backend:
    """What makes and combines automata: functions of `regular.automaton`; `determinize` of an NFA and what stands
    before its text.
    """

    dfa: Any
    everything: Callable[[], Any]
    empty: Callable[[], Any]
    product: Callable[[Any, Any, str, Limits], Any]
    literals: Callable[[list[str], Limits], Any]
    from_table: Callable[..., Any]
    determinize: Callable[[Nfa, int, Limits], Any]


def python_backend() -> Backend:
    """In pure Python."""
    each = automaton
    return Backend(
        Dfa, each.everything, each.empty, each.product, each.literals, each.from_table, determinize.determinize
    )


def native_backend(native: ModuleType) -> Backend:
    """The extension's."""

    def product(a: Any, b: Any, operation: str, limits: Limits) -> Any:
        return native.product(a, b, operation, limits.states, limits.work)

    def literals(texts: list[str], limits: Limits) -> Any:
        return native.literals(texts, limits.states, limits.work)

    def determinize_nfa(nfa: Nfa, before: int, limits: Limits) -> Any:
        prepared = determinize.prepare(nfa)
        alphabet = prepared.alphabet
        rows = array("i", [value for row in nfa.rows for value in row]).tobytes()
        return native.determinize_prepared(
            rows, nfa.start, before, alphabet.bounds, alphabet.range_class, alphabet.classes,
            prepared.members, prepared.kind, prepared.looks, prepared.look_class,
            limits.states, limits.work,
        )  # fmt: skip

    return Backend(native.Dfa, native.everything, native.empty, product, literals, native.from_table, determinize_nfa)


def chosen() -> Backend:
    """The extension's where it can be loaded."""
    native = extension()
    return python_backend() if native is None else native_backend(native)
