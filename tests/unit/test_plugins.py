"""The plugin system, with plugins made on the spot: a broken one never stops the others and is named when asked for."""

from __future__ import annotations

import importlib
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forge import hookspecs, plugins
from forge.errors import ConfigError, PluginError
from forge.hookspecs import Probe

InstallPlugin = Callable[..., str]

METAL = """
    import forge

    @forge.hookimpl
    def forge_backends():
        return [forge.Component("metal", factory="metal_backend:Metal", summary="Apple GPUs")]
"""


def failure_of(registry: plugins.Registry, distribution: str) -> str:
    (plugin,) = [plugin for plugin in registry.plugins if plugin.distribution == distribution]
    assert plugin.failure is not None
    return plugin.failure


# ------------------------------------------------------------------------------------------------- finding and loading


def test_every_component_hook_has_a_kind() -> None:
    hooks = {
        name
        for name, value in vars(hookspecs).items()
        if name.startswith("forge_") and "Component" in str(value.__annotations__["return"])
    }
    assert hooks == set(plugins.KINDS.values())


def test_the_built_in_components_are_there_through_the_hooks() -> None:
    registry = plugins.load()
    assert registry.plugins[0].distribution == "forge"
    assert "torch" in registry.names("backend")
    assert registry.names("scheduler")[0] == "continuous"
    assert registry.names("sampler")[0] == "default"
    assert registry.names("loader")[:2] == ["gguf", "safetensors"]
    assert registry.names("model_source")[:3] == ["path", "pypi", "huggingface"]


def test_an_installed_plugin_is_found_with_its_component(install_plugin: InstallPlugin) -> None:
    module = install_plugin("forge-metal", METAL, version="2.5")
    registry = plugins.load()
    component = registry.component("backend", "metal")
    assert component.summary == "Apple GPUs"
    (plugin,) = [plugin for plugin in registry.plugins if plugin.distribution == "forge-metal"]
    assert (plugin.version, plugin.module, plugin.name, plugin.failure) == ("2.5", module, "metal", None)
    assert plugin.seconds > 0
    assert "metal" in registry.names("backend")


BROKEN = {
    "missing library": (
        "raise ImportError('libcuda.so.1 not found')",
        r"^could not be imported: libcuda\.so\.1 not found$",
    ),
    "missing module": ("import no_such_module", "^could not be imported: No module named 'no_such_module'$"),
    "syntax error": ("def (", "^could not be imported: SyntaxError: "),
    "exit at import": ("raise SystemExit(3)", "^could not be imported: SystemExit: 3$"),
    "a native panic": (
        "class PanicException(BaseException): pass\nraise PanicException('oh')",
        "^could not be imported: PanicException: oh$",
    ),
    "hook raises": (
        "import forge\n@forge.hookimpl\ndef forge_models():\n    raise RuntimeError('no')",
        "^has a broken hook forge_models: RuntimeError: no$",
    ),
    "hook exits": (
        "import forge\n@forge.hookimpl\ndef forge_models():\n    raise SystemExit",
        "^has a broken hook forge_models: SystemExit$",
    ),
    "hook returns a text": (
        "import forge\n@forge.hookimpl\ndef forge_models():\n    return 'llama'",
        "^has a broken hook forge_models: TypeError: ",
    ),
    "hook returns names": (
        "import forge\n@forge.hookimpl\ndef forge_models():\n    return ['llama']",
        "^has a broken hook forge_models: TypeError: ",
    ),
    "hook forgets to return": (
        "import forge\n@forge.hookimpl\ndef forge_models():\n    []",
        "^has a broken hook forge_models: TypeError: ",
    ),
    "factory without a class": (
        "import forge\n@forge.hookimpl\ndef forge_models():\n    return [forge.Component('x', factory='module')]",
        "^has a broken hook forge_models: ValueError: .*factory",
    ),
    "misspelt hook": (
        "import forge\n@forge.hookimpl\ndef forge_backend():\n    return []",
        '^implements an unknown hook forge_backend, did you mean "forge_backends"\\?$',
    ),
    "wrong argument": (
        "import forge\n@forge.hookimpl\ndef forge_commands(group):\n    pass",
        "^has a wrong hook: .*forge_commands.*group",
    ),
    "newer interface": (
        "import forge\n@forge.hookimpl\ndef forge_backends():\n"
        "    return [forge.Component('broken', factory='a:B', api=2)]",
        r"^is written for version 2 of the plugin interface, but Forge \S+ has version 1: upgrade Forge",
    ),
    "older interface": (
        "import forge\n@forge.hookimpl\ndef forge_backends():\n"
        "    return [forge.Component('broken', factory='a:B', api=0)]",
        "^is written for version 0 of .*: upgrade this plugin",
    ),
    "reserved name": (
        "import forge\n@forge.hookimpl\ndef forge_backends():\n    return [forge.Component('auto', factory='a:B')]",
        '^uses the reserved name "auto"',
    ),
    "its own duplicate": (
        "import forge\n@forge.hookimpl\ndef forge_backends():\n    return [forge.Component('x', factory='a:B')] * 2",
        "^offers two components of one kind and name",
    ),
    "options of no attrs class": (
        "import forge\n@forge.hookimpl\ndef forge_backends():\n"
        "    return [forge.Component('x', factory='a:B', options=dict)]",
        "^has options dict, which is no attrs class",
    ),
    "probe that no child could find": (
        "import forge\n@forge.hookimpl\ndef forge_backends():\n"
        "    return [forge.Component('x', factory='a:B', probe=lambda: forge.Probe(ok=True))]",
        "^has a probe that is no function at the top level of a module",
    ),
}


