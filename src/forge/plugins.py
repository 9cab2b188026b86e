"""Finds and loads plugins, and hands out their components by kind and name.

A broken plugin is kept as a failure and never stops the others: it raises when somebody asks for what it offers.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points, version
from typing import Any

import attrs
import pluggy
from attrs import field, frozen

from forge import hookspecs, probing
from forge.errors import ConfigError, PluginError
from forge.hookspecs import API_VERSION, Component, Probe
from forge.strict import nearest, structure

log = logging.getLogger(__name__)

GROUP = "forge"
"""The group of entry points. Each names a module with ``@forge.hookimpl`` functions."""

BUILTIN = "forge"
"""The distribution whose plugin is always loaded."""

RESERVED = ("auto", "none")
"""Names that no component may have: a configuration gives them a meaning of their own."""

PROBE_SECONDS = 20.0

KINDS: dict[str, str] = {
    "backend": "forge_backends",
    "model": "forge_models",
    "kv_cache": "forge_kv_caches",
    "scheduler": "forge_schedulers",
    "sampler": "forge_samplers",
    "constraint": "forge_constraints",
    "drafter": "forge_drafters",
    "loader": "forge_loaders",
    "model_source": "forge_model_sources",
}
"""Each kind of component and the hook that offers it."""

_NOUNS = {"model": "model family", "kv_cache": "KV cache", "model_source": "model source"}


@frozen
class LoadedPlugin:
    """One entry point of one distribution, loaded or failed.

    name: of the entry point. components: by kind; those of a failed plugin are known as far as it got. hook: its own
    hooks alone. seconds: what importing it took. failure: why none of it can be used; None: all is well.
    """

    name: str
    distribution: str
    version: str
    module: str
    components: Mapping[str, tuple[Component, ...]] = field(factory=dict)
    hook: pluggy.HookRelay | None = None
    seconds: float = 0.0
    failure: str | None = None

    def offers(self, kind: str, name: str) -> bool:
        """Whether a component of that kind and name is this plugin's."""
        return any(component.name == name for component in self.components.get(kind, ()))

    def may_offer(self, kind: str, name: str) -> bool:
        """Whether it does, or, for one that failed, whether its own names say that it would."""
        names = {self.name, self.distribution, self.distribution.removeprefix("forge-")}
        return self.offers(kind, name) or (self.failure is not None and (name in names or _canonical(name) in names))

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


def load(allow: Sequence[str] | None = None, deny: Sequence[str] = ()) -> Registry:
    """Load every installed plugin of the distributions in `allow` (None: all) that aren't in `deny`.

    Names are compared as package installers do: case, ``-``, ``_`` and ``.`` don't matter. Forge's own components
    are always there. Errors: `ConfigError` for an allowed distribution that has no plugin here, or if Forge is denied.
    """
    found = sorted(entry_points(group=GROUP), key=_rank)
    known = {_distribution(entry) for entry in found}
    allowed = None if allow is None else {_canonical(name): name for name in allow}
    denied = {_canonical(name): name for name in deny}
    for name in (allowed or {}).keys() - known:
        raise ConfigError(
            f'plugins.allow: no plugin of a distribution "{(allowed or {})[name]}" is installed, {nearest(name, known)}'
        )
    if BUILTIN in denied:
        raise ConfigError(f"plugins.deny: Forge's own components ({BUILTIN}) can't be denied")
    for name in denied.keys() - known:
        log.warning("plugins.deny: no plugin of a distribution %r is installed", denied[name])

    manager = _manager()
    plugins = []
    for entry in found:
        distribution = _distribution(entry)
        if distribution in denied:
            plugins.append(_described(entry, failure="is denied by plugins.deny"))
        elif allowed is not None and distribution not in allowed and distribution != BUILTIN:
            plugins.append(_described(entry, failure="is not in plugins.allow"))
        else:
            plugins.append(_load(entry, manager))
    return Registry(plugins)


