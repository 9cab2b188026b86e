"""A JSON Schema as a program."""

from __future__ import annotations

from forge_grammar.options import GrammarOptions
from forge_grammar.program import NONE, Program, RootKind
from forge_grammar.regular import LimitExceeded
from forge_grammar.schema.algebra import Algebra
from forge_grammar.schema.build import Builder
from forge_grammar.schema.document import Document
from forge_grammar.schema.errors import SchemaError, limit_reached
from forge_grammar.schema.inhabited import without_empty


def lower(schema: object, options: GrammarOptions) -> Program:
    """The program that accepts exactly the values of a decoded schema (within the lexical limits).

    Errors: `SchemaError` where that can't be, with pointer, keyword and reason; also where no value matches at all, and
    where a limit of `options` is reached.
    """
    document = Document(schema, options.max_nodes)
    algebra = Algebra(document, options)
    builder = Builder(algebra)
    try:
        root = builder.build(algebra.yes(document.root))
    except LimitExceeded as error:
        raise limit_reached("", "", error.name, error.limit) from error
    types, arrays, objects, full = without_empty(builder.types, builder.arrays, builder.objects)
    if root == NONE or not full[root]:
        raise SchemaError("", "", "no value can satisfy this schema")
    return Program(
        root_kind=RootKind.JSON,
        root=root,
        types=types,
        arrays=arrays,
        objects=objects,
        languages=[language.to_bytes() for language in builder.languages],
        any_key_order=options.key_order == "any",
        whitespace=options.whitespace,
    )
