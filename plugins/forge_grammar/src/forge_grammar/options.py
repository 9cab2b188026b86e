"""Options of the `grammar` constraint; imports nothing heavy."""

from __future__ import annotations

from typing import Literal

from attrs import evolve, field, frozen
from attrs.validators import ge, gt


@frozen
class GrammarOptions:
    """Options of structured output.

    key_order: of an object's keys: "schema" (as the schema declares them, then others), "any", or "strict": the first
    for requests that say `strict`, as OpenAI documents it, the second for all others. whitespace: blanks that may
    stand between two tokens of JSON, beside one line break; 0 for no white space at all. unknown_formats: a `format`
    that JSON Schema doesn't define is taken as the "annotation" that it is by the specification, or refused. The rest
    bounds the work of one schema, regex or choice; what needs more is refused. max_schema_bytes: of the schema as
    compact JSON; max_nodes: objects in it; max_steps: of working out its Boolean parts; max_alternatives: shapes of one
    kind of values at one place; max_states: of one automaton before it is made minimal; max_work: steps of building one
    automaton; max_seconds: of lowering. cache_bytes: of compiled grammars and masks.
    """

    key_order: Literal["strict", "schema", "any"] = "strict"
    whitespace: int = field(default=16, validator=ge(0))
    unknown_formats: Literal["refuse", "annotation"] = "annotation"
    max_schema_bytes: int = field(default=1 << 20, validator=gt(0))
    max_nodes: int = field(default=50_000, validator=gt(0))
    max_steps: int = field(default=400_000, validator=gt(0))
    max_alternatives: int = field(default=256, validator=gt(0))
    max_states: int = field(default=64_000, validator=gt(0))
    max_work: int = field(default=30_000_000, validator=gt(0))
    max_seconds: float = field(default=2.0, validator=gt(0))
    cache_bytes: int = field(default=64 << 20, validator=gt(0))

    def resolved(self, strict: bool) -> GrammarOptions:
        """The options of one request, with its `key_order` settled. strict: whether the request says so."""
        return evolve(self, key_order="schema" if strict else "any") if self.key_order == "strict" else self
