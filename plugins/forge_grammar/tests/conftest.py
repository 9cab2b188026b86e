"""What tests of the schema front end share: lowering, matching whole documents, python-jsonschema as the judge."""

from __future__ import annotations

import json
from typing import Any

import pytest
from forge_grammar import _native
from forge_grammar.machine.grammar import Program as Machine
from forge_grammar.machine.machine import Configuration
from forge_grammar.options import GrammarOptions
from forge_grammar.program import flatten
from forge_grammar.schema import lower
from jsonschema.protocols import Validator
from jsonschema.validators import Draft202012Validator, validator_for


class Oracle:
    """Schemas by way of the machine, and by way of python-jsonschema."""

    any_order = GrammarOptions(key_order="any")

    def __init__(self) -> None:
        self._bytes = _native.Vocabulary([bytes([byte]) for byte in range(256)], [], [], 256, 1 << 20)

    def machine(self, schema: object, options: GrammarOptions = any_order) -> Machine:
        """The machine of a schema, which the compiled one takes too."""
        flat = flatten(lower(schema, options))
        _native.Grammar(self._bytes, flat.languages, flat.texts, flat.words)
        return Machine(flat.languages, flat.texts, flat.words)

    def accepts(self, program: Machine, document: object) -> bool:
        """Whether a document's text, as `json.dumps` writes it, is a whole output of a machine."""
        after = Configuration.start(program).run(json.dumps(document, ensure_ascii=False).encode())
        return after is not None and after.is_final

    def judge(self, schema: Any) -> Validator:
        """python-jsonschema's validator for the draft that a schema names."""
        cls = validator_for(schema, default=Draft202012Validator)
        return cls(schema, format_checker=cls.FORMAT_CHECKER)

    def check(self, schema: Any, documents: list[Any], options: GrammarOptions = any_order) -> tuple[int, int]:
        """Assert that machine and judge agree on every document; how many are valid, how many aren't."""
        program, validator = self.machine(schema, options), self.judge(schema)
        expected = [validator.is_valid(document) for document in documents]
        for document, valid in zip(documents, expected):
            accepted = self.accepts(program, document)
            assert accepted == valid, f"{json.dumps(schema)} on {json.dumps(document)}: valid is {valid}"
        return sum(expected), len(expected) - sum(expected)


@pytest.fixture(scope="session")
def oracle() -> Oracle:
    """Schemas by way of the machine, and by way of python-jsonschema."""
    return Oracle()
