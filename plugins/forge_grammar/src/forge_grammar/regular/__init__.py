"""Regular languages over code points: regular expressions, set operations, canonical minimal automata.

Knows nothing of JSON. The extension computes them where it is there; results are the same bit for bit.
"""

from forge_grammar.regular.errors import LimitExceeded, RegexError
from forge_grammar.regular.language import INFINITE, Language
from forge_grammar.regular.limits import Limits, limited

__all__ = ["INFINITE", "Language", "LimitExceeded", "Limits", "RegexError", "limited"]
