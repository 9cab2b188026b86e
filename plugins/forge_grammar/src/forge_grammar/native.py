"""The compiled automata and matchers, where this installation has them.

A platform without a compiler gets the package without its extension: `extension()` is None then, and says so in the
log once. Results are the same, slowly.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib import import_module
from types import ModuleType

log = logging.getLogger(__name__)


@cache
def extension() -> ModuleType | None:
    """`forge_grammar._native`, or None where it wasn't built or can't be loaded (logged as a warning, once)."""
    try:
        return import_module("forge_grammar._native")
    except ImportError as error:
        log.warning("forge-grammar runs without its native part, many times slower: %s", error)
        return None