class Registry:
    """What is installed: `plugins`, in a stable order, Forge's own first."""

    def __init__(self, plugins: Sequence[LoadedPlugin]) -> None:
        self.plugins = tuple(plugins)

    @property
    def failures(self) -> tuple[LoadedPlugin, ...]:
        """Plugins that can't be used."""
        return tuple(plugin for plugin in self.plugins if plugin.failure is not None)

    def names(self, kind: str) -> list[str]:
        """The names of all components of a kind that can be asked for, Forge's own first."""
        return list(
            dict.fromkeys(
                component.name
                for plugin in self.plugins
                if plugin.failure is None
                for component in plugin.components.get(kind, ())
            )
        )

    def component(self, kind: str, name: str) -> Component:
        """Errors: `PluginError` for an unknown name (with the nearest one), for one that two distributions claim, and
        for one whose plugin failed (with the reason).
        """
        return self._find(kind, name)[1]

    def factory(self, kind: str, name: str) -> Callable[..., Any]:
        """Import what makes the component. Errors: `PluginError` with component, distribution and cause."""
        plugin, component = self._find(kind, name)
        module, _, attribute = component.factory.partition(":")
        try:
            factory = getattr(import_module(module), attribute)
        except KeyboardInterrupt:
            raise
        except BaseException as exc:  # an extension's panic is no Exception, and the caller wants to know whose it is
            raise PluginError(
                f"{_title(kind, name)}: {component.factory} of {plugin} could not be imported: {_cause(exc)}"
            ) from exc
        if not callable(factory):
            raise PluginError(f"{_title(kind, name)}: {component.factory} of {plugin} can't be called")
        made: Callable[..., Any] = factory
        return made

    def options(self, kind: str, name: str, table: Mapping[str, Any]) -> Any | None:
        """The component's options from its table ``[<kind>.options]``; None for a component that has none.

        Errors: `ConfigError` with the place (``kv_cache.options.block_size``) and the nearest name.
        """
        plugin, component = self._find(kind, name)
        if component.options is None:
            if table:
                key = min(table)
                raise ConfigError(f"{kind}.options.{key}: {_title(kind, name)} of {plugin} has no options", param=key)
            return None
        return structure(dict(table), component.options, error=ConfigError, root=f"{kind}.options")

    def notify(self, hook: str, **arguments: Any) -> None:
        """Call a life-cycle hook of every plugin that has it; one that raises is logged and the others go on."""
        for plugin in self.plugins:
            if plugin.hook is not None:
                try:
                    getattr(plugin.hook, hook)(**arguments)
                except Exception:
                    log.exception("%s: its hook %s failed", plugin, hook)

    def probe(self, kind: str, names: Sequence[str] | None = None, timeout: float = PROBE_SECONDS) -> dict[str, Probe]:
        """Whether the components of a kind (None: all) can run here, each asked in a process of its own.

        timeout: seconds, for all of them. A component without a probe can always run, with score 0.
        """
        results: dict[str, Probe] = {}
        pending: dict[str, Callable[[], Probe]] = {}
        for name in self.names(kind) if names is None else names:
            try:
                probe = self.component(kind, name).probe
            except PluginError as error:
                results[name] = Probe(ok=False, detail=error.message)
                continue
            if probe is None:
                results[name] = Probe(ok=True)
            else:
                results[name] = Probe(ok=False)  # keeps the order
                pending[name] = probe
        return results | probing.run(pending, timeout)

    def choose(self, kind: str, timeout: float = PROBE_SECONDS) -> str:
        """The name of the best component that can run here, the earlier one of equals.

        Errors: `PluginError` with each one's reason if none can.
        """
        results = self.probe(kind, timeout=timeout)
        return best(kind, results, self.failures)

    def _find(self, kind: str, name: str) -> tuple[LoadedPlugin, Component]:
        found = [
            (plugin, component)
            for plugin in self.plugins
            if plugin.failure is None
            for component in plugin.components.get(kind, ())
            if component.name == name
        ]
        if len(found) == 1:
            return found[0]
        if found:
            owners = " and ".join(str(plugin) for plugin, _ in found)
            raise PluginError(f"{_title(kind, name)} is offered by {owners}: uninstall one, or list it in plugins.deny")
        failed = [plugin for plugin in self.failures if plugin.may_offer(kind, name)]
        if failed:
            reasons = "; ".join(f"{plugin.distribution} {plugin.failure}" for plugin in failed)
            raise PluginError(f"{_title(kind, name)}: {reasons}")
        message = f"there is no {_title(kind, name)}, {nearest(name, self.names(kind))}"
        if self.failures:
            message += "; not loaded: " + ", ".join(f"{one.distribution} {one.failure}" for one in self.failures)
        raise PluginError(message)


def best(kind: str, results: Mapping[str, Probe], failures: Sequence[LoadedPlugin] = ()) -> str:
    """What ``name = "auto"`` means, given the probes' results. Errors: `PluginError` if none is ok."""
    able = [name for name, result in results.items() if result.ok]
    if able:
        return max(able, key=lambda name: results[name].score)
    reasons = [f"{name}: {result.detail}" for name, result in results.items()]
    reasons += [f"{plugin.distribution} {plugin.failure}" for plugin in failures]
    raise PluginError(f"no {_noun(kind)} can run here: {'; '.join(reasons) or 'none is installed'}")


# -------------------------------------------------------------------------------------------------------- loading one


