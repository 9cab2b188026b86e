"""A JSON Schema as a program."""

from __future__ import annotations

from collections.abc import Sequence

from forge_grammar.options import GrammarOptions
from forge_grammar.program import ObjectShape, Program, RootKind, TypeNode
from forge_grammar.schema.algebra import Algebra
from forge_grammar.schema.build import Builder
from forge_grammar.schema.collection import collection_paused
from forge_grammar.schema.document import Document
from forge_grammar.schema.errors import SchemaError
from forge_grammar.schema.inhabited import without_empty


def lower(schema: object, options: GrammarOptions) -> Program:
    """The program that accepts exactly the values of a decoded schema (within the lexical limits).

    Errors: `SchemaError` where that can't be, with pointer, keyword and reason; also where no value matches at all, and
    where a limit of `options` is reached.
    """
    with collection_paused():
        return _lower(schema, options)


def _lower(schema: object, options: GrammarOptions) -> Program:
    document = Document(schema, options.max_nodes)
    algebra = Algebra(document, options)
    builder = Builder(algebra)
    try:
        return _program(builder, builder.build(algebra.yes(document.root)), options)
    except RecursionError:
        raise SchemaError("", "", "its `allOf`, `anyOf`, `not` and the like are nested too deeply") from None
    finally:  # they refer to each other, and should go without the garbage collection
        vars(builder).clear()
        vars(algebra).clear()


def _program(builder: Builder, root: int, options: GrammarOptions) -> Program:
    types, arrays, objects, full = without_empty(builder.types, builder.arrays, builder.objects)
    if not full[root]:
        raise SchemaError("", "", "no value can satisfy this schema")
    _check_texts(types, objects)
    return Program(
        root_kind=RootKind.JSON,
        root=root,
        types=types,
        arrays=arrays,
        objects=objects,
        languages=[language.to_bytes() for language in builder.languages],
        any_key_order=options.key_order != "schema",
        whitespace=options.whitespace,
    )


def _check_texts(types: Sequence[TypeNode], objects: Sequence[ObjectShape]) -> None:
    """Refuse what can't be written as UTF-8."""
    texts = [text for node in types for text in node.literals]
    texts += [prop.name for shape in objects for prop in shape.properties]
    texts += [text for node in types for term in node.strings for text in term.excluded]
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise SchemaError("", "", "a value or a property's name has a lone surrogate, which isn't text") from None
