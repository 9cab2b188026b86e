"""The implementation of automata that this installation has: the extension's, or the pure-Python one."""

from __future__ import annotations

from forge_grammar.regular import automaton
from forge_grammar.regular.determinize import determinize
from forge_grammar.regular.dfa import Dfa

complement = automaton.complement
empty = automaton.empty
everything = automaton.everything
from_table = automaton.from_table
literals = automaton.literals
product = automaton.product

__all__ = ["Dfa", "complement", "determinize", "empty", "everything", "from_table", "literals", "product"]
