"""Jinja for chat templates, which come with model files and so are hostile: sandboxed, and bounded in time and memory.

For `forge.text.template`. Jinja's immutable sandbox keeps a template away from Python; this adds a budget to every
rendering, so that no template can hang the server or eat its memory:

- `MAX_STEPS` loop iterations, calls and filters;
- `MAX_VOLUME` characters and list entries that are put out, joined, repeated, converted or otherwise handled;
- numbers of at most `MAX_INT_BITS` bits, and paddings of at most `MAX_WIDTH`.

What would go beyond is refused before it's computed. Published templates stay far below all of these.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MAX_STEPS = 1_000_000
MAX_VOLUME = 64_000_000
MAX_INT_BITS = 4096
MAX_WIDTH = 10_000

BUDGET = "forge budget"
"""The budget's name among a rendering's variables; no template can spell it."""

SHALLOW_FILTERS = frozenset(
    ["abs", "attr", "batch", "count", "d", "default", "dictsort", "first", "float", "groupby", "int", "items", "last", "length", "list", "map", "max", "min", "random", "reject", "rejectattr", "reverse", "round", "select", "selectattr", "slice", "sort", "tojson", "unique"]
)
"""Filters that look at a container's entries but not into them, or (tojson) do their own accounting."""

WIDE = re.compile(r"\d{5}|\*|\{[^{}]*\{")
"""What a format has that pads to five digits of width, or to a width that is computed."""


class BudgetExceeded(TemplateError):
    """The template does more than any chat template needs to."""


class Budget:
    """What one rendering may still do."""

    def __init__(self) -> None:
        self.steps = MAX_STEPS
        self.volume = MAX_VOLUME

    @staticmethod
    def of(context: Context) -> Budget:
        """The budget of the rendering that this context belongs to."""
        budget = context.parent[BUDGET]
        assert isinstance(budget, Budget)
        return budget

    def step(self) -> None:
        """Account for one iteration, call or filter."""
        self.steps -= 1
        if self.steps < 0:
            raise BudgetExceeded(f"the chat template takes more than {MAX_STEPS} steps")

    def handle(self, amount: int) -> None:
        """Account for so many characters or entries."""
        self.volume -= amount
        if self.volume < 0:
            raise BudgetExceeded(f"the chat template handles more than {MAX_VOLUME} characters")

    def handle_deep(self, value: object) -> None:
        """Account for all that is in a value, however often: what its text or JSON form would be made of."""
        stack = [value]
        while stack:
            match stack.pop():
                case str() as text:
                    self.handle(len(text))
                case dict() as mapping:
                    self.handle(len(mapping))
                    stack.extend(mapping)
                    stack.extend(mapping.values())
                case list() | tuple() | set() | frozenset() as entries:
                    self.handle(len(entries))
                    stack.extend(entries)
                case Namespace():
                    raise BudgetExceeded("a chat template can't show a namespace")
                case _:
                    self.handle(1)

    def count(self, items: Iterable[Any], static: int) -> Iterator[Any]:
        """Pass a loop's items on. static: characters of fixed text in the loop's body."""
        for item in items:
            self.step()
            self.handle(static)
            yield item


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The environment that Hugging Face renders chat templates in, with a budget (see the module's text)."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols])
        del self.globals["lipsum"]
        self.globals["raise_exception"] = raise_exception
        self.globals["strftime_now"] = strftime_now
        self.filters["tojson"] = to_json
        self.filters = {name: metered(name, function) for name, function in self.filters.items()}
        self.filters["forge_count"] = count_items
        self.filters["forge_handle"] = handle_text
        self.finalize = finalize

    def compile_bounded(self, source: str) -> Any:
        """A template whose loops and concatenations account for themselves."""
        tree = self.parse(source)
        tree = Metering(static_text(tree)).visit(tree)
        tree.set_environment(self)
        return self.from_string(tree)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Also out of reach: methods of numbers and bytes, and those of strings that make bytes or use tables."""
        if isinstance(obj, (int, float, bytes)) or (isinstance(obj, str) and attr in ("encode", "translate")):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Every call that a template makes."""
        budget = Budget.of(__context)
        budget.step()
        if isinstance(__obj, LoopContext) and args:
            args = (budget.count(args[0], len(__context.parent[BUDGET_STATIC])), *args[1:])
        method = getattr(__obj, "__wrapped__", __obj)  # str.format is wrapped by the sandbox
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str):
            args = check_text_call(budget, method.__name__, owner, args, kwargs)
        result = super().call(__context, __obj, *args, **kwargs)
        if isinstance(result, str):
            budget.handle(len(result))
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The operators whose result can be much larger than their operands."""
        budget = Budget.of(context)
        match operator:
            case "+" | "*" if isinstance(left, int) and isinstance(right, int):
                check_bits(left.bit_length() + right.bit_length())
            case "+":
                budget.handle(size(left) + size(right))
            case "*":
                budget.handle(repeated(left, right) + repeated(right, left))
            case "**" if isinstance(left, int) and isinstance(right, int):
                check_bits(left.bit_length() * abs(right))
            case "%" if isinstance(left, str):
                check_format(left)
                budget.handle_deep(right)
        return super().call_binop(context, operator, left, right)
