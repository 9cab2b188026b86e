"""Jinja for chat templates, which come with model files and so are hostile: sandboxed, and bounded in time and memory.

For `forge.text.template`. Jinja's immutable sandbox keeps a template away from Python. On top of it, each rendering has
a `Budget`, so that no template can hang the server or eat its memory:

- 500,000 loop iterations, calls and filters;
- 64,000,000 characters put out, joined, repeated, converted or otherwise handled; an entry of a list or a mapping
  that is turned into text counts for 64 more;
- numbers of at most 4,096 bits, paddings of at most 10,000 characters, and (Jinja's own) ranges of at most 100,000.

What would go beyond is refused before it's computed. Published templates stay far below all of these.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Environment, Template, TemplateError, nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from forge.text.budget import ENTRY, Budget, check_format, check_width, size

_BUDGET = "forge budget"
"""The budget's name among a rendering's variables; no template can spell it."""

_CONSTANT = frozenset({"attr", "count", "d", "default", "first", "last", "length"})
"""Filters that take no longer for a longer value."""

_SHALLOW = frozenset({
    "abs", "batch", "dictsort", "float", "groupby", "int", "items", "list", "map", "max", "min", "random", "reject",
    "rejectattr", "reverse", "round", "select", "selectattr", "slice", "sort", "tojson", "unique",
})  # fmt: skip
"""Filters that look at a container's entries but not into them. The others make text of all that is in there."""

_COMPARING = frozenset({
    "==", "eq", "equalto", "!=", "ne", ">", "gt", "greaterthan", ">=", "ge", "<", "lt", "lessthan", "<=", "le", "in",
    "lower", "upper",
})  # fmt: skip
"""Tests that look at all of a value."""

_PADDING = frozenset({"batch", "center", "indent", "slice", "tojson"})
"""Filters with a number that their result grows with."""


class GenerationTag(Extension):
    """``{% generation %}`` marks what the assistant said, for training. Here it only delimits."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        """Keep what the tag encloses, in a scope of its own as Hugging Face's library has it."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """The environment that Hugging Face renders chat templates in, metered."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols], finalize=put_out
        )
        del self.globals["lipsum"]
        self.globals["raise_exception"] = raise_exception
        self.globals["strftime_now"] = strftime_now
        self.filters["tojson"] = to_json
        self.filters = {name: metered(name, function) for name, function in self.filters.items()}
        self.filters["forge_count"] = count_items
        self.filters["forge_handle"] = put_out
        self.filters["forge_size"] = look_at

    def compile_metered(self, source: str) -> MeteredTemplate:
        """Compile, so that loops and concatenations account for what they do. Errors: whatever Jinja raises."""
        tree = self.parse(source)
        add_meters(tree)
        tree.set_environment(self)
        return MeteredTemplate(self.from_string(tree), static_text(tree))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Also out of reach: methods of numbers and bytes, and those of strings that make bytes or take tables."""
        if isinstance(obj, (int, float, bytes)) or (isinstance(obj, str) and attr in ("encode", "translate")):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Every call that a template makes."""
        budget = budget_of(context)
        budget.step()
        if isinstance(obj, LoopContext) and args:
            args = (budget.count(args[0], budget.static), *args[1:])
        method = getattr(obj, "__wrapped__", obj)  # the sandbox wraps str.format
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str):
            args = budget.before_method(owner, method.__name__, args, kwargs)
        result = super().call(context, obj, *args, **kwargs)
        if isinstance(result, str):
            budget.handle(len(result))
        elif isinstance(result, list):  # what split() makes
            budget.handle(len(result) * ENTRY)
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The operators whose result can be much larger than what they work on."""
        budget_of(context).before_operator(operator, left, right)
        return super().call_binop(context, operator, left, right)


class MeteredTemplate:
    """A compiled template; every rendering has a fresh budget."""

    def __init__(self, template: Template, static: int) -> None:
        self._template = template
        self._static = static

    def render(self, variables: dict[str, Any]) -> str:
        """The text. Errors: whatever the template's code raises, `BudgetExceeded` among it."""
        return self._template.render({**variables, _BUDGET: Budget(self._static)})


