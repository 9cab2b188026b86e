"""The schema document: its size, the base URI and draft of each subschema, and what references point at.

Subschemas are known by their identity as Python objects; their JSON pointers are found only when something is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias
from urllib.parse import unquote, urldefrag, urljoin

from attrs import define, field

from forge_grammar.schema.drafts import LISTS, MAPS, ONE, URIS, Draft
from forge_grammar.schema.errors import SchemaError, limit_reached

Schema: TypeAlias = dict[str, Any] | bool

_NAMING = frozenset({"$id", "id", "$anchor", "$dynamicAnchor", "$recursiveAnchor"})
_SPECIAL = _NAMING | {"unevaluatedProperties", "unevaluatedItems"}


@define(eq=False)
class Resource:
    """A schema with a base URI of its own, and the names inside it."""

    root: Schema
    uri: str
    draft: Draft
    anchors: dict[str, Schema] = field(factory=dict)
    dynamic: set[str] = field(factory=set)


class Document:
    """A whole schema. Errors of all methods: `SchemaError`."""

    def __init__(self, root: object, max_nodes: int) -> None:
        if not isinstance(root, (dict, bool)):
            raise SchemaError("", "", "a schema must be an object or a boolean")
        self.root: Schema = root
        names, self.unevaluated = _special(root, max_nodes)
        draft = self._draft(root, Draft.D2020)
        self.main = Resource(root, _identifier(root, draft) or "", draft)
        self._resources = {self.main.uri.rstrip("#"): self.main}
        self._of: dict[int, Resource] = {}
        self._targets: dict[tuple[str, str], Schema] = {}
        if names:
            self._index()

    def resource(self, schema: Schema) -> Resource:
        """The resource that a subschema belongs to."""
        return self._of.get(id(schema), self.main)

    def refer(self, schema: dict[str, Any], keyword: str) -> Schema:
        """What the reference in `schema` points at."""
        reference = schema[keyword]
        if not isinstance(reference, str):
            raise self.error(schema, keyword, "must be a string")
        home = self.resource(schema)
        known = self._targets.get((home.uri, reference))
        if known is None:
            known = self._targets[home.uri, reference] = self._refer(schema, keyword, reference, home)
        return known

    def _refer(self, schema: dict[str, Any], keyword: str, reference: str, home: Resource) -> Schema:
        address, fragment = ("", reference[1:]) if reference.startswith("#") else urldefrag(reference)
        target = home if not address else self._resources.get(urljoin(home.uri, address).rstrip("#"))
        if target is None:
            raise self.error(schema, keyword, f"refers to {reference!r}, which isn't in this schema; nothing is fetched")
        found = self._inside(target, unquote(fragment))
        if not isinstance(found, (dict, bool)):
            raise self.error(schema, keyword, f"refers to {reference!r}, where there is no schema")
        return found

    def dynamic(self, schema: dict[str, Any], keyword: str) -> Schema:
        """The target of `$dynamicRef` or `$recursiveRef`, where it can't depend on the path to the reference."""
        target = self.refer(schema, keyword)
        name = "" if keyword == "$recursiveRef" else urldefrag(schema[keyword])[1]
        if sum(name in resource.dynamic for resource in self._resources.values()) > 1:
            raise self.error(schema, keyword, "its target depends on the path to it, which isn't supported")
        return target

    def error(self, schema: object, keyword: str, reason: str) -> SchemaError:
        """The refusal of a keyword of a subschema."""
        return SchemaError(self.pointer(schema), keyword, reason)

    def pointer(self, schema: object) -> str:
        """The JSON pointer of a subschema; "" too for one that isn't of the document."""
        trail: list[tuple[object, str]] = [(self.root, "")]
        while trail:
            value, pointer = trail.pop()
            if value is schema and pointer:
                return pointer
            if isinstance(value, dict):
                trail += [(v, f"{pointer}/{_escape(k)}") for k, v in reversed(value.items())]
            elif isinstance(value, list):
                trail += [(v, f"{pointer}/{i}") for i, v in reversed(list(enumerate(value)))]
        return ""

    def _draft(self, schema: Schema, inherited: Draft) -> Draft:
        if isinstance(schema, bool) or "$schema" not in schema:
            return inherited
        uri = schema["$schema"]
        if not isinstance(uri, str):
            raise SchemaError("", "$schema", "must be a string")
        plain = uri.rstrip("#").rstrip("/")
        known = URIS.get(plain) or URIS.get(plain.replace("https://", "http://")) or URIS.get(plain.replace("http://", "https://"))
        if known is None and "json-schema.org/draft-0" in plain:
            raise SchemaError("", "$schema", f"{uri!r} isn't a supported draft (4, 6, 7, 2019-09, 2020-12)")
        return known or inherited

    def _inside(self, target: Resource, fragment: str) -> object:
        if not fragment:
            return target.root
        if not fragment.startswith("/"):
            return target.anchors.get(fragment)
        value: object = target.root
        for part in fragment[1:].split("/"):
            part = part.replace("~1", "/").replace("~0", "~")
            if isinstance(value, dict):
                value = value.get(part)
            elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
                value = value[int(part)]
            else:
                return None
        return value

    def _index(self) -> None:
        """Give every subschema its resource, and every resource its anchors."""
        trail: list[tuple[Schema, Resource]] = [(self.root, self.main)]
        while trail:
            schema, home = trail.pop()
            if isinstance(schema, bool) or id(schema) in self._of:
                continue
            draft = self._draft(schema, home.draft)
            if schema is not self.root and (identifier := _identifier(schema, draft)):
                if identifier.startswith("#"):
                    home.anchors[identifier[1:]] = schema
                else:
                    home = Resource(schema, urljoin(home.uri, identifier), draft)
                    self._resources.setdefault(home.uri.rstrip("#"), home)
            self._of[id(schema)] = home
            for keyword in ("$anchor", "$dynamicAnchor"):
                if isinstance(name := schema.get(keyword), str) and draft >= Draft.D2019:
                    home.anchors[name] = schema
            if isinstance(name := schema.get("$dynamicAnchor"), str):
                home.dynamic.add(name)
            if schema.get("$recursiveAnchor") is True:
                home.dynamic.add("")
            trail += [(child, home) for child in subschemas(schema)]


