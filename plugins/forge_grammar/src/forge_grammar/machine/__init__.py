"""The machine in plain Python: the reference for the compiled one, and its stand-in where that isn't installed."""

from forge_grammar.machine.machine import accepts_text, viable_prefix
from forge_grammar.machine.matcher import Grammar, Matcher, fill_batch
from forge_grammar.machine.vocabulary import Vocabulary

__all__ = ["Grammar", "Matcher", "Vocabulary", "accepts_text", "fill_batch", "viable_prefix"]