@pytest.mark.parametrize("flaw", BROKEN)
def test_a_broken_plugin_fails_alone_and_says_why_when_asked_for(install_plugin: InstallPlugin, flaw: str) -> None:
    source, reason = BROKEN[flaw]
    life = "\nimport forge\n@forge.hookimpl\ndef forge_engine_started(engine):\n    engine.append(__name__)\n"
    install_plugin("forge-broken", source + ("" if "(" in source[:5] else life))
    healthy = install_plugin("forge-metal", METAL.replace("\n    ", "\n") + life)
    registry = plugins.load()

    assert re.search(reason, failure_of(registry, "forge-broken"))
    assert registry.component("backend", "metal").name == "metal"
    with pytest.raises(PluginError, match=r"^backend 'broken': forge-broken ") as caught:
        registry.factory("backend", "broken")
    assert failure_of(registry, "forge-broken") in caught.value.message
    assert not {"broken", "x", "auto"} & set(registry.names("backend"))

    called: list[str] = []
    registry.notify("forge_engine_started", engine=called)
    assert called == [healthy]


def test_a_life_cycle_hook_that_raises_is_logged_and_the_others_are_called(
    install_plugin: InstallPlugin, caplog: pytest.LogCaptureFixture
) -> None:
    life = "import forge\n@forge.hookimpl\ndef forge_engine_stopped(engine):\n    {}\n"
    install_plugin("forge-first", life.format("raise RuntimeError('no goodbye')"))
    install_plugin("forge-second", life.format("engine.append(1)"))
    called: list[int] = []
    plugins.load().notify("forge_engine_stopped", engine=called)
    assert called == [1]
    assert "forge-first 1.0: its hook forge_engine_stopped failed" in caplog.text
    assert "no goodbye" in caplog.text


