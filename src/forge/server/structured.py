"""Structured output on the server's side: from a request's fields to a specification, and to the engine's bytes.

A request has at most one constraint, wherever it says so. Specifications are lowered in threads of their own, once.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

from attrs import field, frozen

from forge.errors import InvalidRequest
from forge.interfaces.constraint import Constraint

if TYPE_CHECKING:
    from forge.server.openai import GenerationFields

THREADS = 2
"""So many specifications are lowered at once; others wait for their turn."""

CACHE_BYTES = 64 << 20
"""Of specifications and what they became."""


# ---------------------------------------------------------------------------------------------------------- wire types


@frozen
class JsonSchemaFormat:
    """A named schema, always enforced or refused. strict: keys come in the schema's order, too."""

    schema: Any
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


def _belongs_to(kind: str) -> Any:
    def check(form: ResponseFormat, attribute: Any, value: object) -> None:
        if (value is not None) != (form.type == kind):
            raise ValueError(f"'{attribute.name}' belongs to the type \"{kind}\", and only to it")

    return check


@frozen
class ResponseFormat:
    """OpenAI's way to ask for JSON, and vLLM's to ask for JSON within a text."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchemaFormat | None = field(default=None, validator=_belongs_to("json_schema"))
    structures: Any = field(default=None, validator=_belongs_to("structural_tag"))
    triggers: Any = field(default=None, validator=_belongs_to("structural_tag"))


@frozen(kw_only=True)
class StructuredOutputs:
    """vLLM's way to ask for a constraint. json, structural_tag: as JSON, or the text of it."""

    json: Any = None
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    structural_tag: Any = None


@frozen
class Specification:
    """What an answer must follow: what `Constraint.lower` takes. where: the field that asked."""

    kind: str
    content: Any
    where: str
    strict: bool = False


def specification(wire: GenerationFields) -> Specification | None:
    """The constraint of a request, if it has one. Errors: `InvalidRequest` that names the fields in conflict."""
    found = [*_of_response_format(wire.response_format), *_of_structured_outputs(wire.structured_outputs)]
    found += [
        Specification(kind, content, kind)
        for kind, content in (("json_schema", wire.json_schema), ("regex", wire.regex), ("choice", wire.choice))
        if content is not None
    ]
    if len(found) > 1:
        fields = " and ".join(each.where for each in found)
        raise InvalidRequest(f"{fields} exclude each other: an answer has one constraint", param=found[1].where)
    if found and wire.ignore_eos:
        raise InvalidRequest(f"ignore_eos: can't be had together with {found[0].where}", param="ignore_eos")
    return found[0] if found else None


def _of_response_format(form: ResponseFormat | None) -> list[Specification]:
    if form is None or form.type == "text":
        return []
    if form.type == "structural_tag":
        tag = {"structures": form.structures, "triggers": form.triggers}
        return [Specification("structural_tag", tag, "response_format")]
    if form.json_schema is None:
        return [Specification("json_object", None, "response_format")]
    asked = form.json_schema
    return [Specification("json_schema", asked.schema, "response_format.json_schema.schema", bool(asked.strict))]


def _of_structured_outputs(asked: StructuredOutputs | None) -> list[Specification]:
    if asked is None:
        return []
    at = "structured_outputs"
    schema, tag = _parsed(asked.json, f"{at}.json"), _parsed(asked.structural_tag, f"{at}.structural_tag")
    found = [
        Specification(kind, content, f"{at}.{name}")
        for kind, name, content in (
            ("json_schema", "json", schema),
            ("regex", "regex", asked.regex),
            ("choice", "choice", asked.choice),
            ("structural_tag", "structural_tag", tag),
        )
        if content is not None
    ]
    if asked.json_object:
        found.append(Specification("json_object", None, f"{at}.json_object"))
    if not found:
        raise InvalidRequest(f"{at}: must have one of json, json_object, regex, choice, structural_tag", param=at)
    return found


def _parsed(value: Any, place: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise InvalidRequest(f"{place}: isn't JSON: {error}", param=place) from error


# ------------------------------------------------------------------------------------------------------------ lowering


Key = tuple[str, bool, str]
"""Of a result: kind, strict, content as JSON."""


class Lowering:
    """Turns specifications into bytes, with a constraint component (None: there is none). Use it from any thread.

    The same specification is lowered once, however many ask for it at a time; results are kept while they're used.
    """

    def __init__(self, constraint: Constraint | None) -> None:
        self._constraint = constraint
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="forge-lower")
        self._lock = Lock()
        self._results: OrderedDict[Key, Future[bytes]] = OrderedDict()
        self._bytes = 0

    async def lower(self, spec: Specification | None) -> bytes | None:
        """The bytes for the engine; None for no constraint. Errors: `InvalidRequest` that names the field at fault."""
        if spec is None:
            return None
        return await self._checked(spec, asyncio.wrap_future(self._future(spec)))

    def lower_now(self, spec: Specification | None) -> bytes | None:
        """`lower` for callers that can wait."""
        if spec is None:
            return None
        try:
            return self._future(spec).result()
        except InvalidRequest as error:
            raise _placed(error, spec) from error

    async def _checked(self, spec: Specification, result: asyncio.Future[bytes]) -> bytes:
        try:
            return await asyncio.shield(result)  # others may be waiting for it too
        except InvalidRequest as error:
            raise _placed(error, spec) from error

    def _future(self, spec: Specification) -> Future[bytes]:
        if self._constraint is None:
            raise InvalidRequest(f"{spec.where}: this server was started without constraints", param=spec.where)
        # In order: that of properties means something.
        key = (spec.kind, spec.strict, json.dumps(spec.content, ensure_ascii=False))
        with self._lock:
            future = self._results.get(key)
            if future is not None:
                self._results.move_to_end(key)
                return future
            future = self._results[key] = self._threads.submit(
                self._constraint.lower, spec.kind, spec.content, strict=spec.strict
            )
        future.add_done_callback(lambda done: self._keep(key, done))
        return future

    def _keep(self, key: Key, done: Future[bytes]) -> None:
        """Account for a result, or forget a failure."""
        with self._lock:
            if done.cancelled() or done.exception() is not None:
                self._results.pop(key, None)
                return
            self._bytes += len(key[-1]) + len(done.result())
            while self._bytes > CACHE_BYTES and len(self._results) > 1:
                (*_, text), oldest = self._results.popitem(last=False)
                self._bytes -= len(text) + (len(oldest.result()) if oldest.done() else 0)


def _placed(error: InvalidRequest, spec: Specification) -> InvalidRequest:
    """The error with the request's field in front of the place within the specification."""
    pointer = error.param or ""
    steps = (part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:])
    inside = "".join(f".{step}" if re.fullmatch(r"\w+", step) else f"[{step!r}]" for step in steps)
    return InvalidRequest(f"{spec.where}: {error.message}", param=spec.where + inside)
