"""Structural tags: free text in which triggers begin texts with a JSON value of a schema in them, as one program."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from attrs import evolve

from forge.errors import InvalidRequest
from forge_grammar.program import NONE, ArrayShape, ObjectShape, Program, RootKind, Trigger, TypeNode

_KEYS = ("structures", "triggers")
_STRUCTURE_KEYS = ("begin", "schema", "end")


def structural_tag(spec: object, lower: Callable[[object], Program]) -> Program:
    """The program of ``{"structures": [{"begin", "schema", "end"}...], "triggers": [text...]}``.

    Where the text comes to one of the triggers, a structure that begins so must follow: all of its `begin`, a value of
    its schema, its `end`; then free text again. lower: of a schema. Errors: `InvalidRequest` with the place.
    """
    structures, triggers = _checked(spec)
    parts = []
    for at, structure in enumerate(structures):
        try:
            parts.append(lower(structure["schema"]))
        except InvalidRequest as error:
            place = f"/structures/{at}/schema{error.param or ''}"
            raise InvalidRequest(error.message, param=place) from error
    # The trigger that comes first in a text is the one that acts.
    first = [min((t for t in triggers if s["begin"].startswith(t)), key=len) for s in structures]
    return _joined(parts, [Trigger(s["begin"], 0, s["end"], t) for s, t in zip(structures, first)])


def _checked(spec: object) -> tuple[list[Mapping[str, Any]], list[str]]:
    """The structures and triggers, if they are what they should be."""
    if not isinstance(spec, dict):
        raise InvalidRequest("a structural tag must be an object with structures and triggers")
    _only(spec, ("type", *_KEYS), "")
    if spec.get("type", "structural_tag") != "structural_tag":
        raise InvalidRequest("the type must be structural_tag", param="/type")
    for key in _KEYS:
        if not isinstance(spec.get(key), list) or not spec[key]:
            raise InvalidRequest(f"{key} must be a list of one or more", param=f"/{key}")
    structures, triggers = spec["structures"], spec["triggers"]
    for at, trigger in enumerate(triggers):
        if not isinstance(trigger, str) or not trigger:
            raise InvalidRequest("a trigger must be a text, and not empty", param=f"/triggers/{at}")
    for at, structure in enumerate(structures):
        _check_structure(structure, triggers, f"/structures/{at}")
    for at, trigger in enumerate(triggers):
        if not any(structure["begin"].startswith(trigger) for structure in structures):
            raise InvalidRequest("no structure begins with this trigger", param=f"/triggers/{at}")
    for at, structure in enumerate(structures):
        for other in structures[:at] + structures[at + 1 :]:
            if other["begin"].startswith(structure["begin"]):
                raise InvalidRequest("another structure begins with all of this text", param=f"/structures/{at}/begin")
    return structures, triggers


def _check_structure(structure: object, triggers: list[str], place: str) -> None:
    if not isinstance(structure, dict):
        raise InvalidRequest("a structure must be an object with begin, schema and end", param=place)
    _only(structure, _STRUCTURE_KEYS, place)
    for key in _STRUCTURE_KEYS:
        if key not in structure:
            raise InvalidRequest(f"a structure must have {key}", param=place)
    for key in ("begin", "end"):
        if not isinstance(structure[key], str):
            raise InvalidRequest(f"{key} must be a text", param=f"{place}/{key}")
    if not any(structure["begin"].startswith(trigger) for trigger in triggers):
        raise InvalidRequest("begin must start with one of the triggers", param=f"{place}/begin")


def _only(given: Mapping[str, Any], known: Iterable[str], place: str) -> None:
    unknown = sorted(str(key) for key in given if key not in known)
    if unknown:
        step = unknown[0].replace("~", "~0").replace("/", "~1")
        raise InvalidRequest(f"{unknown[0]!r} is none of {', '.join(known)}", param=f"{place}/{step}")


def _joined(parts: list[Program], triggers: list[Trigger]) -> Program:
    """One program of several; each trigger's type is the root of its part."""
    types: list[TypeNode] = []
    arrays: list[ArrayShape] = []
    objects: list[ObjectShape] = []
    languages: list[bytes] = []
    placed = []
    for part, trigger in zip(parts, triggers):
        shift = _Shift(len(types), len(arrays), len(objects), len(languages))
        placed.append(evolve(trigger, type=part.root + shift.types))
        types += map(shift.type, part.types)
        arrays += map(shift.array, part.arrays)
        objects += map(shift.object, part.objects)
        languages += part.languages
    return Program(
        RootKind.TRIGGERS, NONE, types, arrays, objects, languages, placed, parts[0].any_key_order, parts[0].whitespace
    )


class _Shift:
    """Adds to the ids of a program what it takes to stand behind others."""

    def __init__(self, types: int, arrays: int, objects: int, languages: int) -> None:
        self.types, self.arrays, self.objects, self.languages = types, arrays, objects, languages

    def _id(self, type_id: int) -> int:
        return type_id if type_id == NONE else type_id + self.types

    def _ids(self, type_ids: Iterable[int]) -> tuple[int, ...]:
        return tuple(map(self._id, type_ids))

    def type(self, node: TypeNode) -> TypeNode:
        return evolve(
            node,
            strings=tuple(evolve(term, language=term.language + self.languages) for term in node.strings),
            numbers=tuple(at + self.languages for at in node.numbers),
            arrays=tuple(at + self.arrays for at in node.arrays),
            objects=tuple(at + self.objects for at in node.objects),
        )

    def array(self, shape: ArrayShape) -> ArrayShape:
        contains = tuple(evolve(c, both=self._ids(c.both), neither=self._ids(c.neither)) for c in shape.contains)
        return evolve(shape, prefix=self._ids(shape.prefix), rest=self._id(shape.rest), contains=contains)

    def object(self, shape: ObjectShape) -> ObjectShape:
        return evolve(
            shape,
            properties=tuple(evolve(prop, type=self._id(prop.type)) for prop in shape.properties),
            classes=tuple(
                evolve(c, language=c.language + self.languages, type=self._id(c.type)) for c in shape.classes
            ),
        )
