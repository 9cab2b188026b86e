"""From parsed TOML, JSON or msgpack to attrs classes, strictly: for the configuration, options and HTTP requests.

Nothing is converted (``"80"`` is no port, ``true`` no number), nothing unknown is dropped, and what is wrong is said
with its place: ``$.server.port: expected an integer, got the text "80"``. Knows nothing of what the classes are for.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import attrs
from attrs import frozen
from cattrs import Converter
from cattrs.errors import (
    AttributeValidationNote,
    CattrsError,
    ClassValidationError,
    ForbiddenExtraKeysError,
    IterableValidationError,
    IterableValidationNote,
)
from cattrs.gen import make_dict_structure_fn

from forge.errors import ForgeError

T = TypeVar("T")
Keys = tuple[str | int, ...]
"""Keys and indices from the root to a value."""

REPORTED = 5
"""So many problems are spelt out in one error, and collected from one list: a hostile body has millions of them."""

SHOWN = 40
"""Longest text that a message quotes."""


@frozen
class Problem:
    """What is wrong with one value, and where it is."""

    path: Keys
    reason: str


class Malformed(Exception):
    """Data that doesn't fit its class; `problems` has at least one entry."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(f"{place(problem.path)}: {problem.reason}" for problem in problems))
        self.problems = tuple(problems)


def structure(data: Any, cls: type[T], *, error: type[ForgeError], root: str = "$", ignore_unknown: bool = False) -> T:
    """Make a `cls` of plain data, or raise `error`, which lists the first few problems.

    root: what the places in the message start with. The error's `param` is the first place without it
    (``messages[0].role``). ignore_unknown: skip keys that the classes don't have; `unknown_keys` lists them.
    """
    try:
        return parse(data, cls, ignore_unknown=ignore_unknown)
    except Malformed as malformed:
        raise error(report(malformed.problems, root), param=place(malformed.problems[0].path) or None) from None


def parse(data: Any, cls: type[T], *, ignore_unknown: bool = False) -> T:
    """Make a `cls` of plain data. Errors: `Malformed`, for callers that write their own message."""
    converter = _TOLERANT if ignore_unknown else _STRICT
    try:
        return converter.structure(data, cls)
    except _BAD_DATA as exc:
        raise Malformed(list(_problems(exc, ()))) from None


def report(problems: Sequence[Problem], root: str = "$") -> str:
    """The first few problems in one line."""
    lines = [f"{place(problem.path, root) or 'the whole'}: {problem.reason}" for problem in problems[:REPORTED]]
    if len(problems) > REPORTED:
        lines.append("and more")
    return "; ".join(lines)


def place(path: Keys, root: str = "") -> str:
    """A path as text: ``messages[0].role``."""
    text = root
    for key in path:
        if isinstance(key, str) and re.fullmatch(r"[\w-]{1,64}", key):
            text += f".{key}" if text else key
        else:
            text += f"[{_quote(key) if isinstance(key, str) else key}]"
    return text


def nearest(name: str, known: Iterable[str]) -> str:
    """How a message about an unknown name ends: the name that was probably meant, else all known ones."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.75) if len(name) <= 64 else []
    if close:
        return f"did you mean {_quote(close[0])}?"
    return f"known: {', '.join(names)}" if names else "there are none"


def unknown_keys(data: Any, cls: Any) -> list[str]:
    """The places of all keys in valid `data` that `cls` and the classes inside it don't have."""
    return [place(path) for path in _unknown(data, cls, ())]


