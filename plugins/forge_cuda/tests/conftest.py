"""Interpreting and compiling can't share a process: `interpreted` and `compiled` are collected only when asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent
APART = (HERE / "interpreted", HERE / "compiled")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave the two directories to the processes that name them (see the Makefile)."""
    if collection_path not in APART:
        return None
    named = [Path(config.invocation_params.dir, str(arg).split("::")[0]).resolve() for arg in config.args]
    return None if any(path == collection_path or collection_path in path.parents for path in named) else True