@frozen
class _Offer:
    """What a component hook returned, checked."""

    components: Any = field(validator=hookspecs.components)


def _manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    return manager


def _load(entry: EntryPoint, everyone: pluggy.PluginManager) -> LoadedPlugin:
    """Import one plugin and try it out on a manager of its own; only one that is sound joins the others."""
    started = time.perf_counter()
    try:
        module = entry.load()
    except KeyboardInterrupt:
        raise
    except BaseException as exc:  # sys.exit() in somebody's module, or an extension's panic, mustn't end Forge
        seconds = time.perf_counter() - started
        return _described(entry, seconds=seconds, failure=f"could not be imported: {_cause(exc)}")
    plugin = partial(_described, entry, seconds=time.perf_counter() - started)
    alone = _manager()
    try:
        alone.register(module, name=entry.name)
        alone.check_pending()
    except (pluggy.PluginValidationError, ValueError) as exc:
        return plugin(failure=_bad_hook(module, str(exc)))
    components: dict[str, tuple[Component, ...]] = {}
    for kind, hook in KINDS.items():
        try:
            returned = [_Offer(offered).components for offered in _call(getattr(alone.hook, hook))]
        except KeyboardInterrupt:
            raise
        except BaseException as exc:  # as above
            return plugin(components=components, failure=f"has a broken hook {hook}: {_cause(exc)}")
        components[kind] = tuple(component for offered in returned for component in offered)
    for kind, offered in components.items():
        for component in offered:
            if flaw := _flaw(kind, component, [other.name for other in offered]):
                return plugin(components=components, failure=f"{flaw} ({_title(kind, component.name)})")
    try:
        everyone.register(module, name=f"{_distribution(entry)}:{entry.name}")
    except ValueError:
        return plugin(failure=f"names the module {entry.value}, which another entry point has registered already")
    return plugin(components=components, hook=alone.hook)


def _call(hook: pluggy.HookCaller) -> list[Any]:
    """A component hook's results. pluggy drops None, which is what a forgotten ``return`` gives."""
    results: list[Any] = hook()
    implementations = [each for each in hook.get_hookimpls() if not (each.wrapper or each.hookwrapper)]
    return results if len(results) == len(implementations) else [None]


def _flaw(kind: str, component: Component, names: Sequence[str]) -> str | None:
    """What the classes in `forge.hookspecs` can't check by themselves."""
    if component.api != API_VERSION:
        older = "this plugin" if component.api < API_VERSION else "Forge"
        return (
            f"is written for version {component.api} of the plugin interface, but Forge {version(BUILTIN)} has version "
            f"{API_VERSION}: upgrade {older}"
        )
    if component.name in RESERVED:
        return f'uses the reserved name "{component.name}"'
    if names.count(component.name) > 1:
        return "offers two components of one kind and name"
    if component.options is not None and not attrs.has(component.options):
        return f"has options {component.options.__name__}, which is no attrs class"
    if component.probe is not None and not re.fullmatch(r"[\w.]+", getattr(component.probe, "__qualname__", "")):
        return "has a probe that is no function at the top level of a module, as its own process needs"
    return None


def _bad_hook(module: Any, complaint: str) -> str:
    """A misspelt hook or argument, with the name that was probably meant."""
    known = [name for name in vars(hookspecs) if name.startswith("forge_")]
    unknown = re.search(r"unknown hook '(\w+)'", complaint)
    if unknown:
        return f"implements an unknown hook {unknown[1]}, {nearest(unknown[1], known)}"
    return f"has a wrong hook: {' '.join(complaint.split())}"


def _described(entry: EntryPoint, **rest: Any) -> LoadedPlugin:
    return LoadedPlugin(
        name=entry.name,
        distribution=_distribution(entry),
        version=entry.dist.version if entry.dist else "?",
        module=entry.value,
        **rest,
    )


def _distribution(entry: EntryPoint) -> str:
    return _canonical(entry.dist.name) if entry.dist else "?"


def _rank(entry: EntryPoint) -> tuple[bool, str, str]:
    distribution = _distribution(entry)
    return distribution != BUILTIN, distribution, entry.name


def _canonical(name: str) -> str:
    # https://packaging.python.org/en/latest/specifications/name-normalization/
    return re.sub(r"[-_.]+", "-", name).lower()


def _noun(kind: str) -> str:
    return _NOUNS.get(kind, kind)


def _title(kind: str, name: str) -> str:
    return f"{_noun(kind)} '{name}'"


def _cause(exc: BaseException) -> str:
    """An exception in one line; what an import couldn't find speaks for itself."""
    text = " ".join(str(exc).split())
    if isinstance(exc, ImportError) and text:
        return text
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__