def between(low: float, high: float) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    """An attrs validator: the value lies in [low, high]."""

    def validate(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not low <= value <= high:
            raise ValueError(f"'{attribute.name}' must be between {low} and {high}, got {value}")

    return validate


# -------------------------------------------------------------------------------------------------- words for a message


_NAMES: dict[Any, tuple[str, str]] = {
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    str: ("a text", "texts"),
    bool: ("true or false", "truth values"),
    type(None): ("null", "nulls"),
    Any: ("anything", "any values"),
}


def _describe(kind: Any, plural: bool = False) -> str:
    """What a message calls a type: ``a list of integers``."""
    if kind in _NAMES:
        return _NAMES[kind][plural]
    if _is_literal(kind):
        return _either([_show_scalar(value) for value in get_args(kind)])
    if _is_union(kind):
        return _either([_describe(arm, plural) for arm in get_args(kind) if arm is not type(None)])
    if _is_sequence(kind):
        items = get_args(kind)
        return ("lists" if plural else "a list") + (f" of {_describe(items[0], True)}" if items else "")
    if _is_mapping(kind) or attrs.has(kind):
        return "objects" if plural else "an object"
    return f"{getattr(kind, '__name__', kind)}"


def _either(names: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _quote(text: str) -> str:
    return json.dumps(text if len(text) <= SHOWN else text[:SHOWN] + "…", ensure_ascii=False)


def _show_scalar(value: Any) -> str:
    return _quote(value) if isinstance(value, str) else json.dumps(value)


def show(value: Any) -> str:
    """A value as a message shows it: scalars in full (texts cut short), the rest by kind."""
    if isinstance(value, str):
        return f"the text {_quote(value)}"
    if value is None or isinstance(value, bool | float):
        return json.dumps(value)
    if isinstance(value, int):  # beyond 4300 digits Python refuses to print it
        return str(value) if value.bit_length() <= 128 else "a huge integer"
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, list | tuple) else f"a {type(value).__name__}"


def _expected(kind: Any, value: Any) -> ValueError:
    return ValueError(f"expected {_describe(kind)}, got {show(value)}")


# ----------------------------------------------------------------------------------------------------- problems of data


_BAD_DATA = (ValueError, TypeError, CattrsError)
"""What structuring raises for wrong data; anything else is a bug and passes through."""

_COMPARISONS = {">=": "at least", "<=": "at most", ">": "greater than", "<": "less than"}


def _problems(exc: BaseException, path: Keys) -> Iterator[Problem]:
    """Flatten cattrs' tree of exceptions."""
    if isinstance(exc, ForbiddenExtraKeysError):
        known = [attribute.name for attribute in attrs.fields(exc.cl) if attribute.init]
        for key in sorted(map(str, exc.extra_fields))[: REPORTED + 1]:
            yield Problem((*path, key), f"unknown key, {nearest(key, known)}")
    elif isinstance(exc, ClassValidationError | IterableValidationError):
        for child in exc.exceptions:
            yield from _problems(child, path + _step(child, exc.cl))
    elif isinstance(exc, KeyError) and hasattr(exc, "__notes__"):  # cattrs' own: looking for a field
        yield Problem(path, "is missing")
    elif isinstance(exc, ValueError | TypeError):
        yield Problem(path, _reason(exc))
    else:
        raise exc


def _step(exc: BaseException, cls: type) -> Keys:
    """The key or index at which a child of a group of exceptions arose."""
    for note in getattr(exc, "__notes__", ()):
        if isinstance(note, AttributeValidationNote):
            return (note.name,)
        if isinstance(note, IterableValidationNote):
            return (note.index,)
    if isinstance(exc, ValueError | TypeError) and attrs.has(cls):  # a validator's, which names the field in its text
        named = re.match(r"(?:Length of )?'(\w+)' ", str(exc.args[0]) if exc.args else "")
        if named and named[1] in attrs.fields_dict(cls):
            return (named[1],)
    return ()


def _reason(exc: BaseException) -> str:
    """The text of our own errors, and that of attrs' validators without the name and without code."""
    text = str(exc.args[0]) if exc.args else type(exc).__name__
    text = re.sub(r"^Length of '\w+' must be", "must have a length of", re.sub(r"^'\w+' (?=must )", "", text))
    return re.sub(
        r"^(must be|must have a length of) (>=|<=|>|<) (.*): (.*)$",
        lambda match: f"{match[1]} {_COMPARISONS[match[2]]} {match[3]}, got {match[4]}",
        text,
    )


def _unknown(data: Any, kind: Any, path: Keys) -> Iterator[Keys]:
    if _is_union(kind):
        arms = [arm for arm in get_args(kind) if _admits(arm, data)]
        if len(arms) == 1:
            yield from _unknown(data, arms[0], path)
    elif isinstance(kind, type) and attrs.has(kind) and isinstance(data, Mapping):
        hints = _field_types(kind)
        for key, value in data.items():
            if key in hints:
                yield from _unknown(value, hints[key], (*path, key))
            else:
                yield (*path, key)
    elif (_is_sequence(kind) or _is_mapping(kind)) and get_args(kind) and isinstance(data, list | tuple | Mapping):
        inner = get_args(kind)[-1 if _is_mapping(kind) else 0]
        for key, value in _pairs(data):
            yield from _unknown(value, inner, (*path, key))


@lru_cache(maxsize=256)
def _field_types(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {attribute.name: hints.get(attribute.name, Any) for attribute in attrs.fields(cls) if attribute.init}


# ----------------------------------------------------------------------------------------------------------- converters


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


def _is_literal(kind: Any) -> bool:
    return get_origin(kind) is Literal


def _is_sequence(kind: Any) -> bool:
    origin = get_origin(kind) or kind
    if origin is tuple:
        return len(args := get_args(kind)) == 0 or (len(args) == 2 and args[1] is ...)
    return origin in (list, Sequence)


def _is_mapping(kind: Any) -> bool:
    return (get_origin(kind) or kind) in (dict, Mapping)


def _pairs(data: Any) -> Iterable[tuple[Any, Any]]:
    return data.items() if isinstance(data, Mapping) else enumerate(data)


def _scalar(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise _expected(kind, value)
    return value


def _number(value: Any, _: type) -> float:
    if type(value) not in (int, float):
        raise _expected(float, value)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError("expected a finite number")
    return number


def _literal(value: Any, kind: Any) -> Any:
    if not _admits(kind, value):
        raise _expected(kind, value)
    return value


def _admits(kind: Any, value: Any) -> bool:
    """Whether a value is of the right sort for one arm of a union, before looking inside it."""
    if _is_literal(kind):
        return any(type(value) is type(allowed) and value == allowed for allowed in get_args(kind))
    if kind is float:
        return type(value) in (int, float)
    if kind in _NAMES and kind is not Any:
        return type(value) is kind
    if _is_sequence(kind):
        return isinstance(value, list | tuple)
    if _is_mapping(kind) or attrs.has(kind):
        return isinstance(value, Mapping)
    return True


def _union_hook(union: Any, converter: Converter) -> Callable[[Any, Any], Any]:
    arms = [(arm, converter.get_structure_hook(arm)) for arm in get_args(union)]

    def hook(value: Any, _: Any) -> Any:
        fitting = [(arm, structure_arm) for arm, structure_arm in arms if _admits(arm, value)]
        if len(fitting) == 1:  # its own complaint is more precise than ours
            return fitting[0][1](value, fitting[0][0])
        for arm, structure_arm in fitting:
            try:
                return structure_arm(value, arm)
            except _BAD_DATA:
                continue
        raise _expected(union, value)

    return hook


def _container_hook(kind: Any, converter: Converter) -> Callable[[Any, Any], Any]:
    """Lists, tuples of one type, and mappings. Unlike cattrs' own it takes nothing else for one, and gives up early."""
    mapping = _is_mapping(kind)
    make = dict if mapping else tuple if (get_origin(kind) or kind) is tuple else list
    wanted = Mapping if mapping else (list, tuple)
    inner = (get_args(kind) or (Any, Any))[-1 if mapping else 0]
    structure_key = converter.get_structure_hook(get_args(kind)[0]) if mapping and get_args(kind) else None
    structure_item = converter.get_structure_hook(inner)

    def hook(data: Any, _: Any) -> Any:
        if not isinstance(data, wanted):
            raise _expected(kind, data)
        items: list[Any] = []
        errors: list[Exception] = []
        for key, value in _pairs(data):
            try:
                if structure_key is not None:
                    structure_key(key, get_args(kind)[0])
                items.append(structure_item(value, inner))
            except _BAD_DATA as exc:
                exc.add_note(IterableValidationNote("", key, inner))
                errors.append(exc)
                if len(errors) > REPORTED:
                    break
        if errors:
            raise IterableValidationError("", errors, kind)
        return dict(zip(data, items)) if mapping else make(items)

    return hook


def _class_hook(cls: Any, converter: Converter) -> Callable[[Any, Any], Any]:
    structure_fields = make_dict_structure_fn(cls, converter)

    def hook(data: Any, _: Any) -> Any:
        if not isinstance(data, Mapping):
            raise _expected(cls, data)
        return structure_fields(data, cls)

    return hook


def _converter(forbid_extra_keys: bool) -> Converter:
    converter = Converter(detailed_validation=True, forbid_extra_keys=forbid_extra_keys)
    for kind in (int, str, bool, type(None)):
        converter.register_structure_hook(kind, _scalar)
    converter.register_structure_hook(float, _number)
    converter.register_structure_hook_func(_is_literal, _literal)
    converter.register_structure_hook_factory(attrs.has, partial(_class_hook, converter=converter))
    for predicate in (_is_sequence, _is_mapping):
        converter.register_structure_hook_factory(predicate, partial(_container_hook, converter=converter))
    converter.register_structure_hook_factory(_is_union, partial(_union_hook, converter=converter))
    return converter


_STRICT = _converter(forbid_extra_keys=True)
_TOLERANT = _converter(forbid_extra_keys=False)
