"""The whole plugin contract: what a distribution may register, and when Forge calls it.

A plugin is a module named in the entry-point group ``forge`` whose functions carry ``@forge.hookimpl``::

    [project.entry-points.forge]
    metal = "forge_metal.plugin"

Component hooks take no argument and return a list of `Component`. They run when Forge starts, in the server and in
the engine process alike, so that module must import nothing heavy: a factory is a string, imported when it's chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pluggy
from attrs import field, frozen
from attrs.validators import deep_iterable, ge, instance_of, matches_re, optional

if TYPE_CHECKING:
    import click
    from quart import Quart

    from forge.engine.engine import Engine
    from forge.engine.supervisor import EngineClient

API_VERSION = 1
"""The version of this contract. A component that names another one is refused at load."""

hookspec = pluggy.HookspecMarker("forge")
hookimpl = pluggy.HookimplMarker("forge")


@frozen
class Probe:
    """Whether a component can run on this machine.

    ok: it can. score: the higher the better, for ``name = "auto"`` (10 torch, 50 native CPU, 100 GPU). detail: one
    line for `forge doctor`: what was found, or why it can't run.
    """

    ok: bool = field(validator=instance_of(bool))
    score: int = field(default=0, validator=[instance_of(int), ge(0)])
    detail: str = field(default="", validator=instance_of(str))


@frozen
class Component:
    """A named implementation of one kind.

    name: what a configuration calls it. factory: ``"package.module:Class"``; what it is called with is said by its
    kind's page in `forge.interfaces`. options: an attrs class for the table ``[<kind>.options]``, or None where there
    are none. probe: a module-level function of no arguments, run in a child process with a time limit. api: the
    contract it was written for. summary: one line for `forge plugins`.
    """

    name: str = field(validator=matches_re(r"[A-Za-z0-9][A-Za-z0-9_.-]*"))
    factory: str = field(validator=matches_re(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"))
    options: type | None = field(default=None, validator=optional(instance_of(type)))
    probe: Callable[[], Probe] | None = None
    api: int = field(default=API_VERSION, validator=instance_of(int))
    summary: str = field(default="", validator=instance_of(str))


components = deep_iterable(member_validator=instance_of(Component), iterable_validator=instance_of((list, tuple)))
"""An attrs validator for what a component hook returns."""


@hookspec
def forge_backends() -> list[Component]:
    """Backends: where tensors live and who multiplies them (`forge.interfaces.backend.Backend`)."""


@hookspec
def forge_models() -> list[Component]:
    """Model families, each named by the architecture it serves (`forge.interfaces.model.Model`)."""


@hookspec
def forge_kv_caches() -> list[Component]:
    """KV caches: which block holds which tokens (`forge.interfaces.kv_cache.KVCache`)."""


@hookspec
def forge_schedulers() -> list[Component]:
    """Schedulers: which tokens the next step computes (`forge.interfaces.scheduler.Scheduler`)."""


@hookspec
def forge_samplers() -> list[Component]:
    """Samplers: from logits to tokens (`forge.interfaces.sampler.Sampler`)."""


@hookspec
def forge_constraints() -> list[Component]:
    """Constraints: which tokens a grammar allows (`forge.interfaces.constraint.Constraint`)."""


@hookspec
def forge_drafters() -> list[Component]:
    """Drafters: guesses at the next tokens (`forge.interfaces.drafter.Drafter`)."""


@hookspec
def forge_loaders() -> list[Component]:
    """Loaders: readers of model files (`forge.interfaces.loader.Loader`)."""


@hookspec
def forge_model_sources() -> list[Component]:
    """Model sources: from a model's name to files on this disk (`forge.interfaces.model_source.ModelSource`)."""


@hookspec
def forge_commands(cli: click.Group) -> None:
    """Add subcommands to the `forge` command line."""


@hookspec
def forge_app_created(app: Quart, client: EngineClient) -> None:
    """The server's Quart app is ready but not yet serving: add routes or middleware (server process)."""


@hookspec
def forge_engine_started(engine: Engine) -> None:
    """The model is loaded and the engine is about to take its first request (engine process)."""


@hookspec
def forge_engine_stopped(engine: Engine) -> None:
    """The engine has finished its last step and frees its resources (engine process)."""
