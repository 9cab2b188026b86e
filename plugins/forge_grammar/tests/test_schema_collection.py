"""Lowering and Python's garbage collection: left as it was found, and with nothing to collect."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from forge_grammar.options import GrammarOptions
from forge_grammar.schema import SchemaError, lower
from forge_grammar.schema.build import Builder
from forge_grammar.schema.collection import collection_paused

SCHEMA = {"type": "object", "properties": {"a": {"$ref": "#"}, "b": {"oneOf": [{"type": "string"}, {"minimum": 2}]}}}


@pytest.fixture(autouse=True)
def collection() -> Iterator[None]:
    enabled = gc.isenabled()
    yield
    (gc.enable if enabled else gc.disable)()


@pytest.mark.parametrize("enabled", [True, False])
def test_collection_is_as_before_afterwards(enabled: bool) -> None:
    (gc.enable if enabled else gc.disable)()
    lower(SCHEMA, GrammarOptions())
    assert gc.isenabled() == enabled
    with pytest.raises(SchemaError):
        lower({"type": "nothing"}, GrammarOptions())
    assert gc.isenabled() == enabled


def test_the_last_of_several_that_overlap_restores_it() -> None:
    gc.enable()
    first, second = collection_paused(), collection_paused()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not gc.isenabled()
    second.__exit__(None, None, None)
    assert gc.isenabled()


def test_what_lowering_made_goes_without_collection() -> None:
    gc.collect()
    gc.disable()
    lower(SCHEMA, GrammarOptions())
    assert not [each for each in gc.get_objects() if type(each) is Builder and vars(each)]
    assert gc.collect() < 100