def test_interrupting_a_slow_import_interrupts(install_plugin: InstallPlugin) -> None:
    install_plugin("forge-slow", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        plugins.load()


def test_one_module_under_two_names_counts_once(install_plugin: InstallPlugin, tmp_path: Path) -> None:
    module = install_plugin("forge-metal", METAL)
    points = next((tmp_path / "site-packages").glob("*.dist-info")) / "entry_points.txt"
    points.write_text(f"[forge]\nfirst = {module}\nsecond = {module}\n")
    registry = plugins.load()
    assert registry.component("backend", "metal")
    (failed,) = registry.failures
    assert failed.name == "second"
    assert "another entry point has registered" in str(failed.failure)


# ------------------------------------------------------------------------------------------------------ asking by name


def test_two_distributions_with_one_name_are_both_named_and_nothing_else_suffers(install_plugin: InstallPlugin) -> None:
    install_plugin("forge-metal", METAL, version="1.1")
    install_plugin("other-metal", METAL, version="2.2")
    registry = plugins.load()
    with pytest.raises(PluginError, match=r"backend 'metal' is offered by forge-metal 1\.1 and other-metal 2\.2"):
        registry.component("backend", "metal")
    assert registry.names("backend").count("metal") == 1
    assert registry.component("backend", "torch").name == "torch"
    assert "other-metal 2.2" in registry.probe("backend", ["metal"])["metal"].detail
    alone = plugins.load(deny=["other-metal"])
    assert alone.component("backend", "metal").name == "metal"


def test_an_unknown_name_gets_the_nearest_one() -> None:
    registry = plugins.load()
    with pytest.raises(PluginError, match=r"""^there is no backend 'torhc', did you mean "torch"\?$"""):
        registry.component("backend", "torhc")
    with pytest.raises(PluginError, match=r"^there is no KV cache 'zzzz', "):
        registry.component("kv_cache", "zzzz")


def test_an_unknown_name_mentions_plugins_that_failed(install_plugin: InstallPlugin) -> None:
    install_plugin("acme-accelerators", "import no_such_module")
    with pytest.raises(PluginError, match="not loaded: acme-accelerators could not be imported: No module"):
        plugins.load().component("backend", "npu")


def test_a_factory_is_imported_when_it_is_asked_for_and_not_before(install_plugin: InstallPlugin) -> None:
    install_plugin("forge-metal", METAL, metal_backend="class Metal: pass")
    registry = plugins.load()
    assert "metal_backend" not in sys.modules
    assert registry.factory("backend", "metal").__name__ == "Metal"
    assert "metal_backend" in sys.modules


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        ("import no_such_module", "could not be imported: No module named 'no_such_module'"),
        ("raise SystemExit(1)", "could not be imported: SystemExit: 1"),
        ("class Meta: pass", "could not be imported: AttributeError: .*Metal"),
        ("Metal = 5", "can't be called"),
    ],
)
def test_a_broken_factory_names_component_distribution_and_cause(
    install_plugin: InstallPlugin, backend: str, reason: str
) -> None:
    install_plugin("forge-metal", METAL, metal_backend=backend)
    registry = plugins.load()
    with pytest.raises(PluginError, match=rf"^backend 'metal': metal_backend:Metal of forge-metal 1\.0 {reason}"):
        registry.factory("backend", "metal")


def test_options_are_structured_strictly_with_their_place(install_plugin: InstallPlugin) -> None:
    source = """
        import forge
        from attrs import field, frozen
        from attrs.validators import ge

        @frozen
        class Options:
            block_size: int = field(default=16, validator=ge(1))

        @forge.hookimpl
        def forge_kv_caches():
            return [
                forge.Component("blocky", factory="a:B", options=Options),
                forge.Component("plain", factory="a:B"),
            ]
    """
    install_plugin("forge-blocky", source)
    registry = plugins.load()
    assert registry.options("kv_cache", "blocky", {}).block_size == 16
    assert registry.options("kv_cache", "blocky", {"block_size": 8}).block_size == 8
    assert registry.options("kv_cache", "plain", {}) is None
    for name, table, message in (
        ("blocky", {"blok_size": 8}, 'kv_cache.options.blok_size: unknown key, did you mean "block_size"?'),
        ("blocky", {"block_size": "8"}, 'kv_cache.options.block_size: expected an integer, got the text "8"'),
        ("blocky", {"block_size": 0}, "kv_cache.options.block_size: must be at least 1, got 0"),
        ("plain", {"size": 1}, "kv_cache.options.size: KV cache 'plain' of forge-blocky 1.0 has no options"),
    ):
        with pytest.raises(ConfigError) as caught:
            registry.options("kv_cache", name, table)
        assert caught.value.message == message