def subschemas(schema: dict[str, Any]) -> Iterator[Schema]:
    """The schemas that are directly inside one."""
    for keyword, value in schema.items():
        inside: list[Any] = []
        if keyword in MAPS and isinstance(value, dict):
            inside = list(value.values())
        elif keyword in LISTS and isinstance(value, list):
            inside = value
        elif keyword in ONE:
            inside = [value]
        for child in inside:
            if isinstance(child, (dict, bool)):
                yield child


def _identifier(schema: Schema, draft: Draft) -> str | None:
    """The `$id` of a schema; None where it has none or (up to draft 7) a `$ref` hides it."""
    if isinstance(schema, bool) or ("$ref" in schema and draft <= Draft.D7):
        return None
    identifier = schema.get("id" if draft is Draft.D4 else "$id")
    return identifier if isinstance(identifier, str) else None


def _special(root: Schema, max_nodes: int) -> tuple[bool, bool]:
    """Whether some object but the root may be a named schema, and whether one has unevaluated keywords. Counts the
    objects on the way."""
    if isinstance(root, bool):
        return False, False
    named = not _NAMING.isdisjoint(root.keys() - {"$id", "id"})
    unevaluated = False
    budget = max_nodes
    trail: list[Any] = [root]
    pop = trail.pop
    push = trail.append
    while trail:
        value = pop()
        if type(value) is dict:
            budget -= 1
            if not _SPECIAL.isdisjoint(value):
                named = named or (value is not root and not _NAMING.isdisjoint(value))
                unevaluated = unevaluated or "unevaluatedProperties" in value or "unevaluatedItems" in value
            for child in value.values():
                if type(child) is dict or type(child) is list:
                    push(child)
        else:
            for child in value:
                if type(child) is dict or type(child) is list:
                    push(child)
        if budget < 0:
            raise limit_reached("", "", "max_nodes", max_nodes)
    return named, unevaluated


def _escape(part: str) -> str:
    return part.replace("~", "~0").replace("/", "~1")
