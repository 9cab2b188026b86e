"""JSON Schema, drafts 4 to 2020-12, as programs: enforced exactly, or refused with pointer, keyword and reason."""

from forge_grammar.schema.errors import SchemaError
from forge_grammar.schema.lower import lower

__all__ = ["SchemaError", "lower"]