# ------------------------------------------------------------------------------------------------------ allow and deny


def test_denied_plugins_are_not_even_imported(install_plugin: InstallPlugin, tmp_path: Path) -> None:
    module = install_plugin("Forge_Metal", METAL)
    registry = plugins.load(deny=["forge.METAL"])
    assert module not in sys.modules
    with pytest.raises(PluginError, match=r"^backend 'metal': forge-metal is denied by plugins\.deny$"):
        registry.component("backend", "metal")


def test_an_allow_list_admits_those_alone_and_always_forge_itself(install_plugin: InstallPlugin) -> None:
    install_plugin("forge-metal", METAL)
    other = install_plugin("forge-other", "")
    registry = plugins.load(allow=["FORGE-metal"])
    assert registry.component("backend", "metal")
    assert registry.component("backend", "torch")
    assert failure_of(registry, "forge-other") == "is not in plugins.allow"
    assert other not in sys.modules


def test_a_misspelt_allow_list_and_a_denied_core_are_errors(install_plugin: InstallPlugin) -> None:
    install_plugin("forge-metal", METAL)
    with pytest.raises(ConfigError, match=r'plugins\.allow: .*"forge-mettal" is installed, did you mean "forge-metal"'):
        plugins.load(allow=["forge-mettal"])
    with pytest.raises(ConfigError, match=r"plugins\.deny: Forge's own components"):
        plugins.load(deny=["Forge"])


def test_a_deny_list_may_name_what_is_not_installed_here_but_not_silently(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="forge.plugins"):
        plugins.load(deny=["forge-metall"])
    assert "'forge-metall'" in caplog.text


# ------------------------------------------------------------------------------------------------------------- probing


