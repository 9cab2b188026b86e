"""Refusals of the schema front end: where, which keyword, and why."""

from __future__ import annotations

from forge.errors import InvalidRequest


class SchemaError(InvalidRequest):
    """A schema that can't be enforced exactly. pointer: JSON pointer of the subschema; keyword: "" for all of it."""

    def __init__(self, pointer: str, keyword: str, reason: str) -> None:
        place = pointer or "the root"
        message = f"schema at {place}: {f'`{keyword}`: ' if keyword else ''}{reason}"
        super().__init__(message, param=f"{pointer}/{keyword}" if keyword else pointer)
        self.pointer = pointer
        self.keyword = keyword
        self.reason = reason


def limit_reached(pointer: str, keyword: str, option: str, limit: float) -> SchemaError:
    """The refusal of a schema that needs more than an option allows."""
    return SchemaError(pointer, keyword, f"needs more than constraint.options.{option} = {limit} allows")
