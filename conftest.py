"""Fixtures for the tests of the core and of the plugins alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from forge import models, plugins


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The real model's GGUF file, through Forge's own source and cache: downloaded once, then kept (`FORGE_CACHE`)."""
    return models.resolve("smollm2", plugins.load())
