"""The group of commands: looks for plugins' commands only when they are needed, and words errors."""

from __future__ import annotations

from functools import cached_property
from typing import IO, Any

import click

from forge.config import load_config
from forge.errors import ConfigError, ForgeError
from forge.plugins import load


class _Failure(click.ClickException):
    """A `ForgeError` on its way out."""

    def __init__(self, error: ForgeError) -> None:
        super().__init__(error.message)

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"forge: error: {self.message}", file=file, err=file is None)


class _Misconfigured(_Failure):
    exit_code = 2


class ForgeGroup(click.Group):
    """Forge's own commands come first: they work whatever a plugin does, and none of them can be replaced."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ForgeError as error:
            raise (_Misconfigured if isinstance(error, ConfigError) else _Failure)(error) from error

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, cmd_name) or self._from_plugins.get(cmd_name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*self.commands, *self._from_plugins})

    @cached_property
    def _from_plugins(self) -> dict[str, click.Command]:
        """What plugins that the default configuration file admits add. Each is asked alone; trouble is a warning."""
        try:
            config, _ = load_config()
            registry = load(config.plugins.allow, config.plugins.deny)
        except ForgeError as error:
            _warn(f"plugins' commands are missing: {error.message}")
            return {}
        found: dict[str, click.Command] = {}
        for plugin in registry.plugins:
            if plugin.hook is None:
                continue
            group = click.Group()
            try:
                plugin.hook.forge_commands(cli=group)
            except Exception as exc:  # whatever it is, it's not the user's command that failed
                _warn(f"{plugin} has a broken hook forge_commands: {type(exc).__name__}: {exc}")
                continue
            for name, command in group.commands.items():
                if name in self.commands or name in found:
                    _warn(f"{plugin} adds a command {name!r}, which is there already")
                else:
                    found[name] = command
        return found


def _warn(message: str) -> None:
    click.echo(f"forge: warning: {message}", err=True)