PROBES = """
    import os, pathlib, subprocess, sys, time
    import forge

    def good():
        print("a driver's greeting")
        os.system("echo and one from native code")
        return forge.Probe(ok=True, score=7, detail="fine")

    def unable():
        return forge.Probe(ok=False, detail="no device")

    def raises():
        raise OSError("libmetal not found")

    def exits():
        sys.exit(4)

    def leaves():
        print("driver says goodbye", flush=True)
        os._exit(3)

    def aborts():
        print("assertion failed in driver", flush=True)
        os.abort()

    def rubbish():
        return True

    def hangs():
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        pathlib.Path(os.environ["PROBE_PIDS"]).write_text(f"{os.getpid()} {child.pid}")
        time.sleep(600)

    @forge.hookimpl
    def forge_drafters():
        probes = (good, unable, raises, exits, leaves, aborts, rubbish, hangs)
        return [forge.Component(p.__name__, factory="a:B", probe=p) for p in probes] + [
            forge.Component("unasked", factory="a:B")
        ]
"""


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie that nobody reaps has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def test_whatever_a_probe_does_becomes_a_result(
    install_plugin: InstallPlugin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = tmp_path / "pids"
    monkeypatch.setenv("PROBE_PIDS", str(pids))
    install_plugin("forge-odd", PROBES)
    registry = plugins.load(allow=["forge-odd"])
    results = registry.probe("drafter", timeout=6.0)
    details = {name: result.detail for name, result in results.items() if not result.ok}
    assert results["good"] == Probe(ok=True, score=7, detail="fine")
    assert results["unasked"] == Probe(ok=True)
    assert details == {
        "unable": "no device",
        "raises": "its probe raised OSError: libmetal not found",
        "exits": "its probe raised SystemExit: 4",
        "leaves": "its probe ended with status 3 and no answer: driver says goodbye",
        "aborts": "its probe was killed by SIGABRT: assertion failed in driver",
        "rubbish": "its probe returned a bool, not a Probe",
        "hangs": "its probe gave no answer within 6 s",
    }
    deadline = time.monotonic() + 5
    while not all(gone(int(pid)) for pid in pids.read_text().split()):
        assert time.monotonic() < deadline, "a hanging probe or its child outlived the question"
        time.sleep(0.01)


def test_probes_run_at_the_same_time(install_plugin: InstallPlugin, tmp_path: Path) -> None:
    source = """
        import pathlib, time
        import forge

        HERE = pathlib.Path(__file__).parent

        def meet(own, other):
            (HERE / own).touch()
            while not (HERE / other).exists():
                time.sleep(0.01)
            return forge.Probe(ok=True)

        def first():
            return meet("a", "b")

        def second():
            return meet("b", "a")

        @forge.hookimpl
        def forge_drafters():
            return [forge.Component(p.__name__, factory="a:B", probe=p) for p in (first, second)]
    """
    install_plugin("forge-pair", source)
    results = plugins.load(allow=["forge-pair"]).probe("drafter")
    assert all(result.ok for result in results.values())


SCORED = """
    import forge

    def low(): return forge.Probe(ok=True, score=1)
    def high(): return forge.Probe(ok=True, score=9)
    def equal(): return forge.Probe(ok=True, score=9)
    def best_but_broken(): return forge.Probe(ok=False, score=99, detail="no device")

    @forge.hookimpl
    def forge_constraints():
        return [forge.Component(p.__name__, factory="a:B", probe=p) for p in (NAMES)]
"""


def test_auto_takes_the_best_that_can_run_and_the_earlier_of_equals(install_plugin: InstallPlugin) -> None:
    install_plugin("forge-scored", SCORED.replace("NAMES", "low, best_but_broken, high, equal"))
    assert plugins.load(allow=["forge-scored"]).choose("constraint") == "high"


def test_auto_without_anything_that_can_run_lists_each_reason(install_plugin: InstallPlugin) -> None:
    install_plugin("forge-scored", SCORED.replace("NAMES", "best_but_broken,"))
    install_plugin("forge-worse", "import no_such_module")
    registry = plugins.load(allow=["forge-scored", "forge-worse"])
    with pytest.raises(PluginError, match=r"^no constraint can run here: ") as caught:
        registry.choose("constraint")
    assert "best_but_broken: no device" in caught.value.message
    assert "forge-worse could not be imported: No module named 'no_such_module'" in caught.value.message


def test_a_probe_child_does_not_import_from_the_working_directory(
    install_plugin: InstallPlugin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    monkeypatch.chdir(tmp_path)
    install_plugin("forge-scored", SCORED.replace("NAMES", "low,"))
    assert plugins.load(allow=["forge-scored"]).probe("constraint")["low"].ok


def test_the_probe_of_the_torch_backend_does_not_import_torch() -> None:
    code = "import sys, forge.builtin as b; assert b.probe_torch().ok; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))


# --------------------------------------------------------------------------------------------------- the core's own


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_every_installed_factory_can_be_imported(kind: str) -> None:
    registry = plugins.load(allow=["forge"])
    made: dict[str, Any] = {name: registry.factory(kind, name) for name in registry.names(kind)}
    assert all(callable(factory) for factory in made.values())


def test_each_component_of_the_core_is_of_its_kind() -> None:
    registry = plugins.load(allow=["forge"])
    for kind, interface in (
        ("backend", "Backend"),
        ("scheduler", "Scheduler"),
        ("sampler", "Sampler"),
        ("loader", "Loader"),
        ("model_source", "ModelSource"),
    ):
        base = getattr(importlib.import_module(f"forge.interfaces.{kind}"), interface)
        for name in registry.names(kind):
            assert issubclass(registry.factory(kind, name), base)
