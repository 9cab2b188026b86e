"""Fixtures that several unit tests share: plugins made on the spot."""

from __future__ import annotations

import importlib
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

InstallPlugin = Callable[..., str]


@pytest.fixture
def install_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InstallPlugin]:
    """A function that installs a distribution with one plugin module, for this process and for child processes.

    It takes the distribution's name, the module's source, and by keyword the entry point's name, the version and other
    modules' sources. It returns the module's name.
    """
    site = tmp_path / "site-packages"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")])))
    before = set(sys.modules)

    def install(
        distribution: str, source: str, *, entry: str | None = None, version: str = "1.0", **modules: str
    ) -> str:
        module = f"{distribution.replace('-', '_').lower()}_plugin"
        for name, text in {module: source, **modules}.items():
            (site / f"{name}.py").write_text(textwrap.dedent(text))
        info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        entry = entry or distribution.lower().removeprefix("forge-")
        (info / "entry_points.txt").write_text(f"[forge]\n{entry} = {module}\n")
        importlib.invalidate_caches()
        return module

    yield install
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(site)):
            del sys.modules[name]