def add_meters(tree: nodes.Template) -> None:
    """Put accounting filters around what loops iterate over, what is compared, what is cut into slices, and around the
    operands of ``~``, which become text.
    """
    for loop in list(tree.find_all(nodes.For)):
        static = sum(static_text(child) for child in loop.body)
        loop.iter = wrap(loop.iter, "forge_count", nodes.Const(static))
    for concatenation in list(tree.find_all(nodes.Concat)):
        concatenation.nodes = [wrap(operand, "forge_handle") for operand in concatenation.nodes]
    for comparison in list(tree.find_all(nodes.Compare)):
        comparison.expr = wrap(comparison.expr, "forge_handle")
        for operand in comparison.ops:
            operand.expr = wrap(operand.expr, "forge_handle")
    for test in list(tree.find_all(nodes.Test)):
        if test.name in _COMPARING:
            test.node = wrap(test.node, "forge_handle")
            test.args = [wrap(argument, "forge_handle") for argument in test.args]
    for item in list(tree.find_all(nodes.Getitem)):
        if isinstance(item.arg, nodes.Slice):
            item.node = wrap(item.node, "forge_size")


def wrap(node: nodes.Node, name: str, *args: nodes.Expr) -> nodes.Filter:
    """``node | name(args)``."""
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


def static_text(node: nodes.Node) -> int:
    """Characters of fixed text in a piece of template."""
    own = len(node.data) if isinstance(node, nodes.TemplateData) else 0
    return own + sum(len(data.data) for data in node.find_all(nodes.TemplateData))


def budget_of(context: Context) -> Budget:
    """The budget of the rendering that a context belongs to; the template's own variables can't hide it."""
    budget = context.parent[_BUDGET]
    assert isinstance(budget, Budget)
    return budget


@pass_context
def count_items(context: Context, items: Iterable[Any], static: int) -> Iterator[Any]:
    """A loop's items, accounted for one by one."""
    return budget_of(context).count(items, static)


@pass_context
def put_out(context: Context, value: Any) -> Any:
    """Account for a value that is about to become text."""
    budget_of(context).handle_deep(value)
    return value


@pass_context
def look_at(context: Context, value: Any) -> Any:
    """Account for a value whose entries or characters are about to be copied."""
    budget_of(context).handle(size(value))
    return value


def metered(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that accounts for its work first."""
    passed = getattr(getattr(function, "jinja_pass_arg", None), "name", None)

    @pass_context
    def run(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        budget = budget_of(context)
        budget.step()
        value = before_filter(budget, name, value, args, kwargs)
        first = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}
        result = function(*([first[passed]] if passed else []), value, *args, **kwargs)
        if isinstance(result, str):
            budget.handle(len(result))
        return result

    return run


def before_filter(budget: Budget, name: str, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Account for a filter; returns the value to call it with."""
    numbers = [number for number in (*args, *kwargs.values()) if isinstance(number, int)]
    if name in _PADDING:
        check_width(*numbers)
    if name in _CONSTANT:
        return value
    if name in _SHALLOW:
        budget.handle(size(value))
        return value
    if name == "join":
        separator = args[0] if args else kwargs.get("d", "")
        return budget.before_join(value, str(separator))
    budget.handle_deep(value)
    text = str(value) if name in ("format", "indent", "replace") else ""
    match name:
        case "format":
            check_format(text)
            budget.handle_deep((args, kwargs))
        case "indent":
            width = next((len(other) for other in (*args, *kwargs.values()) if isinstance(other, str)), 0)
            budget.handle((text.count("\n") + 1) * max([width, 4, *numbers]))
        case "replace":
            old, new = (*args, *(kwargs.get(key, "") for key in ("old", "new")))[:2]
            budget.before_replace(text, old, new)
    return value


def raise_exception(message: object) -> NoReturn:
    """For templates: refuse the messages."""
    raise TemplateError(str(message))


def strftime_now(pattern: str) -> str:
    """For templates: today's date, or the like."""
    return datetime.now().strftime(pattern)


@pass_context
def to_json(
    context: Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """For templates: JSON as it is, where Jinja's own filter would escape it for HTML."""
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    budget = budget_of(context)
    pieces = []
    for piece in encoder.iterencode(value):
        budget.handle(len(piece) + ENTRY)
        pieces.append(piece)
    return "".join(pieces)
